//! Where an image's partitions lie, by its first table: firmware goes by that, and on a larger disk the second is not
//! where it is looked for.

use std::{fs::File, ops::Range};

use super::UsedError;
use crate::{
    gpt::read::{Disk, PRIMARY, field},
    sector::SectorSize,
};

/// The partitions, in bytes.
pub(super) fn partitions(image: &File, sector: SectorSize, size: u64) -> Result<Vec<Range<u64>>, UsedError> {
    let disk = Disk { file: image, size, sector };
    let table = disk.table_at(PRIMARY).map_err(|_| UsedError::NoTable)?;
    let at = |block: u64| block.checked_mul(sector.bytes());
    let after = |block: u64| block.checked_add(1).and_then(at);
    // The second header stands in the last block.
    let end = after(table.long(field::ALTERNATE_LBA)).ok_or(UsedError::NoTable)?;
    if end != size {
        return Err(UsedError::Size { table: end, file: size });
    }
    let mut partitions = Vec::new();
    for (first, last) in table.extents() {
        match (at(first), after(last)) {
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
