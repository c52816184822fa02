//! A disk's GPT, read and made larger (UEFI specification 2.10, chapter 5). Every number comes from the disk and is
//! checked; the gpt crate, made for writing, asserts on some of them.

use std::{fs::File, io, os::unix::fs::FileExt};

use rackstick_image::{gpt::ALIGNMENT, sector::SectorSize};

/// Size of the header.
const HEADER: usize = 92;
/// The least size of an entry; larger ones are this times a power of two.
const ENTRY: usize = 128;
/// The largest table that is read: 128 entries are usual, so a hostile disk can't make the rack read for minutes.
const LARGEST_TABLE: u64 = 1 << 20;
/// The sector of the first header; its entries follow.
const PRIMARY: u64 = 1;
/// The protective MBR's only partition: its type, and where that and its length in sectors stand.
const MBR_TYPE: u8 = 0xee;
const MBR_TYPE_AT: usize = 450;
const MBR_LENGTH_AT: usize = 458;
const MBR_SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// Where fields of the header stand.
mod field {
    pub const HEADER_SIZE: usize = 12;
    pub const HEADER_CRC: usize = 16;
    pub const MY_LBA: usize = 24;
    pub const ALTERNATE_LBA: usize = 32;
    pub const FIRST_USABLE_LBA: usize = 40;
    pub const LAST_USABLE_LBA: usize = 48;
    pub const ENTRIES_LBA: usize = 72;
    pub const ENTRIES_COUNT: usize = 80;
    pub const ENTRY_SIZE: usize = 84;
    pub const ENTRIES_CRC: usize = 88;
    /// Within an entry, its unique GUID, its first and its last sector.
    pub const GUID: usize = 16;
    pub const FIRST_LBA: usize = 32;
    pub const LAST_LBA: usize = 40;
}

/// A disk whose table is to be read.
#[derive(Debug, Clone, Copy)]
pub struct Disk<'a> {
    /// The whole disk.
    pub file: &'a File,
    /// Its size in bytes.
    pub size: u64,
    /// Its logical blocks.
    pub sector: SectorSize,
}

/// A valid table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    header: [u8; HEADER],
    entries: Vec<u8>,
    entry_size: usize,
    /// Whether it is the one at the disk's end, because the first is damaged.
    backup: bool,
}

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

impl<'a> Disk<'a> {
    /// A disk of this kind; none if it has no sectors that are known.
    pub fn new(file: &'a File, sector: u64) -> io::Result<Option<Self>> {
        use std::io::{Seek, SeekFrom};
        let size = { file }.seek(SeekFrom::End(0))?;
        Ok(SectorSize::from_bytes(sector).map(|sector| Self { file, size, sector }))
    }

    fn last_sector(&self) -> u64 {
        (self.size / self.sector.bytes()).saturating_sub(1)
    }

    /// The table: the first, or where that is damaged the one in the last sector, as Linux does with `gpt` on its
    /// command line. The second counts only beside a protective MBR: else the disk was made into something else, and
    /// what stands at its end is left over.
    pub fn table(&self) -> io::Result<Option<Table>> {
        if let Some(table) = self.table_at(PRIMARY)? {
            return Ok(Some(table));
        }
        if !self.mbr()?.is_some_and(|mbr| is_protective(&mbr)) {
            return Ok(None);
        }
        let table = self.table_at(self.last_sector())?;
        Ok(table.map(|table| Table { backup: true, ..table }))
    }

    fn mbr(&self) -> io::Result<Option<[u8; 512]>> {
        let mut mbr = [0; 512];
        if self.size < 512 {
            return Ok(None);
        }
        self.file.read_exact_at(&mut mbr, 0)?;
        Ok(Some(mbr))
    }

