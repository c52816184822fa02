//! What images are made from, in the lock: pinned when a rack is locked, compared before each build.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use rackstick_image::{
    digest::Sha256,
    lock::{Input, Lock},
    recipe::{Format, From, Rack},
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
    let mut known: BTreeMap<&Path, Input> = BTreeMap::new();
    let mut pinned = BTreeMap::new();
    for (name, from) in made_from(rack).filter(|(_, from)| from.format != Format::Registry) {
        let input = match known.get(from.file.as_path()) {
            Some(input) => input.clone(),
            None => known.entry(&from.file).or_insert(one(from, scratch)?).clone(),
        };
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
    match from.format {
        Format::Rootfs => {
            let read = || -> io::Result<Input> {
                let file = File::open(&from.file)?;
                Ok(Input::Rootfs { path, size: file.metadata()?.len(), sha256: Sha256::of_reader(file)? })
            };
            read().map_err(|source| PinError::Read { path: from.file.clone(), source })
        }
        Format::Oci | Format::Registry => {
            let failed = |source| PinError::Oci { path: from.file.clone(), source };
            let folder =
                tempfile::tempdir_in(scratch).map_err(|source| PinError::Read { path: scratch.to_owned(), source })?;
            let place = oci::Place::open(&from.file, folder.path()).map_err(failed)?;
            Ok(Input::Oci { path, sha256: oci::find(&place).map_err(failed)?.digest() })
        }
    }
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
            (Some(locked), Some(now)) if locked != now => lines.push(format!(
                "{path} of image `{name}` has changed: it is {} now, {} in the lock",
                now.sha256(),
                locked.sha256()
            )),
            _ => {}
        }
    }
    let made: Vec<&String> = made_from(rack).map(|(name, _)| name).collect();
    let gone = lock.inputs.iter().filter(|(name, _)| !made.contains(name));
    lines.extend(gone.map(|(name, input)| format!("image `{name}` is no longer made from {}", input.path())));
    lines
}
