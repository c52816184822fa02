//! From a lock to the .debs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use rackstick_image::lock::{Base, Lock, Package};

use super::{
    Mirrors, ResolveLockError, date,
    keys::Trust,
    packages::Catalogue,
    repositories::Repositories,
    suites::{Source, Suites},
};
use crate::{
    clock,
    progress::Progress,
    store::{Client, Store, StoreError, Want},
};

/// Why a lock's packages can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ObtainError {
    /// Archives drop old versions.
    #[error(
        "no mirror has these packages of the lock any more:{}\nEither take what the archive has now, with `rackstick \
         lock --update`; or name with --mirror what keeps old versions: a folder that `rackstick vendor` filled while they \
         were there, or a snapshot of the archive from {snapshot} or the days after, like \
         http://HOST/archive/debian/{snapshot}",
        lines.iter().map(|line| format!("\n  {line}")).collect::<String>()
    )]
    Gone {
        /// Which ones, and what there is instead, one line each.
        lines: Vec<String>,
        /// The lock's date, as snapshots of archives are named.
        snapshot: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where each package of a base is, by its name, once it was obtained and unpacked.
pub fn places(base: &Base, store: &Store) -> BTreeMap<String, PathBuf> {
    base.packages.iter().map(|(name, package)| (name.clone(), store.unpacked(package.sha256))).collect()
}

/// Sees to it that all packages of a lock are in the store, unaltered. Needs no network, and no mirror, if they are
/// there already.
pub fn obtain(lock: &Lock, mirrors: &Mirrors, store: &Store, progress: &Progress) -> Result<(), ObtainError> {
    let client = Client::new();
    match store.obtain(&client, &wants(lock), mirrors, progress) {
        Err(StoreError::Gone(gone)) => {
            let hashes: BTreeSet<_> = gone.iter().map(|want| want.sha256).collect();
            let gone = || lock.packages().filter(|(_, _, package)| hashes.contains(&package.sha256));
            let bases: BTreeSet<&String> = gone().map(|(base, ..)| base).collect();
            let now = |base| current(lock, base, store, &client, mirrors).map_err(|error| error.to_string());
            let now: BTreeMap<&String, _> = bases.into_iter().map(|base| (base, now(base))).collect();
            let line = |(base, name, package): (&String, &String, &Package)| {
                let instead = match &now[base] {
                    _ if lock.repositories.contains_key(&package.archive) => {
                        format!("repository `{}` no longer has this file", package.archive)
                    }
                    Ok(versions) => match versions.get(name) {
                        Some(version) => format!("the archive now has {version}"),
                        None => "the archive no longer has it at all".to_owned(),
                    },
                    Err(error) => format!("what the archive has instead is not known: {error}"),
                };
                format!("{name} {} ({}); {instead}", package.version, package.path)
            };
            Err(ObtainError::Gone { lines: gone().map(line).collect(), snapshot: date::stamp(lock.epoch) })
        }
        result => Ok(result?),
    }
}

/// The packages of a lock, as the store takes them; two bases may have the same file.
pub fn wants(lock: &Lock) -> Vec<Want> {
    let mut seen = BTreeSet::new();
    let packages =
        lock.packages().filter(|(_, _, package)| seen.insert((&package.archive, &package.path, package.sha256)));
    packages.map(|(_, name, package)| want(name, package)).collect()
}

/// A package of a lock, as the store takes it.
pub(super) fn want(name: &str, package: &Package) -> Want {
    Want {
        name: format!("{name} {}", package.version),
        archive: package.archive.clone(),
        path: package.path.clone(),
        size: package.size,
        sha256: package.sha256,
    }
}

/// The versions that the archive has now of a base.
fn current(
    lock: &Lock,
    base: &str,
    store: &Store,
    client: &Client,
    mirrors: &Mirrors,
) -> Result<BTreeMap<String, String>, ResolveLockError> {
    // Only what the base has: a lock does not hold the keys of other repositories.
    let (trust, repositories) = (Trust::debian(BTreeMap::new())?, Repositories::new());
    let source = Source { store, client, mirrors, repositories: &repositories, trust: &trust, now: clock::now() };
    let suites = Suites::fetch(base, base == lock.base, &source, &Progress::quiet())?;
    let catalogues = [Catalogue::read(&suites.packages)?, Catalogue::read(&suites.firmware)?];
    let all = catalogues.iter().rev().flat_map(Catalogue::iter);
    Ok(all.map(|(_, package)| (package.name.to_owned(), package.version.to_owned())).collect())
}
