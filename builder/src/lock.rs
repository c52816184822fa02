//! The lock as a file beside its rack recipe: `lab.lock` beside `lab.toml`. Read strictly, written at once or not at
//! all, made when there is none, and never changed behind the user's back.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rackstick_image::{
    lock::{Base, FORMAT, Input, Lock},
    recipe::{self, Diagnostic, Diagnostics, Place, Rack, Source},
    reference::Reference,
};

use rackstick::from::{self, PinError};

use serde::Deserialize;

use crate::{
    archive::{self, DEBIAN, RepositoryError, ResolveLockError, SECURITY, Updated},
    progress::Progress,
    registry::{self, RegistryError},
    sets,
    store::{Store, StoreError},
};

/// What a lock begins with.
const HEADER: &str = "\
# Every package that goes into this rack, by version, hash and path in Debian's archive. Written by `rackstick lock`;
# keep it in git beside the recipe, and renew it with `rackstick lock --update`.

";

/// What is wrong with a lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lock can't be read or written.
    #[error("can't {doing} the lock {}", .path.display())]
    Io {
        /// `read` or `write`.
        doing: &'static str,
        /// The lock.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The lock is not one.
    #[error("the lock is not valid")]
    Invalid(#[source] Diagnostics),
    /// The lock can't be written as TOML.
    #[error("the lock can't be written")]
    Unwritable(#[from] toml::ser::Error),
    /// The recipe asks for something else than when it was locked.
    #[error(
        "the lock {} no longer fits its recipe:{}\nRun `rackstick lock {}` to resolve what the recipe asks for now",
        .path.display(), .differences.iter().map(|line| format!("\n  {line}")).collect::<String>(), .recipe.display()
    )]
    Unfit {
        /// The lock.
        path: PathBuf,
        /// The recipe.
        recipe: PathBuf,
        /// How they differ, one line each.
        differences: Vec<String>,
    },
    /// The recipe can't be resolved.
    #[error(transparent)]
    Resolve(#[from] ResolveLockError),
    /// The recipe's repositories are wrong.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// What archives and registries say makes no lock.
    #[error("there can be no lock of this: {0}")]
    Fault(String),
    /// What an image is made from can't be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The same, in a registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is nowhere to work.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where the lock of a recipe is: the recipe's path with `.lock` in place of `.toml`.
pub fn path(recipe: &Path) -> PathBuf {
    if recipe.extension().is_some_and(|extension| extension == "toml") {
        return recipe.with_extension("lock");
    }
    let mut path = OsString::from(recipe);
    path.push(".lock");
    path.into()
}

/// The lock of a recipe, or none if there is none.
pub fn read(recipe: &Path) -> Result<Option<Lock>, LockError> {
    let path = path(recipe);
    match fs::read_to_string(&path) {
        Ok(text) => parse(path, text).map(Some).map_err(LockError::Invalid),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LockError::Io { doing: "read", path, source }),
    }
}

/// The lock that a build goes by: that of the recipe if it fits, or a new one if there is none.
pub fn for_build(
    recipe: &Path,
    rack: &Rack,
    mirrors: &[String],
    store: &Store,
    progress: &Progress,
) -> Result<Lock, LockError> {
    match fitting(recipe, rack)? {
        Some(lock) => Ok(lock),
        None => renew(recipe, rack, None, None, mirrors, store, progress),
    }
}

/// The lock of a recipe, which must fit it, or none if there is none.
pub fn fitting(recipe: &Path, rack: &Rack) -> Result<Option<Lock>, LockError> {
    let Some(lock) = read(recipe)? else {
        // Keys that can't be read are wrong without a lock too.
        archive::pin_repositories(rack)?;
        return Ok(None);
    };
    let differences = differences(rack, &lock)?;
    if differences.is_empty() {
        return Ok(Some(lock));
    }
    Err(LockError::Unfit { path: path(recipe), recipe: recipe.to_owned(), differences })
}

/// Resolves the recipe against the archives as they are now and writes its lock. Images of registries stay as they are
/// in `kept`.
pub fn renew(
    recipe: &Path,
    rack: &Rack,
    previous: Option<&Lock>,
    kept: Option<&Lock>,
    mirrors: &[String],
    store: &Store,
    progress: &Progress,
) -> Result<Lock, LockError> {
    let inputs = inputs(rack, kept)?;
    let lock = Lock { inputs, ..archive::resolve(rack, previous, mirrors, store, progress)? };
    write(&path(recipe), &lock)?;
    Ok(lock)
}

/// Pins what images are made from as it is now, and leaves the packages of `previous` as they are; no archive is asked.
pub fn renew_inputs(recipe: &Path, rack: &Rack, previous: &Lock) -> Result<Lock, LockError> {
    let lock = Lock { inputs: inputs(rack, Some(previous))?, ..previous.clone() };
    write(&path(recipe), &lock)?;
    Ok(lock)
}

/// How a lock differs from what the recipe asks for and from the files that lie beside it, one line each; empty if it
/// fits.
pub fn differences(rack: &Rack, lock: &Lock) -> Result<Vec<String>, LockError> {
    Ok([package_differences(rack, lock)?, from::differences(rack, &beside(rack)?, lock)].concat())
}

/// How a lock's packages, and where they come from, differ from what the recipe asks for.
pub fn package_differences(rack: &Rack, lock: &Lock) -> Result<Vec<String>, LockError> {
    let pinned = archive::pin_repositories(rack)?;
    Ok([sets::differences(rack, lock), archive::repository_differences(&pinned.repositories, lock)].concat())
}

/// What images are made from in place of packages, as it is now; images of registries as they are in `kept`.
fn inputs(rack: &Rack, kept: Option<&Lock>) -> Result<BTreeMap<String, Input>, LockError> {
    let mut inputs = beside(rack)?;
    inputs.extend(registry::pin(rack, kept)?);
    Ok(inputs)
}

/// What of it lies beside the recipes.
fn beside(rack: &Rack) -> Result<BTreeMap<String, Input>, LockError> {
    if rack.images.values().all(|image| image.from.is_none()) {
        return Ok(BTreeMap::new());
    }
    Ok(from::pin(rack, Store::open()?.folder())?)
}

/// Updates the packages named, and what they need, and writes the lock.
pub fn update(
    recipe: &Path,
    rack: &Rack,
    previous: &Lock,
    names: &[String],
    mirrors: &[String],
    store: &Store,
    progress: &Progress,
) -> Result<Updated, LockError> {
    let inputs = inputs(rack, Some(previous))?;
    let mut updated = archive::update(rack, previous, names, mirrors, store, progress)?;
    updated.lock.inputs = inputs;
    write(&path(recipe), &updated.lock)?;
    Ok(updated)
}

/// The lock as it stands in its file.
fn text(lock: &Lock) -> Result<String, LockError> {
    Ok(format!("{HEADER}{}", toml::to_string_pretty(lock)?))
}

/// Writes a lock: whoever reads it meanwhile sees the old one or the new one.
fn write(path: &Path, lock: &Lock) -> Result<(), LockError> {
    if let Some((_, message)) = fault(lock) {
        return Err(LockError::Fault(message));
    }
    let text = text(lock)?;
    let fail = |source| LockError::Io { doing: "write", path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".rackstick-lock-")
        // As for any new file, the umask has the last word.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(fail)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
}

/// Reads a lock strictly: nothing unknown, nothing missing, nothing that could lead out of a folder.
fn parse(path: PathBuf, text: String) -> Result<Lock, Diagnostics> {
    let parsed: Result<Lock, toml::de::Error> = toml::from_str(&text);
    let source = Arc::new(Source { path, text });
    let place = |span| Place { source: Arc::clone(&source), span };
    // A wrong value is marked where it first stands.
    let at = |value: &str| place(source.text.find(value).map_or(0..0, |start| start..start + value.len()));
    let wrong = |(value, message): Fault| Diagnostic::new(at(&value), message).hint(REMEDY);
    // All the rest of another format's lock would look wrong.
    if let Some(fault) = toml::from_str(&source.text).ok().and_then(|Format { format }| of_format(format)) {
        return Err(wrong(fault).into());
    }
    let lock = parsed.map_err(|error| {
        let span = error.span().unwrap_or_default();
        Diagnostic::new(place(span), error.message()).hint(REMEDY)
    })?;
    fault(&lock).map_or(Ok(lock), |fault| Err(wrong(fault).into()))
}

/// What every format of a lock has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The largest package accepted, in bytes: sizes are added up, and a lock may come from anywhere. Debian's largest has
/// below 2 GiB.
const MAX_PACKAGE: u64 = 32 << 30;
const REMEDY: &str = "take the lock from git again, or make a new one with `rackstick lock --update`";

/// What is wrong with a lock: the value that is, and why.
type Fault = (String, String);

fn of_format(format: u32) -> Option<Fault> {
    let message = || format!("the lock has format {format}, this rackstick knows {FORMAT}");
    (format != FORMAT).then(|| ("format".to_owned(), message()))
}

/// The first thing that is wrong with a lock.
fn fault(lock: &Lock) -> Option<Fault> {
    if let Some(fault) = of_format(lock.format) {
        return Some(fault);
    }
    if !lock.bases.contains_key(&lock.base) {
        return Some((lock.base.clone(), format!("the lock has nothing of its base {}", lock.base)));
    }
    for (name, repository) in &lock.repositories {
        // The name becomes that of a folder.
        if !recipe::is_name(name) || [DEBIAN, SECURITY].contains(&name.as_str()) {
            return Some((name.clone(), format!("`{name}` can't be the name of a repository")));
        }
        if let Some(url) = repository.url.as_ref().filter(|url| !recipe::is_archive_url(url)) {
            return Some((url.clone(), format!("`{url}` is not the URL of an archive")));
        }
    }
    for (_, name, package) in lock.packages() {
        if !archive::is_package_name(name) {
            return Some((name.clone(), format!("`{name}` is not the name of a package")));
        }
        let own = [DEBIAN, SECURITY].contains(&package.archive.as_str());
        if !own && !lock.repositories.contains_key(&package.archive) {
            let message = format!("`{}` is no archive and no repository of this lock", package.archive);
            return Some((package.archive.clone(), message));
        }
        if !archive::is_pool_path(&package.path, !own) {
            let message = format!("`{}` is not a path below an archive's pool", package.path);
            return Some((package.path.clone(), message));
        }
        if package.size > MAX_PACKAGE {
            let message = format!("`{name}` has {} bytes; {MAX_PACKAGE} are the most", package.size);
            return Some((package.size.to_string(), message));
        }
    }
    for input in lock.inputs.values() {
        if let Input::Registry { reference, .. } = input
            && reference.parse::<Reference>().is_err()
        {
            return Some((reference.clone(), format!("`{reference}` names no image in a registry")));
        }
        if let Some(blob) = input.blobs().find(|blob| blob.size > MAX_PACKAGE) {
            let message = format!("a file of {} has {} bytes; {MAX_PACKAGE} are the most", input.path(), blob.size);
            return Some((blob.size.to_string(), message));
        }
    }
    lock.bases.values().find_map(fault_of_sets)
}

fn fault_of_sets(base: &Base) -> Option<Fault> {
    for (set, names) in &base.sets {
        if let Some(name) = names.iter().find(|name| !base.packages.contains_key(*name)) {
            return Some((name.clone(), format!("`{name}` of set `{set}` is not among the packages")));
        }
        if !base.roots.contains_key(set) {
            return Some((set.clone(), format!("set `{set}` has no roots")));
        }
    }
    base.roots
        .keys()
        .find(|set| !base.sets.contains_key(*set))
        .map(|set| (set.clone(), format!("set `{set}` has roots but no packages")))
}

#[cfg(test)]
mod tests {
    use rackstick_image::{
        digest::Sha256,
        lock::{Index, Package},
    };

    use super::*;

    fn lock() -> Lock {
        let package = Package {
            version: "14.2.0-19".to_owned(),
            architecture: "amd64".to_owned(),
            archive: "debian".to_owned(),
            path: "pool/main/g/gcc-14/libstdc++6_14.2.0-19_amd64.deb".to_owned(),
            size: 727_000,
            sha256: Sha256([7; 32]),
        };
        let base = Base {
            roots: BTreeMap::from([("image:web".to_owned(), vec!["libstdc++6".to_owned()])]),
            sets: BTreeMap::from([("image:web".to_owned(), vec!["libstdc++6".to_owned()])]),
            indexes: vec![Index {
                archive: "debian".to_owned(),
                suite: "trixie".to_owned(),
                date: "Sat, 21 Nov 2026 09:15:44 UTC".to_owned(),
                sha256: Sha256([1; 32]),
            }],
            packages: BTreeMap::from([("libstdc++6".to_owned(), package)]),
        };
        Lock {
            format: FORMAT,
            builder: "0.1.0".to_owned(),
            epoch: 1_795_252_544,
            base: "debian:trixie".to_owned(),
            bases: BTreeMap::from([("debian:trixie".to_owned(), base)]),
            repositories: BTreeMap::new(),
            inputs: BTreeMap::new(),
        }
    }

    #[test]
    fn a_lock_reads_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = folder.path().join("lab.toml");
        assert_eq!(read(&recipe).unwrap(), None);
        write(&path(&recipe), &lock()).unwrap();
        assert_eq!(read(&recipe).unwrap(), Some(lock()));
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["lab.lock"], "nothing is left beside it");
    }

    #[test]
    fn a_wrong_lock_is_refused_with_line_and_column() {
        let good = text(&lock()).unwrap();
        for (from, to, place, message) in [
            ("epoch = ", "epoc = ", "lab.lock:6:1", "unknown field"),
            ("format = 2", "format = 3", "lab.lock:4:1", "format 3"),
            ("format = 2", "format = 1\nroots = {}", "lab.lock:4:1", "format 1"),
            ("base = \"debian:trixie\"", "base = \"debian:sid\"", "lab.lock:7:9", "nothing of its base debian:sid"),
            ("size = 727000", "size = -1", "lab.lock:26:8", ""),
            ("size = 727000", "size = 9000000000000000000", "lab.lock:26:8", "are the most"),
            ("pool/main", "../main", "lab.lock:", "not a path below an archive's pool"),
            ("archive = \"debian\"\npath", "archive = \"../x\"\npath", "lab.lock:", "is no archive"),
            (
                "trixie\".packages.\"libstdc++6\"]",
                "trixie\".packages.\"../x\"]",
                "lab.lock:",
                "not the name of a package",
            ),
            ("packages.\"libstdc++6\"]", "packages.other]", "lab.lock:", "not among the packages"),
            (
                "[bases.",
                "[repositories.debian]\nbase = \"x\"\nsuite = \"x\"\ncomponents = []\n\n[bases.",
                "lab.lock:",
                "can't be the name of a repository",
            ),
            (
                "[bases.",
                "[repositories.x]\nbase = \"x\"\nurl = \"file:///etc\"\nsuite = \"x\"\ncomponents = []\n\n[bases.",
                "lab.lock:",
                "is not the URL of an archive",
            ),
            (".roots]", ".roots", "lab.lock:", ""),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            let error = parse("lab.lock".into(), bad).unwrap_err().to_string();
            assert!(error.starts_with(place) && error.contains(message), "{from}: {error}");
        }
    }

    #[test]
    fn a_lock_has_its_recipes_name() {
        assert_eq!(path(Path::new("recipes/lab.toml")), Path::new("recipes/lab.lock"));
        assert_eq!(path(Path::new("lab")), Path::new("lab.lock"));
        assert_eq!(path(Path::new("lab.v2")), Path::new("lab.v2.lock"));
    }
}
