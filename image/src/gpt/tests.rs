//! Other people's tools judge the table: sgdisk makes it, and checks what became of it.

use std::{fs, os::unix::fs::FileExt, sync::OnceLock};

use tempfile::NamedTempFile;

use super::{
    grow::{Growth, Write},
    read::{Disk, ENTRY, HEADER, field, header_crc},
    *,
};
use crate::{
    ext4::{self, Data},
    guid::{self, Guid},
    testing,
};

const MIB: u64 = 1 << 20;
const GUID: &str = "5e8e1b1a-0c6e-4d5b-9d7c-0a1b2c3d4e5f";
/// What one write to a disk is at least: less is never torn.
const ATOM: usize = 512;

fn run(program: &str, arguments: &[&str]) -> String {
    testing::run(program, arguments)
}

fn path(disk: &NamedTempFile) -> &str {
    disk.path().to_str().unwrap()
}

/// A disk that sgdisk partitioned; the partition in question is number 2. All have it once made: sgdisk sleeps a second
/// after it has written.
fn by_sgdisk() -> NamedTempFile {
    static ENDS: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    let ends = ENDS.get_or_init(|| {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(64 * MIB).unwrap();
        run("sgdisk", &["-n", "1:2048:+8M", "-n", "2:0:0", "-u", &format!("2:{GUID}"), path(&file)]);
        [0, 63 * MIB].map(|at| {
            let mut bytes = vec![0; MIB as usize];
            file.as_file().read_exact_at(&mut bytes, at).unwrap();
            bytes
        })
    });
    let file = NamedTempFile::new().unwrap();
    for (bytes, at) in ends.iter().zip([0, 63 * MIB]) {
        file.as_file().write_all_at(bytes, at).unwrap();
    }
    file
}

fn number(file: &File, sector: u64, guid: &str) -> Option<u32> {
    Disk::new(file, sector).unwrap()?.table().unwrap()?.number(guid)
}

#[test]
fn a_partition_made_by_sgdisk_is_found_by_its_guid() {
    let disk = by_sgdisk();
    let file = disk.as_file();
    assert_eq!(number(file, 512, GUID), Some(2));
    assert_eq!(number(file, 512, &GUID.replace('5', "6")), None);
    assert_eq!(number(file, 4096, GUID), None);
    assert_eq!(number(file, 520, GUID), None);
    assert_eq!(number(file, 512, "no guid"), None);
}

#[test]
fn partitions_made_by_sgdisk_are_found_by_their_type() {
    let disk = by_sgdisk();
    run("sgdisk", &["-t", "1:ef00", path(&disk)]);
    let table = Disk::new(disk.as_file(), 512).unwrap().unwrap().table().unwrap().unwrap();
    assert_eq!(table.numbers_of_type("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"), Some(vec![1]));
    assert_eq!(table.numbers_of_type("0fc63daf-8483-4772-8e79-3d69d8477de4"), Some(vec![2]));
    assert_eq!(table.numbers_of_type(GUID), Some(vec![]));
}

#[test]
fn the_second_table_serves_when_the_first_is_damaged() {
    let disk = by_sgdisk();
    for (at, expected) in [(512 + 40, Some(2)), (1024 + 20, Some(2)), (64 * MIB - 512 + 40, None)] {
        disk.as_file().write_all_at(&[0xff], at).unwrap();
        assert_eq!(number(disk.as_file(), 512, GUID), expected, "byte {at}");
    }
}

#[test]
fn a_table_left_over_at_the_end_of_a_disk_made_into_something_else_does_not_count() {
    let disk = by_sgdisk();
    disk.as_file().write_all_at(&[0; 34 * 512], 0).unwrap();
    assert_eq!(number(disk.as_file(), 512, GUID), None);
}

