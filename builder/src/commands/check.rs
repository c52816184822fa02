//! `rackstick check RECIPE`: says whether a recipe is right, and whether its lock still fits it. Touches no network.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use rackstick_image::{
    manifest::{Address, Nic},
    recipe::{self, Network, Rack},
};

use crate::{lock, lock::LockError, report};

/// Check a rack recipe, the image recipes it names, and whether its lock still fits
#[derive(clap::Args)]
pub struct Args {
    /// The rack recipe
    recipe: PathBuf,
}

/// Checks the recipe, then the lock.
pub fn run(args: Args) -> Result<(), report::Error> {
    let rack = recipe::load(&args.recipe)?;
    report::warn(&rack.warnings);
    let lock = lock_state(&args.recipe, &rack)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}: rack {} {} is fine", args.recipe.display(), rack.name, rack.version)?;
    writeln!(out, "  guests:   {}", listed(&guests(&rack)))?;
    writeln!(out, "  networks: {}", listed(&networks(&rack)))?;
    writeln!(out, "  lock:     {lock}")?;
    Ok(())
}

/// What is to be said about a lock that fits or is not there; one that does not fit is an error.
fn lock_state(recipe: &Path, rack: &Rack) -> Result<String, LockError> {
    let path = lock::path(recipe);
    let Some(lock) = lock::read(recipe)? else {
        return Ok(format!("none yet; `rackstick lock {}` writes it", recipe.display()));
    };
    let differences = lock::differences(rack, &lock)?;
    if !differences.is_empty() {
        return Err(LockError::Unfit { path, recipe: recipe.to_owned(), differences });
    }
    Ok(format!("{} fits, {} packages", path.display(), lock.packages.len()))
}

fn guests(rack: &Rack) -> Vec<String> {
    let guests = rack.guests.iter().map(|(name, guest)| {
        let addresses: Vec<String> =
            guest.addresses.iter().map(|(network, at)| address(rack, name, network, at)).collect();
        let memory = format!("{} MiB", guest.memory_mib);
        format!("{name} ({})", [addresses, vec![memory]].concat().join(", "))
    });
    guests.collect()
}

/// A guest's address on a network; on a LAN with the MAC address by which its DHCP server knows the guest.
fn address(rack: &Rack, guest: &str, network: &str, address: &Address) -> String {
    let known = match address.known() {
        Some(address) => address.to_string(),
        None => format!("DHCP on {network}"),
    };
    match rack.networks.get(network) {
        Some(Network::Uplink { .. }) => format!("{known}, MAC {}", recipe::mac(&rack.name, guest, network)),
        _ => known,
    }
}

fn networks(rack: &Rack) -> Vec<String> {
    let networks = rack.networks.iter().map(|(name, network)| match network {
        Network::Uplink { nic: Nic::Auto, .. } => format!("{name} (uplink auto)"),
        Network::Uplink { nic: Nic::Mac(nic) | Nic::Name(nic), .. } => format!("{name} (uplink {nic})"),
        Network::Private { subnet, .. } => format!("{name} ({subnet})"),
    });
    networks.collect()
}

fn listed(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}
