//! Packages that mean harm or are damaged: nothing of them gets past the tree, and what is wrong is said.

use std::{fs, path::Path};

use rackstick::layers::{Error, Package};
use tar::EntryType;

use super::{Bench, mini::entry, read};

#[test]
fn no_script_reaches_the_machine_through_the_processes_it_sees() {
    let bench = Bench::new();
    let base = bench.base();
    let outside = bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let draft = bench.workshop.draft("curious");
    let script = "for process in /proc/[0-9]*; do (echo here > $process/root{}/reached) 2>/dev/null || true; done";
    draft.script("postinst", &script.replace("{}", outside.to_str().unwrap()));
    bench.image(&base, &[draft.build()]).unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn no_archive_reaches_what_is_outside_of_the_tree() {
    let bench = Bench::new();
    let base = bench.base();
    let outside = bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let there = outside.to_str().unwrap();
    let up = format!("{}{there}", "../".repeat(9));
    // A name, the archive's entries with their targets, and what is said of it.
    type Case<'a> = (&'a str, &'a [(EntryType, &'a str, &'a str)], &'a str);
    let cases: &[Case] = &[
        ("dots", &[(EntryType::Regular, "./usr/../../../x", "")], "leads out of the file system"),
        ("device", &[(EntryType::Char, "./etc/null", "")], "a device or another kind of file"),
        ("fifo", &[(EntryType::Fifo, "./etc/fifo", "")], "a device or another kind of file"),
        ("steal", &[(EntryType::Link, "./etc/mine", "./etc/passwd")], "`./etc/passwd`"),
        ("steal-dots", &[(EntryType::Link, "./etc/mine", "../../secret")], "leads out"),
        ("overwrite", &[(EntryType::Regular, "./etc/passwd", "")], "is in package mini-base and in package overwrite"),
        ("alias", &[(EntryType::Regular, "./bin/true", "")], "/usr/bin/true is in package mini-base"),
        (
            "twice",
            &[(EntryType::Regular, "./etc/a", ""), (EntryType::Regular, "./etc/a", "")],
            "/etc/a is in package twice",
        ),
    ];
    for (name, entries, expected) in cases {
        let mut data = tar::Builder::new(Vec::new());
        entries.iter().for_each(|(kind, path, link)| entry(&mut data, *kind, path, link, b""));
        let package = bench.workshop.draft(name).build_hostile(&data.into_inner().unwrap());
        let error = bench.image(&base, &[package]).unwrap_err();
        let Error::Stage { source, .. } = &error else { panic!("{error}") };
        assert!(source.to_string().contains(expected), "{name}: {source}");
    }
    // Symlinks are followed, as dpkg does, but inside: their targets are made there.
    let mut data = tar::Builder::new(Vec::new());
    for (number, target) in [there, &up].into_iter().enumerate() {
        entry(&mut data, EntryType::Symlink, &format!("./etc/door{number}"), target, b"");
    }
    entry(&mut data, EntryType::Directory, &format!(".{there}"), "", b"");
    entry(&mut data, EntryType::Regular, "./etc/door0/secret", "", b"taken");
    entry(&mut data, EntryType::Regular, "./etc/door1/other", "", b"taken");
    entry(&mut data, EntryType::Regular, "//etc/absolute", "", b"taken");
    let package = bench.workshop.draft("doors").build_hostile(&data.into_inner().unwrap());
    let root = bench.unpacked(&bench.image(&base, &[package]).unwrap());
    let mut data = tar::Builder::new(Vec::new());
    entry(&mut data, EntryType::GNULongName, "././@LongLink", "", &vec![b'a'; 1 << 20]);
    let error =
        bench.image(&base, &[bench.workshop.draft("long").build_hostile(&data.into_inner().unwrap())]).unwrap_err();
    let Error::Stage { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("longer than 4096 bytes"), "{source}");
    assert_eq!(read(outside.join("secret")), "secret");
    assert!(!outside.join("other").exists() && !Path::new("/etc/absolute").exists());
    assert_eq!(read(root.join(there.strip_prefix('/').unwrap()).join("secret")), "taken");
    assert_eq!(read(root.join("etc/absolute")), "taken");
}

#[test]
fn a_damaged_package_is_named() {
    let bench = Bench::new();
    let base = bench.base();
    let draft = bench.workshop.draft("damaged");
    draft.file(
        "/usr/share/noise",
        &(0..200_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<_>>(),
        0o644,
    );
    let whole = draft.build();
    let bytes = fs::read(&whole.deb).unwrap();
    for (what, bytes) in [("cut short", &bytes[..bytes.len() / 2]), ("no archive", b"<html>"), ("empty", b"")] {
        let deb = bench.dir.path().join("damaged.deb");
        fs::write(&deb, bytes).unwrap();
        let error = bench.image(&base, &[Package { deb, ..whole.clone() }]).unwrap_err();
        let Error::Stage { source, .. } = &error else { panic!("{error}") };
        assert!(source.to_string().contains("package damaged"), "{what}: {source}");
        assert_eq!(bench.leftovers(), [""; 0]);
    }
}
