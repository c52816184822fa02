//! The store: files from archives, each named by its SHA-256, so that a file is fetched once for all racks and a build
//! works offline afterwards. Several builders may use it at once: a file gets its name only when it is whole, and one
//! that is being fetched is locked. All of them share one lock on the store; who tidies it up has it alone. Packages
//! are kept unpacked, too.

mod fetch;
mod http;
mod tidy;
mod unpacked;

use std::{
    env,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rackstick::{layers::deb, locked};
use rackstick_image::digest::Sha256;

use crate::output;

pub use fetch::Want;
pub use http::{Client, HttpError};
pub use tidy::Damaged;

/// How many files are fetched and hashed at once.
pub const THREADS: usize = 8;
/// Overrides where the store is.
pub const VARIABLE: &str = "RACKSTICK_CACHE";
/// Whole files, below the store's folder.
const FILES: &str = "store/sha256";
/// Files that are being fetched.
const PARTIAL: &str = "partial";
/// Finished layers.
const LAYERS: &str = "layers";
/// How the names of builds' folders begin.
const SCRATCH: &str = "build-";
/// Shared by all who use the store, and had alone by who tidies it up.
const LOCK: &str = "lock";

/// What went wrong with the store or with fetching into it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nowhere to put it.
    #[error("no place for the store: set {VARIABLE}, XDG_CACHE_HOME or HOME to an absolute path")]
    NoPlace,
    /// A file of the store can't be read or written.
    #[error("store {}: {source}", .path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk is full, or would be.
    #[error(
        "no space for the store in {}: at least {needed} bytes are needed and {free} are free", .folder.display()
    )]
    NoSpace {
        /// Where.
        folder: PathBuf,
        /// Bytes that are still to be written, as far as that is known.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// What the system said, or would have.
        source: io::Error,
    },
    /// No mirror has these files any more.
    #[error("{}", gone(.0))]
    Gone(Vec<Want>),
    /// A package that is not what it must be, though its hash is right.
    #[error("{name} {source}")]
    Package {
        /// What it is, as in [`Want::name`].
        name: String,
        /// What is wrong with it.
        source: deb::Error,
    },
    /// A file can't be fetched.
    #[error("{name} can't be fetched:{}", attempts.iter().map(|attempt| format!("\n  {attempt}")).collect::<String>())]
    Failed {
        /// What it is, as in [`Want::name`].
        name: String,
        /// What each mirror's last failure was.
        attempts: Vec<String>,
    },
    /// There is nowhere to fetch it from.
    #[error(
        "{name} can't be fetched: no mirror of Debian is in this machine's apt configuration; give one with --mirror \
         URL, like http://HOST/debian"
    )]
    NoMirror {
        /// What it is.
        name: String,
    },
}

fn gone(wants: &[Want]) -> String {
    let lines: Vec<String> = wants.iter().map(|want| format!("{} ({})", want.name, want.path)).collect();
    format!("no mirror has these files any more: {}", lines.join(", "))
}

/// The store. As long as it is open, nothing in it goes that was there.
pub struct Store {
    folder: PathBuf,
    lock: File,
}

impl Store {
    /// The store where the environment says: `RACKSTICK_CACHE`, else `rackstick` below `XDG_CACHE_HOME` or `~/.cache`
    /// (XDG Base Directory Specification). Waits while somebody tidies it up.
    pub fn open() -> Result<Self, StoreError> {
        Self::at(Self::place()?)
    }

    /// Has the store for nobody else until it is closed: `waiting` is called if others have to end first.
    pub fn alone(self, waiting: impl FnOnce()) -> Result<Self, StoreError> {
        // The shared lock goes first: two that each waited for the other's would wait for ever.
        let locked = self.lock.unlock().map_err(TryLockError::Error).and_then(|()| self.lock.try_lock());
        let locked = match locked {
            Err(TryLockError::WouldBlock) => {
                waiting();
                self.lock.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        locked.map_err(|source| StoreError::Io { path: self.folder.join(LOCK), source })?;
        Ok(self)
    }

    fn place() -> Result<PathBuf, StoreError> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute(VARIABLE)
            .or_else(|| absolute("XDG_CACHE_HOME").map(|cache| cache.join("rackstick")))
            .or_else(|| absolute("HOME").map(|home| home.join(".cache/rackstick")))
            .ok_or(StoreError::NoPlace)
    }

    /// The store in this folder, which is created if need be.
    pub fn at(folder: PathBuf) -> Result<Self, StoreError> {
        for folder in [FILES, PARTIAL, unpacked::FOLDER].map(|name| folder.join(name)) {
            fs::create_dir_all(&folder).map_err(|source| StoreError::Io { path: folder, source })?;
        }
        let path = folder.join(LOCK);
        let lock = locked::create(&path).and_then(|lock| {
            match lock.try_lock_shared() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    output::remark("waiting for `rackstick store`, which tidies up");
                    lock.lock_shared()?;
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            Ok(lock)
        });
        Ok(Self { folder, lock: lock.map_err(|source| StoreError::Io { path, source })? })
    }

    /// A folder for files that live only as long as one build.
    pub fn scratch(&self) -> Result<tempfile::TempDir, StoreError> {
        let made = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(&self.folder);
        made.map_err(|source| StoreError::Io { path: self.folder.clone(), source })
    }

    /// The folder of the layers.
    pub fn layers(&self) -> PathBuf {
        self.folder.join(LAYERS)
    }

    /// Where a file of this hash is, if the store has it.
    pub fn path(&self, hash: Sha256) -> PathBuf {
        self.files().join(hash.to_string())
    }

    /// Counts the files with these hashes as used now, unpacked or not, as far as they are there.
    pub fn touch(&self, hashes: impl IntoIterator<Item = Sha256>) -> Result<(), StoreError> {
        let mut paths = hashes.into_iter().flat_map(|hash| [self.path(hash), self.unpacked(hash)]);
        paths.try_for_each(|path| {
            locked::touch_if_there(&path).map_err(|source| StoreError::Io { path: path.clone(), source })
        })
    }

    /// The folder of the whole files, each named by its hash.
    pub fn files(&self) -> PathBuf {
        self.folder.join(FILES)
    }

    /// The folder of the files that are being fetched.
    fn partial(&self) -> PathBuf {
        self.folder.join(PARTIAL)
    }

    /// The folder that holds everything.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

#[cfg(test)]
pub mod server;
#[cfg(test)]
mod tests;
