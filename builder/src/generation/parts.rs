//! Parts: files made of packages alone, each set in a folder named by the hash of all that decides its bytes. Choosing
//! drivers, packing firmware and unpacking kernels takes seconds; what comes of it changes only with the lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rackstick::{layers::sum, locked};
use rackstick_image::digest::Sha256;
use serde::Serialize;
use thiserror::Error;

use crate::store::Store;

/// What each file of a part must be: names and CRC-32C, which finds what a disk lets rot; written last.
const SUMS: &str = "crc32c.json";
/// The ending of the name of a part's lock. When it was last changed says when the part was last used.
const LOCK: &str = "lock";

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
    /// What decides a part, or its list of sums, can't be written down.
    #[error("can't write the part's list: {0}")]
    Json(#[from] serde_json::Error),
}

/// The parts of all builds.
pub struct Parts {
    folder: PathBuf,
    /// Another builder may make other files of the same packages.
    builder: Sha256,
    /// The parts that were found whole: that is looked at once.
    whole: Mutex<BTreeSet<Sha256>>,
}

/// A part that is there and whole.
pub struct Part {
    /// Names are in [`Part::file`].
    folder: PathBuf,
    /// Held as long as its files are used: nobody makes it anew. Shared, since one build may use a part twice, and two
    /// builds may take theirs in any order.
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
    /// Those in the store's folder. `builder` is the hash of this program.
    pub fn open(store: &Store, builder: Sha256) -> Result<Self, PartsError> {
        let folder = store.folder().join("parts");
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        Ok(Self { folder, builder, whole: Mutex::default() })
    }

    /// The part that is decided by `inputs`. If it is not there or damaged, `make` writes its files into an empty
    /// folder.
    pub fn get<E: From<PartsError>>(
        &self,
        inputs: &impl Serialize,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Part, E> {
        let key = self.key(inputs)?;
        let part = self.take(&key)?;
        if self.is_whole(&key, &part) {
            return Ok(part);
        }
        drop(part);
        let part = self.take_alone(&key)?;
        // Another builder may have made it meanwhile.
        if !self.is_whole(&key, &part) {
            part.empty()?;
            if let Err(error) = make(&part.folder) {
                // It may be gigabytes on a disk that is full. If it can't go, the reason why it was not made is still
                // the one to tell.
                let _stays = part.remove();
                return Err(error);
            }
            part.seal()?;
        }
        drop(part);
        // It stays there: `rackstick store` has the store for itself or not at all.
        Ok(self.take(&key)?)
    }
}

impl Parts {
    /// Whether there is a whole part under this key.
    pub fn is_there(&self, key: &Sha256) -> Result<bool, PartsError> {
        Ok(self.is_whole(key, &self.take(key)?))
    }

    fn is_whole(&self, key: &Sha256, part: &Part) -> bool {
        let known = || self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(key) {
            return true;
        }
        let whole = is_whole(&part.folder);
        if whole {
            known().insert(*key);
        }
        whole
    }

    /// Takes a key's place; waits while another builder makes the part.
    fn take(&self, key: &Sha256) -> Result<Part, PartsError> {
        self.locked(key, locked::open_shared)
    }

    /// Takes a key's place to make the part; waits while others use it.
    fn take_alone(&self, key: &Sha256) -> Result<Part, PartsError> {
        self.locked(key, locked::open)
    }

    fn locked(&self, key: &Sha256, open: impl Fn(&Path) -> io::Result<File>) -> Result<Part, PartsError> {
        let (folder, lock) = self.places(key);
        let locked = open(&lock).and_then(|lock| locked::touch(&lock).map(|()| lock));
        Ok(Part { _lock: locked.map_err(failed("lock", &lock))?, folder })
    }

    /// A key's folder and lock.
    fn places(&self, key: &Sha256) -> (PathBuf, PathBuf) {
        let folder = self.folder.join(key.to_string());
        let lock = folder.with_extension(LOCK);
        (folder, lock)
    }

