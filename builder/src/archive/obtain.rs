//! From a lock to the .debs.

use std::{collections::BTreeMap, path::PathBuf};

use rackstick_image::lock::Lock;

use super::{Mirrors, packages::Catalogue, suites::Suites};
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
         lock --update`, or name a mirror that keeps old versions, with --mirror URL",
        .0.iter().map(|line| format!("\n  {line}")).collect::<String>()
    )]
    Gone(Vec<String>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Sees to it that all packages of a lock are in the store, unaltered, and says where each .deb is, by the package's
/// name. Needs no network, and no mirror, if they are there already.
pub fn obtain(
    lock: &Lock,
    mirrors: &Mirrors,
    progress: &Progress,
) -> Result<BTreeMap<String, PathBuf>, ObtainError> {
    let store = Store::open()?;
    let client = Client::new();
    let wants: Vec<Want> = lock
        .packages
        .iter()
        .map(|(name, package)| Want {
            name: format!("{name} {}", package.version),
            archive: package.archive.clone(),
            path: package.path.clone(),
            size: package.size,
            sha256: package.sha256,
        })
        .collect();
    match store.obtain(&client, &wants, mirrors, progress) {
        Ok(()) => {}
        Err(StoreError::Gone(gone)) => {
            let hashes: Vec<_> = gone.iter().map(|want| want.sha256).collect();
            let names = lock.packages.iter().filter(|(_, package)| hashes.contains(&package.sha256));
            let names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
            let now = current(lock, &store, &client, mirrors, &names);
            let line = |name: &&str| {
                let package = &lock.packages[*name];
                format!("{name} {} ({}){}", package.version, package.path, now.get(*name).map_or("", String::as_str))
            };
            return Err(ObtainError::Gone(names.iter().map(line).collect()));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(lock.packages.iter().map(|(name, package)| (name.clone(), store.path(package.sha256))).collect())
}

/// What the archive has now in place of these packages, in words. If even that can't be found out, the reason.
fn current(
    lock: &Lock,
    store: &Store,
    client: &Client,
    mirrors: &Mirrors,
    names: &[&str],
) -> BTreeMap<String, String> {
    let same = |text: String| names.iter().map(|name| ((*name).to_owned(), text.clone())).collect();
    let suites = match Suites::fetch(&lock.base, store, client, mirrors, &Progress::quiet(), clock::now()) {
        Ok(suites) => suites,
        Err(error) => return same(format!("; what it has instead is not known: {error}")),
    };
    let catalogue = match Catalogue::read(&suites.packages) {
        Ok(catalogue) => catalogue,
        Err(error) => return same(format!("; what it has instead is not known: {error}")),
    };
    let describe = |name: &&str| {
        let now = match catalogue.find(name) {
            Some(id) => format!("; the archive now has {}", catalogue.get(id).version),
            None => "; the archive no longer has it at all".to_owned(),
        };
        ((*name).to_owned(), now)
    };
    names.iter().map(describe).collect()
}
