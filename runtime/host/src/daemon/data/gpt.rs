//! Finds a partition in a disk's GPT by its unique GUID (UEFI specification 2.10, section 5.3). Every number comes
//! from the disk and is checked; the gpt crate, made for writing, asserts on some of them.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// Logical sector sizes that disks have; others are not looked at.
const SECTORS: [u64; 2] = [512, 4096];
/// Size of the header.
const HEADER: usize = 92;
/// The least size of an entry; larger ones are this times a power of two.
const ENTRY: usize = 128;
/// The largest table that is read: 128 entries are usual, so a hostile disk can't make the rack read for minutes.
const LARGEST_TABLE: u64 = 1 << 20;

/// The number of the partition (1 is the first) with this GUID; none if the disk has no GPT or not this partition.
/// The backup table at the disk's end serves where the first is damaged, as for the kernel.
pub fn partition_number(disk: &File, sector: u64, guid: &str) -> io::Result<Option<u32>> {
    let Some(guid) = parse(guid).filter(|_| SECTORS.contains(&sector)) else { return Ok(None) };
    let mut disk = disk;
    let size = disk.seek(SeekFrom::End(0))?;
    let last = (size / sector).saturating_sub(1);
    for header in [1, last] {
        if let Some(table) = table(disk, sector, size, header)? {
            return Ok(table.position(&guid));
        }
    }
    Ok(None)
}

struct Table {
    bytes: Vec<u8>,
    entry_size: usize,
}

impl Table {
    fn position(&self, guid: &[u8; 16]) -> Option<u32> {
        let index = self.bytes.chunks_exact(self.entry_size).position(|entry| entry.get(16..32) == Some(&guid[..]))?;
        u32::try_from(index + 1).ok()
    }
}

/// The table whose header is in this sector; none if header or table are not valid.
fn table(mut disk: &File, sector: u64, size: u64, header_at: u64) -> io::Result<Option<Table>> {
    let mut header = [0; HEADER];
    let Some(offset) = header_at.checked_mul(sector).filter(|offset| offset.saturating_add(sector) <= size) else {
        return Ok(None);
    };
    disk.seek(SeekFrom::Start(offset))?;
    disk.read_exact(&mut header)?;
    let crc = word(&header, 16);
    let mut without_crc = header;
    without_crc[16..20].fill(0);
    let genuine = header.starts_with(b"EFI PART")
        && word(&header, 12) as usize == HEADER
        && crc32(&without_crc) == crc
        && long(&header, 24) == header_at;
    let (count, entry_size) = (u64::from(word(&header, 80)), word(&header, 84) as usize);
    let length = count.saturating_mul(entry_size as u64);
    let sane = entry_size >= ENTRY && (entry_size / ENTRY).is_power_of_two() && entry_size.is_multiple_of(ENTRY);
    let start = long(&header, 72).checked_mul(sector);
    let Some(start) = start.filter(|start| start.checked_add(length).is_some_and(|end| end <= size)) else {
        return Ok(None);
    };
    if !genuine || !sane || length > LARGEST_TABLE {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    disk.seek(SeekFrom::Start(start))?;
    disk.read_exact(&mut bytes)?;
    Ok((crc32(&bytes) == word(&header, 88)).then_some(Table { bytes, entry_size }))
}

fn word(bytes: &[u8; HEADER], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8; HEADER], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|long| long.try_into().ok()).map_or(0, u64::from_le_bytes)
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
mod tests {
    use std::{
        io::{Seek, SeekFrom, Write},
        process::Command,
    };

    use super::*;

    const GUID: &str = "5e8e1b1a-0c6e-4d5b-9d7c-0a1b2c3d4e5f";

    /// A disk that sgdisk partitioned; the partition in question is number 2.
    fn disk() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let status = Command::new("sgdisk")
            .args(["-n", "1:2048:+8M", "-n", "2:0:0", "-u", &format!("2:{GUID}")])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
        file
    }

    #[test]
    fn a_partition_made_by_sgdisk_is_found_by_its_guid() {
        let disk = disk();
        assert_eq!(partition_number(disk.as_file(), 512, GUID).unwrap(), Some(2));
        assert_eq!(partition_number(disk.as_file(), 512, &GUID.replace('5', "6")).unwrap(), None);
        assert_eq!(partition_number(disk.as_file(), 4096, GUID).unwrap(), None);
        assert_eq!(partition_number(disk.as_file(), 512, "no guid").unwrap(), None);
    }

    #[test]
    fn the_backup_table_serves_when_the_first_is_damaged() {
        let mut disk = disk();
        for (at, expected) in [(512 + 40, Some(2)), (1024 + 20, Some(2)), ((64 << 20) - 512 + 40, None)] {
            disk.seek(SeekFrom::Start(at)).unwrap();
            disk.write_all(&[0xff]).unwrap();
            assert_eq!(partition_number(disk.as_file(), 512, GUID).unwrap(), expected, "byte {at}");
        }
    }

    #[test]
    fn no_header_makes_the_reader_panic_or_read_far() {
        let whole = disk();
        let good = std::fs::read(whole.path()).unwrap();
        for field in [12, 24, 32, 72, 80, 84, 88] {
            for value in [0, 1, 127, 0x1_0000, u32::MAX] {
                let mut bytes = good[..1 << 20].to_vec();
                bytes[512 + field..512 + field + 4].copy_from_slice(&value.to_le_bytes());
                bytes[512 + 16..512 + 20].fill(0);
                let crc = crc32(&bytes[512..512 + HEADER]);
                bytes[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&bytes).unwrap();
                // What comes out may be anything but a panic.
                let _ = partition_number(&file, 512, GUID);
            }
        }
        assert_eq!(partition_number(&tempfile::tempfile().unwrap(), 512, GUID).unwrap(), None);
    }
}
