//! The repositories that a recipe names beside its bases: their keys are read, and what the lock says of them is
//! compared with the recipe.

use std::collections::{BTreeMap, BTreeSet};

use rackstick_image::{
    lock::{Lock, Repository},
    recipe::{Diagnostic, Diagnostics, Rack},
};

use super::keys::{KeyError, Keyring};

/// Repositories by name, as they stand in a lock.
pub type Repositories = BTreeMap<String, Repository>;

/// Keys that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the recipe's repositories can't be used")]
pub struct RepositoryError(#[source] Diagnostics);

/// A recipe's repositories as they are now, and the keys that sign those that are not Debian's.
pub struct Pinned {
    /// As they would stand in the lock.
    pub repositories: Repositories,
    /// The keys, by the repository's name.
    pub keyrings: BTreeMap<String, Keyring>,
}

/// Reads the keys of a recipe's repositories.
pub fn pin(rack: &Rack) -> Result<Pinned, RepositoryError> {
    let mut pinned = Pinned { repositories: BTreeMap::new(), keyrings: BTreeMap::new() };
    let mut wrong = Vec::new();
    for (name, repository) in &rack.repositories {
        let packages: BTreeSet<String> = repository.packages.iter().map(|package| package.value.clone()).collect();
        let mut new = Repository {
            base: repository.base.clone(),
            url: None,
            suite: repository.suite.value.clone(),
            components: repository.components.clone(),
            keys: Vec::new(),
            packages: packages.into_iter().collect(),
        };
        if let Some(foreign) = &repository.foreign {
            match Keyring::read(&foreign.file) {
                Ok(keyring) => {
                    new.url = Some(foreign.url.clone());
                    new.keys = keyring.fingerprints();
                    pinned.keyrings.insert(name.clone(), keyring);
                }
                Err(error) => wrong.push(unusable(foreign.key.place.clone(), &foreign.key.value, &error)),
            }
        }
        pinned.repositories.insert(name.clone(), new);
    }
    if wrong.is_empty() { Ok(pinned) } else { Err(RepositoryError(Diagnostics(wrong))) }
}

fn unusable(place: rackstick_image::recipe::Place, file: &str, error: &KeyError) -> Diagnostic {
    let hint =
        "the OpenPGP public key that the archive's publisher gives, in a file: armored (`.asc`) or binary (`.gpg`)";
    Diagnostic::new(place, format!("the key `{file}` can't be used: {error}")).hint(hint)
}

/// How a lock's repositories differ from a recipe's, one line each.
pub fn differences(now: &Repositories, lock: &Lock) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, new) in now {
        let Some(old) = lock.repositories.get(name) else {
            lines.push(format!("the lock has no repository `{name}`"));
            continue;
        };
        let place = |repository: &Repository| {
            let url = repository.url.as_ref().map(|url| format!("{url} ")).unwrap_or_default();
            format!("{url}{} {}", repository.suite, repository.components.join(" ")).trim_end().to_owned()
        };
        if new.base != old.base {
            lines.push(format!("repository `{name}` stands beside {}, the lock's beside {}", new.base, old.base));
        }
        if place(new) != place(old) {
            lines.push(format!("repository `{name}` is {}, the lock's {}", place(new), place(old)));
        }
        if new.keys != old.keys && new.url.is_some() {
            let (now, then) = (new.keys.join(", "), old.keys.join(", "));
            lines.push(format!("the key of repository `{name}` is {now}, the lock's {then}"));
        }
        if new.packages != old.packages {
            let (now, then) = (new.packages.join(", "), old.packages.join(", "));
            lines.push(format!("repository `{name}` has the packages [{now}], the lock's [{then}]"));
        }
    }
    let gone = lock.repositories.keys().filter(|name| !now.contains_key(*name));
    lines.extend(gone.map(|name| format!("repository `{name}` is no longer in the recipe")));
    lines
}
