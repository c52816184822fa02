//! A disk's GPT, read (UEFI specification 2.10, chapter 5). Every number comes from the disk and is checked; the gpt
//! crate, made for writing, asserts on some of them.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::{guid::Guid, sector::SectorSize};

/// Size of the header.
pub(super) const HEADER: usize = 92;
/// The least size of an entry; larger ones are this times a power of two.
pub(super) const ENTRY: usize = 128;
/// The largest table that is read: 128 entries are usual, so a hostile disk can't make the rack read for minutes.
const LARGEST_TABLE: u64 = 1 << 20;
/// The sector of the first header; its entries follow.
pub(crate) const PRIMARY: u64 = 1;
/// The protective MBR's only partition: its type, and where that and its length in sectors stand.
pub(super) const MBR_TYPE: u8 = 0xee;
pub(super) const MBR_TYPE_AT: usize = 450;
pub(super) const MBR_LENGTH_AT: usize = 458;
pub(super) const MBR_SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// Where fields of the header stand.
pub(crate) mod field {
    pub const HEADER_SIZE: usize = 12;
    pub const HEADER_CRC: usize = 16;
    pub const MY_LBA: usize = 24;
    pub const ALTERNATE_LBA: usize = 32;
    pub const FIRST_USABLE_LBA: usize = 40;
    pub const LAST_USABLE_LBA: usize = 48;
    pub const DISK_GUID: usize = 56;
    pub const ENTRIES_LBA: usize = 72;
    pub const ENTRIES_COUNT: usize = 80;
    pub const ENTRY_SIZE: usize = 84;
    pub const ENTRIES_CRC: usize = 88;
    /// Within an entry, its unique GUID, its first and its last sector.
    pub const GUID: usize = 16;
    pub const FIRST_LBA: usize = 32;
    pub const LAST_LBA: usize = 40;
    /// Its name: 36 characters in UTF-16.
    pub const NAME: usize = 56;
    pub const NAME_END: usize = 128;
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
    pub(super) header: [u8; HEADER],
    pub(super) entries: Vec<u8>,
    pub(super) entry_size: usize,
    /// Whether it is the one at the disk's end, because the first is damaged.
    pub(super) backup: bool,
}

/// Why there is no table in a place.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk can't be read.
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
    /// A field, named as in the specification, has a value that can't be.
    #[error("its {0} is wrong")]
    Damaged(&'static str),
}

/// A partition as a table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// 1 is the first.
    pub number: u32,
    /// The GUID of its type.
    pub kind: Guid,
    /// Its own GUID.
    pub guid: Guid,
    /// Its name.
    pub name: String,
    /// Where it starts, in bytes.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl<'a> Disk<'a> {
    /// A disk of this kind; none if it has no sectors that are known.
    pub fn new(file: &'a File, sector: u64) -> io::Result<Option<Self>> {
        use std::io::{Seek, SeekFrom};
        let size = { file }.seek(SeekFrom::End(0))?;
        Ok(SectorSize::from_bytes(sector).map(|sector| Self { file, size, sector }))
    }

    /// The number of its last sector.
    pub(super) fn last_sector(&self) -> u64 {
        (self.size / self.sector.bytes()).saturating_sub(1)
    }

    /// The table: the first, or where that is damaged the one in the last sector, as Linux does with `gpt` on its
    /// command line. The second counts only beside a protective MBR: else the disk was made into something else, and
    /// what stands at its end is left over.
    pub fn table(&self) -> io::Result<Option<Table>> {
        let sound = |table| match table {
            Ok(table) => Ok(Some(table)),
            Err(TableError::Damaged(_)) => Ok(None),
            Err(TableError::Io(error)) => Err(error),
        };
        if let Some(table) = sound(self.table_at(PRIMARY))? {
            return Ok(Some(table));
        }
        if !self.mbr()?.is_some_and(|mbr| is_protective(&mbr)) {
            return Ok(None);
        }
        let table = sound(self.table_at(self.last_sector()))?;
        Ok(table.map(|table| Table { backup: true, ..table }))
    }

    /// The protective MBR, or what stands in its place.
    pub(super) fn mbr(&self) -> io::Result<Option<[u8; 512]>> {
        let mut mbr = [0; 512];
        if self.size < 512 {
            return Ok(None);
        }
        self.file.read_exact_at(&mut mbr, 0)?;
        Ok(Some(mbr))
    }

    /// The table whose header is in this sector.
    pub(crate) fn table_at(&self, header_at: u64) -> Result<Table, TableError> {
        let require = |holds: bool, what| if holds { Ok(()) } else { Err(TableError::Damaged(what)) };
        let sector = self.sector.bytes();
        let mut header = [0; HEADER];
        let inside = |end: &u64| *end <= self.size;
        let offset = header_at.checked_mul(sector).filter(|at| at.checked_add(sector).as_ref().is_some_and(inside));
        self.file.read_exact_at(&mut header, offset.ok_or(TableError::Damaged("place on the disk"))?)?;
        require(header.starts_with(b"EFI PART"), "Signature")?;
        require(word(&header, field::HEADER_SIZE) as usize == HEADER, "HeaderSize")?;
        require(word(&header, field::HEADER_CRC) == header_crc(&header), "HeaderCRC32")?;
        require(long(&header, field::MY_LBA) == header_at, "MyLBA")?;
        let count = u64::from(word(&header, field::ENTRIES_COUNT));
        let entry_size = word(&header, field::ENTRY_SIZE) as usize;
        let sane = entry_size >= ENTRY && (entry_size / ENTRY).is_power_of_two() && entry_size.is_multiple_of(ENTRY);
        require(sane, "SizeOfPartitionEntry")?;
        let length = count.saturating_mul(entry_size as u64);
        require(length <= LARGEST_TABLE, "NumberOfPartitionEntries")?;
        let start = long(&header, field::ENTRIES_LBA).checked_mul(sector);
        let start = start.filter(|start| start.checked_add(length).as_ref().is_some_and(inside));
        let mut entries = vec![0; length as usize];
        self.file.read_exact_at(&mut entries, start.ok_or(TableError::Damaged("PartitionEntryLBA"))?)?;
        require(crc32(&entries) == word(&header, field::ENTRIES_CRC), "PartitionEntryArrayCRC32")?;
        Ok(Table { header, entries, entry_size, backup: false })
    }
}

