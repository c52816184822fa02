//! Where an image's partitions lie. UEFI Specification 2.10, section 5.3. The `gpt` crate, made for writing, asserts on what it reads.

use std::{fs::File, ops::Range, os::unix::fs::FileExt};

use super::{UsedError, u32_at, u64_at};
use crate::{gpt, sector::SectorSize};

/// Size of the header.
const HEADER: usize = 92;
/// The least size of an entry.
const ENTRY: usize = 128;
/// The largest table that is read, in bytes; 16 KiB are usual. Stops an image that would fill the memory.
const LARGEST_TABLE: u64 = 1 << 20;

/// The partitions, in bytes.
pub(super) fn partitions(image: &File, sector: SectorSize, size: u64) -> Result<Vec<Range<u64>>, UsedError> {
    let block = sector.bytes();
    // Firmware goes by the first table; on a larger disk the second is not where it is looked for.
    let whole = match gpt::read::Disk::new(image, block)? {
        Some(disk) => disk.table_at(gpt::read::PRIMARY).is_ok(),
        None => false,
    };
    if !whole {
        return Err(UsedError::NoTable);
    }
    let mut header = [0; HEADER];
    if size < 2 * block {
        return Err(UsedError::NoTable);
    }
    image.read_exact_at(&mut header, block)?;
    let (count, entry) = (u32_at(&header, 80), u32_at(&header, 84) as usize);
    let length = u64::from(count).saturating_mul(entry as u64);
    if entry < ENTRY || length > LARGEST_TABLE {
        return Err(UsedError::NoTable);
    }
    // The second header stands in the last block.
    let table = u64_at(&header, 32).checked_add(1).and_then(|blocks| blocks.checked_mul(block));
    let table = table.ok_or(UsedError::NoTable)?;
    if table != size {
        return Err(UsedError::Size { table, file: size });
    }
    let start = u64_at(&header, 72).checked_mul(block).ok_or(UsedError::NoTable)?;
    if start.checked_add(length).is_none_or(|end| end > size) {
        return Err(UsedError::NoTable);
    }
    let mut entries = vec![0; length as usize];
    image.read_exact_at(&mut entries, start)?;
    let mut partitions = Vec::new();
    for entry in entries.chunks_exact(entry).filter(|entry| entry[..16].iter().any(|&byte| byte != 0)) {
        let start = u64_at(entry, 32).checked_mul(block);
        let end = u64_at(entry, 40).checked_add(1).and_then(|end| end.checked_mul(block));
        match (start, end) {
            (Some(start), Some(end)) if start < end && end <= size => partitions.push(start..end),
            _ => return Err(UsedError::NoTable),
        }
    }
    // Of partitions that overlap, what is free in one may be used in another.
    partitions.sort_by_key(|partition| partition.start);
    if partitions.windows(2).any(|pair| pair[0].end > pair[1].start) {
        return Err(UsedError::NoTable);
    }
    Ok(partitions)
}