    /// The key of the part that is decided by `inputs`.
    pub fn key(&self, inputs: &impl Serialize) -> Result<Sha256, PartsError> {
        let inputs = serde_json::to_vec(&(self.builder, inputs))?;
        Ok(Sha256::of(inputs))
    }

    /// Counts the parts under these keys as used now, as far as they are there.
    pub fn touch<'a>(&self, keys: impl IntoIterator<Item = &'a Sha256>) -> Result<(), PartsError> {
        let mut locks = keys.into_iter().map(|key| self.places(key).1);
        locks.try_for_each(|lock| locked::touch_if_there(&lock).map_err(failed("touch", &lock)))
    }

    /// Removes the parts under keys that are not to be kept, given each key and when it was last used (seconds since
    /// 1970), and what killed builds left; says how many parts went. With `pretend` nothing goes. What a build uses
    /// stays.
    pub fn sweep(&self, keep: impl Fn(&Sha256, i64) -> bool, pretend: bool) -> Result<usize, PartsError> {
        let mut swept = 0;
        for (key, used) in self.keys()? {
            let Some(part) = self.unused(&key)? else { continue };
            let sealed = part.file(SUMS).exists();
            if sealed && keep(&key, used) {
                continue;
            }
            swept += usize::from(sealed);
            if !pretend {
                part.remove()?;
            }
        }
        Ok(swept)
    }

    /// Sums up every part anew and removes those that are damaged. Says how many there were, where those were that went,
    /// and which can't be looked at or removed and were left.
    pub fn verify(&self) -> (usize, Vec<Result<PathBuf, PartsError>>) {
        let keys = match self.keys() {
            Ok(keys) => keys,
            Err(error) => return (0, vec![Err(error)]),
        };
        let (mut count, mut wrong) = (0, Vec::new());
        for key in keys.into_keys() {
            let mut judge = || {
                let Some(part) = self.unused(&key)?.filter(|part| part.file(SUMS).exists()) else { return Ok(None) };
                count += 1;
                if is_whole(&part.folder) {
                    return Ok(None);
                }
                let folder = part.folder.clone();
                part.remove()?;
                Ok(Some(folder))
            };
            wrong.extend(judge().transpose());
        }
        (count, wrong)
    }

    /// All keys under which there is something, and when each was last used.
    fn keys(&self) -> Result<BTreeMap<Sha256, i64>, PartsError> {
        let list = || {
            let mut keys = BTreeMap::new();
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let key = name.to_str().and_then(|name| name.trim_end_matches(".lock").parse().ok());
                let used = entry.metadata()?.mtime();
                // Of folder and lock, the later one tells.
                key.map(|key: Sha256| keys.entry(key).and_modify(|known| *known = used.max(*known)).or_insert(used));
            }
            Ok(keys)
        };
        list().map_err(failed("list", &self.folder))
    }

    /// The part, unless a build uses it.
    fn unused(&self, key: &Sha256) -> Result<Option<Part>, PartsError> {
        let (folder, lock) = self.places(key);
        let locked = locked::try_open(&lock).map_err(failed("lock", &lock))?;
        Ok(locked.map(|lock| Part { folder, _lock: lock }))
    }
}

impl Part {
    /// Removes it, the list of sums first and the lock last.
    fn remove(self) -> Result<(), PartsError> {
        let lock = self.folder.with_extension(LOCK);
        let removed = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.folder)(error)),
            _ => Ok(()),
        };
        removed(fs::remove_file(self.file(SUMS)))?;
        removed(fs::remove_dir_all(&self.folder))?;
        removed(fs::remove_file(lock))
    }

    fn empty(&self) -> Result<(), PartsError> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("empty", &self.folder)(error)),
            _ => fs::create_dir(&self.folder).map_err(failed("create", &self.folder)),
        }
    }

    /// Writes down what its files are: from then on it counts. A power cut may leave any of them damaged, which shows
    /// then.
    fn seal(&self) -> Result<(), PartsError> {
        let mut sums = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).map_err(failed("list", &self.folder))? {
            let entry = entry.map_err(failed("list", &self.folder))?;
            sums.insert(
                entry.file_name().to_string_lossy().into_owned(),
                crc(&entry.path()).map_err(failed("read", &entry.path()))?,
            );
        }
        let path = self.file(SUMS);
        fs::write(&path, serde_json::to_vec(&sums)?).map_err(failed("write", &path))
    }
}

