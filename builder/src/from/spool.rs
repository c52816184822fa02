//! Archives made plain: copied into the build's own folder, unpacked if they are compressed, and hashed on the way.
//! From there on nothing that happens to the original counts. gzip: RFC 1952; zstd: RFC 8878, with several frames; xz:
//! its file format 1.2.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use rackstick_image::digest::Sha256;
use ruzstd::decoding::{
    StreamingDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use sha2::Digest;

use crate::{hashed::Hashed, packing::Packing};

/// Bytes of an unpacked archive at most: stops one that fills the disk.
pub const MAX_PLAIN_BYTES: u64 = 64 << 30;
/// How often an archive may be larger than its compressed form, once it is larger than [`SMALL_BYTES`]: stops one that
/// consists of zeros. Root file systems are 2 to 10 times as large.
const MAX_RATIO: u64 = 100;
/// Archives up to this size are taken whatever their ratio.
const SMALL_BYTES: u64 = 1 << 30;
/// zstd window accepted: what `zstd --long=27` writes; the decoder allocates what the archive asks for.
const MAX_ZSTD_WINDOW: u64 = 128 << 20;
const BUFFER_SIZE: usize = 1 << 18;

/// Why an archive can't be made plain.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It can't be read.
    #[error("can't be read: {0}")]
    Read(io::Error),
    /// Its compressed data are wrong.
    #[error("is damaged, its {format} data can't be unpacked: {source}")]
    Damaged {
        /// `gzip`, `zstd`, `xz`.
        format: &'static str,
        /// What the decoder says.
        source: io::Error,
    },
    /// Compressed in a way that is not known.
    #[error("is compressed with {0}; pack it with gzip, zstd or xz")]
    Packing(Packing),
    /// Larger than anything that makes sense.
    #[error("unpacks to more than {most} bytes from {packed}: that is no archive of files")]
    Bomb {
        /// The limit that was met.
        most: u64,
        /// Bytes of the compressed form so far.
        packed: u64,
    },
    /// The disk.
    #[error("can't be unpacked to {}: {source}", .path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An archive made plain.
#[derive(Debug)]
pub struct Spooled {
    /// The plain archive.
    pub path: PathBuf,
    /// Bytes of the original.
    pub packed_size: u64,
    /// SHA-256 of the original.
    pub packed: Sha256,
    /// SHA-256 of the plain archive.
    pub plain: Sha256,
    /// Bytes of the plain archive.
    pub plain_size: u64,
}

/// Makes what `source` holds plain, as the new file `path`.
pub fn spool(source: impl Read, path: PathBuf) -> Result<Spooled, SpoolError> {
    spool_within(source, path, SMALL_BYTES)
}

/// [`spool`], with another size up to which no ratio counts.
pub(super) fn spool_within(source: impl Read, path: PathBuf, small: u64) -> Result<Spooled, SpoolError> {
    let mut source = BufReader::with_capacity(BUFFER_SIZE, Hashed::new(source));
    // By its first bytes, whatever its name says.
    let packing = Packing::of(source.fill_buf().map_err(SpoolError::Read)?);
    let failed = |source| SpoolError::Write { path: path.clone(), source };
    let file = File::create_new(&path).map_err(failed)?;
    let mut plain = Plain { out: Hashing { file, hasher: sha2::Sha256::new() }, size: 0, small, path: &path };
    match packing {
        None => plain.copy("tar", &mut source)?,
        Some(Packing::Gzip) => plain.copy("gzip", &mut flate2::bufread::MultiGzDecoder::new(&mut source))?,
        Some(Packing::Xz) => plain.copy("xz", &mut lzma_rust2::XzReader::new(&mut source, true))?,
        Some(Packing::Zstd) => frames(&mut plain, &mut source)?,
        Some(other) => return Err(SpoolError::Packing(other)),
    }
    // What stands behind the archive belongs to the file's hash, too.
    io::copy(&mut source, &mut io::sink()).map_err(SpoolError::Read)?;
    let Plain { out: Hashing { hasher, .. }, size: plain_size, .. } = plain;
    let plain = Sha256(hasher.finalize().into());
    let source = source.into_inner();
    Ok(Spooled { packed_size: source.length(), packed: source.finish(), plain, plain_size, path })
}

/// Unpacks one zstd frame after the other.
fn frames<R: Read>(plain: &mut Plain<'_>, source: &mut BufReader<Hashed<R>>) -> Result<(), SpoolError> {
    let damaged = |source| SpoolError::Damaged { format: "zstd", source };
    while !source.fill_buf().map_err(SpoolError::Read)?.is_empty() {
        let decoder = StreamingDecoder::new_with_max_window_size(&mut *source, MAX_ZSTD_WINDOW);
        match decoder {
            Ok(mut frame) => plain.copy("zstd", &mut frame)?,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let length = u64::from(length);
                let skipped = io::copy(&mut source.by_ref().take(length), &mut io::sink()).map_err(SpoolError::Read)?;
                if skipped < length {
                    return Err(damaged(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            Err(error) => return Err(damaged(io::Error::other(error.to_string()))),
        }
    }
    Ok(())
}

/// The plain archive while it is written.
struct Plain<'a> {
    out: Hashing,
    size: u64,
    small: u64,
    path: &'a Path,
}

impl Plain<'_> {
    fn copy(&mut self, format: &'static str, source: &mut (impl Read + Packed)) -> Result<(), SpoolError> {
        let mut buffer = vec![0; BUFFER_SIZE];
        loop {
            let read = match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(SpoolError::Damaged { format, source }),
            };
            self.size += read as u64;
            let packed = source.packed();
            let most = packed.saturating_mul(MAX_RATIO).max(self.small).min(MAX_PLAIN_BYTES);
            if self.size > most {
                return Err(SpoolError::Bomb { most, packed });
            }
            let written = self.out.write_all(&buffer[..read]);
            written.map_err(|source| SpoolError::Write { path: self.path.to_owned(), source })?;
        }
    }
}

/// How much of the compressed form was read.
trait Packed {
    fn packed(&self) -> u64;
}

impl<R> Packed for BufReader<Hashed<R>> {
    fn packed(&self) -> u64 {
        self.get_ref().length()
    }
}

impl<R: Read> Packed for flate2::bufread::MultiGzDecoder<&mut BufReader<Hashed<R>>> {
    fn packed(&self) -> u64 {
        self.get_ref().packed()
    }
}

impl<R: Read> Packed for lzma_rust2::XzReader<&mut BufReader<Hashed<R>>> {
    fn packed(&self) -> u64 {
        self.inner().packed()
    }
}

impl<R: Read> Packed for StreamingDecoder<&mut BufReader<Hashed<R>>, ruzstd::decoding::FrameDecoder> {
    fn packed(&self) -> u64 {
        self.get_ref().packed()
    }
}

struct Hashing {
    file: File,
    hasher: sha2::Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
