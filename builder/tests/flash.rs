//! `rackstick flash` on loop devices, which need root: what is on the disk afterwards is judged by other people's
//! tools.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use rackstick_image::{
    disk::{self, Disk, Extents},
    esp::EspFile,
    ext4::{Data, DataFile},
    gpt::{self, Partition, Type},
    guid,
    sector::SectorSize,
    source::Source,
};

const MIB: u64 = 1 << 20;
/// What was on a disk before.
const OLD: u8 = 0xa5;

/// Runs a program, which must succeed, and gives its standard output.
fn ask<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}: run ci/setup"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn rackstick<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackstick"));
    command.arg("flash").args(arguments).stdin(Stdio::null());
    command
}

/// Exit status and standard error.
fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A disk over a file, until dropped.
struct Stick {
    node: String,
    file: PathBuf,
}

impl Stick {
    fn new(file: &Path, size: u64, options: &[&str]) -> Self {
        // Over another device there is nothing to make.
        if !file.starts_with("/dev") {
            File::options().write(true).create(true).truncate(false).open(file).unwrap().set_len(size).unwrap();
        }
        let fixed = [OsStr::new("--show"), OsStr::new("--find"), file.as_os_str()];
        let node = ask("losetup", options.iter().map(OsStr::new).chain(fixed)).trim().to_owned();
        Self { node, file: file.to_owned() }
    }

    /// `loop3`.
    fn name(&self) -> &str {
        self.node.strip_prefix("/dev/").unwrap()
    }

    fn bytes(&self, at: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        File::open(&self.node).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Whether nothing was ever written to it.
    fn is_untouched(&self) -> bool {
        fs::metadata(&self.file).unwrap().blocks() == 0
    }

    fn is_all(&self, byte: u8, at: u64, length: u64) -> bool {
        self.bytes(at, length).iter().all(|&found| found == byte)
    }

    /// Part of it as a file for tools that take no offset.
    fn part(&self, (start, size): (u64, u64)) -> PathBuf {
        let part = self.file.with_extension("part");
        let (skip, count) = (format!("skip={start}"), format!("count={size}"));
        let (from, to) = (format!("if={}", self.node), format!("of={}", part.display()));
        ask("dd", [&from, &to, &skip, &count, "bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse", "status=none"]);
        part
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        // A panic tells more than this could.
        _ = Command::new("losetup").args(["-d", &self.node]).status();
    }
}

/// A layer with a stretch of zeroes in it.
fn layer() -> Vec<u8> {
    [vec![9; 3 << 20], vec![0; 9 << 20], vec![7; 1 << 20]].concat()
}

/// A small rack's image.
fn image(folder: &Path, sector: SectorSize) -> (PathBuf, Extents) {
    let path = folder.join("lab.img");
    let guid = |name: &str| guid::derive(&[b"lab", name.as_bytes()]);
    let layer = DataFile { mode: 0o444, source: Source::Bytes(layer()), verity: None };
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
            files: BTreeMap::from([("layers/x".into(), layer)]),
        },
    };
    let extents = disk::Place::take(&path, || ()).unwrap().write(&disk, |_| ()).unwrap().0.extents;
    (path, extents)
}

/// An image that takes long to write: all of it counts as used.
fn large_image(folder: &Path) -> PathBuf {
    let path = folder.join("large.img");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let size = 16 << 30;
    file.set_len(size).unwrap();
    let partition =
        Partition { kind: Type::LinuxData, guid: guid::derive(&[b"p"]), name: "p", start: MIB, size: size - 2 * MIB };
    gpt::write(&file, SectorSize::B512, guid::derive(&[b"d"]), &[partition]).unwrap();
    path
}

/// A stick that is full of old data wherever the image has more than empty clusters, with a partition table of its own.
fn used_stick(folder: &Path, size: u64, extents: Extents, options: &[&str]) -> Stick {
    let path = folder.join("stick");
    let file = File::create(&path).unwrap();
    let old = vec![OLD; MIB as usize];
    let places = (0..20).chain(extents.data.0 / MIB - 1..size / MIB).map(|mib| mib * MIB);
    places.for_each(|at| file.write_all_at(&old, at).unwrap());
    let stick = Stick::new(&path, size, options);
    ask("sgdisk", ["--new=1:0:0", &stick.node]);
    assert!(
        stick.bytes(size - MIB, MIB).windows(8).any(|bytes| bytes == b"EFI PART"),
        "no copy of the table at its end"
    );
    stick
}

