//! Free clusters of a FAT32 file system. Microsoft's "FAT: General Overview of On-Disk Format" 1.03.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use super::{Runs, u16_at, u32_at};

/// FAT32 has at least this many clusters.
const LEAST_CLUSTERS: u64 = 65_525;
/// An entry has 28 bits; the number of the first cluster is 2.
const ENTRY_MASK: u32 = 0x0fff_ffff;
const FIRST_CLUSTER: u64 = 2;
/// `BPB_ExtFlags`: only one of the tables is kept.
const NOT_MIRRORED: u16 = 1 << 7;
/// Bytes of the table read at once.
const STEP: u64 = 1 << 20;

/// What is free, in bytes from the disk's begin; none if the partition holds no FAT32 that is understood.
pub(super) fn free(image: &File, partition: &Range<u64>) -> io::Result<Option<Vec<Range<u64>>>> {
    let length = partition.end - partition.start;
    let mut boot = [0; 512];
    if length < boot.len() as u64 {
        return Ok(None);
    }
    image.read_exact_at(&mut boot, partition.start)?;
    let sector = u64::from(u16_at(&boot, 11));
    let (per_cluster, reserved, tables) = (u64::from(boot[13]), u64::from(u16_at(&boot, 14)), u64::from(boot[16]));
    let (total, table) = (u64::from(u32_at(&boot, 32)), u64::from(u32_at(&boot, 36)));
    let is_fat32 = boot[510..] == [0x55, 0xaa]
        && [512, 1024, 2048, 4096].contains(&sector)
        && per_cluster.is_power_of_two()
        && reserved > 0
        && (1..=2).contains(&tables)
        // No fixed root directory and none of the small sizes of FAT12 and FAT16.
        && [17, 19, 22].iter().all(|&at| u16_at(&boot, at) == 0)
        && u16_at(&boot, 40) & NOT_MIRRORED == 0;
    let clusters = total.checked_sub(reserved + tables * table).map(|rest| rest / per_cluster.max(1));
    let Some(clusters) = clusters.filter(|clusters| is_fat32 && *clusters >= LEAST_CLUSTERS) else {
        return Ok(None);
    };
    let table_bytes = (clusters + FIRST_CLUSTER) * 4;
    if total * sector > length || table_bytes > table * sector {
        return Ok(None);
    }
    let first = partition.start + (reserved + tables * table) * sector;
    let mut runs = Runs::default();
    let mut entries = Vec::new();
    for at in (0..table_bytes).step_by(STEP as usize) {
        entries.resize((table_bytes - at).min(STEP) as usize, 0);
        image.read_exact_at(&mut entries, partition.start + reserved * sector + at)?;
        for (number, entry) in (at / 4..).zip(entries.chunks_exact(4)) {
            if number >= FIRST_CLUSTER && u32_at(entry, 0) & ENTRY_MASK == 0 {
                let bytes = per_cluster * sector;
                runs.add(first + (number - FIRST_CLUSTER) * bytes, bytes);
            }
        }
    }
    Ok(Some(runs.0))
}
