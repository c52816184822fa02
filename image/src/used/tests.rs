use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::*;
use crate::{
    disk::{self, Disk, Extents},
    esp::EspFile,
    ext4::{Data, DataFile},
    gpt::{self, Partition, Type},
    guid,
    source::Source,
    testing::{Mount, assert_same, run},
};

const MIB: u64 = 1 << 20;

/// A layer with a stretch of zeroes, which is a hole in the image's file.
fn layer() -> Vec<u8> {
    [vec![9; 3 << 20], vec![0; 9 << 20], vec![7; 1 << 20]].concat()
}

fn rack(folder: &Path, sector: SectorSize) -> (PathBuf, Extents) {
    let path = folder.join("lab.img");
    let guid = |name: &str| guid::derive(&[b"lab", name.as_bytes()]);
    let disk = Disk {
        sector,
        guid: guid("disk"),
        esp_guid: guid("esp"),
        esp_volume_id: 7,
        esp: vec![EspFile { path: "EFI/BOOT/BOOTX64.EFI".into(), content: Source::Bytes(vec![1; 90_000]).into() }],
        data_guid: guid("data"),
        data: Data {
            uuid: guid("file system"),
            label: "rackstick-data".into(),
            epoch: 1_700_000_000,
            directories: BTreeMap::from([("volumes".into(), 0o700)]),
            files: BTreeMap::from([(
                "layers/x".into(),
                DataFile { mode: 0o444, source: Source::Bytes(layer()), verity: None },
            )]),
        },
    };
    let extents = disk::Place::take(&path, || ()).unwrap().write(&disk, |_| ()).unwrap().0.extents;
    (path, extents)
}

/// Old data in all that an image does not use: at both ends of each gap and once in each MiB.
fn soil(path: &Path, used: &Used) {
    let file = File::options().write(true).open(path).unwrap();
    let starts = used.ranges.iter().skip(1).map(|range| range.start).chain([used.size]);
    for (gap, end) in used.ranges.iter().map(|range| range.end).zip(starts) {
        let places = (gap..end).step_by(MIB as usize).chain((gap < end).then(|| end - UNIT));
        places.for_each(|at| file.write_all_at(&[0xa5; UNIT as usize], at).unwrap());
    }
}

#[test]
fn old_data_in_all_that_is_left_out_harms_nothing() {
    for sector in SectorSize::ALL {
        let folder = tempfile::tempdir().unwrap();
        let (path, extents) = rack(folder.path(), sector);
        let used = of(&File::open(&path).unwrap()).unwrap();
        assert_eq!((used.sector, used.size), (sector, extents.disk));
        // 13 MiB of content, 32 of journal, the tables, and each partition's ends.
        assert!(used.bytes() < 56 * MIB, "{} bytes of {}", used.bytes(), used.size);

        // Nothing else holds anything.
        let copy = folder.path().join("copy.img");
        let (from, to) = (File::open(&path).unwrap(), File::create(&copy).unwrap());
        to.set_len(used.size).unwrap();
        for range in &used.ranges {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            from.read_exact_at(&mut bytes, range.start).unwrap();
            to.write_all_at(&bytes, range.start).unwrap();
        }
        assert_same(&path, &copy);

        soil(&path, &used);
        let part = |name: &str, (start, size): (u64, u64)| {
            let part = folder.path().join(name);
            let (skip, count) = (format!("skip={start}"), format!("count={size}"));
            let (from, to) = (format!("if={}", path.display()), format!("of={}", part.display()));
            run("dd", [&from, &to, &skip, &count, "bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse"]);
            part
        };
        run("fsck.fat", ["-n".as_ref(), part("esp", extents.esp).as_os_str()]);
        let data = part("data", extents.data);
        run("e2fsck", ["-fn".as_ref(), data.as_os_str()]);
        let dump = |file: &str| {
            let to = folder.path().join("file");
            run("debugfs", ["-R", &format!("dump {file} {}", to.display()), data.to_str().unwrap()]);
            fs::read(to).unwrap()
        };
        assert!(dump("layers/x") == layer());
        // What an older flash of the same image left in the journal would be taken for its own.
        let journal = dump("<8>");
        assert_eq!(journal.len() as u64, 32 * MIB);
        assert!(journal[4096..].iter().all(|&byte| byte == 0));
    }
}

