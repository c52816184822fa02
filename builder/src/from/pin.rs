//! What images are made from, in the lock: pinned when a rack is locked, compared before each build.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use rackstick_image::{
    digest::Sha256,
    lock::{Blob, Input, InputFile, Lock},
    recipe::{Archive, Diagnostic, Diagnostics, Disk, From, Named, Rack, Root},
};

use super::oci::{self, OciError};

/// Why an input can't be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It can't be used.
    #[error("an image can't be made from what its recipe names")]
    Recipe(#[source] Diagnostics),
    /// There is nowhere to unpack it.
    #[error("can't make a folder in {}: {source}", .path.display())]
    Scratch {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It can't be unpacked here.
    #[error("{} {source}", .path.display())]
    Unpack {
        /// Which.
        path: PathBuf,
        /// Why.
        source: OciError,
    },
}

/// What is wrong with an input, at its place in the recipe.
fn unusable(named: &Named, what: impl fmt::Display) -> PinError {
    PinError::Recipe(Diagnostic::new(named.path.place.clone(), format!("{} {what}", named.file.display())).into())
}

/// All inputs of a rack that lie beside its recipes as they are now, by image. `scratch` is a folder for what is needed
/// meanwhile.
pub fn pin(rack: &Rack, scratch: &Path) -> Result<BTreeMap<String, Input>, PinError> {
    let mut known = Known::default();
    let mut pinned = BTreeMap::new();
    for (name, from) in made_from(rack) {
        let input = match from {
            From::Root(Root { archive: Archive::Registry(_), .. }) => continue,
            From::Root(Root { archive: Archive::Rootfs(named), .. }) => {
                let InputFile { path, size, sha256 } = known.file(named)?;
                Input::Rootfs { path, size, sha256 }
            }
            From::Root(Root { archive: Archive::Oci(named), .. }) => {
                Input::Oci { path: named.path.value.clone(), sha256: known.oci(named, scratch)? }
            }
            From::Disk(Disk { disk, kernel, initrd }) => {
                Input::Disk { disk: known.file(disk)?, kernel: known.file(kernel)?, initrd: known.file(initrd)? }
            }
        };
        pinned.insert(name.clone(), input);
    }
    Ok(pinned)
}

/// The images of a rack that are not made of packages.
pub fn made_from(rack: &Rack) -> impl Iterator<Item = (&String, &From)> {
    rack.images.iter().filter_map(|(name, image)| Some((name, image.from.as_ref()?)))
}

/// What was read of files and of container images: those that several images share are read once.
#[derive(Default)]
struct Known<'a> {
    files: BTreeMap<&'a Path, (u64, Sha256)>,
    oci: BTreeMap<&'a Path, Sha256>,
}

impl<'a> Known<'a> {
    fn file(&mut self, named: &'a Named) -> Result<InputFile, PinError> {
        let read = || -> io::Result<(u64, Sha256)> {
            let file = File::open(&named.file)?;
            Ok((file.metadata()?.len(), Sha256::of_open(&file)?))
        };
        let (size, sha256) = match self.files.get(&*named.file) {
            Some(known) => *known,
            None => read().map_err(|error| unusable(named, format_args!("can't be read: {error}")))?,
        };
        self.files.insert(&named.file, (size, sha256));
        Ok(InputFile { path: named.path.value.clone(), size, sha256 })
    }

    fn oci(&mut self, named: &'a Named, scratch: &Path) -> Result<Sha256, PinError> {
        let failed = |source: OciError| match source {
            source if source.is_of_our_disk() => PinError::Unpack { path: named.file.clone(), source },
            source => unusable(named, source),
        };
        let sha256 = match self.oci.get(&*named.file) {
            Some(known) => *known,
            None => {
                let folder = tempfile::tempdir_in(scratch)
                    .map_err(|source| PinError::Scratch { path: scratch.to_owned(), source })?;
                let place = oci::Place::open(&named.file, folder.path()).map_err(failed)?;
                oci::find(&place).map_err(failed)?.digest()
            }
        };
        self.oci.insert(&named.file, sha256);
        Ok(sha256)
    }
}

