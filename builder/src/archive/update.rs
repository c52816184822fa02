//! Updating some packages of a lock: all others stay as they are. A package that stays is known from the archive's
//! indexes, or, if these have other versions of it by now, from its .deb. One that can't stay, because what is updated
//! needs another version of it, is updated too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
};

use rackstick::layers::deb;
use rackstick_image::{
    lock::{Base, Lock, Package},
    recipe::Rack,
};
use serde::Serialize;

use super::{
    Mirrors, ResolveLockError,
    keys::Trust,
    lock::{Kernels, UNPACKED, base_of, lock_of, resolve_sets, suites, told},
    obtain::want,
    packages::{Catalogue, Held, PackageIndex},
    relation,
    repositories::{self, Pinned},
    resolve::{self, KERNEL, ResolveError},
    suites::{Source, Suites},
};
use crate::{
    clock,
    progress::Progress,
    sets::{self, Roots},
    store::{Client, Store, StoreError},
};

/// Where the packages of the component of firmware lie.
const FIRMWARE_POOL: &str = "pool/non-free-firmware/";

/// Why only some packages can't be updated.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// What comes from where has changed, which may move any package.
    #[error(
        "the lock no longer fits the recipe's repositories:{}\nWhich packages move with that can't be chosen: update all, with \
         --update alone",
        .0.iter().map(|line| format!("\n  {line}")).collect::<String>()
    )]
    Repositories(Vec<String>),
    /// Not a package of the lock.
    #[error("`{name}` is not a package of the lock{}", nearest.as_ref().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default())]
    Unknown {
        /// What was named.
        name: String,
        /// The package that was probably meant.
        nearest: Option<String>,
    },
    /// Archives drop old versions.
    #[error(
        "these packages can't stay as they are: the archive has other versions by now, and no mirror has the old ones:{}\n\
         Either name them too, or update all with --update alone; or name with --mirror what keeps old versions, as a \
         folder that `rackstick vendor` filled",
        .0.iter().map(|line| format!("\n  {line}")).collect::<String>()
    )]
    Dropped(Vec<String>),
    /// A .deb that can't be read.
    #[error("package {name} {source}")]
    Deb {
        /// The package.
        name: String,
        /// Why.
        source: deb::Error,
    },
    /// The .deb is of another package.
    #[error(
        "the lock is wrong: its file for {name} {version} is of another package or version; make a new one with --update alone"
    )]
    Other {
        /// The package.
        name: String,
        /// Its version in the lock.
        version: String,
    },
}

/// A lock in which some packages were updated.
#[derive(Debug)]
pub struct Updated {
    /// The lock.
    pub lock: Lock,
    /// Packages that were not named and could not stay as they were.
    pub also: Vec<Also>,
}

/// A package that could not stay as it was.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Also {
    /// The base that it is of.
    pub base: String,
    /// Its name.
    pub package: String,
    /// The need that it was in the way of.
    pub why: String,
}

/// Updates the packages named in each base that has them, and what they need; all others keep the versions of
/// `previous`.
pub fn update(
    rack: &Rack,
    previous: &Lock,
    names: &[String],
    mirrors: &[String],
    store: &Store,
    progress: &Progress,
) -> Result<Updated, ResolveLockError> {
    let held = held(previous, names)?;
    let Pinned { repositories, keyrings } = repositories::pin(rack)?;
    let differences = repositories::differences(&repositories, previous);
    if !differences.is_empty() {
        return Err(UpdateError::Repositories(differences).into());
    }
    let (client, trust) = (Client::new(), Trust::debian(keyrings)?);
    let mirrors = &Mirrors::choose(mirrors, &repositories)?;
    let source =
        Source { store, client: &client, mirrors, repositories: &repositories, trust: &trust, now: clock::now() };
    let (mut also, nothing) = (Vec::new(), Base::default());
    let resolved = sets::roots(rack).into_iter().map(|(base, roots)| {
        let old = previous.bases.get(&base).unwrap_or(&nothing);
        let mut resolve = |held: Holding| {
            let suites = suites(&source, rack, &base, Some(previous), progress)?;
            let fetch = |names: &[String], newest: &Newest| debs(old, names, &source, newest, progress);
            let (resolved, moved) = held.resolve(suites, rack, &base, roots.clone(), &fetch)?;
            also.extend(moved);
            Ok(resolved)
        };
        let resolved = match held.get(&base) {
            // Its archive is not even asked.
            None if old.roots == roots => Ok(old.clone()),
            None => resolve(Holding::all_but(old, &[])),
            Some(held) => resolve(held.clone()),
        };
        (base, resolved)
    });
    let lock = lock_of(rack, &repositories, resolved)?;
    Ok(Updated { lock, also })
}