#[test]
fn no_header_makes_the_reader_panic_or_read_far() {
    let whole = by_sgdisk();
    let good = fs::read(whole.path()).unwrap();
    for at in [12, 24, 32, 40, 48, 72, 80, 84, 88] {
        for value in [0, 1, 127, 0x1_0000, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = good[..MIB as usize].to_vec();
            bytes[512 + at..512 + at + 4].copy_from_slice(&value.to_le_bytes()[..4]);
            let header: [u8; HEADER] = bytes[512..512 + HEADER].try_into().unwrap();
            bytes[512 + 16..512 + 20].copy_from_slice(&header_crc(&header).to_le_bytes());
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            file.set_len(64 * MIB).unwrap();
            let disk = Disk::new(&file, 512).unwrap().unwrap();
            // What comes out may be anything but a panic, or a write outside of the disk.
            if let Some(table) = disk.table().unwrap()
                && let Some(growth) = disk.growth(&table, 2).unwrap()
            {
                assert!(growth.writes.iter().all(|write| write.at + write.bytes.len() as u64 <= disk.size), "{at}");
            }
        }
    }
    assert_eq!(number(&tempfile::tempfile().unwrap(), 512, GUID), None);
}

/// Every extent that a table can claim, on a whole table: nothing overflows.
#[test]
fn no_partition_makes_the_growth_panic() {
    let disk = by_sgdisk();
    let disk = Disk::new(disk.as_file(), 512).unwrap().unwrap();
    let table = disk.table().unwrap().unwrap();
    for first in [0, 1, 34, 1 << 40, u64::MAX - 1, u64::MAX] {
        for last in [0, 33, 34, 1 << 40, u64::MAX - 1, u64::MAX] {
            let mut table = table.clone();
            grow::put(&mut table.entries, ENTRY + field::FIRST_LBA, &first.to_le_bytes());
            grow::put(&mut table.entries, ENTRY + field::LAST_LBA, &last.to_le_bytes());
            let _ = table.partitions(SectorSize::B512);
            let _ = disk.growth(&table, 2).unwrap();
        }
    }
    assert_eq!(disk.growth(&table, 0).unwrap(), None);
    assert_eq!(disk.growth(&table, 3).unwrap(), None);
    assert_eq!(disk.growth(&table, u32::MAX).unwrap(), None);
}

/// An image as it is flashed, on a disk of `size` bytes: a small ESP, and a data partition with a file system.
struct Flashed {
    file: NamedTempFile,
    sector: SectorSize,
    data: (u64, u64),
    guid: Guid,
}

impl Flashed {
    fn new(sector: SectorSize, larger_by: u64) -> Self {
        let file = NamedTempFile::new().unwrap();
        let content = Data {
            uuid: guid::derive(&[b"file system"]),
            label: "data".into(),
            epoch: 0,
            directories: [("state".to_owned(), 0o700)].into(),
            files: [].into(),
        };
        let data = (9 * MIB, content.size());
        let size = data.0 + data.1 + MIB;
        file.as_file().set_len(size).unwrap();
        let part = |kind, name: &'static str, (start, size)| Partition {
            kind,
            guid: guid::derive(&[name.as_bytes()]),
            name,
            start,
            size,
        };
        let partitions = [part(Type::Esp, "ESP", (MIB, 8 * MIB)), part(Type::LinuxData, "data", data)];
        super::write(file.as_file(), sector, guid::derive(&[b"disk"]), &partitions).unwrap();
        ext4::write(file.as_file(), data.0, &content, &|_| ()).unwrap();
        file.as_file().set_len(size + larger_by).unwrap();
        Self { file, sector, data, guid: partitions[1].guid }
    }

    fn disk(&self) -> Disk<'_> {
        Disk::new(self.file.as_file(), self.sector.bytes()).unwrap().unwrap()
    }

    fn growth(&self) -> Growth {
        let disk = self.disk();
        let table = disk.table().unwrap().expect("a table is whole");
        let number = table.number(&self.guid.to_string()).expect("the data partition is in it");
        assert_eq!(number, 2);
        disk.growth(&table, number).unwrap().expect("it is in use")
    }

    fn write(&self, write: &Write) {
        self.file.as_file().write_all_at(&write.bytes, write.at).unwrap();
    }

    /// What sgdisk says of it; only it knows disks of 512-byte sectors in files.
    fn verified(&self) -> String {
        run("sgdisk", &["-v", path(&self.file)])
    }

    fn file_system_is_clean(&self) {
        run("e2fsck", &["-fn", &format!("{}?offset={}", path(&self.file), self.data.0)]);
    }
}

