//! The store: files from archives, each named by its SHA-256, so that a file is fetched once for all racks and a build
//! works offline afterwards. Several builders may use it at once: a file gets its name only when it is whole, and one
//! that is being fetched is locked.

mod fetch;
mod http;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use rackstick_image::digest::Sha256;

pub use fetch::Want;
pub use http::Client;

/// How many files are fetched and hashed at once.
pub const THREADS: usize = 8;
/// Overrides where the store is.
pub const VARIABLE: &str = "RACKSTICK_CACHE";

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
        "no space for the store in {}: {needed} bytes are needed{}; free some, or set {VARIABLE} to a folder on a larger disk",
        .folder.display(),
        .free.map(|free| format!(" and {free} are free")).unwrap_or_default()
    )]
    NoSpace {
        /// Where.
        folder: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free, if that was found before anything was fetched.
        free: Option<u64>,
    },
    /// No mirror has these files any more.
    #[error("{}", gone(.0))]
    Gone(Vec<Want>),
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

/// The store.
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store where the environment says: `RACKSTICK_CACHE`, else `rackstick` below `XDG_CACHE_HOME` or `~/.cache`
    /// (XDG Base Directory Specification).
    pub fn open() -> Result<Self, StoreError> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = absolute(VARIABLE)
            .or_else(|| absolute("XDG_CACHE_HOME").map(|cache| cache.join("rackstick")))
            .or_else(|| absolute("HOME").map(|home| home.join(".cache/rackstick")))
            .ok_or(StoreError::NoPlace)?;
        Self::at(folder)
    }

    /// The store in this folder, which is created if need be.
    pub fn at(folder: PathBuf) -> Result<Self, StoreError> {
        let store = Self { folder };
        for folder in [store.files(), store.partial()] {
            fs::create_dir_all(&folder).map_err(|source| StoreError::Io { path: folder, source })?;
        }
        Ok(store)
    }

    /// Where a file of this hash is, if the store has it.
    pub fn path(&self, hash: Sha256) -> PathBuf {
        self.files().join(hash.to_string())
    }

    /// The folder of the whole files.
    fn files(&self) -> PathBuf {
        self.folder.join("store/sha256")
    }

    /// The folder of the files that are being fetched.
    fn partial(&self) -> PathBuf {
        self.folder.join("partial")
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
