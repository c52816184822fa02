//! `<image>.img.zst`: the image as one zstd frame (RFC 8878), to be sent somewhere. How many threads make it changes no
//! byte.

use std::{fs::File, io, path::Path};

use super::{ArtifactError, Stamp, beside, finish};

/// zstd's own default: half of the lab's size in a second. Level 9 takes five times as long for 6 % less.
const LEVEL: i32 = 3;

/// How far back repetitions are looked for, as a power of two: 128 MiB, the most that every zstd unpacks without being
/// asked to. Images of guests have libraries in common, of which each layer has its own copy: of the five-guest lab
/// this takes an eighth.
const WINDOW_LOG: u32 = 27;

/// Compresses the image by this many threads.
pub fn write(image: &Path, path: &Path, jobs: usize, advance: impl Fn(u64)) -> Result<Stamp, ArtifactError> {
    let failed = |source| ArtifactError::Write { path: path.to_owned(), source };
    let read = |source| ArtifactError::Read { path: image.to_owned(), source };
    let from = File::open(image).map_err(read)?;
    let size = from.metadata().map_err(read)?.len();
    let to = beside(path).map_err(failed)?;
    let compress = || -> io::Result<()> {
        let mut encoder = zstd::Encoder::new(&to, LEVEL)?;
        // Without any worker zstd cuts the image into other blocks than with one or many.
        encoder.multithread(u32::try_from(jobs).unwrap_or(u32::MAX).clamp(1, MOST_WORKERS))?;
        encoder.long_distance_matching(true)?;
        encoder.window_log(WINDOW_LOG)?;
        encoder.include_checksum(true)?;
        encoder.set_pledged_src_size(Some(size))?;
        io::copy(&mut Counted { file: &from, advance }, &mut encoder)?;
        encoder.finish()?;
        Ok(())
    };
    compress().map_err(failed)?;
    finish(to, path).map_err(failed)
}

/// More would only take memory: a worker has some 10 MiB.
const MOST_WORKERS: u32 = 64;

/// Tells how much was read.
struct Counted<'a, F> {
    file: &'a File,
    advance: F,
}

impl<F: Fn(u64)> io::Read for Counted<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = io::Read::read(&mut self.file, buffer)?;
        (self.advance)(read as u64);
        Ok(read)
    }
}
