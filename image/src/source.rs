//! Where the bytes of a file that goes into an image come from.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

/// The bytes of one file, read when the image is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// From memory.
    Bytes(Vec<u8>),
    /// From a regular file, which must then have exactly this size in bytes. Links are not followed.
    Path {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// From a piece of a regular file, which must then reach that far. Links are not followed.
    Part {
        /// The file.
        path: PathBuf,
        /// Where the piece begins, in bytes.
        offset: u64,
        /// Its size in bytes.
        size: u64,
    },
}

/// Why a source could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system said no.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what it was when it was chosen.
    #[error("{path} is no regular file of {size} bytes (any more): it changed while the image was built, build again")]
    Changed {
        /// The file.
        path: PathBuf,
        /// The size it had, in bytes.
        size: u64,
    },
}

impl Source {
    /// A file with the size it has now.
    pub fn file(path: &Path) -> Result<Self, SourceError> {
        let metadata = path.symlink_metadata().map_err(read_error(path))?;
        Ok(Self::Path { path: path.to_path_buf(), size: metadata.len() })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Path { size, .. } | Self::Part { size, .. } => *size,
        }
    }

    /// A reader of all bytes. It fails if the file ends early.
    pub fn reader(&self) -> Result<Box<dyn Read + '_>, SourceError> {
        match self {
            Self::Bytes(bytes) => Ok(Box::new(bytes.as_slice())),
            Self::Path { path, size } => Ok(Box::new(open(path, *size)?.take(*size))),
            Self::Part { path, offset, size } => {
                let mut file = open_part(path, *offset, *size)?;
                file.seek(SeekFrom::Start(*offset)).map_err(read_error(path))?;
                Ok(Box::new(file.take(*size)))
            }
        }
    }
}

impl Source {
    /// Fills the buffer with what stands at `at`; all of it must be there.
    pub(crate) fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<(), SourceError> {
        let (file, path, offset) = match self {
            Self::Bytes(bytes) => {
                let there = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.get(..buffer.len()));
                let changed = || SourceError::Changed { path: PathBuf::new(), size: bytes.len() as u64 };
                buffer.copy_from_slice(there.ok_or_else(changed)?);
                return Ok(());
            }
            Self::Path { path, size } => (open(path, *size)?, path, 0),
            Self::Part { path, offset, size } => (open_part(path, *offset, *size)?, path, *offset),
        };
        file.read_exact_at(buffer, offset + at).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => SourceError::Changed { path: path.clone(), size: self.size() },
            _ => read_error(path)(source),
        })
    }
}

/// Opens a regular file of exactly `size` bytes. A link or a pipe that took its place is not followed or waited for.
pub(crate) fn open(path: &Path, size: u64) -> Result<File, SourceError> {
    open_if(path, size, |length| length == size)
}

/// Opens a regular file that holds `size` bytes behind `offset`, in the same way.
pub(crate) fn open_part(path: &Path, offset: u64, size: u64) -> Result<File, SourceError> {
    open_if(path, size, |length| offset.checked_add(size).is_some_and(|end| end <= length))
}

fn open_if(path: &Path, size: u64, fits: impl Fn(u64) -> bool) -> Result<File, SourceError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path).map_err(read_error(path))?;
    let metadata = file.metadata().map_err(read_error(path))?;
    if metadata.is_file() && fits(metadata.len()) {
        Ok(file)
    } else {
        Err(SourceError::Changed { path: path.to_path_buf(), size })
    }
}

/// Turns what the system said about `path` into an error.
pub(crate) fn read_error<'a>(path: &'a Path) -> impl Fn(io::Error) -> SourceError + use<'a> {
    move |source| SourceError::Read { path: path.to_path_buf(), source }
}
