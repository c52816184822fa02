//! The image that is to be flashed, as it is or compressed.

use std::{
    env,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use rackstick_image::used::{self, Used, UsedError};

use crate::progress::Progress;

/// Begin of a zstd frame (RFC 8878, section 3.1.1).
const ZSTD: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();
/// Bytes unpacked at once.
const STEP: usize = 1 << 20;
/// Zeroes of this length and place become holes.
const HOLE: usize = 4096;

/// Why an image can't be flashed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It can't be read.
    #[error("can't read the image {}: {source}", .path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is none, or not whole.
    #[error("can't flash {}: {source}", .path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        source: UsedError,
    },
    /// It can't be unpacked.
    #[error(
        "can't unpack {} into {}: {source}; the image is damaged, or the folder full (TMPDIR names another)",
        .path.display(), .folder.display()
    )]
    Unpack {
        /// The image.
        path: PathBuf,
        /// Where to.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It would fit no disk.
    #[error("{} unpacks to more than {limit} bytes, the size of the largest disk", .path.display())]
    TooLarge {
        /// The image.
        path: PathBuf,
        /// Size of the largest disk.
        limit: u64,
    },
}

/// An open image.
pub struct Image {
    /// Its bytes.
    pub file: File,
    /// Which of them must be written.
    pub used: Used,
}

impl Image {
    /// Opens an image. A compressed one is unpacked first, into a file without a name, so that damage shows before
    /// anything is written to a disk. `limit`: the size of the largest disk, which it must not exceed.
    pub fn open(path: &Path, limit: u64, progress: &Progress) -> Result<Self, SourceError> {
        let read = |source| SourceError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        let mut magic = Vec::new();
        Read::by_ref(&mut file).take(ZSTD.len() as u64).read_to_end(&mut magic).map_err(read)?;
        if magic == ZSTD {
            file.rewind().map_err(read)?;
            file = unpack(path, file, limit, progress)?;
        }
        let used = used::of(&file).map_err(|source| SourceError::Image { path: path.to_owned(), source })?;
        Ok(Self { file, used })
    }
}

fn unpack(path: &Path, packed: File, limit: u64, progress: &Progress) -> Result<File, SourceError> {
    let folder = env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let failed = |source| SourceError::Unpack { path: path.to_owned(), folder: folder.clone(), source };
    let size = packed.metadata().map_err(failed)?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let job = progress.bytes("unpacking", &name, size);
    let mut decoder =
        zstd::Decoder::new(Counted { file: packed, advance: |bytes| job.advance(bytes) }).map_err(failed)?;
    let mut unpacked = tempfile::tempfile_in(&folder).map_err(failed)?;
    let (mut buffer, mut at) = (vec![0; STEP], 0);
    loop {
        let length = fill(&mut decoder, &mut buffer).map_err(failed)?;
        if length == 0 {
            break;
        }
        for piece in buffer[..length].chunks(HOLE) {
            if piece.iter().any(|&byte| byte != 0) {
                unpacked.seek(SeekFrom::Start(at)).and_then(|_| unpacked.write_all(piece)).map_err(failed)?;
            }
            at += piece.len() as u64;
        }
        if at > limit {
            return Err(SourceError::TooLarge { path: path.to_owned(), limit });
        }
    }
    unpacked.set_len(at).map_err(failed)?;
    job.done(&name);
    Ok(unpacked)
}

/// Reads until the buffer is full or nothing is left.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Tells how much was read.
struct Counted<F> {
    file: File,
    advance: F,
}

impl<F: Fn(u64)> Read for Counted<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        (self.advance)(read as u64);
        Ok(read)
    }
}