/// Whether all files are there, and what they were when they were made.
fn is_whole(folder: &Path) -> bool {
    let Ok(text) = fs::read(folder.join(SUMS)) else { return false };
    let Ok(sums) = serde_json::from_slice::<BTreeMap<String, u32>>(&text) else { return false };
    sums.iter().all(|(name, sum)| crc(&folder.join(name)).is_ok_and(|crc| crc == *sum))
}

fn crc(path: &Path) -> io::Result<u32> {
    sum::crc(File::open(path)?)
}

/// SHA-256 of a file.
pub fn hash(path: &Path) -> Result<Sha256, PartsError> {
    Sha256::of_file(path).map_err(failed("read", path))
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> PartsError + use<> {
    let path = path.to_owned();
    move |source| PartsError::Io { what, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn open(folder: &Path) -> Parts {
        Parts::open(&Store::at(folder.to_owned()).unwrap(), Sha256([0; 32])).unwrap()
    }

    #[test]
    fn a_part_is_made_once_and_again_only_when_it_is_damaged_or_of_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let made = Cell::new(0);
        let get = |inputs: &str| {
            // A build of its own each time.
            let parts = open(folder.path());
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
    fn a_part_is_used_by_several_at_once_and_nothing_of_one_that_could_not_be_made_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (open(folder.path()), open(folder.path()));
        let make = |folder: &Path| fs::write(folder.join("file"), "x").map_err(failed("write", folder));
        let get = |parts: &Parts, inputs: &str| parts.get::<PartsError>(&inputs, make).unwrap();
        // Two images of one build, and two builds that take theirs in another order.
        let held = [get(&one, "a"), get(&one, "a"), get(&other, "b"), get(&one, "b"), get(&other, "a")];
        assert!(held.iter().all(|part| part.file("file").exists()));

        let fail =
            |folder: &Path| make(folder).and_then(|()| Err(failed("write", folder)(io::ErrorKind::StorageFull.into())));
        assert!(one.get::<PartsError>(&"c", fail).is_err());
        assert_eq!(fs::read_dir(&one.folder).unwrap().count(), 4, "two parts with their locks");
    }

    #[test]
    fn parts_that_are_not_kept_go_and_damaged_ones_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let parts = open(folder.path());
        let make = |folder: &Path| fs::write(folder.join("file"), "x").map_err(failed("write", folder));
        let get = |inputs: &str| parts.get::<PartsError>(&inputs, make).unwrap();
        let [kept, old] = ["kept", "old"].map(|inputs| get(inputs).folder.clone());
        fs::create_dir(parts.folder.join("0".repeat(64))).unwrap();
        let used = get("old");
        let key = parts.key(&"kept").unwrap();
        assert_eq!(parts.sweep(|other, _| *other == key, false).unwrap(), 0, "a build uses it");
        drop(used);
        assert_eq!(parts.sweep(|other, _| *other == key, true).unwrap(), 1);
        assert!(old.exists(), "pretended only");
        assert_eq!(parts.sweep(|other, _| *other == key, false).unwrap(), 1);
        assert_eq!(fs::read_dir(&parts.folder).unwrap().count(), 2, "the kept one and its lock");

        let verify = || {
            let (count, wrong) = parts.verify();
            (count, wrong.into_iter().map(Result::unwrap).collect::<Vec<_>>())
        };
        assert_eq!(verify(), (1, vec![]));
        fs::write(kept.join("file"), "y").unwrap();
        assert_eq!(verify(), (1, vec![kept]));
        assert_eq!(fs::read_dir(&parts.folder).unwrap().count(), 0);
    }

    #[test]
    fn what_a_failed_build_left_is_not_taken_for_whole() {
        let folder = tempfile::tempdir().unwrap();
        let parts = open(folder.path());
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
