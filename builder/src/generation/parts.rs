//! Parts: files made of packages alone, each set in a folder named by the hash of all that decides its bytes. Choosing
//! drivers, packing firmware and unpacking kernels takes seconds; what comes of it changes only with the lock.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use rackstick_image::digest::Sha256;
use serde::Serialize;
use sha2::Digest;
use thiserror::Error;

use crate::store::Store;

/// What each file of a part must be: names and hashes, written last.
const SUMS: &str = "sums.json";

/// Why a part can't be had.
#[derive(Debug, Error)]
pub enum PartsError {
    /// The cache.
    #[error("can't {what} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What decides a part, or its list of hashes, can't be written down.
    #[error("can't write the part's list: {0}")]
    Json(#[from] serde_json::Error),
}

/// The parts of all builds.
pub struct Parts {
    folder: PathBuf,
    /// Another builder may make other files of the same packages.
    builder: Sha256,
}

/// A part that is there and whole.
pub struct Part {
    /// Names are in [`Part::file`].
    folder: PathBuf,
    /// Held as long as its files are used: nobody else makes it anew.
    _lock: File,
}

impl Part {
    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// All of one of its files.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, PartsError> {
        fs::read(self.file(name)).map_err(failed("read", &self.file(name)))
    }
}

impl Parts {
    /// Those in the store's folder.
    pub fn open(store: &Store) -> Result<Self, PartsError> {
        let folder = store.folder().join("parts");
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        let program = env::current_exe().map_err(failed("find", Path::new("this program")))?;
        Ok(Self { folder, builder: hash(&program)? })
    }

    /// The part that is decided by `inputs`. If it is not there or damaged, `make` writes its files into an empty folder.
    pub fn get<E: From<PartsError>>(
        &self,
        inputs: &impl Serialize,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Part, E> {
        let inputs = serde_json::to_vec(&(self.builder, inputs)).map_err(PartsError::from)?;
        let key = Sha256(sha2::Sha256::digest(inputs).into());
        let folder = self.folder.join(key.to_string());
        let part = Part { _lock: lock(&folder.with_extension("lock"))?, folder };
        if !is_whole(&part.folder) {
            part.empty()?;
            make(&part.folder)?;
            part.seal()?;
        }
        Ok(part)
    }
}

impl Part {
    fn empty(&self) -> Result<(), PartsError> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("empty", &self.folder)(error)),
            _ => fs::create_dir(&self.folder).map_err(failed("create", &self.folder)),
        }
    }

    /// Writes down what its files are: from then on it counts. A power cut may leave any of them damaged, which shows then.
    fn seal(&self) -> Result<(), PartsError> {
        let mut sums = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).map_err(failed("list", &self.folder))? {
            let entry = entry.map_err(failed("list", &self.folder))?;
            sums.insert(entry.file_name().to_string_lossy().into_owned(), hash(&entry.path())?);
        }
        let path = self.file(SUMS);
        fs::write(&path, serde_json::to_vec(&sums)?).map_err(failed("write", &path))
    }
}

/// Whether all files are there, and what they were when they were made.
fn is_whole(folder: &Path) -> bool {
    let Ok(text) = fs::read(folder.join(SUMS)) else { return false };
    let Ok(sums) = serde_json::from_slice::<BTreeMap<String, Sha256>>(&text) else { return false };
    sums.iter().all(|(name, sum)| hash(&folder.join(name)).is_ok_and(|hash| hash == *sum))
}

/// Waits while another build has it.
fn lock(path: &Path) -> Result<File, PartsError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed("open", path))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| failed("lock", path)(error.into()))?;
    Ok(file)
}

/// SHA-256 of a file.
pub fn hash(path: &Path) -> Result<Sha256, PartsError> {
    let mut hasher = sha2::Sha256::new();
    File::open(path).and_then(|mut file| io::copy(&mut file, &mut hasher)).map_err(failed("read", path))?;
    Ok(Sha256(hasher.finalize().into()))
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> PartsError + use<> {
    let path = path.to_owned();
    move |source| PartsError::Io { what, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_part_is_made_once_and_again_only_when_it_is_damaged_or_of_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts::open(&Store::at(folder.path().to_owned()).unwrap()).unwrap();
        let made = Cell::new(0);
        let get = |inputs: &str| {
            let make = |folder: &Path| {
                made.set(made.get() + 1);
                fs::write(folder.join("file"), inputs).map_err(failed("write", folder))
            };
            parts.get::<PartsError>(&inputs, make).unwrap()
        };
        for _ in 0..2 {
            assert_eq!(get("a").read("file").unwrap(), b"a");
        }
        assert_eq!(made.get(), 1);
        assert_eq!(get("b").read("file").unwrap(), b"b");
        assert_eq!(made.get(), 2);

        let spoil: [&dyn Fn(&Path); 4] = [
            &|folder| fs::write(folder.join("file"), "x").unwrap(),
            &|folder| fs::remove_file(folder.join("file")).unwrap(),
            &|folder| fs::remove_file(folder.join(SUMS)).unwrap(),
            &|folder| fs::write(folder.join(SUMS), "{").unwrap(),
        ];
        for (count, spoil) in spoil.into_iter().enumerate() {
            let folder = get("a").folder.clone();
            spoil(&folder);
            assert_eq!(get("a").read("file").unwrap(), b"a");
            assert_eq!(made.get(), count + 3);
        }
    }

    #[test]
    fn what_a_failed_build_left_is_not_taken_for_whole() {
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts::open(&Store::at(folder.path().to_owned()).unwrap()).unwrap();
        let half = |folder: &Path| {
            fs::write(folder.join("half"), "half").unwrap();
            Err(failed("write", folder)(io::ErrorKind::StorageFull.into()))
        };
        assert!(parts.get::<PartsError>(&"a", half).is_err());
        let whole = |folder: &Path| fs::write(folder.join("file"), "whole").map_err(failed("write", folder));
        let part = parts.get::<PartsError>(&"a", whole).unwrap();
        assert_eq!(part.read("file").unwrap(), b"whole");
        assert!(!part.file("half").exists());
    }
}
