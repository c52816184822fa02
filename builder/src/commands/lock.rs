//! `rackstick lock RECIPE [--update [PACKAGE…]]`: writes the rack's lock, resolved against the archives as they are now.

use std::{fmt, path::PathBuf};

use rackstick_image::{lock::Lock, recipe};
use serde::Serialize;

use super::MirrorArgs;
use crate::{
    archive::{Also, Updated},
    lock, output,
    progress::Progress,
    report,
    store::Store,
};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick lock recipes/lab.toml\n",
    "  rackstick lock recipes/lab.toml --update\n",
    "  rackstick lock recipes/lab.toml --update nginx-light linux-image-amd64\n",
);

/// Resolve a recipe's packages and pin them in `<recipe>.lock`
///
/// A lock that fits its recipe is left as it is, unless --update is given.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The rack recipe
    recipe: PathBuf,
    /// With --update: only these packages of the lock, and what they need, get new versions; all others stay as they are
    #[arg(value_name = "PACKAGE", requires = "update")]
    packages: Vec<String>,
    /// Renew a lock that still fits its recipe, too
    #[arg(long)]
    update: bool,
    #[command(flatten)]
    from: MirrorArgs,
}

/// Some packages of a lock that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("there is no lock yet of which only some packages could be updated; write it with `rackstick lock {}`", .0.display())]
struct NoLock(PathBuf);

/// Writes the lock if there is none, if it no longer fits, or if asked to.
pub fn run(args: &Args) -> Result<(), report::Error> {
    let rack = recipe::load(&args.recipe)?;
    // A lock that can't be read may be replaced, but only when all of it is.
    let previous = match lock::read(&args.recipe) {
        Err(lock::LockError::Invalid(_)) if args.update && args.packages.is_empty() => None,
        other => other?,
    };
    let path = lock::path(&args.recipe);
    let mut differences = Vec::new();
    if let Some(previous) = &previous
        && !args.update
    {
        differences = lock::differences(&rack, previous)?;
        if differences.is_empty() {
            output::result(&Outcome::new(path, previous, None))?;
            return Ok(());
        }
        differences.iter().try_for_each(output::say)?;
        if lock::package_differences(&rack, previous)?.is_empty() {
            let lock = lock::renew_inputs(&args.recipe, &rack, previous)?;
            let written = Written { differences, also: Vec::new(), changes: Vec::new() };
            output::result(&Outcome::new(path, &lock, Some(written)))?;
            return Ok(());
        }
    }
    let (store, progress) = (Store::open()?, Progress::stderr());
    let (recipe, mirrors) = (&args.recipe, &args.from.mirror);
    let Updated { lock, also } = if args.packages.is_empty() {
        let kept = previous.as_ref().filter(|_| !args.update);
        let lock = lock::renew(recipe, &rack, previous.as_ref(), kept, mirrors, &store, &progress)?;
        Updated { lock, also: Vec::new() }
    } else {
        let previous = previous.as_ref().ok_or_else(|| NoLock(recipe.clone()))?;
        lock::update(recipe, &rack, previous, &args.packages, mirrors, &store, &progress)?
    };
    let written = Written { differences, also, changes: changes(previous.as_ref(), &lock) };
    output::result(&Outcome::new(path, &lock, Some(written)))?;
    Ok(())
}

/// The lock as it is now.
#[derive(Serialize)]
struct Outcome {
    lock: PathBuf,
    packages: usize,
    bytes: u64,
    /// Images that are not made of packages.
    inputs: usize,
    /// None if it was left as it is.
    written: Option<Written>,
}

/// Why and how a lock was written.
#[derive(Serialize)]
struct Written {
    /// How the lock before did not fit its recipe.
    differences: Vec<String>,
    /// What moved although it was not named, and why.
    also: Vec<Also>,
    changes: Vec<Change>,
}

/// How one package changed: it came if there is no old version, and went if there is no new one.
#[derive(Serialize)]
struct Change {
    package: String,
    old: Option<String>,
    new: Option<String>,
}

impl Outcome {
    fn new(lock: PathBuf, content: &Lock, written: Option<Written>) -> Self {
        let bytes = content.packages.values().map(|package| package.size).sum();
        Self { lock, packages: content.packages.len(), bytes, inputs: content.inputs.len(), written }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.lock.display();
        let Some(Written { also, changes, .. }) = &self.written else {
            return write!(f, "{path} fits its recipe and was left as it is; --update renews it");
        };
        for Also { package, why } in also {
            writeln!(f, "{package} can't stay as it is: {why}")?;
        }
        for Change { package, old, new } in changes {
            match (old, new) {
                (Some(old), Some(new)) => writeln!(f, "  {package} {old} -> {new}")?,
                (None, Some(new)) => writeln!(f, "+ {package} {new}")?,
                (old, None) => writeln!(f, "- {package} {}", old.as_deref().unwrap_or_default())?,
            }
        }
        write!(f, "{path}: {} packages, {} MiB", self.packages, self.bytes >> 20)?;
        match self.inputs {
            0 => Ok(()),
            count => write!(f, ", images not made of packages: {count}"),
        }
    }
}

/// How the packages changed, those that went last; nothing for a first lock.
fn changes(previous: Option<&Lock>, lock: &Lock) -> Vec<Change> {
    let Some(previous) = previous else { return Vec::new() };
    let version = |lock: &Lock, name: &String| lock.packages.get(name).map(|package| package.version.clone());
    let gone = previous.packages.keys().filter(|name| !lock.packages.contains_key(*name));
    let all = lock.packages.keys().chain(gone);
    let changes =
        all.map(|name| Change { package: name.clone(), old: version(previous, name), new: version(lock, name) });
    changes.filter(|change| change.old != change.new).collect()
}
