//! `rackstick store gc`, `rackstick store verify`: tidies up what builds keep on this machine.

use std::{collections::BTreeSet, env, error::Error, fmt, iter, path::PathBuf, process::ExitCode, str::FromStr};

use rackstick_image::{lock::Input, recipe};
use serde::Serialize;

use crate::{
    artifacts, clock,
    generation::{self, Parts},
    layers::Layers,
    lock, output, report,
    store::{Damaged, Store},
};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick store gc\n",
    "  rackstick store gc --older-than 0 --keep recipes/lab.toml\n",
    "  rackstick store verify\n",
);

/// What the help of `gc` ends with.
const GC_EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick store gc\n",
    "  rackstick store gc --dry-run --older-than 7d\n",
    "  rackstick store gc --older-than 0 --keep recipes/lab.toml\n",
);

/// What the help of `verify` ends with.
const VERIFY_EXAMPLES: &str = concat!("Examples:\n", "  rackstick store verify\n");

/// Tidy up what builds keep on this machine
///
/// The store holds packages, finished layers, and parts (drivers, kernels) that are made of packages alone, so that
/// they are fetched and built once. It is the folder that RACKSTICK_CACHE names, else `rackstick` in XDG_CACHE_HOME or
/// ~/.cache. All of it can be had again.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(clap::Subcommand)]
enum StoreCommand {
    Gc(GcArgs),
    /// Hash all that is kept, and remove what is damaged
    ///
    /// What was removed is named, and the exit status is 1; the next build fetches and builds it again. What can't be
    /// read is named, too, and left. The trees of bases and of packages, on which layers are built, have no hash to
    /// compare with and are not looked at.
    #[command(after_long_help = VERIFY_EXAMPLES)]
    Verify,
}

/// Remove what was not used for long, and what killed builds left
///
/// Waits until running builds have ended.
#[derive(clap::Args)]
#[command(after_long_help = GC_EXAMPLES)]
struct GcArgs {
    /// Remove what no build has used for so long, as 30d or 12h; 0 removes all that is not kept
    #[arg(long, value_name = "AGE", default_value = "30d")]
    older_than: Age,
    /// Keep what this rack recipe and its lock need, however old it is; may be repeated
    #[arg(long, value_name = "RECIPE")]
    keep: Vec<PathBuf>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

/// How long something was not used, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Age(i64);

impl FromStr for Age {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let seconds = match unit {
            "d" => 24 * 3600,
            "h" => 3600,
            "" if number == "0" => 1,
            _ => return Err("an age is a number of days or hours, as 30d or 12h, or 0"),
        };
        let age = number.parse::<i64>().ok().and_then(|number| number.checked_mul(seconds));
        age.map(Self).ok_or("so many days or hours there never were")
    }
}

/// A recipe to keep that has no lock.
#[derive(Debug, thiserror::Error)]
#[error("{} has no lock, so what it needs is not known; write it with `rackstick lock {}`", .0.display(), .0.display())]
struct NoLock(PathBuf);

/// Tidies up.
pub fn run(args: Args) -> Result<ExitCode, report::Error> {
    match args.command {
        StoreCommand::Gc(args) => gc(&args),
        StoreCommand::Verify => verify(),
    }
}

fn open() -> Result<(Store, Layers, Parts), report::Error> {
    let store = Store::open()?.alone(|| output::remark("waiting for the builds that use the store"))?;
    // No layer is made here, so its date and threads don't matter.
    let layers = Layers::new(&store.layers(), &env::current_exe()?, 0, 1)?;
    let parts = Parts::open(&store, layers.builder())?;
    Ok((store, layers, parts))
}

/// What went.
#[derive(Serialize)]
struct Gone {
    removed: bool,
    packages: usize,
    layers: usize,
    parts: usize,
    partial: usize,
    leftovers: usize,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { removed, packages, layers, parts, partial, leftovers } = *self;
        let counted = [
            (packages, "package", "packages"),
            (layers, "layer", "layers"),
            (parts, "part", "parts"),
            (partial, "file fetched in part", "files fetched in part"),
            (leftovers, "leftover of killed builds", "leftovers of killed builds"),
        ];
        let words = counted.iter().filter(|(count, ..)| *count > 0);
        let words: Vec<String> =
            words.map(|(count, one, many)| format!("{count} {}", if *count == 1 { one } else { many })).collect();
        match (words.as_slice(), removed) {
            ([], _) => write!(f, "nothing to remove"),
            (_, false) => write!(f, "would remove {}", words.join(", ")),
            (_, true) => write!(f, "removed {}", words.join(", ")),
        }
    }
}

