//! `rackstick lock RECIPE [--update] [--mirror URL]`: writes the rack's lock, resolved against the archives as they are
//! now.

use std::path::{Path, PathBuf};

use rackstick_image::{lock::Lock, recipe};

use crate::{lock, progress::Progress, report, sets};

/// Resolve a recipe's packages and pin them in `<recipe>.lock`
#[derive(clap::Args)]
pub struct Args {
    /// The rack recipe
    recipe: PathBuf,
    /// Renew a lock that still fits its recipe, too
    #[arg(long)]
    update: bool,
    /// Root of a Debian archive, like http://HOST/debian, in place of those of this machine's apt; may be repeated.
    /// Security updates come from `debian-security` beside it, unless that is given too
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
}

/// Writes the lock if there is none, if it no longer fits, or if asked to.
pub fn run(args: Args) -> Result<(), report::Error> {
    let rack = recipe::load(&args.recipe)?;
    // A lock that can't be read may be replaced, but only when asked to.
    let previous = match lock::read(&args.recipe) {
        Err(lock::LockError::Invalid(_)) if args.update => None,
        other => other?,
    };
    let path = lock::path(&args.recipe);
    if let Some(previous) = &previous
        && !args.update
    {
        let differences = lock::differences(&rack, previous)?;
        if differences.is_empty() {
            println!("{} fits its recipe and was left as it is; --update renews it", path.display());
            return Ok(());
        }
        for line in differences {
            println!("{line}");
        }
        if sets::differences(&rack, previous).is_empty() {
            let lock = lock::renew_inputs(&args.recipe, &rack, previous)?;
            println!("{}; the packages are as before, --update renews them", summary(&path, &lock));
            return Ok(());
        }
    }
    let lock = lock::renew(&args.recipe, &rack, previous.as_ref(), &args.mirror, &Progress::stderr())?;
    for line in changes(previous.as_ref(), &lock) {
        println!("{line}");
    }
    println!("{}", summary(&path, &lock));
    Ok(())
}

/// How the packages changed, one line each; nothing for a first lock.
fn changes(previous: Option<&Lock>, lock: &Lock) -> Vec<String> {
    let Some(previous) = previous else { return Vec::new() };
    let mut lines = Vec::new();
    for (name, package) in &lock.packages {
        match previous.packages.get(name) {
            None => lines.push(format!("+ {name} {}", package.version)),
            Some(old) if old.version != package.version => {
                lines.push(format!("  {name} {} -> {}", old.version, package.version));
            }
            Some(_) => {}
        }
    }
    let gone = previous.packages.iter().filter(|(name, _)| !lock.packages.contains_key(*name));
    lines.extend(gone.map(|(name, package)| format!("- {name} {}", package.version)));
    lines
}

fn summary(path: &Path, lock: &Lock) -> String {
    let bytes: u64 = lock.packages.values().map(|package| package.size).sum();
    let inputs = match lock.inputs.len() {
        0 => String::new(),
        count => format!(", images not made of packages: {count}"),
    };
    format!("{}: {} packages, {} MiB{inputs}", path.display(), lock.packages.len(), bytes >> 20)
}