/// A disk with two partitions of 64 MiB and more, empty.
fn partitioned(folder: &Path) -> PathBuf {
    let path = folder.join("disk.img");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(402 * MIB).unwrap();
    let part = |kind, name, start, size| Partition { kind, guid: guid::derive(&[name]), name: "p", start, size };
    let parts = [part(Type::Esp, b"a", MIB, 200 * MIB), part(Type::LinuxData, b"b", 201 * MIB, 200 * MIB)];
    gpt::write(&file, SectorSize::B512, guid::derive(&[b"disk"]), &parts).unwrap();
    path
}

#[test]
fn file_systems_of_other_tools_are_understood() {
    for options in [
        &["-b", "4096"][..],
        &["-b", "1024", "-O", "^64bit,^metadata_csum,^uninit_bg"],
        &["-b", "4096", "-g", "2048", "-O", "^flex_bg,^metadata_csum,^uninit_bg"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = partitioned(folder.path());
        let content = folder.path().join("content");
        fs::create_dir(&content).unwrap();
        fs::write(content.join("x"), layer()).unwrap();
        let name = path.to_str().unwrap();
        run("mkfs.fat", ["-F", "32", "-s", "2", "--offset", "2048", name, "204800"]);
        let offset = format!("offset={}", 201 * MIB);
        let fixed = ["-q", "-t", "ext4", "-E", &offset, "-d", content.to_str().unwrap()];
        run("mke2fs", fixed.iter().chain(options).chain([&name, &"199M"]));
        let used = of(&File::open(&path).unwrap()).unwrap();
        assert!(used.bytes() < 60 * MIB, "{options:?}: {} bytes", used.bytes());
        soil(&path, &used);
        run("e2fsck", ["-fn", &format!("{name}?{offset}")]);
        let at = format!("ro,offset={},sizelimit={}", 201 * MIB, 200 * MIB);
        let mounted = Mount::new("ext4", &at, &path, folder.path().join("mounted"));
        assert!(fs::read(mounted.path().join("x")).unwrap() == layer());
    }
}

#[test]
fn what_is_not_understood_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = partitioned(folder.path());
    let all = Vec::from_iter(std::iter::once(0..402 * MIB));
    assert_eq!(of(&File::open(&path).unwrap()).unwrap().ranges, all);
    // A journal that is still to be replayed may use any block.
    run("mke2fs", ["-q", "-t", "ext4", "-E", &format!("offset={}", 201 * MIB), path.to_str().unwrap(), "199M"]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    assert_ne!(of(&file).unwrap().ranges, all);
    let features = 201 * MIB + 1024 + 96;
    let mut byte = [0];
    file.read_exact_at(&mut byte, features).unwrap();
    file.write_all_at(&[byte[0] | 4], features).unwrap();
    assert_eq!(of(&file).unwrap().ranges, all);
}

#[test]
fn what_is_cut_off_or_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = partitioned(folder.path());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.set_len(300 * MIB).unwrap();
    assert!(matches!(of(&file), Err(UsedError::Size { table, file }) if (table, file) == (402 * MIB, 300 * MIB)));
    file.set_len(700).unwrap();
    assert!(matches!(of(&file), Err(UsedError::NoTable)));
    file.set_len(0).unwrap();
    assert!(matches!(of(&file), Err(UsedError::NoTable)));
}

#[test]
fn a_hostile_image_gives_an_error_or_ranges_within_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = partitioned(folder.path());
    let name = path.to_str().unwrap();
    run("mkfs.fat", ["-F", "32", "-s", "2", "--offset", "2048", name, "204800"]);
    run("mke2fs", ["-q", "-t", "ext4", "-E", &format!("offset={}", 201 * MIB), name, "199M"]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // Header, first entries, boot sector, superblock, group descriptors: each four bytes in turn.
    let places =
        [512..608, 1024..1280, MIB..MIB + 96, 201 * MIB + 1024..201 * MIB + 1376, 201 * MIB + 4096..201 * MIB + 4224];
    for at in places.into_iter().flat_map(|range| range.step_by(4)) {
        let mut before = [0; 4];
        file.read_exact_at(&mut before, at).unwrap();
        for value in [[0; 4], [0xff; 4], [1, 0, 0, 0x80]] {
            file.write_all_at(&value, at).unwrap();
            if let Ok(used) = of(&file) {
                assert!(used.ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{at}: {used:?}");
                assert!(
                    used.ranges.iter().all(|range| range.start < range.end && range.end <= used.size),
                    "{at}: {used:?}"
                );
            }
        }
        file.write_all_at(&before, at).unwrap();
    }
}
