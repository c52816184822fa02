//! Whether both tables and the protective MBR of a disk image are whole and say the same.

use std::{io, os::unix::fs::FileExt};

use super::read::{
    Disk, HEADER, MBR_LENGTH_AT, MBR_SIGNATURE, MBR_TYPE, MBR_TYPE_AT, PRIMARY, Table, TableError, field, word,
};

/// Where the MBR's four partitions stand, and their size.
const MBR_PARTITIONS: usize = 446;
const MBR_PARTITION: usize = 16;
/// Where the first of them has its first sector.
const MBR_START_AT: usize = 454;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which part of the disk.
    pub part: &'static str,
    /// Where that begins, in bytes.
    pub at: u64,
    /// What is wrong.
    pub what: String,
}

/// All faults; none if disk and tables are whole.
///
/// # Errors
/// What the system says where the disk can't be read.
pub fn faults(disk: &Disk<'_>) -> io::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    let mut fault = |part, at, what: &str| faults.push(Fault { part, at, what: what.to_owned() });
    let end = disk.last_sector();
    if let Some(what) = mbr_fault(disk, end)? {
        fault("protective MBR", 0, what);
    }
    let mut tables = Vec::new();
    for (part, header, other) in [("first partition table", PRIMARY, end), ("second partition table", end, PRIMARY)] {
        let at = header.saturating_mul(disk.sector.bytes());
        match disk.table_at(header) {
            Err(TableError::Io(error)) => return Err(error),
            Err(error @ TableError::Damaged(_)) => fault(part, at, &error.to_string()),
            Ok(table) => {
                if let Some(what) = table_fault(disk, &table, other) {
                    fault(part, at, what);
                }
                if !is_zero(disk, at + HEADER as u64, at + disk.sector.bytes())? {
                    fault(part, at, "there is something behind its header, where nothing may be");
                }
                tables.push(table);
            }
        }
    }
    if let [first, second] = &tables[..]
        && (first.entries != second.entries || head(first) != head(second))
    {
        fault("second partition table", end.saturating_mul(disk.sector.bytes()), "it is not the same as the first");
    }
    Ok(faults)
}

/// What both tables' headers have in common.
fn head(table: &Table) -> [&[u8]; 2] {
    let common = |from: usize, to: usize| table.header.get(from..to).unwrap_or_default();
    [common(field::FIRST_USABLE_LBA, field::ENTRIES_LBA), common(field::ENTRIES_COUNT, HEADER)]
}

fn is_zero(disk: &Disk<'_>, from: u64, to: u64) -> io::Result<bool> {
    let mut bytes = vec![0; to.saturating_sub(from) as usize];
    disk.file.read_exact_at(&mut bytes, from)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

fn mbr_fault(disk: &Disk<'_>, end: u64) -> io::Result<Option<&'static str>> {
    let Some(mbr) = disk.mbr()? else { return Ok(Some("the disk is too small for one")) };
    let others = &mbr[MBR_PARTITIONS + MBR_PARTITION..510];
    Ok(if mbr[510..] != MBR_SIGNATURE {
        Some("its signature is missing")
    } else if mbr[MBR_TYPE_AT] != MBR_TYPE || others.iter().any(|byte| *byte != 0) {
        Some("it has other partitions than the one that stands for the whole disk")
    } else if word(&mbr, MBR_START_AT) != 1 || word(&mbr, MBR_LENGTH_AT) != u32::try_from(end).unwrap_or(u32::MAX) {
        Some("its partition is not the whole disk")
    } else {
        None
    })
}

fn table_fault(disk: &Disk<'_>, table: &Table, other: u64) -> Option<&'static str> {
    if table.long(field::ALTERNATE_LBA) != other {
        return Some("it says that the other one stands elsewhere: the disk was made larger or smaller since");
    }
    let (first, last) = (table.long(field::FIRST_USABLE_LBA), table.long(field::LAST_USABLE_LBA));
    let mut extents: Vec<(u64, u64)> = (1..=table.count()).filter_map(|number| table.extent(number)).collect();
    extents.sort_unstable();
    if last > disk.last_sector() || extents.iter().any(|(from, to)| *from < first || to < from || *to > last) {
        return Some("a partition lies outside of what it says can be used");
    }
    extents.windows(2).any(|pair| pair[0].1 >= pair[1].0).then_some("partitions overlap")
}