    /// The table whose header is in this sector; none if header or table are not valid.
    fn table_at(&self, header_at: u64) -> io::Result<Option<Table>> {
        let sector = self.sector.bytes();
        let mut header = [0; HEADER];
        let inside = |end: &u64| *end <= self.size;
        let offset = header_at.checked_mul(sector).filter(|at| at.checked_add(sector).as_ref().is_some_and(inside));
        let Some(offset) = offset else { return Ok(None) };
        self.file.read_exact_at(&mut header, offset)?;
        let genuine = header.starts_with(b"EFI PART")
            && word(&header, field::HEADER_SIZE) as usize == HEADER
            && word(&header, field::HEADER_CRC) == header_crc(&header)
            && long(&header, field::MY_LBA) == header_at;
        let count = u64::from(word(&header, field::ENTRIES_COUNT));
        let entry_size = word(&header, field::ENTRY_SIZE) as usize;
        let length = count.saturating_mul(entry_size as u64);
        let sane = entry_size >= ENTRY && (entry_size / ENTRY).is_power_of_two() && entry_size.is_multiple_of(ENTRY);
        let start = long(&header, field::ENTRIES_LBA).checked_mul(sector);
        let start = start.filter(|start| start.checked_add(length).as_ref().is_some_and(inside));
        let Some(start) = start.filter(|_| genuine && sane && length <= LARGEST_TABLE) else { return Ok(None) };
        let mut entries = vec![0; length as usize];
        self.file.read_exact_at(&mut entries, start)?;
        let whole = crc32(&entries) == word(&header, field::ENTRIES_CRC);
        Ok(whole.then_some(Table { header, entries, entry_size, backup: false }))
    }

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

fn is_protective(mbr: &[u8; 512]) -> bool {
    mbr[510..] == MBR_SIGNATURE && mbr[MBR_TYPE_AT] == MBR_TYPE
}

impl Table {
    fn count(&self) -> u32 {
        u32::try_from(self.entries.len() / self.entry_size).unwrap_or(u32::MAX)
    }

    /// The number of the partition (1 is the first) with this GUID.
    pub fn number(&self, guid: &str) -> Option<u32> {
        let guid = parse(guid)?;
        let mut entries = self.entries.chunks_exact(self.entry_size);
        let index = entries.position(|entry| entry.get(field::GUID..field::GUID + 16) == Some(&guid[..]))?;
        u32::try_from(index + 1).ok()
    }

    /// The numbers of all partitions of this type; none if that is no GUID.
    pub fn numbers_of_type(&self, guid: &str) -> Option<Vec<u32>> {
        let guid = parse(guid)?;
        let entries = (1..).zip(self.entries.chunks_exact(self.entry_size));
        Some(entries.filter(|(_, entry)| entry.starts_with(&guid)).map(|(number, _)| number).collect())
    }

    fn entry(&self, number: u32) -> Option<&[u8]> {
        let entry = self.entries.chunks_exact(self.entry_size).nth(number.checked_sub(1)? as usize)?;
        // Without a type it is not in use.
        (entry.get(..16)? != [0; 16]).then_some(entry)
    }

    /// A partition's first and last sector.
    fn extent(&self, number: u32) -> Option<(u64, u64)> {
        let entry = self.entry(number)?;
        Some((long(entry, field::FIRST_LBA), long(entry, field::LAST_LBA)))
    }

    fn long(&self, at: usize) -> u64 {
        long(&self.header, at)
    }

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

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(value.len())) {
        place.copy_from_slice(value);
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|long| long.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Of the header without its own field.
fn header_crc(header: &[u8; HEADER]) -> u32 {
    let mut without = *header;
    without[field::HEADER_CRC..field::HEADER_CRC + 4].fill(0);
    crc32(&without)
}

/// CRC-32 as in Ethernet and zlib. Some kilobytes at boot: a table would not pay.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// A GUID's bytes on disk: its first three groups are little-endian.
fn parse(guid: &str) -> Option<[u8; 16]> {
    let digits: String = guid.split('-').collect();
    if guid.len() != 36 || digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = u128::from_str_radix(&digits, 16).ok()?.to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    Some(bytes)
}

#[cfg(test)]
mod tests;
