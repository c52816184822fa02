//! What images are made from, in the lock: pinned when a rack is locked, compared before each build.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use rackstick_image::{
    digest::Sha256,
    lock::{Input, InputFile, Lock},
    recipe::{Format, From, Named, Placed, Rack},
};

use super::oci::{self, OciError};

/// Why an input can't be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It can't be read.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no image.
    #[error("{} {source}", .path.display())]
    Oci {
        /// Which.
        path: PathBuf,
        /// Why.
        source: OciError,
    },
}

/// All inputs of a rack that lie beside its recipes as they are now, by image. `scratch` is a folder for what is needed meanwhile.
pub fn pin(rack: &Rack, scratch: &Path) -> Result<BTreeMap<String, Input>, PinError> {
    // Images that share an input have it read once.
    let mut known: Vec<(&From, Input)> = Vec::new();
    let mut pinned = BTreeMap::new();
    for (name, from) in made_from(rack).filter(|(_, from)| from.format != Format::Registry) {
        let same = |other: &From| other.file == from.file && other.format == from.format && other.boot == from.boot;
        let input = match known.iter().find(|(other, _)| same(other)) {
            Some((_, input)) => input.clone(),
            None => one(from, scratch)?,
        };
        known.push((from, input.clone()));
        pinned.insert(name.clone(), input);
    }
    Ok(pinned)
}

/// The images of a rack that are not made of packages.
pub fn made_from(rack: &Rack) -> impl Iterator<Item = (&String, &From)> {
    rack.images.iter().filter_map(|(name, image)| Some((name, image.from.as_ref()?)))
}

fn one(from: &From, scratch: &Path) -> Result<Input, PinError> {
    let path = from.path.value.clone();
    match (from.format, &from.boot) {
        (Format::Rootfs, _) => {
            let InputFile { path, size, sha256 } = file(&from.path, &from.file)?;
            Ok(Input::Rootfs { path, size, sha256 })
        }
        (Format::Disk, Some(boot)) => {
            let named = |Named { path, file: at }: &Named| file(path, at);
            let (kernel, initrd) = (named(&boot.kernel)?, named(&boot.initrd)?);
            Ok(Input::Disk { disk: file(&from.path, &from.file)?, kernel, initrd })
        }
        (Format::Oci | Format::Registry | Format::Disk, _) => {
            let failed = |source| PinError::Oci { path: from.file.clone(), source };
            let folder =
                tempfile::tempdir_in(scratch).map_err(|source| PinError::Read { path: scratch.to_owned(), source })?;
            let place = oci::Place::open(&from.file, folder.path()).map_err(failed)?;
            Ok(Input::Oci { path, sha256: oci::find(&place).map_err(failed)?.digest() })
        }
    }
}

fn file(path: &Placed<String>, at: &Path) -> Result<InputFile, PinError> {
    let read = || -> io::Result<InputFile> {
        let file = File::open(at)?;
        Ok(InputFile { path: path.value.clone(), size: file.metadata()?.len(), sha256: Sha256::of_open(&file)? })
    };
    read().map_err(|source| PinError::Read { path: at.to_owned(), source })
}

/// How the inputs differ from a lock's, one line each. `now` are those that [`pin`] found; no registry is asked.
pub fn differences(rack: &Rack, now: &BTreeMap<String, Input>, lock: &Lock) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, from) in made_from(rack) {
        let path = &from.path.value;
        match (lock.inputs.get(name), now.get(name)) {
            (None, _) => lines.push(format!("image `{name}` is made from {path}, which the lock does not have")),
            (Some(locked), _) if locked.format() != from.format || locked.path() != path => {
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