/// A root file system by its recipe and its lock.
#[derive(Debug, Clone, Copy)]
pub struct Pinned<'a> {
    /// The recipe's words.
    pub(super) root: &'a Root,
    /// Where it is, and as what it is locked.
    pub(super) archive: PinnedArchive<'a>,
}

/// What holds it, and the hash that it is locked with.
#[derive(Debug, Clone, Copy)]
pub(super) enum PinnedArchive<'a> {
    /// The tarball.
    Rootfs(&'a Path, Sha256),
    Oci(OciPlace<'a>, Sha256),
}

/// Where a container image is.
#[derive(Debug, Clone, Copy)]
pub(super) enum OciPlace<'a> {
    /// A file or folder.
    File(&'a Path),
    /// In the store, from a registry: by its reference.
    Registry(&'a str),
}

impl PinnedArchive<'_> {
    /// What messages call it.
    pub fn shown(&self) -> String {
        match self {
            Self::Rootfs(path, _) | Self::Oci(OciPlace::File(path), _) => path.display().to_string(),
            Self::Oci(OciPlace::Registry(reference), _) => (*reference).to_owned(),
        }
    }
}

impl<'a> Pinned<'a> {
    /// None if it is locked as something else.
    pub fn of(root: &'a Root, locked: &Input) -> Option<Self> {
        let archive = match (&root.archive, locked) {
            (Archive::Rootfs(named), Input::Rootfs { sha256, .. }) => PinnedArchive::Rootfs(&named.file, *sha256),
            (Archive::Oci(named), Input::Oci { sha256, .. }) => {
                PinnedArchive::Oci(OciPlace::File(&named.file), *sha256)
            }
            (Archive::Registry(reference), Input::Registry { manifest: Blob { sha256, .. }, .. }) => {
                PinnedArchive::Oci(OciPlace::Registry(&reference.value), *sha256)
            }
            _ => return None,
        };
        Some(Self { root, archive })
    }
}

/// Whether the lock names what the recipe names.
fn is_same(from: &From, locked: &Input) -> bool {
    let same_format = match (from, locked) {
        (From::Root(root), locked) => Pinned::of(root, locked).is_some(),
        (From::Disk(_), locked) => matches!(locked, Input::Disk { .. }),
    };
    same_format && from.name().value == locked.path()
}

/// How the inputs differ from a lock's, one line each. `now` are those that [`pin`] found; no registry is asked.
pub fn differences(rack: &Rack, now: &BTreeMap<String, Input>, lock: &Lock) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, from) in made_from(rack) {
        let path = &from.name().value;
        match (lock.inputs.get(name), now.get(name)) {
            (None, _) => lines.push(format!("image `{name}` is made from {path}, which the lock does not have")),
            (Some(locked), _) if !is_same(from, locked) => {
                lines.push(format!("image `{name}` is made from {path}, in the lock from {}", locked.path()));
            }
            (Some(locked), Some(now)) if locked != now => {
                lines.extend(
                    now.files().into_iter().zip(locked.files()).filter_map(|(now, then)| change(name, now, then)),
                );
            }
            _ => {}
        }
    }
    let made: Vec<&String> = made_from(rack).map(|(name, _)| name).collect();
    let gone = lock.inputs.iter().filter(|(name, _)| !made.contains(name));
    lines.extend(gone.map(|(name, input)| format!("image `{name}` is no longer made from {}", input.path())));
    lines
}

/// How a file of an image differs from the lock's: each by its path and hash.
fn change(image: &str, (path, now): (&str, Sha256), (before, then): (&str, Sha256)) -> Option<String> {
    if path != before {
        return Some(format!("image `{image}` is made from {path}, in the lock from {before}"));
    }
    (now != then).then(|| format!("{path} of image `{image}` has changed: it is {now} now, {then} in the lock"))
}
