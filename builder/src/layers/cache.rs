//! Where finished layers are kept: by the hash of all that decides their bytes. A layer is there only once its `.json`
//! is; whatever else lies under its key is what a build left that was cut off. When its `.lock` was last changed says
//! when it was last used.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use rackstick_image::{digest::Sha256, verity};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Error, Layer, stage::protocol::Written, sum};
use crate::{locked, stamp::Stamp};

/// Digits of a key.
const KEY_LENGTH: usize = 64;

/// The cache.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    /// Hash of the command itself: another builder may make other layers of the same inputs.
    pub builder: Sha256,
}

/// What is noted of a finished layer.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    written: Written,
    /// What the file system said of its file; none if its clock stood still.
    stamp: Option<Stamp>,
    /// Whether its tree was kept.
    tree: bool,
}

/// One key's place, held by this builder alone until dropped.
#[derive(Debug)]
pub struct Slot {
    folder: PathBuf,
    key: String,
    _lock: File,
}

impl Cache {
    /// Opens or creates it, for nobody else: trees in it hold set-user-id programs.
    pub fn open(folder: &Path, program: &Path) -> Result<Self, Error> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("created", folder))?;
        let builder = Sha256::of_file(program).map_err(failed("compared with this builder", program))?;
        let folder = fs::canonicalize(folder).map_err(failed("opened", folder))?;
        Ok(Self { folder, builder })
    }

    /// The key of something that is decided by `inputs`.
    pub fn key(&self, inputs: &impl Serialize) -> Result<String, Error> {
        let inputs = serde_json::to_vec(&(self.builder, inputs)).map_err(Error::Key)?;
        Ok(Sha256::of(inputs).to_string())
    }

    /// Takes a key's place; waits while another builder has it.
    pub fn slot(&self, key: &str) -> Result<Slot, Error> {
        let path = self.folder.join(format!("{key}.lock"));
        let lock = locked::open(&path).and_then(|lock| locked::touch(&lock).map(|()| lock));
        let lock = lock.map_err(failed("locked", &path))?;
        Ok(Slot { folder: self.folder.clone(), key: key.to_owned(), _lock: lock })
    }

    /// Counts what lies under a key as used now, if there is something.
    pub fn touch(&self, key: &str) -> Result<(), Error> {
        let path = self.folder.join(format!("{key}.lock"));
        locked::touch_if_there(&path).map_err(failed("written", &path))
    }

    /// As [`Cache::slot`], but nothing if another builder has it; and this is no use of it.
    pub fn free_slot(&self, key: &str) -> Result<Option<Slot>, Error> {
        let path = self.folder.join(format!("{key}.lock"));
        let lock = locked::try_open(&path).map_err(failed("locked", &path))?;
        Ok(lock.map(|lock| Slot { folder: self.folder.clone(), key: key.to_owned(), _lock: lock }))
    }

    /// All keys under which there is something, and when each was last used, in seconds since 1970.
    pub fn keys(&self) -> Result<BTreeMap<String, i64>, Error> {
        let read = || {
            let mut keys = BTreeMap::new();
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let Some((key, suffix)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
                if key.len() == KEY_LENGTH && key.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    let used = entry.metadata()?.mtime();
                    let known = keys.entry(key.to_owned()).or_insert(used);
                    if suffix == "lock" {
                        *known = used;
                    }
                }
            }
            Ok(keys)
        };
        read().map_err(failed("read", &self.folder))
    }
}

