//! Writes an image to a disk and reads it back. The partition tables are wiped first and written last, when all else
//! was read back: a disk that is not whole has none, and no machine boots it.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use rackstick_image::{gpt::ALIGNMENT, secrets::SLOT_SIZE};
use rustix::{fs::OFlags, io::Errno};
use sha2::{Digest, Sha256};

use super::{buffer::Buffer, disks::Disk, source::Image};
use crate::{progress::Progress, secrets::Filling};

/// Bytes written at once: flash is fast with large pieces, and a slow stick takes this one within seconds, so that
/// Ctrl-C is soon obeyed.
const PIECE: u64 = 4 << 20;
// All secrets fit into one piece.
const _: () = assert!(SLOT_SIZE <= PIECE);
/// What is wiped at the disk's end: the older partition table's copy, and labels of RAID and ZFS.
const END: u64 = ALIGNMENT;

/// Why a disk can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No rights.
    #[error("{} may only be written by root: use sudo", .0.display())]
    Denied(PathBuf),
    /// The kernel knows somebody who uses it.
    #[error("{} is in use, though nothing of it is mounted here: by another container or ZFS?", .0.display())]
    Busy(PathBuf),
    /// Another reason.
    #[error("can't open {}: {source}", .path.display())]
    Open {
        /// Its device node.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The node leads to something else than a moment ago.
    #[error("{} is another disk than a moment ago: begin anew", .0.display())]
    Changed(PathBuf),
}

/// A disk that is ours alone.
pub struct Target {
    file: File,
    name: String,
    size: u64,
}

impl Target {
    /// Opens a disk, so that nobody can mount it any more, or anything of it.
    pub fn open(disk: &Disk) -> Result<Self, TargetError> {
        let path = disk.node.clone();
        // Direct, so that errors come with the write that fails, and what is read back comes from the disk.
        let flags = OFlags::EXCL | OFlags::DIRECT | OFlags::CLOEXEC;
        let opened = File::options().read(true).write(true).custom_flags(flags.bits().cast_signed()).open(&path);
        let mut file = opened.map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::ACCESS | Errno::PERM) => TargetError::Denied(path.clone()),
            Some(Errno::BUSY) => TargetError::Busy(path.clone()),
            _ => TargetError::Open { path: path.clone(), source },
        })?;
        let failed = |source| TargetError::Open { path: path.clone(), source };
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let block = rustix::fs::ioctl_blksszget(&file).map_err(|error| failed(error.into()))?;
        let number = file.metadata().map_err(failed)?.rdev();
        if (number, size, u64::from(block)) != (disk.number, disk.size, disk.block) {
            return Err(TargetError::Changed(path));
        }
        Ok(Self { file, name: disk.name.clone(), size })
    }
}

/// A flash that did not come to its end.
#[derive(Debug, thiserror::Error)]
#[error("{disk} is not usable now: {}; flash it again", match wiped {
    true => "it has no partition table, so no machine boots it",
    false => "it may even boot, as its partition tables could not be taken away",
})]
pub struct FlashError {
    disk: String,
    wiped: bool,
    source: Fault,
}

/// What stopped it.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("a signal stopped it")]
    Stopped,
    #[error("the image can't be read at byte {at}: {source}")]
    Image { at: u64, source: io::Error },
    #[error("{disk} takes no data at byte {at}: {source}; was it pulled out?")]
    Write { disk: String, at: u64, source: io::Error },
    #[error("{disk} can't be read back at byte {at}: {source}; was it pulled out?")]
    ReadBack { disk: String, at: u64, source: io::Error },
    #[error("{0} can't write out what it was given: {1}")]
    Sync(String, io::Error),
    #[error(
        "{disk} holds other data than were written, in the {length} bytes from byte {at} on: it is worn out or not what it says it is"
    )]
    Differs { disk: String, at: u64, length: u64 },
}

/// Writes the image, and `secrets` into their slot, and reads it back; says how many bytes that were. `stop` is looked
/// at after each piece.
pub fn flash(
    image: &Image,
    secrets: Option<&Filling>,
    target: &Target,
    stop: &AtomicBool,
    progress: &Progress,
) -> Result<u64, FlashError> {
    let mut flash = Flash { target, stop, buffer: Buffer::new(PIECE as usize) };
    flash.run(image, secrets, progress).map_err(|source| {
        // If the tables were written already. That it failed is what the user hears either way.
        let wiped = flash.wipe(image).is_ok();
        if let Some(secrets) = secrets {
            // As well as that disk still can.
            let _ = flash.fill(&secrets.emptied());
        }
        FlashError { disk: target.name.clone(), wiped, source }
    })
}