#[test]
fn a_flashed_disk_grows_to_its_end_and_then_has_nothing_to_do() {
    for sector in SectorSize::ALL {
        let flashed = Flashed::new(sector, 500 * MIB);
        let growth = flashed.growth();
        assert_eq!(
            (growth.start, growth.length, growth.hindered_by),
            (flashed.data.0, flashed.data.1 + 500 * MIB, None)
        );
        assert_eq!(growth.writes.len(), 3, "second table, first table, protective MBR");
        growth.writes.iter().for_each(|write| flashed.write(write));
        assert_eq!(flashed.growth(), Growth { writes: Vec::new(), ..growth });
        flashed.file_system_is_clean();
        if sector == SectorSize::B512 {
            assert!(flashed.verified().contains("No problems found"), "{}", flashed.verified());
            let end = (flashed.data.0 + flashed.data.1 + 500 * MIB) / 512 - 1;
            let shown = run("sgdisk", &["-i", "2", path(&flashed.file)]);
            assert!(shown.contains(&format!("Last sector: {end} ")), "{shown}");
        }
    }
}

#[test]
fn a_disk_as_large_as_the_image_is_left_as_it_is() {
    for sector in SectorSize::ALL {
        let growth = Flashed::new(sector, 0).growth();
        assert_eq!(growth.writes, []);
    }
    // A little more is too little for the partition, but the second table moves to the end.
    let flashed = Flashed::new(SectorSize::B512, 20 * 512);
    let growth = flashed.growth();
    assert_eq!(growth.length, flashed.data.1);
    growth.writes.iter().for_each(|write| flashed.write(write));
    assert!(flashed.verified().contains("No problems found"), "{}", flashed.verified());
}

/// Cuts the growth after every 512 bytes, and once more in the repair that follows: the data partition is found each
/// time, with a file system that e2fsck accepts, and the next try ends with what an uncut one does.
#[test]
fn a_growth_cut_anywhere_leaves_the_partition_and_is_finished_later() {
    for (sector, larger_by) in
        [(SectorSize::B512, 500 * MIB), (SectorSize::B512, 20 * 512), (SectorSize::B4096, 500 * MIB)]
    {
        let uncut = Flashed::new(sector, larger_by);
        uncut.growth().writes.iter().for_each(|write| uncut.write(write));
        let (head, tail) = ends(uncut.file.as_file());
        let flashed = Flashed::new(sector, larger_by);
        let before = ends(flashed.file.as_file());
        let planned = flashed.growth().writes;
        let mut cuts = 0;
        for (index, torn) in planned.iter().enumerate() {
            for kept in (0..=torn.bytes.len()).step_by(ATOM) {
                restore(flashed.file.as_file(), &before);
                planned[..index].iter().for_each(|write| flashed.write(write));
                flashed.write(&Write { at: torn.at, bytes: torn.bytes[..kept].to_vec() });
                cuts += 1;
                if cuts % 16 == 0 {
                    flashed.file_system_is_clean();
                }
                // The next boot is cut too, in its first write.
                if let Some(first) = flashed.growth().writes.first() {
                    flashed.write(&Write { at: first.at, bytes: first.bytes[..ATOM].to_vec() });
                }
                flashed.growth().writes.iter().for_each(|write| flashed.write(write));
                let (now_head, now_tail) = ends(flashed.file.as_file());
                assert!((now_head, now_tail) == (head.clone(), tail.clone()), "cut {index} after {kept} bytes");
            }
        }
        assert!(cuts > 15, "{cuts} cuts");
        if sector == SectorSize::B512 {
            assert!(flashed.verified().contains("No problems found"), "{}", flashed.verified());
        }
    }
}

/// Where a disk's tables stand: its first and its last MiB.
fn ends(file: &File) -> (Vec<u8>, Vec<u8>) {
    let size = file.metadata().unwrap().len();
    let (mut head, mut tail) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    file.read_exact_at(&mut head, 0).unwrap();
    file.read_exact_at(&mut tail, size - MIB).unwrap();
    (head, tail)
}

fn restore(file: &File, (head, tail): &(Vec<u8>, Vec<u8>)) {
    file.write_all_at(head, 0).unwrap();
    file.write_all_at(tail, file.metadata().unwrap().len() - MIB).unwrap();
}