/// What stays as it is, of each base that has any of the packages named.
fn held(lock: &Lock, names: &[String]) -> Result<BTreeMap<String, Holding>, UpdateError> {
    let has = |base: &Base, name: &String| base.packages.contains_key(name) || !kernels(base, name).is_empty();
    if let Some(name) = names.iter().find(|name| !lock.bases.values().any(|base| has(base, name))) {
        let known = lock.packages().map(|(_, name, _)| name.as_str());
        let nearest = resolve::nearest(name, known).into_iter().next().map(str::to_owned);
        return Err(UpdateError::Unknown { name: name.clone(), nearest });
    }
    let bases = lock.bases.iter().filter(|(_, base)| names.iter().any(|name| has(base, name)));
    Ok(bases.map(|(name, base)| (name.clone(), Holding::all_but(base, names))).collect())
}

/// The kernels that a metapackage of a base's roots stands for.
fn kernels(base: &Base, name: &str) -> Vec<String> {
    let of = |set: &&&str| base.roots.get(**set).is_some_and(|roots| roots.iter().any(|root| root == name));
    let sets = UNPACKED.iter().filter(|_| name.starts_with(KERNEL)).filter(of);
    sets.filter_map(|set| kernel(base, set).cloned()).collect()
}

/// The kernel of a set that is only unpacked.
fn kernel<'b>(base: &'b Base, set: &str) -> Option<&'b String> {
    base.sets.get(set).into_iter().flatten().find(|name| name.starts_with(KERNEL))
}

/// The newest version of each package in the archive.
type Newest = BTreeMap<String, String>;

fn newest(suites: &Suites) -> Result<Newest, ResolveLockError> {
    let mut newest = BTreeMap::new();
    for indexes in [&suites.firmware, &suites.packages] {
        let catalogue = Catalogue::read(indexes)?;
        newest.extend(catalogue.iter().map(|(_, package)| (package.name.to_owned(), package.version.to_owned())));
    }
    Ok(newest)
}

/// What of a base stays as it is.
#[derive(Clone)]
struct Holding {
    packages: Held,
    kernels: Kernels,
}

/// What fetches .debs and says what stands in them, as indexes.
type Fetch<'f> = &'f dyn Fn(&[String], &Newest) -> Result<Vec<(PackageIndex, bool)>, ResolveLockError>;

impl Holding {
    /// All packages of a base but those named. A kernel's metapackage stands for its kernel.
    fn all_but(base: &Base, names: &[String]) -> Self {
        let versions = base.packages.iter().map(|(name, package)| (name.clone(), package.version.clone()));
        let kernels_of = UNPACKED.iter().filter_map(|set| Some(((*set).to_owned(), kernel(base, set)?.clone())));
        let mut new = Self { packages: versions.collect(), kernels: kernels_of.collect() };
        for name in names {
            kernels(base, name).iter().chain([name]).for_each(|name| new.release(name));
        }
        new
    }

    fn release(&mut self, name: &str) {
        self.packages.remove(name);
        self.kernels.retain(|_, kernel| kernel != name);
    }

