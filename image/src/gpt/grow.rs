//! A table made larger, with its last partition, for a disk that is larger than the image on it.

use std::{io, os::unix::fs::FileExt};

use super::{
    ALIGNMENT,
    read::{Disk, MBR_LENGTH_AT, PRIMARY, Table, crc32, field, header_crc, is_protective},
};

/// Some bytes that go onto the disk. They must be there before the next are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Where, in bytes.
    pub at: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// What makes a partition reach to the end of its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// Where the partition starts, in bytes.
    pub start: u64,
    /// How long it is afterwards, in bytes.
    pub length: u64,
    /// In this order, each written out before the next; none if the table is as it is to be.
    pub writes: Vec<Write>,
    /// The partition that lies behind it, so that it can't grow.
    pub hindered_by: Option<u32>,
}

impl Disk<'_> {
    /// What makes the partition with this number reach to the disk's end, up to a whole MiB. At any moment one of the
    /// two tables is whole: the second is written before the first, except where only the second is left.
    pub fn growth(&self, table: &Table, number: u32) -> io::Result<Option<Growth>> {
        let sector = self.sector.bytes();
        let Some((first, last)) = table.extent(number) else { return Ok(None) };
        let bounds = |last: u64| {
            let start = first.checked_mul(sector)?;
            let length = last.checked_add(1)?.checked_mul(sector)?.checked_sub(start)?;
            Some((start, length))
        };
        let Some((start, length)) = bounds(last) else { return Ok(None) };
        let stays = Growth { start, length, writes: Vec::new(), hindered_by: None };
        let behind = |other: &u32| table.extent(*other).is_some_and(|(other_first, _)| other_first > first);
        if let Some(other) = (1..=table.count()).find(behind) {
            return Ok(Some(Growth { hindered_by: Some(other), ..stays }));
        }
        let entry_sectors = (table.entries.len() as u64).div_ceil(sector);
        let end = self.last_sector();
        // Behind the usable sectors come the entries and the header. A table in an unusual place is left alone.
        let last_usable = end.saturating_sub(entry_sectors + 1);
        let room = PRIMARY + 1 + entry_sectors <= table.long(field::FIRST_USABLE_LBA).min(first);
        let usual = table.backup || table.long(field::ENTRIES_LBA) == PRIMARY + 1;
        if !room || !usual || last_usable < last {
            return Ok(Some(stays));
        }
        let wanted_last = ((last_usable + 1) * sector / ALIGNMENT * ALIGNMENT / sector).saturating_sub(1).max(last);
        let Some((start, length)) = bounds(wanted_last) else { return Ok(None) };
        let mut grown = table.clone();
        grown.set_long(field::LAST_USABLE_LBA, last_usable);
        grown.set_last(number, wanted_last);
        let first_copy = |table: &Table| Write { at: sector, bytes: table.first_copy(end, sector) };
        let second_copy = Write { at: (end - entry_sectors) * sector, bytes: grown.second_copy(end, sector) };

        let mut writes = Vec::new();
        if table.backup {
            writes.push(first_copy(table));
        }
        for write in [second_copy, first_copy(&grown)] {
            if writes.last() != Some(&write) && !self.holds(&write)? {
                writes.push(write);
            }
        }
        writes.extend(self.grown_mbr()?);
        Ok(Some(Growth { start, length, writes, hindered_by: None }))
    }

    fn holds(&self, write: &Write) -> io::Result<bool> {
        let mut there = vec![0; write.bytes.len()];
        self.file.read_exact_at(&mut there, write.at)?;
        Ok(there == write.bytes)
    }

    /// The protective MBR for the disk's size, if it is another now. Anything else in its place is left alone.
    fn grown_mbr(&self) -> io::Result<Option<Write>> {
        let Some(mut mbr) = self.mbr()?.filter(is_protective) else { return Ok(None) };
        let length = u32::try_from(self.last_sector()).unwrap_or(u32::MAX).to_le_bytes();
        let Some(place) = mbr.get_mut(MBR_LENGTH_AT..MBR_LENGTH_AT + 4) else { return Ok(None) };
        if *place == length {
            return Ok(None);
        }
        place.copy_from_slice(&length);
        Ok(Some(Write { at: 0, bytes: mbr.to_vec() }))
    }
}

impl Table {
    fn set_long(&mut self, at: usize, value: u64) {
        put(&mut self.header, at, &value.to_le_bytes());
    }

    fn set_last(&mut self, number: u32, last: u64) {
        let at = (number as usize).saturating_sub(1).saturating_mul(self.entry_size).saturating_add(field::LAST_LBA);
        put(&mut self.entries, at, &last.to_le_bytes());
    }

    /// Header and entries as they stand at the disk's begin.
    fn first_copy(&self, last_sector: u64, sector: u64) -> Vec<u8> {
        let mut bytes = self.sealed(PRIMARY, last_sector, PRIMARY + 1);
        bytes.resize(sector as usize, 0);
        bytes.extend_from_slice(&self.entries);
        bytes.resize(bytes.len().next_multiple_of(sector as usize), 0);
        bytes
    }

    /// Entries and header as they stand at the disk's end.
    fn second_copy(&self, last_sector: u64, sector: u64) -> Vec<u8> {
        let mut bytes = self.entries.clone();
        bytes.resize(bytes.len().next_multiple_of(sector as usize), 0);
        let entries_at = last_sector.saturating_sub(bytes.len() as u64 / sector);
        bytes.extend(self.sealed(last_sector, PRIMARY, entries_at));
        bytes.resize(bytes.len().next_multiple_of(sector as usize), 0);
        bytes
    }

    fn sealed(&self, my_lba: u64, alternate_lba: u64, entries_lba: u64) -> Vec<u8> {
        let mut table = self.clone();
        table.set_long(field::MY_LBA, my_lba);
        table.set_long(field::ALTERNATE_LBA, alternate_lba);
        table.set_long(field::ENTRIES_LBA, entries_lba);
        put(&mut table.header, field::ENTRIES_CRC, &crc32(&self.entries).to_le_bytes());
        let crc = header_crc(&table.header);
        put(&mut table.header, field::HEADER_CRC, &crc.to_le_bytes());
        table.header.to_vec()
    }
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(value.len())) {
        place.copy_from_slice(value);
    }
}
