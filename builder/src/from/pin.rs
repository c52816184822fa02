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

/// All inputs of a rack as they are now, by image. `scratch` is a folder for what is needed meanwhile.
pub fn pin(rack: &Rack, scratch: &Path) -> Result<BTreeMap<String, Input>, PinError> {
    // Images that share an input have it read once.
    let mut known: BTreeMap<&Path, Input> = BTreeMap::new();
    let mut pinned = BTreeMap::new();
    for (name, from) in rack.images.iter().filter_map(|(name, image)| Some((name, image.from.as_ref()?))) {
        let input = match known.get(from.file.as_path()) {
            Some(input) => input.clone(),
            None => known.entry(&from.file).or_insert(one(from, scratch)?).clone(),
        };
        pinned.insert(name.clone(), input);
    }
    Ok(pinned)
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
        Format::Oci => {
            let failed = |source| PinError::Oci { path: from.file.clone(), source };
            let folder =
                tempfile::tempdir_in(scratch).map_err(|source| PinError::Read { path: scratch.to_owned(), source })?;
            let place = oci::Place::open(&from.file, folder.path()).map_err(failed)?;
            Ok(Input::Oci { path, sha256: oci::find(&place).map_err(failed)?.digest() })
        }
    }
}

/// How the inputs as they are now differ from a lock's, one line each.
pub fn differences(now: &BTreeMap<String, Input>, lock: &Lock) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, input) in now {
        match lock.inputs.get(name) {
            None => lines.push(format!("image `{name}` is made from {}, which the lock does not have", path(input))),
            Some(locked) if locked == input => {}
            Some(locked) if path(locked) != path(input) => {
                lines.push(format!("image `{name}` is made from {}, in the lock from {}", path(input), path(locked)));
            }
            Some(locked) => lines.push(format!(
                "{} of image `{name}` has changed: it is {} now, {} in the lock",
                path(input),
                sha256(input),
                sha256(locked)
            )),
        }
    }
    let gone = lock.inputs.iter().filter(|(name, _)| !now.contains_key(*name));
    lines.extend(gone.map(|(name, input)| format!("image `{name}` is no longer made from {}", path(input))));
    lines
}

fn path(input: &Input) -> &str {
    let (Input::Rootfs { path, .. } | Input::Oci { path, .. }) = input;
    path
}

fn sha256(input: &Input) -> Sha256 {
    let (Input::Rootfs { sha256, .. } | Input::Oci { sha256, .. }) = input;
    *sha256
}
