//! Which bytes of a disk image must lie on a disk: all but those that its file systems call free. What was on the disk
//! before may stay there: no file system reads a free block before it has written it. Holes of the image's file are
//! something else: zeroes of a layer, an empty journal or an allocation table are read, and must be written.

mod ext4;
mod fat;
mod table;

use std::{fs::File, io, ops::Range};

use crate::{gpt::ALIGNMENT, sector::SectorSize};

/// Ranges begin at multiples of this many bytes, and end there or with the image.
pub const UNIT: u64 = 4096;
/// What is free counts as used if it is shorter: flash takes long writes faster than the gaps save.
const SHORTEST_GAP: u64 = 64 << 10;

/// Why it can't be said.
#[derive(Debug, thiserror::Error)]
pub enum UsedError {
    /// There is no table, or a damaged one.
    #[error("it is no disk image: it has no valid partition table (GPT)")]
    NoTable,
    /// The file ends too early or too late.
    #[error(
        "it is damaged: its partition table is for a disk of {table} bytes, but it has {file}; get or build it again"
    )]
    Size {
        /// Bytes that it must have.
        table: u64,
        /// Bytes that it has.
        file: u64,
    },
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Read(#[from] io::Error),
}

/// What must be written, in order; and the disks that the image is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Their logical blocks.
    pub sector: SectorSize,
    /// Size of the image in bytes.
    pub size: u64,
    /// The ranges, in bytes.
    pub ranges: Vec<Range<u64>>,
}

impl Used {
    /// Bytes in all ranges.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

/// Looks into an image. Whatever is not understood is used.
pub fn of(image: &File) -> Result<Used, UsedError> {
    let size = image.metadata()?.len();
    let sector = SectorSize::of_image(image)?.ok_or(UsedError::NoTable)?;
    let mut free = Vec::new();
    for partition in table::partitions(image, sector, size)? {
        let within = match fat::free(image, &partition)? {
            Some(free) => free,
            None => ext4::free(image, &partition)?.unwrap_or_default(),
        };
        // What other formats write at a partition's begin or end is taken for its content if it stays there: labels of
        // ZFS and of RAID stand at the end.
        let (from, to) = (partition.start.saturating_add(ALIGNMENT), partition.end.saturating_sub(ALIGNMENT));
        free.extend(within.into_iter().filter_map(|range| {
            let start = range.start.max(from).checked_next_multiple_of(UNIT)?;
            let end = range.end.min(to) / UNIT * UNIT;
            (end.saturating_sub(start) >= SHORTEST_GAP).then_some(start..end)
        }));
    }
    free.sort_by_key(|range| range.start);
    let mut ranges = Vec::new();
    let mut at = 0;
    for gap in free {
        if gap.start > at {
            ranges.push(at..gap.start);
        }
        at = at.max(gap.end);
    }
    if at < size {
        ranges.push(at..size);
    }
    Ok(Used { sector, size, ranges })
}

/// Puts runs of free units, which come one after the other, together.
#[derive(Default)]
struct Runs(Vec<Range<u64>>);

impl Runs {
    fn add(&mut self, start: u64, length: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == start => last.end += length,
            _ => self.0.push(start..start + length),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

#[cfg(test)]
mod tests;