#[test]
fn a_stick_full_of_old_data_holds_the_image_and_nothing_that_could_be_taken_for_its_content() {
    for sector in SectorSize::ALL {
        let folder = tempfile::tempdir().unwrap();
        let (image, extents) = image(folder.path(), sector);
        let size = extents.disk + 20 * MIB;
        let stick = used_stick(folder.path(), size, extents, &["--sector-size", &sector.to_string()]);
        let output =
            rackstick([image.as_os_str(), stick.name().as_ref()]).args(["--confirm", stick.name()]).output().unwrap();
        let (code, stderr) = said(&output);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stderr.contains(&format!("This destroys all that is on {}", stick.name())), "{stderr}");

        let shown = ask("sgdisk", ["-p", &stick.node]);
        assert!(shown.contains("ESP") && shown.contains("data"), "{shown}");
        let mut same = Command::new("cmp");
        let head = format!("--bytes={}", 2 * MIB);
        assert!(same.args([&head, &stick.node]).arg(&image).status().unwrap().success());
        assert!(stick.is_all(0, size - MIB, MIB), "the old table's copy is left");
        assert!(stick.is_all(OLD, size - 2 * MIB, MIB), "more was written than is needed");

        ask("fsck.fat", ["-n".as_ref(), stick.part(extents.esp).as_os_str()]);
        let data = stick.part(extents.data);
        ask("e2fsck", ["-fn".as_ref(), data.as_os_str()]);
        let dump = |file: &str| {
            let to = folder.path().join("file");
            ask("debugfs", ["-R", &format!("dump {file} {}", to.display()), data.to_str().unwrap()]);
            fs::read(to).unwrap()
        };
        assert!(dump("layers/x") == layer());
        assert!(dump("<8>")[4096..].iter().all(|&byte| byte == 0), "the journal holds old data");
    }
}

#[test]
fn a_compressed_image_gives_the_same_disk_and_a_damaged_one_leaves_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (image, extents) = image(folder.path(), SectorSize::B512);
    let packed = folder.path().join("lab.img.zst");
    ask("zstd", ["-q".as_ref(), image.as_os_str(), "-o".as_ref(), packed.as_os_str()]);
    let stick = Stick::new(&folder.path().join("stick"), extents.disk, &[]);
    let flash = |image: &Path| {
        let mut command = rackstick([image.as_os_str(), stick.name().as_ref()]);
        said(&command.args(["--confirm", stick.name()]).env("TMPDIR", folder.path()).output().unwrap())
    };
    let bytes = fs::read(&packed).unwrap();
    let damaged = folder.path().join("damaged.img.zst");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    for wrong in [&bytes[..bytes.len() - 5], &bytes[..bytes.len() / 2], &flipped] {
        fs::write(&damaged, wrong).unwrap();
        let (code, stderr) = flash(&damaged);
        assert!(code == Some(1) && stderr.contains("damaged"), "{stderr}");
        assert!(stick.is_untouched(), "something was written");
    }
    let (code, stderr) = flash(&packed);
    assert_eq!(code, Some(0), "{stderr}");
    // The disk was empty, so that it must be the image, byte by byte.
    let said = Command::new("cmp").arg(&image).arg(&stick.node).output().unwrap();
    assert!(said.status.success(), "{said:?}");
}

#[test]
fn what_must_not_be_overwritten_is_refused_with_the_reason_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (image, extents) = image(folder.path(), SectorSize::B512);
    let size = extents.disk + MIB;
    let file = |name: &str| folder.path().join(name);
    let refused = |device: &str, why: &str| {
        let name = device.strip_prefix("/dev/").unwrap_or(device);
        let output = rackstick([image.as_os_str(), device.as_ref()]).args(["--confirm", name]).output().unwrap();
        let (code, stderr) = said(&output);
        assert!(code == Some(1) && stderr.contains(why), "{device}: {why}: {stderr}");
    };

    let mounted = Stick::new(&file("mounted"), size, &[]);
    ask("mkfs.ext4", ["-q", &mounted.node]);
    let at = file("at");
    fs::create_dir(&at).unwrap();
    ask("mount", [mounted.node.as_ref(), at.as_os_str()]);
    let before = mounted.bytes(0, 2 * MIB);
    refused(&mounted.node, &format!("is mounted at {}", at.display()));
    let same = mounted.bytes(0, 2 * MIB) == before;
    ask("umount", [&at]);
    assert!(same, "a mounted disk was written to");

    let held = Stick::new(&file("held"), size, &[]);
    let over = Stick::new(Path::new(&held.node), size, &[]);
    refused(&held.node, &format!("is in use by {}", over.name()));
    drop(over);

    // What neither mounts nor holders tell: somebody has it for himself.
    let taken = Stick::new(&file("taken"), size, &[]);
    let flags = rustix::fs::OFlags::EXCL.bits();
    use std::os::unix::fs::OpenOptionsExt;
    let owner = File::options().read(true).custom_flags(flags as i32).open(&taken.node).unwrap();
    refused(&taken.node, "is in use, though nothing of it is mounted here");
    drop(owner);

    refused(&Stick::new(&file("small"), extents.disk - MIB, &[]).node, "bytes, the image");
    refused(&Stick::new(&file("4kn"), size, &["--sector-size", "4096"]).node, "build it with `--sector-size 4096`");
    refused(&Stick::new(&file("protected"), size, &["--read-only"]).node, "write-protected");
    refused(image.to_str().unwrap(), "is no disk");
    refused("no-such-disk", "there is no disk");
    let system = ask("findmnt", ["-n", "-o", "SOURCE", "/"]);
    if system.starts_with("/dev/") {
        refused(
            system.trim(),
            if system.trim().ends_with(char::is_numeric) { "is" } else { "this system runs from it" },
        );
    }
}