    fn catalogues<'s>(&self, suites: &'s Suites) -> Result<(Catalogue<'s>, Catalogue<'s>), ResolveLockError> {
        let read = |indexes| Catalogue::holding(indexes, &self.packages);
        Ok((read(&suites.packages)?, read(&suites.firmware)?))
    }

    /// Resolves a base with what is held, and releases what can't stay as it is. `fetch` tells of what is held and no
    /// longer in the archive's indexes.
    fn resolve(
        mut self,
        mut suites: Suites,
        rack: &Rack,
        base: &str,
        roots: Roots,
        fetch: Fetch<'_>,
    ) -> Result<(Base, Vec<Also>), ResolveLockError> {
        let newest = newest(&suites)?;
        for (index, firmware) in fetch(&self.absent(&suites)?, &newest)? {
            if firmware { suites.firmware.push(index) } else { suites.packages.push(index) }
        }
        if let Some(name) = self.absent(&suites)?.pop() {
            let version = self.packages.get(&name).cloned().unwrap_or_default();
            return Err(UpdateError::Other { name, version }.into());
        }
        let mut also = Vec::new();
        loop {
            let (catalogue, firmware) = self.catalogues(&suites)?;
            let resolved = resolve_sets(&catalogue, &firmware, &roots, &self.kernels);
            let in_the_way = resolved.as_ref().err().map(|errors| self.in_the_way(errors, &newest)).unwrap_or_default();
            if in_the_way.is_empty() {
                let chosen = told(rack, base, resolved)?;
                return Ok((base_of(roots, &suites, &chosen), also));
            }
            in_the_way.keys().for_each(|name| self.release(name));
            also.extend(in_the_way.into_iter().map(|(package, why)| Also { base: base.to_owned(), package, why }));
        }
    }

    /// Packages that are held in versions that no index has.
    fn absent(&self, suites: &Suites) -> Result<Vec<String>, ResolveLockError> {
        let (catalogue, firmware) = self.catalogues(suites)?;
        let absent = |name: &&String| catalogue.find(name).is_none() && firmware.find(name).is_none();
        Ok(self.packages.keys().filter(absent).cloned().collect())
    }

    /// The held packages that errors come from and of which there is another version, each with the error.
    fn in_the_way(&self, errors: &[(String, ResolveError)], newest: &Newest) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for (_, error) in errors {
            let (needed, others, why) = match error {
                ResolveError::Unsatisfiable { relation, chain, .. } => {
                    (named(relation), vec![resolve::last_of(chain)], format!("{chain} needs {relation}"))
                }
                ResolveError::Conflict { one, relation, other, .. } => {
                    let both = [one, other].map(|chain| resolve::last_of(chain));
                    (Vec::new(), both.to_vec(), format!("{one} conflicts with {relation}"))
                }
                ResolveError::Unknown { .. } | ResolveError::Virtual { .. } | ResolveError::Packages(_) => continue,
            };
            let movable = |name: &&String| {
                let held = self.packages.get(*name);
                held.is_some_and(|version| newest.get(*name).is_some_and(|newest| newest != version))
            };
            // What is needed moves; only where that does not help, who needs it.
            let mut names: Vec<&String> = needed.iter().filter(movable).collect();
            if names.is_empty() {
                names = others.iter().filter(movable).collect();
            }
            found.extend(names.into_iter().map(|name| (name.clone(), why.clone())));
        }
        found
    }
}

/// The packages that a relation names.
fn named(relation: &str) -> Vec<String> {
    let groups = relation::parse(relation).unwrap_or_default();
    groups.iter().flat_map(|group| &group.atoms).map(|atom| atom.name.to_owned()).collect()
}

/// What stands in the .debs of a base's packages, as an index for each, and whether it is one of firmware.
fn debs(
    base: &Base,
    names: &[String],
    source: &Source,
    newest: &Newest,
    progress: &Progress,
) -> Result<Vec<(PackageIndex, bool)>, ResolveLockError> {
    let packages = || names.iter().filter_map(|name| Some((name, base.packages.get(name)?)));
    let wants: Vec<_> = packages().map(|(name, package)| want(name, package)).collect();
    match source.store.obtain(source.client, &wants, source.mirrors, progress) {
        Ok(()) => {}
        Err(StoreError::Gone(gone)) => {
            let gone: BTreeSet<_> = gone.iter().map(|want| want.sha256).collect();
            let gone = packages().filter(|(_, package)| gone.contains(&package.sha256)).map(|(name, package)| {
                let now = newest.get(name).map_or("no longer has it at all".to_owned(), |now| format!("now has {now}"));
                format!("{name} {}; the archive {now}", package.version)
            });
            return Err(UpdateError::Dropped(gone.collect()).into());
        }
        Err(error) => return Err(error.into()),
    }
    packages().map(|(name, package)| index_of(name, package, source)).collect()
}

fn index_of(name: &str, package: &Package, source: &Source) -> Result<(PackageIndex, bool), ResolveLockError> {
    let path = source.store.path(package.sha256);
    let file = File::open(&path).map_err(|source| StoreError::Io { path, source })?;
    let control = deb::control(&file).map_err(|source| UpdateError::Deb { name: name.to_owned(), source })?;
    // As in an archive's index; of a field that stands twice the last counts.
    let text = format!(
        "{}Filename: {}\nSize: {}\nSHA256: {}\n",
        control.paragraph, package.path, package.size, package.sha256
    );
    let repository = source.repositories.get(&package.archive);
    let named = repository.map(|repository| repository.packages.iter().cloned().collect());
    let firmware = named.is_none() && package.path.starts_with(FIRMWARE_POOL);
    Ok((PackageIndex { archive: package.archive.clone(), suite: "the lock".to_owned(), named, text }, firmware))
}

#[cfg(test)]
mod tests;