impl Slot {
    /// Whose place it is.
    pub fn key(&self) -> &str {
        &self.key
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}.{suffix}", self.key))
    }

    /// The tree of a layer that others are built upon.
    pub fn tree(&self) -> PathBuf {
        self.path("tree")
    }

    /// The tree when the layer is made a second time.
    pub fn again(&self) -> PathBuf {
        self.path("again")
    }

    /// A folder to work in.
    pub fn work(&self) -> PathBuf {
        self.path("work")
    }

    /// Where a layer is written before it is finished.
    pub fn partial(&self) -> PathBuf {
        self.path("partial")
    }

    /// What a build that was cut off left behind.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        [self.tree(), self.again(), self.work(), self.partial()].into_iter().filter(|path| path.exists()).collect()
    }

    /// Removes what a build that was cut off had written of a layer.
    pub fn forget_partial(&self) -> Result<(), Error> {
        let path = self.partial();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("removed", &path)(error)),
            _ => Ok(()),
        }
    }

    /// What was remembered; none if nothing, or nothing that can be read.
    pub fn recall<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let path = self.path("found");
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            result => Ok(serde_json::from_slice(&result.map_err(failed("read", &path))?).ok()),
        }
    }

    /// Remembers what is no layer.
    pub fn remember(&self, found: &impl Serialize) -> Result<(), Error> {
        let (path, new) = (self.path("found"), self.path("found.new"));
        let bytes = serde_json::to_vec(found).map_err(Error::Key)?;
        // What a power cut spoils can't be read afterwards, and is found out again.
        fs::write(&new, bytes).and_then(|()| fs::rename(&new, &path)).map_err(failed("written", &path))
    }

    /// The layer, if it is there and what it was when it was written, and with its tree if others are built upon it. If
    /// its file system knows of no change its checksum is enough: that finds what rots by itself.
    pub fn finished(&self) -> Result<Option<Layer>, Error> {
        let (note, path) = (self.path("json"), self.path("erofs"));
        let text = match fs::read(&note) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            result => result.map_err(failed("read", &note))?,
        };
        let Ok(Noted { written, stamp, tree }) = serde_json::from_slice(&text) else {
            return Ok(None);
        };
        // Somebody may have made room by hand.
        if tree && !self.tree().is_dir() {
            return Ok(None);
        }
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            result => result.map_err(failed("read", &path))?,
        };
        let is_whole = || -> io::Result<bool> {
            let unchanged = stamp.is_some() && stamp == Some(file.metadata()?.into());
            Ok(if unchanged { sum::crc(&file)? == written.crc } else { verity::digest(&file)? == written.digest })
        };
        let whole = is_whole().map_err(failed("read", &path))?;
        Ok(whole.then(|| self.as_layer(path, written)))
    }

    /// Whether the layer's file has the digest that was noted.
    pub fn has_its_digest(&self) -> Result<bool, Error> {
        let (note, path) = (self.path("json"), self.path("erofs"));
        let text = fs::read(&note).map_err(failed("read", &note))?;
        let Ok(noted) = serde_json::from_slice::<Noted>(&text) else { return Ok(false) };
        let found = File::open(&path).and_then(verity::digest);
        Ok(found.map_err(failed("read", &path))? == noted.written.digest)
    }

    /// The layer's file.
    pub fn layer(&self) -> PathBuf {
        self.path("erofs")
    }

    /// Whether anything but its lock lies under the key.
    pub fn is_more_than_a_lock(&self) -> bool {
        ["json", "json.new", "erofs", "leaves"].iter().any(|suffix| self.path(suffix).exists())
            || !self.leftovers().is_empty()
    }

    /// Whether there is a layer, of whatever content.
    pub fn is_noted(&self) -> bool {
        self.path("json").exists() && self.path("erofs").exists()
    }

    /// From here on there is no layer until [`Slot::finish`]: else the rest of a build that is cut off could pass for
    /// one.
    pub fn begin(&self) -> Result<(), Error> {
        remove(&self.path("json"))
    }

    /// Whether there is what [`Slot::remember`] was told.
    pub fn is_remembered(&self) -> bool {
        self.path("found").exists()
    }

    /// Removes all but trees, the lock last.
    pub fn discard(self) -> Result<(), Error> {
        let all = ["json", "json.new", "found", "found.new", "erofs", "leaves", "partial", "lock"];
        all.into_iter().try_for_each(|suffix| remove(&self.path(suffix)))
    }

    /// Gives a written layer its final name.
    pub fn finish(&self, written: Written) -> Result<Layer, Error> {
        let (path, note, new) = (self.path("erofs"), self.path("json"), self.path("json.new"));
        fs::rename(self.partial(), &path).map_err(failed("renamed", &self.partial()))?;
        let store = || -> io::Result<()> {
            // A tree was written without any waiting for the disk; from here on it counts as whole. A layer is read on
            // each use, so whatever a power cut spoils of it or of its note is built again.
            let tree = self.tree().is_dir();
            if tree {
                rustix::fs::syncfs(File::open(&self.folder)?)?;
            }
            let stamp = Stamp::from(fs::metadata(&path)?);
            let settled = Stamp::wait_until_past([&stamp], &self.folder)?;
            let noted = Noted { written, stamp: settled.then_some(stamp), tree };
            fs::write(&new, serde_json::to_vec(&noted)?)?;
            fs::rename(&new, &note)
        };
        store().map_err(failed("written", &note))?;
        Ok(self.as_layer(path, written))
    }

    fn as_layer(&self, path: PathBuf, written: Written) -> Layer {
        let Written { digest, size, crc } = written;
        Layer { key: self.key.clone(), path, digest, size, crc }
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("removed", path)(error)),
        _ => Ok(()),
    }
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Cache { path: path.clone(), what, source }
}