/// Writes secrets into the slot of a disk that has an image already, and reads them back.
pub fn give(secrets: &Filling, target: &Target) -> Result<(), GiveError> {
    let (stop, buffer) = (&AtomicBool::new(false), Buffer::new(PIECE as usize));
    Flash { target, stop, buffer }.fill(secrets).map_err(GiveError)
}

/// Secrets that could not be given. What else is on the disk was not touched.
#[derive(Debug, thiserror::Error)]
#[error("the secrets are not on the disk; give them again")]
pub struct GiveError(#[source] Fault);

struct Flash<'a> {
    target: &'a Target,
    stop: &'a AtomicBool,
    buffer: Buffer,
}

/// A piece that was written, and its hash.
type Written = (Range<u64>, [u8; 32]);

impl Flash<'_> {
    fn run(&mut self, image: &Image, secrets: Option<&Filling>, progress: &Progress) -> Result<u64, Fault> {
        self.wipe(image)?;
        let size = image.used.size;
        // The second table and the first. Firmware puts the first in order after the second, so that comes late too.
        let head = 0..ALIGNMENT.min(size);
        let tail = size.saturating_sub(ALIGNMENT).max(head.end)..size;
        let body: Vec<_> = image
            .used
            .ranges
            .iter()
            .filter_map(|range| {
                let range = range.start.max(head.end)..range.end.min(tail.start);
                (range.start < range.end).then_some(range)
            })
            .collect();
        let bytes = body.iter().map(|range| range.end - range.start).sum();
        let name = self.target.name.clone();

        let job = progress.bytes("writing", &name, bytes);
        let written = self.write(image, &body, |bytes| job.advance(bytes))?;
        job.done(&name);
        let job = progress.bytes("verifying", &name, bytes);
        self.verify(&written, |bytes| job.advance(bytes))?;
        job.done(&name);
        // What stands there now is the image's own, with which all hashes were compared.
        if let Some(secrets) = secrets {
            self.fill(secrets)?;
        }
        for table in [tail, head] {
            let written = self.write(image, &[table], |_| ())?;
            self.verify(&written, |_| ())?;
        }
        Ok(bytes)
    }

    /// Takes away all partition tables: the one at the disk's begin, its copy at the end, and where the image's copy
    /// will be.
    fn wipe(&mut self, image: &Image) -> Result<(), Fault> {
        let (image, disk) = (image.used.size, self.target.size);
        let ends = [
            0..ALIGNMENT.min(image),
            image.saturating_sub(ALIGNMENT)..image,
            disk.saturating_sub(END).max(image)..disk,
        ];
        for range in ends {
            for piece in pieces(&[range]) {
                let zeroes = self.buffer.first(piece.end - piece.start);
                zeroes.fill(0);
                self.target
                    .file
                    .write_all_at(zeroes, piece.start)
                    .map_err(|source| self.failed(piece.start, source))?;
            }
        }
        self.sync()
    }

    /// Writes secrets into their slot and reads them back.
    fn fill(&mut self, secrets: &Filling) -> Result<(), Fault> {
        let mut written = Vec::new();
        for (at, bytes) in secrets.pieces() {
            let length = bytes.len() as u64;
            let buffer = self.buffer.first(length);
            buffer.copy_from_slice(bytes);
            self.target.file.write_all_at(buffer, at).map_err(|source| self.failed(at, source))?;
            written.push((at..at + length, Sha256::digest(bytes).into()));
        }
        self.sync()?;
        self.verify(&written, |_| ())
    }

    fn write(&mut self, image: &Image, ranges: &[Range<u64>], advance: impl Fn(u64)) -> Result<Vec<Written>, Fault> {
        let mut written = Vec::new();
        for piece in pieces(ranges) {
            self.look_at_signals()?;
            let (at, length) = (piece.start, piece.end - piece.start);
            let bytes = self.buffer.first(length);
            image.file.read_exact_at(bytes, at).map_err(|source| Fault::Image { at, source })?;
            let hash = Sha256::digest(&*bytes).into();
            self.target.file.write_all_at(bytes, at).map_err(|source| self.failed(at, source))?;
            written.push((piece, hash));
            advance(length);
        }
        self.sync()?;
        Ok(written)
    }

    fn verify(&mut self, written: &[Written], advance: impl Fn(u64)) -> Result<(), Fault> {
        for (piece, hash) in written {
            self.look_at_signals()?;
            let (at, length) = (piece.start, piece.end - piece.start);
            let disk = || self.target.name.clone();
            let bytes = self.buffer.first(length);
            let read = self.target.file.read_exact_at(bytes, at);
            read.map_err(|source| Fault::ReadBack { disk: disk(), at, source })?;
            if <[u8; 32]>::from(Sha256::digest(&*bytes)) != *hash {
                return Err(Fault::Differs { disk: disk(), at, length });
            }
            advance(length);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Fault> {
        self.target.file.sync_all().map_err(|source| Fault::Sync(self.target.name.clone(), source))
    }

    fn look_at_signals(&self) -> Result<(), Fault> {
        if self.stop.load(Ordering::Relaxed) { Err(Fault::Stopped) } else { Ok(()) }
    }

    fn failed(&self, at: u64, source: io::Error) -> Fault {
        Fault::Write { disk: self.target.name.clone(), at, source }
    }
}

/// Ranges in pieces of at most [`PIECE`] bytes.
fn pieces(ranges: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
    ranges.iter().flat_map(|range| {
        let end = range.end;
        (range.start..end).step_by(PIECE as usize).map(move |at| at..(at + PIECE).min(end))
    })
}

#[cfg(test)]
mod tests {
    use rackstick_image::{sector::SectorSize, used::Used};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// An image of `size` bytes that are all used, and a disk that is larger.
    fn sample(size: u64) -> (Image, Target) {
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..size).map(|at| (at / 4096 + at) as u8).collect();
        file.write_all_at(&content, 0).unwrap();
        let used = Used { sector: SectorSize::B512, size, ranges: std::iter::once(0..size).collect() };
        let disk = tempfile::tempfile().unwrap();
        disk.write_all_at(&vec![0xa5; (size + 3 * MIB) as usize], 0).unwrap();
        (Image { file, used }, Target { file: disk, name: "sdx".into(), size: size + 3 * MIB })
    }

    fn bytes(file: &File, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    }

    #[test]
    fn a_disk_gets_all_of_the_image_and_loses_the_table_at_its_end() {
        let size = 11 * MIB;
        let (image, target) = sample(size);
        flash(&image, None, &target, &AtomicBool::new(false), &Progress::quiet()).unwrap();
        assert!(bytes(&target.file, 0..size) == bytes(&image.file, 0..size));
        assert!(bytes(&target.file, size..size + 2 * MIB).iter().all(|&byte| byte == 0xa5), "not ours to write");
        assert!(bytes(&target.file, size + 2 * MIB..size + 3 * MIB).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn what_the_disk_does_not_keep_is_found_and_named() {
        let (image, target) = sample(11 * MIB);
        let stop = AtomicBool::new(false);
        let mut flash = Flash { target: &target, stop: &stop, buffer: Buffer::new(PIECE as usize) };
        let written = flash.write(&image, std::slice::from_ref(&(MIB..10 * MIB)), |_| ()).unwrap();
        flash.verify(&written, |_| ()).unwrap();
        target.file.write_all_at(&[0], 6 * MIB + 1).unwrap();
        let differs = flash.verify(&written, |_| ());
        assert!(
            matches!(differs, Err(Fault::Differs { at, length, .. }) if (at, length) == (5 * MIB, 4 * MIB)),
            "{differs:?}"
        );
    }

    #[test]
    fn secrets_are_written_over_their_slot_and_only_there() {
        let size = 11 * MIB;
        let (image, target) = sample(size);
        let (first, second) = (2 * MIB, 8 * MIB);
        let places = vec![(first, MIB), (second, SLOT_SIZE - 2 * MIB), (7 * MIB, MIB)];
        let secrets = Filling { places, bytes: (0..SLOT_SIZE).map(|at| (at >> 19) as u8).collect() };
        flash(&image, Some(&secrets), &target, &AtomicBool::new(false), &Progress::quiet()).unwrap();
        assert!(bytes(&target.file, first..first + MIB) == secrets.bytes[..MIB as usize]);
        assert!(bytes(&target.file, second..10 * MIB) == secrets.bytes[MIB as usize..3 * MIB as usize]);
        assert!(bytes(&target.file, 7 * MIB..second) == secrets.bytes[3 * MIB as usize..]);
        for rest in [0..first, first + MIB..7 * MIB, 10 * MIB..size] {
            assert!(bytes(&target.file, rest.clone()) == bytes(&image.file, rest));
        }
    }

    #[test]
    fn an_image_that_ends_early_leaves_a_disk_without_any_table() {
        let size = 11 * MIB;
        let (image, target) = sample(size);
        image.file.set_len(7 * MIB).unwrap();
        let secrets = Filling { places: vec![(2 * MIB, SLOT_SIZE)], bytes: vec![7; SLOT_SIZE as usize] };
        let error = flash(&image, Some(&secrets), &target, &AtomicBool::new(false), &Progress::quiet()).unwrap_err();
        assert!(matches!(error.source, Fault::Image { at, .. } if at == 5 * MIB), "{error:?}");
        for table in [0..MIB, size - MIB..size, target.size - MIB..target.size] {
            assert!(bytes(&target.file, table).iter().all(|&byte| byte == 0));
        }
        assert!(bytes(&target.file, 2 * MIB..2 * MIB + SLOT_SIZE).iter().all(|&byte| byte == 0), "no secret stays");
    }
}
