//! `rackstick lock RECIPE [--update [PACKAGE…]]`: writes the rack's lock, resolved against the archives as they are
//! now.

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
    /// With --update: only these packages of the lock, and what they need, get new versions; all others stay as they
    /// are
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
    /// The rack's.
    base: String,
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
    base: String,
    package: String,
    old: Option<String>,
    new: Option<String>,
}

impl Outcome {
    fn new(lock: PathBuf, content: &Lock, written: Option<Written>) -> Self {
        let bytes = content.packages().map(|(_, _, package)| package.size).sum();
        let (base, packages, inputs) = (content.base.clone(), content.packages().count(), content.inputs.len());
        Self { lock, base, packages, bytes, inputs, written }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.lock.display();
        let Some(Written { also, changes, .. }) = &self.written else {
            return write!(f, "{path} fits its recipe and was left as it is; --update renews it");
        };
        // Only other bases than the rack's have to be told apart.
        let of = |base: &String| if *base == self.base { String::new() } else { format!(" of {base}") };
        for Also { base, package, why } in also {
            writeln!(f, "{package}{} can't stay as it is: {why}", of(base))?;
        }
        for Change { base, package, old, new } in changes {
            let of = of(base);
            match (old, new) {
                (Some(old), Some(new)) => writeln!(f, "  {package}{of} {old} -> {new}")?,
                (None, Some(new)) => writeln!(f, "+ {package}{of} {new}")?,
                (old, None) => writeln!(f, "- {package}{of} {}", old.as_deref().unwrap_or_default())?,
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
    let version = |lock: &Lock, base: &str, name: &str| Some(lock.bases.get(base)?.packages.get(name)?.version.clone());
    let gone = previous.packages().filter(|(base, name, _)| version(lock, base, name).is_none());
    let changes = lock.packages().chain(gone).map(|(base, name, _)| Change {
        base: base.clone(),
        package: name.clone(),
        old: version(previous, base, name),
        new: version(lock, base, name),
    });
    changes.filter(|change| change.old != change.new).collect()
}