/// Whether it says that the disk has a GPT.
pub(super) fn is_protective(mbr: &[u8; 512]) -> bool {
    mbr[510..] == MBR_SIGNATURE && mbr[MBR_TYPE_AT] == MBR_TYPE
}

impl Table {
    /// How many entries it has, in use or not.
    pub(super) fn count(&self) -> u32 {
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

    /// All that are in use. Extents that no disk can have are left out.
    pub fn partitions(&self, sector: SectorSize) -> Vec<Found> {
        let found = |number| {
            let entry = self.entry(number)?;
            let (first, last) = self.extent(number)?;
            let start = first.checked_mul(sector.bytes())?;
            let size = last.checked_add(1)?.checked_mul(sector.bytes())?.checked_sub(start)?;
            let units = entry.get(field::NAME..field::NAME_END)?.chunks_exact(2);
            let units = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]])).take_while(|unit| *unit != 0);
            let name = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
            Some(Found { number, kind: guid_at(entry, 0), guid: guid_at(entry, field::GUID), name, start, size })
        };
        (1..=self.count()).filter_map(found).collect()
    }

    /// The disk's GUID.
    pub fn disk_guid(&self) -> Guid {
        guid_at(&self.header, field::DISK_GUID)
    }

    fn entry(&self, number: u32) -> Option<&[u8]> {
        let entry = self.entries.chunks_exact(self.entry_size).nth(number.checked_sub(1)? as usize)?;
        // Without a type it is not in use.
        (entry.get(..16)? != [0; 16]).then_some(entry)
    }

    /// A partition's first and last sector.
    pub(super) fn extent(&self, number: u32) -> Option<(u64, u64)> {
        let entry = self.entry(number)?;
        Some((long(entry, field::FIRST_LBA), long(entry, field::LAST_LBA)))
    }

    /// First and last sector of all that are in use.
    pub(crate) fn extents(&self) -> impl Iterator<Item = (u64, u64)> {
        (1..=self.count()).filter_map(|number| self.extent(number))
    }

    pub(crate) fn long(&self, at: usize) -> u64 {
        long(&self.header, at)
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|long| long.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Of the header without its own field.
pub(super) fn header_crc(header: &[u8; HEADER]) -> u32 {
    let mut without = *header;
    without[field::HEADER_CRC..field::HEADER_CRC + 4].fill(0);
    crc32(&without)
}

/// CRC-32 as in Ethernet and zlib. Some kilobytes at boot: a table would not pay.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// The GUID whose bytes stand at `at`.
fn guid_at(bytes: &[u8], at: usize) -> Guid {
    let bytes = bytes.get(at..at + 16).and_then(|bytes| bytes.try_into().ok());
    Guid(mixed(bytes.unwrap_or_default()))
}

/// From the order in which a GUID is printed to that on disk, whose first three groups are little-endian, and back.
fn mixed(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// A GUID's bytes on disk.
fn parse(guid: &str) -> Option<[u8; 16]> {
    let digits: String = guid.split('-').collect();
    if guid.len() != 36 || digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    Some(mixed(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes()))
}