#[test]
fn nothing_is_written_before_the_disks_name_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let (image, extents) = image(folder.path(), SectorSize::B512);
    let stick = Stick::new(&folder.path().join("stick"), extents.disk, &[]);
    let name = stick.name();
    for (confirm, why) in [(&[][..], "standard input is no terminal"), (&["--confirm", "sdx"], "`sdx` was given")] {
        let output = rackstick([image.as_os_str(), name.as_ref()]).args(confirm).output().unwrap();
        let (code, stderr) = said(&output);
        assert!(code == Some(1) && stderr.contains(why), "{stderr}");
    }
    // On a terminal it is typed.
    let typed = |answer: &str| {
        let command = format!("{} flash {} {name}", env!("CARGO_BIN_EXE_rackstick"), image.display());
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{answer}\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, shown) = typed("yes");
    assert!(code == Some(1) && shown.contains("`yes` was given; nothing was written"), "{shown}");
    assert!(stick.is_untouched(), "something was written");
    let (code, shown) = typed(name);
    assert!(code == Some(0) && shown.contains(&format!("Type the disk's name, {name}")), "{shown}");
    assert!(ask("sgdisk", ["-v", &stick.node]).contains("No problems found"));
}

#[test]
fn a_flash_that_is_interrupted_leaves_a_disk_that_nothing_boots_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let image = large_image(folder.path());
    let size = fs::metadata(&image).unwrap().len() + 20 * MIB;
    let stick = Stick::new(&folder.path().join("stick"), size, &[]);
    // A disk that booted until now.
    ask("sgdisk", ["--new=1:0:0", &stick.node]);
    let mut command = rackstick([image.as_os_str(), stick.name().as_ref()]);
    let mut child = command.args(["--confirm", stick.name()]).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let began = format!("writing {}", stick.name());
    assert!(stderr.by_ref().any(|line| line == began), "it never began");
    ask("kill", ["-INT", &child.id().to_string()]);
    let code = child.wait().unwrap().code();
    let stderr: Vec<String> = stderr.collect();
    let stderr = stderr.join("\n");
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("is not usable now") && stderr.contains("a signal stopped it"), "{stderr}");
    assert!(stick.is_all(0, 0, MIB) && stick.is_all(0, size - MIB, MIB), "a partition table is left");
}

#[test]
fn a_disk_that_takes_no_more_is_named_with_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let (image, extents) = image(folder.path(), SectorSize::B512);
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    ask(
        "mount",
        ["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), "size=8m".as_ref(), "none".as_ref(), small.as_os_str()],
    );
    let stick = Stick::new(&small.join("stick"), extents.disk, &[]);
    let output = rackstick([image.as_os_str(), stick.name().as_ref()]).args(["--confirm", stick.name()]).output();
    let head_is_empty = stick.is_all(0, 0, MIB);
    drop(stick);
    ask("umount", [&small]);
    let (code, stderr) = said(&output.unwrap());
    assert!(code == Some(1) && stderr.contains("is not usable now") && stderr.contains("at byte "), "{stderr}");
    assert!(head_is_empty, "a partition table is left");
}

#[test]
fn a_list_of_disks_needs_no_image_and_writes_nothing() {
    let output = rackstick([""; 0]).output().unwrap();
    assert_eq!(said(&output), (Some(0), String::new()));
    assert!(!output.stdout.is_empty());
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(!stdout.contains("loop"), "{stdout}");
}