#[test]
fn sgdisk_reads_the_partition_at_every_cut() {
    let flashed = Flashed::new(SectorSize::B512, 500 * MIB);
    let before = ends(flashed.file.as_file());
    let planned = flashed.growth().writes;
    let unique = flashed.guid.to_string().to_uppercase();
    for (index, torn) in planned.iter().enumerate() {
        for kept in [0, 512, 1024, 8192, torn.bytes.len() - 512].into_iter().filter(|kept| *kept < torn.bytes.len()) {
            restore(flashed.file.as_file(), &before);
            planned[..index].iter().for_each(|write| flashed.write(write));
            flashed.write(&Write { at: torn.at, bytes: torn.bytes[..kept].to_vec() });
            let shown = run("sgdisk", &["-i", "2", path(&flashed.file)]);
            assert!(shown.contains(&unique), "cut {index} after {kept} bytes: {shown}");
        }
    }
}

#[test]
fn a_partition_with_another_behind_it_does_not_grow_and_nothing_is_written() {
    let flashed = Flashed::new(SectorSize::B512, 500 * MIB);
    run("sgdisk", &["-e", "-n", "3:0:0", path(&flashed.file)]);
    let growth = flashed.growth();
    assert_eq!((growth.length, growth.hindered_by), (flashed.data.1, Some(3)));
    assert_eq!(growth.writes, []);
}

#[test]
fn a_disk_smaller_than_its_table_says_is_left_alone() {
    let flashed = Flashed::new(SectorSize::B512, 0);
    flashed.file.as_file().set_len(flashed.data.0 + flashed.data.1 / 2).unwrap();
    assert_eq!(flashed.growth().writes, []);
}

#[test]
fn a_damaged_first_table_is_made_anew_from_the_second_and_the_other_way_round() {
    let flashed = Flashed::new(SectorSize::B512, 0);
    let whole = ends(flashed.file.as_file());
    for at in [512 + 60, flashed.disk().size - 512 + 60] {
        flashed.file.as_file().write_all_at(&[0xff], at).unwrap();
        let growth = flashed.growth();
        assert_eq!(growth.writes.len(), 1);
        growth.writes.iter().for_each(|write| flashed.write(write));
        assert!(ends(flashed.file.as_file()) == whole, "byte {at}");
        assert!(flashed.verified().contains("No problems found"));
    }
}

#[test]
fn an_image_is_whole_and_every_flipped_bit_of_both_tables_is_noticed() {
    for sector in SectorSize::ALL {
        let flashed = Flashed::new(sector, 0);
        assert_eq!(check::faults(&flashed.disk()).unwrap(), []);
        let found = flashed.disk().table().unwrap().unwrap().partitions(sector);
        assert_eq!(found.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["ESP", "data"]);
        assert_eq!((found[1].start, found[1].size, found[1].guid), (flashed.data.0, flashed.data.1, flashed.guid));
        assert_eq!(found[0].kind.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        let file = flashed.file.as_file();
        let (size, block) = (flashed.disk().size, sector.bytes());
        let table = 128 * 128;
        // Boot code is nobody's business; everything else is.
        let mbr = 446..512;
        let first = block..2 * block + table;
        let second = size - block - table..size;
        for at in mbr.chain(first.step_by(7)).chain(second.step_by(7)) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at).unwrap();
            // Where the one partition ends in cylinders means nothing.
            let faults = check::faults(&flashed.disk()).unwrap();
            assert!(!faults.is_empty() || (446..450).contains(&at) || (451..454).contains(&at), "byte {at}");
            file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(check::faults(&flashed.disk()).unwrap(), []);
    }
}

#[test]
fn a_disk_that_was_made_larger_or_cut_short_is_not_whole() {
    let larger = Flashed::new(SectorSize::B512, MIB);
    let said: Vec<String> = check::faults(&larger.disk()).unwrap().into_iter().map(|fault| fault.what).collect();
    assert!(said.iter().any(|what| what.contains("made larger or smaller")), "{said:?}");
    let cut = Flashed::new(SectorSize::B512, 0);
    for length in [0, 1, 511, 512, 600, 1024, 17_000, 20 * MIB] {
        cut.file.as_file().set_len(length).unwrap();
        assert!(!check::faults(&cut.disk()).unwrap().is_empty(), "{length}");
    }
}
