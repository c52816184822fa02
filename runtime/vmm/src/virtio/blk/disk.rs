//! The file behind a block device.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// Bytes of a sector, the unit of the protocol whatever the disk's own block size (5.2.4).
pub const SECTOR: u64 = 512;

/// Why a disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It can't be opened.
    #[error("cannot open disk {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has it.
    #[error("disk {} is used by another process; stop that one first", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It has a size no disk has.
    #[error("disk {} has {size} bytes; a disk has a multiple of {SECTOR}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    /// The file, locked as long as it is open: shared if read-only, else for us alone.
    pub file: File,
    /// Its size in sectors.
    pub sectors: u64,
    /// Whether the guest may only read.
    pub readonly: bool,
}

impl Disk {
    /// Opens and locks the raw file or block device at `path`.
    pub fn open(path: &Path, readonly: bool) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open { path: path.into(), source };
        let mut file = OpenOptions::new().read(true).write(!readonly).open(path).map_err(failed)?;
        let lock =
            if readonly { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
        match flock(&file, lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DiskError::InUse { path: path.into() }),
            Err(error) => return Err(failed(error.into())),
        }
        // Metadata has no size for a block device; its end does.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if size == 0 || size % SECTOR != 0 {
            return Err(DiskError::Size { path: path.into(), size });
        }
        Ok(Self { file, sectors: size / SECTOR, readonly })
    }
}