fn gc(args: &GcArgs) -> Result<ExitCode, report::Error> {
    // Before the store is taken alone: to see whether a lock fits, files beside recipes are unpacked in it.
    let mut keep = Vec::new();
    for path in &args.keep {
        let rack = recipe::load(path)?;
        let lock = lock::fitting(path, &rack)?.ok_or_else(|| NoLock(path.clone()))?;
        keep.push((rack, lock));
    }
    let (store, layers, parts) = open()?;
    let (mut hashes, mut kept_layers, mut kept_parts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (rack, lock) in keep {
        hashes.extend(lock.packages().map(|(_, _, package)| package.sha256));
        hashes.extend(lock.inputs.values().flat_map(Input::blobs).map(|blob| blob.sha256));
        let layers = Layers::new(&store.layers(), &env::current_exe()?, lock.epoch, 1)?;
        let keys = generation::keys(&rack, &lock, &store, &layers, &parts)?;
        kept_layers.extend(keys.all_layers().cloned());
        kept_parts.extend(keys.all_parts().copied());
    }
    // What was used in this very second counts as older than 0.
    let before = clock::now().saturating_add(1).saturating_sub(args.older_than.0);
    let files = store.sweep(&hashes, before, args.dry_run)?;
    let built = layers.sweep(|key, used| used >= before || kept_layers.contains(key), args.dry_run)?;
    let parts = parts.sweep(|key, used| used >= before || kept_parts.contains(key), args.dry_run)?;
    output::result(&Gone {
        removed: !args.dry_run,
        packages: files.files,
        layers: built.layers,
        parts,
        partial: files.partial,
        leftovers: files.leftovers + built.leftovers,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// How much was checked, and what was wrong.
#[derive(Serialize)]
struct Verified {
    packages: usize,
    layers: usize,
    parts: usize,
    damaged: Vec<Wrong>,
    /// What can't be read and was left, and why.
    unread: Vec<String>,
}

/// A file that was damaged, and removed.
#[derive(Serialize)]
struct Wrong {
    path: PathBuf,
    /// The package that it was, if it was one and that can still be read.
    package: Option<String>,
    version: Option<String>,
}

impl Verified {
    /// Keeps what is wrong.
    fn add<T, E: Error + 'static>(&mut self, wrong: Vec<Result<T, E>>, what: impl Fn(T) -> Wrong) {
        for wrong in wrong {
            match wrong {
                Ok(damaged) => self.damaged.push(what(damaged)),
                Err(error) => {
                    let said = iter::once(error.to_string()).chain(report::causes(&error));
                    self.unread.push(said.collect::<Vec<_>>().join(": "));
                }
            }
        }
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Wrong { path, package, version } in &self.damaged {
            let of = package.iter().map(|package| format!(", of package {package}"));
            let of: String = of.chain(version.iter().map(|version| format!(" {version}"))).collect();
            writeln!(f, "damaged and removed: {}{of}", path.display())?;
        }
        self.unread.iter().try_for_each(|what| writeln!(f, "can't be read or removed, and was left: {what}"))?;
        let Self { packages, layers, parts, damaged, unread } = self;
        match (damaged.len(), unread.len()) {
            (0, 0) => write!(f, "{packages} packages, {layers} layers and {parts} parts are what they were"),
            (0, unread) => write!(f, "{unread} can't be read or removed: is the disk sound, and are they yours?"),
            (damaged, 0) => write!(f, "{damaged} damaged; the next build fetches and builds them again"),
            (damaged, unread) => write!(
                f,
                "{damaged} damaged, which the next build fetches and builds again; {unread} can't be read or removed: is \
                 the disk sound, and are they yours?"
            ),
        }
    }
}

fn verify() -> Result<ExitCode, report::Error> {
    let (store, layers, parts) = open()?;
    let (packages, files) = store.verify();
    let (layers, built) = layers.verify();
    let (parts, packed) = parts.verify();
    let mut verified = Verified { packages, layers, parts, damaged: Vec::new(), unread: Vec::new() };
    verified.add(files, |Damaged { path, package }| {
        let (package, version) = package.unzip();
        Wrong { path, package, version }
    });
    let made = |path| Wrong { path, package: None, version: None };
    verified.add(built, made);
    verified.add(packed, made);
    verified.add(artifacts::verify_copyrights(&store), made);
    // What is wrong is told also to who wants to hear nothing else.
    if verified.damaged.is_empty() && verified.unread.is_empty() {
        output::result(&verified)?;
        Ok(ExitCode::SUCCESS)
    } else {
        output::answer(&verified)?;
        Ok(ExitCode::FAILURE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_number_with_its_unit() {
        for (text, seconds) in [("0", 0), ("1h", 3600), ("30d", 2_592_000)] {
            assert_eq!(text.parse(), Ok(Age(seconds)), "{text}");
        }
        for bad in ["", "30", "d", "-1d", "1w", "1 d", "99999999999999999d", "1ä"] {
            assert!(bad.parse::<Age>().is_err(), "{bad}");
        }
    }
}
