//! From a recipe to its lock: every set of packages is resolved against the archives as they are now.

use std::collections::{BTreeMap, BTreeSet};

use rackstick_image::{
    lock::{Base, FORMAT, Lock, Package},
    recipe::{Diagnostic, Diagnostics, Place, Rack, Repository},
};

use super::{
    Mirrors, date,
    keys::{KeyError, Trust},
    mirrors::MirrorError,
    packages::{self, Catalogue, PackagesError, Rank},
    repositories::{self, Pinned, Repositories, RepositoryError},
    resolve::{self, KERNEL, ResolveError},
    suites::{Source, Suites, SuitesError},
    update::UpdateError,
};
use crate::{
    clock,
    progress::Progress,
    sets::{self, Roots},
    store::{Client, Store, StoreError},
};

/// Sets whose packages are only unpacked: what they depend on is for installed systems.
pub(super) const UNPACKED: [&str; 2] = [sets::HOST, "kernel"];
/// The set that every image stands on.
const BASE: &str = "base";

/// Why a recipe can't be locked.
#[derive(Debug, thiserror::Error)]
pub enum ResolveLockError {
    /// The recipe asks for what the archive can't give.
    #[error("the recipe asks for what {base} can't give")]
    Recipe {
        /// The base, or several; or a repository beside one.
        base: String,
        /// What and where.
        source: Diagnostics,
    },
    /// The mirror is behind the lock.
    #[error(
        "the mirror's index of {suite} is from {offered}, older than the lock's from {locked}: the mirror is behind, so \
         use another with --mirror URL; to go back in time on purpose, delete the lock first"
    )]
    Older {
        /// The suite.
        suite: String,
        /// The mirror's date.
        offered: String,
        /// The lock's date.
        locked: String,
    },
    /// The recipe's repositories are wrong.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The built-in keys are wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It is not known where to fetch from.
    #[error(transparent)]
    Mirrors(#[from] MirrorError),
    /// The suites can't be had.
    #[error(transparent)]
    Suites(#[from] SuitesError),
    /// Their package indexes are wrong.
    #[error(transparent)]
    Packages(#[from] PackagesError),
    /// Only some packages are to be updated, and that can't be.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Resolves a rack against the archives as they are now. They must not be older than `previous`.
pub fn resolve(
    rack: &Rack,
    previous: Option<&Lock>,
    mirrors: &[String],
    store: &Store,
    progress: &Progress,
) -> Result<Lock, ResolveLockError> {
    let Pinned { repositories, keyrings } = repositories::pin(rack)?;
    let (client, trust) = (Client::new(), Trust::debian(keyrings)?);
    let mirrors = &Mirrors::choose(mirrors, &repositories)?;
    let source =
        Source { store, client: &client, mirrors, repositories: &repositories, trust: &trust, now: clock::now() };
    let resolve = |(base, roots): (String, Roots)| {
        let resolved = resolve_base(&source, rack, &base, roots, previous, progress);
        (base, resolved)
    };
    lock_of(rack, &repositories, sets::roots(rack).into_iter().map(resolve))
}

fn resolve_base(
    source: &Source,
    rack: &Rack,
    base: &str,
    roots: Roots,
    previous: Option<&Lock>,
    progress: &Progress,
) -> Result<Base, ResolveLockError> {
    let suites = suites(source, rack, base, previous, progress)?;
    let catalogue = Catalogue::read(&suites.packages)?;
    let firmware = Catalogue::read(&suites.firmware)?;
    let chosen = resolve_sets(&catalogue, &firmware, &roots, &Kernels::new());
    Ok(base_of(roots, &suites, &told(rack, base, chosen)?))
}

/// What was resolved, or else the errors with their places in the recipe.
pub(super) fn told<T>(
    rack: &Rack,
    base: &str,
    resolved: Result<T, Vec<(String, ResolveError)>>,
) -> Result<T, ResolveLockError> {
    let diagnostics = |errors: Vec<(String, ResolveError)>| {
        errors.into_iter().map(|(set, error)| diagnostic(rack, base, &set, error)).collect::<Result<Vec<_>, _>>()
    };
    resolved.map_err(|errors| match diagnostics(errors) {
        Ok(all) => ResolveLockError::Recipe { base: base.to_owned(), source: Diagnostics(all) },
        Err(error) => error.into(),
    })
}

/// The packages of each set.
pub(super) type Chosen<'c, 'a> = BTreeMap<String, Vec<&'c packages::Package<'a>>>;

/// Kernels that stay as they are, by set: a metapackage, of which no lock tells, would lead to the newest.
pub(super) type Kernels = BTreeMap<String, String>;

/// The lock that holds what was resolved of each base, or all that the recipe has wrong with any of them.
pub(super) fn lock_of(
    rack: &Rack,
    repositories: &Repositories,
    resolved: impl Iterator<Item = (String, Result<Base, ResolveLockError>)>,
) -> Result<Lock, ResolveLockError> {
    let (mut bases, mut of, mut wrong) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (name, resolved) in resolved {
        match resolved {
            Ok(base) => _ = bases.insert(name, base),
            Err(ResolveLockError::Recipe { base, source: Diagnostics(found) }) => {
                of.push(base);
                wrong.extend(found);
            }
            Err(other) => return Err(other),
        }
    }
    if !wrong.is_empty() {
        return Err(ResolveLockError::Recipe { base: of.join(" and "), source: Diagnostics(wrong) });
    }
    let dates = bases.values().flat_map(|base: &Base| &base.indexes).filter_map(|index| date::parse(&index.date));
    Ok(Lock {
        format: FORMAT,
        builder: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: dates.max().unwrap_or_default(),
        base: rack.base.value.clone(),
        bases,
        repositories: repositories.clone(),
        inputs: BTreeMap::new(),
    })
}

/// What was chosen of a base.
pub(super) fn base_of(roots: Roots, suites: &Suites, chosen: &Chosen<'_, '_>) -> Base {
    let sets = chosen
        .iter()
        .map(|(set, packages)| {
            let mut names: Vec<String> = packages.iter().map(|package| package.name.to_owned()).collect();
            names.sort_unstable();
            names.dedup();
            (set.clone(), names)
        })
        .collect();
    let packages = chosen.values().flatten().map(|package| (package.name.to_owned(), locked(package))).collect();
    Base { roots, sets, indexes: suites.indexes.clone(), packages }
}

fn locked(package: &packages::Package) -> Package {
    Package {
        version: package.version.to_owned(),
        architecture: package.architecture.to_owned(),
        archive: package.archive.to_owned(),
        path: package.path.to_owned(),
        size: package.size,
        sha256: package.sha256,
    }
}

/// The suites of one of a rack's bases, which must not be older than those of the lock before.
pub(super) fn suites(
    source: &Source,
    rack: &Rack,
    base: &str,
    previous: Option<&Lock>,
    progress: &Progress,
) -> Result<Suites, ResolveLockError> {
    let suites = Suites::fetch(base, base == rack.base.value, source, progress).map_err(|error| placed(rack, error))?;
    misnamed(rack, base, &suites)?;
    if let Some(previous) = previous {
        not_older(base, &suites, source.repositories, previous)?;
    }
    Ok(suites)
}

/// An error of a suite that the recipe names, with its place.
fn placed(rack: &Rack, error: SuitesError) -> ResolveLockError {
    let SuitesError::Named { repository, source } = &error else { return error.into() };
    let Some(Repository { suite, foreign, .. }) = rack.repositories.get(repository) else { return error.into() };
    let hint = match foreign {
        None => "the code name of a suite that Debian's archive has now, for example `trixie-backports`",
        Some(_) => {
            "`url`, `suite`, `components` and `key` are as the archive's publisher gives them, the first three behind `deb` in sources.list(5)"
        }
    };
    let source = Diagnostic::new(suite.place.clone(), source.to_string()).hint(hint).into();
    ResolveLockError::Recipe { base: format!("repository `{repository}`"), source }
}

/// A package that a repository does not have can't be taken from it.
fn misnamed(rack: &Rack, base: &str, suites: &Suites) -> Result<(), ResolveLockError> {
    let mut wrong = Vec::new();
    let named = |repository: &Repository| repository.base == base && !repository.packages.is_empty();
    for (name, repository) in rack.repositories.iter().filter(|(_, repository)| named(repository)) {
        let mut known = BTreeSet::new();
        for index in suites.packages.iter().filter(|index| index.archive == *name) {
            let index = std::slice::from_ref(index);
            known.extend(Catalogue::read(index)?.iter().map(|(_, package)| package.name));
        }
        let (of_the_host, others): (Vec<_>, Vec<_>) =
            repository.packages.iter().partition(|package| sets::is_of_the_host(&package.value));
        for package in of_the_host {
            let message = format!("`{}` can't come from repository `{name}`", package.value);
            let hint = "host, firmware and the guests' kernel come from the base: leave it out";
            wrong.push(Diagnostic::new(package.place.clone(), message).hint(hint));
        }
        for package in others.into_iter().filter(|package| !known.contains(&*package.value)) {
            let message = format!("repository `{name}` has no package `{}`", package.value);
            let nearest = resolve::nearest(&package.value, known.iter().copied());
            let nearest: Vec<String> = nearest.into_iter().map(str::to_owned).collect();
            let diagnostic = Diagnostic::new(package.place.clone(), message).label("no such package there");
            wrong.push(did_you_mean(diagnostic, &nearest));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(ResolveLockError::Recipe { base: base.to_owned(), source: Diagnostics(wrong) })
}

/// An index without an expiry date could otherwise be an old one, with the vulnerabilities of its time.
fn not_older(
    base: &str,
    suites: &Suites,
    repositories: &Repositories,
    previous: &Lock,
) -> Result<(), ResolveLockError> {
    let Some(locked) = previous.bases.get(base) else { return Ok(()) };
    for index in &suites.indexes {
        let before = locked.indexes.iter().find(|old| (&old.archive, &old.suite) == (&index.archive, &index.suite));
        // A repository may have moved: the new one's dates are not the old one's.
        let url = |repositories: &Repositories| repositories.get(&index.archive).and_then(|found| found.url.clone());
        if url(repositories) != url(&previous.repositories) {
            continue;
        }
        if let Some(before) = before
            && date::parse(&before.date) > date::parse(&index.date)
        {
            return Err(ResolveLockError::Older {
                suite: index.suite.clone(),
                offered: index.date.clone(),
                locked: before.date.clone(),
            });
        }
    }
    Ok(())
}

/// Resolves all sets of a base; everything wrong is reported at once, each with its set. Nothing but unpacked packages
/// may come from `firmware`: what an image installs depends only on Debian's main component.
pub(super) fn resolve_sets<'c, 'a>(
    catalogue: &'c Catalogue<'a>,
    firmware: &'c Catalogue<'a>,
    roots: &Roots,
    kernels: &Kernels,
) -> Result<Chosen<'c, 'a>, Vec<(String, ResolveError)>> {
    let mut chosen = BTreeMap::new();
    let mut faults = Vec::new();
    let mut base = BTreeSet::new();
    // The base comes first: all others but the unpacked ones stand on it.
    let order = roots.iter().filter(|(set, _)| *set == BASE).chain(roots.iter().filter(|(set, _)| *set != BASE));
    for (set, names) in order {
        if set != BASE && !chosen.contains_key(BASE) {
            break;
        }
        let packages = if UNPACKED.contains(&set.as_str()) {
            find_all(names, |name| match (firmware.find(name), kernels.get(set)) {
                (_, Some(kernel)) if name.starts_with(KERNEL) => {
                    resolve::find(catalogue, kernel).map(|id| catalogue.get(id))
                }
                // What a repository has beside the base does not come before the base's firmware.
                (Some(id), _) if catalogue.find(name).is_none_or(|id| catalogue.get(id).rank == Rank::Beside) => {
                    Ok(firmware.get(id))
                }
                _ => resolve::find_unpacked(catalogue, name).map(|id| catalogue.get(id)),
            })
        } else {
            find_all(names, |name| resolve::find(catalogue, name)).and_then(|found| {
                let essential = if set == BASE { resolve::essential(catalogue) } else { Vec::new() };
                let wanted = [essential, found].concat();
                let ids = resolve::resolve(catalogue, &base, &wanted).map_err(|error| vec![error])?;
                let packages = ids.iter().map(|id| catalogue.get(*id)).collect();
                if set == BASE {
                    base = ids;
                }
                Ok(packages)
            })
        };
        match packages {
            Ok(packages) => _ = chosen.insert(set.clone(), packages),
            Err(errors) => faults.extend(errors.into_iter().map(|error| (set.clone(), error))),
        }
    }
    if faults.is_empty() { Ok(chosen) } else { Err(faults) }
}

/// Finds each of the names, or tells of all that were not found.
fn find_all<T>(names: &[String], find: impl Fn(&str) -> Result<T, ResolveError>) -> Result<Vec<T>, Vec<ResolveError>> {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for name in names {
        match find(name) {
            Ok(one) => found.push(one),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

fn diagnostic(rack: &Rack, base: &str, set: &str, error: ResolveError) -> Result<Diagnostic, PackagesError> {
    let at = |names: &[&str]| place(rack, base, set, names);
    Ok(match error {
        ResolveError::Packages(error) => return Err(error),
        ResolveError::Unknown { name, nearest } => {
            let beside = rack.repositories.iter().filter(|(_, repository)| repository.base == base);
            let beside: String = beside.map(|(name, _)| format!(" or repository `{name}`")).collect();
            let message = format!("`{name}` is not a package of {base}{beside}");
            did_you_mean(Diagnostic::new(at(&[&name]), message).label("no such package"), &nearest)
        }
        ResolveError::Virtual { name, providers } => {
            let message = format!("`{name}` is not a package but something that packages provide");
            Diagnostic::new(at(&[&name]), message).hint(format!("choose one of them: {}", providers.join(", ")))
        }
        ResolveError::Unsatisfiable { asked, chain, relation, reason, elsewhere } => {
            let (needy, way) = way(&chain);
            let message = format!("`{set}` can't be had: {needy} needs {relation}: {reason}{way}");
            let diagnostic = Diagnostic::new(at(&[&asked]), message).label("needed for this");
            let offer = |[repository, name, version]: &[String; 3]| {
                format!(
                    "repository `{repository}` has {name} {version}: add \"{name}\" to the `packages` that come from it"
                )
            };
            match elsewhere.iter().map(offer).collect::<Vec<_>>().join("; ") {
                none if none.is_empty() => diagnostic,
                offers => diagnostic.hint(offers),
            }
        }
        ResolveError::Conflict { asked: [one, other], one: left, relation, other: right } => {
            let ((left, left_way), (right, right_way)) = (way(&left), way(&right));
            let message = format!(
                "`{set}` can't be had: {left} conflicts with {relation}{left_way}\nand there is also {right}{right_way}"
            );
            Diagnostic::new(at(&[&one, &other]), message)
        }
    })
}

fn did_you_mean(diagnostic: Diagnostic, nearest: &[String]) -> Diagnostic {
    let names: Vec<String> = nearest.iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        None => diagnostic,
        Some((only, [])) => diagnostic.hint(format!("did you mean {only}?")),
        Some((last, others)) => diagnostic.hint(format!("did you mean {} or {last}?", others.join(", "))),
    }
}

/// The last of a chain, and who needs it, a line each.
fn way(chain: &str) -> (&str, String) {
    let mut links = chain.rsplit(resolve::LINK);
    let last = links.next().unwrap_or_default();
    (last, links.map(|link| format!("\n  which is needed by {link}")).collect())
}

/// Where the recipe asks for one of these packages; what no recipe names stands where the base is named first.
fn place(rack: &Rack, base: &str, set: &str, names: &[&str]) -> Place {
    let images = rack.images.iter().filter(|(name, _)| sets::image(name) == set);
    let mut packages = images.flat_map(|(_, image)| &image.packages);
    let mut bases = std::iter::once(&rack.base).chain(rack.images.values().filter_map(|image| image.base.as_ref()));
    let asked = packages.find(|package| names.contains(&package.value.as_str()));
    asked.or_else(|| bases.find(|named| named.value == base)).unwrap_or(&rack.base).place.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_repositorys_suite_is_not_said_of_the_base() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rack.toml");
        let text = "[rack]\nname = 'a'\nversion = '1'\nbase = 'debian:trixie'\n\
             [repositories.old]\nbase = 'debian:bookworm'\nsuite = 'bookworn'\n";
        std::fs::write(&path, text).unwrap();
        let rack = rackstick_image::recipe::load(&path).unwrap();
        let source = Box::new(SuitesError::Release { suite: "bookworn".into(), refusals: Vec::new() });
        let error = placed(&rack, SuitesError::Named { repository: "old".into(), source });
        assert_eq!(error.to_string(), "the recipe asks for what repository `old` can't give");
    }
}
