//! A small image, made by the writers of `rackstick-image` with systemd's stub, damaged in every way that fits into a
//! minute.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Cursor,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rackstick_image::{
    cpio::Writer,
    digest::VerityDigest,
    disk::{self, Extents},
    erofs::{self, Kind, Mtime, Node, Tree, WriteOptions},
    esp::EspFile,
    ext4::{Data, DataFile},
    guid,
    manifest::{self, Blob, FORMAT, Guest, Image, Manifest, Network, Secret},
    secrets::{self, KEPT, SLOT, Value},
    sector::SectorSize,
    source::Source,
    spares::{self, Spares},
    uki::{self, Uki},
    verity,
};

use super::{Disk, ImageError, Opened, describe, diff, open::Parts, verify};
use crate::progress::Progress;

const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const MODULE: &str = "/lib/modules/6.12/kernel/some.ko.xz";

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// What differs from one sample to the other.
#[derive(Clone)]
struct Sample {
    sector: SectorSize,
    memory_mib: u32,
    /// The page that the image serves.
    page: &'static str,
    packages: &'static str,
    /// The version that the UKI is said to be of.
    uki_version: &'static str,
    /// More images: name, label of the base, packages.
    more: &'static [(&'static str, &'static str, &'static str)],
    /// Secrets of guest `web` in the slot on the ESP, and those that a rack keeps.
    given: &'static [(&'static str, &'static str)],
    kept: &'static [(&'static str, &'static str)],
}

const SAMPLE: Sample = Sample {
    sector: SectorSize::B512,
    memory_mib: 64,
    page: "hello",
    packages: "Package: nginx-light\nStatus: install ok installed\nVersion: 1.26.3-3\n",
    uki_version: "7",
    more: &[],
    given: &[],
    kept: &[],
};

fn slot(of: &[(&str, &str)]) -> Vec<u8> {
    let value = |text: &str| Value::new(text.as_bytes().to_vec()).unwrap();
    secrets::fill(&of.iter().map(|(name, text)| (("web".into(), (*name).into()), value(text))).collect()).unwrap()
}

fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tree = Tree::new(Mtime::from_seconds(1_700_000_000));
    for (path, content) in files {
        let kind = Kind::File(Source::Bytes(content.to_vec()));
        tree.insert(path.as_bytes(), Node::new(kind, 0o644, Mtime::default())).unwrap();
    }
    let mut out = Cursor::new(Vec::new());
    erofs::write(&tree, &mut out, &WriteOptions::default()).unwrap();
    out.into_inner()
}

impl Sample {
    /// Writes the image.
    fn write(&self, path: &Path) -> Extents {
        let mut blobs: BTreeMap<VerityDigest, Vec<u8>> = BTreeMap::new();
        let mut blob = |label: &str, bytes: Vec<u8>| {
            let (digest, size) = (verity::digest(bytes.as_slice()).unwrap(), bytes.len() as u64);
            blobs.insert(digest, bytes);
            Blob { digest, size, label: label.to_owned() }
        };
        let secret = |name: &str| Secret {
            name: name.into(),
            path: format!("/run/secrets/{name}"),
            uid: 0,
            gid: 0,
            mode: 0o400,
        };
        let base =
            layer(&[("usr/lib/libc.so", &bytes(600_000)), ("etc/passwd", b"root\n"), ("var/lib/dpkg/status", b"")]);
        let own = layer(&[("srv/index.html", self.page.as_bytes()), ("var/lib/dpkg/status", self.packages.as_bytes())]);
        let image = Image {
            layers: vec![blob("base", base), blob("kernel 6.12-cloud", layer(&[("lib/x.ko", b"x")])), blob("web", own)],
            kernel: blob("vmlinux", bytes(70_000)),
            initrd: blob("initrd", bytes(3000)),
            cmdline: "quiet".into(),
            init: vec!["/sbin/init".into()],
            process: None,
            secrets: ["dkim", "tls"].map(secret).into(),
            disk: None,
        };
        let mut images = BTreeMap::from([("web".to_owned(), image.clone())]);
        for (name, base, packages) in self.more {
            let own = layer(&[("var/lib/dpkg/status", packages.as_bytes())]);
            let layers = vec![blob(base, layer(&[("etc/base", base.as_bytes())])), blob(name, own)];
            images.insert((*name).to_owned(), Image { layers, ..image.clone() });
        }
        let guest = Guest {
            name: "web".into(),
            image: "web".into(),
            vcpus: 1,
            memory_mib: self.memory_mib,
            interfaces: Vec::new(),
            forwards: Vec::new(),
            volumes: Vec::new(),
            disk_mib: None,
            health: None,
            after: Vec::new(),
        };
        let data_guid = guid::derive(&[b"data"]);
        let gateway = "10.20.0.1".parse().unwrap();
        let manifest = Manifest {
            format: FORMAT,
            rack: "sample".into(),
            version: "7".into(),
            domain: "sample.internal".into(),
            data_partition: data_guid.to_string(),
            networks: [("inside".to_owned(), Network::Private { gateway, prefix: 24, nat: None })].into(),
            images,
            guests: vec![guest],
        };
        let json = serde_json::to_vec_pretty(&manifest).unwrap();
        let plain = |bytes: &[u8]| DataFile { mode: 0o444, source: Source::Bytes(bytes.to_vec()), verity: None };
        let mut files: BTreeMap<String, DataFile> = BTreeMap::new();
        for (digest, bytes) in blobs {
            let file = DataFile { mode: 0o444, source: Source::Bytes(bytes), verity: Some(digest.into()) };
            files.insert(format!("layers/{digest}"), file);
        }
        files.insert("generations/7/manifest.json".into(), plain(&json));
        for (name, value) in self.kept {
            files.insert(format!("{KEPT}/web/{name}"), plain(value.as_bytes()));
        }
        let loader = fs::read(STUB).unwrap_or_else(|error| panic!("{STUB}: {error}: run ci/setup"));
        let esp = |path: &str, bytes| EspFile { path: path.into(), content: Source::Bytes(bytes).into() };
        let disk = disk::Disk {
            sector: self.sector,
            guid: guid::derive(&[b"disk"]),
            esp_guid: guid::derive(&[b"esp"]),
            esp_volume_id: 5,
            esp: vec![
                esp("EFI/BOOT/BOOTX64.EFI", loader.clone()),
                esp("EFI/Linux/rackstick_7.efi", self.uki(loader, &json)),
                esp(SLOT, slot(self.given)),
            ],
            data_guid,
            data: Data {
                uuid: guid::derive(&[b"fs"]),
                label: "data".into(),
                epoch: 1_700_000_000,
                directories: BTreeMap::new(),
                files,
            },
        };
        disk::Place::take(path, || ()).unwrap().write(&disk, |_| ()).unwrap().0.extents
    }

    fn uki(&self, stub: Vec<u8>, manifest: &[u8]) -> Vec<u8> {
        let mut initrd = Writer::new(Vec::new(), 0);
        let mut list = Spares::default();
        list.add(MODULE, &bytes(9000));
        initrd.bytes("rackstick/rackstick-host", 0o755, &bytes(20_000)).unwrap();
        initrd.bytes(MODULE.trim_start_matches('/'), 0o644, &bytes(9000)).unwrap();
        initrd.bytes(spares::PATH.trim_start_matches('/'), 0o644, list.to_text().as_bytes()).unwrap();
        initrd.bytes(manifest::PATH.trim_start_matches('/'), 0o644, manifest).unwrap();
        let uki = Uki {
            stub,
            os_release: format!("ID=rackstick\nIMAGE_ID=sample\nVERSION_ID={}\n", self.uki_version),
            cmdline: "quiet".into(),
            uname: "6.12".into(),
            microcode: None,
            initrd: Source::Bytes(initrd.finish().unwrap()).into(),
            linux: Source::Bytes(bytes(50_000)),
        };
        uki::make(&uki).unwrap().read().unwrap()
    }
}

/// An image in a folder of its own.
struct Made {
    folder: tempfile::TempDir,
    extents: Extents,
}

impl Made {
    fn new(sample: &Sample) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let extents = sample.write(&folder.path().join("a.img"));
        Self { folder, extents }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("a.img")
    }

    /// What verify says; nothing if the image is whole.
    fn faults(&self) -> Vec<String> {
        match Disk::open(&self.path()) {
            Ok(disk) => {
                let verified = verify::verify(&disk, &Progress::quiet()).unwrap();
                verified.faults.iter().map(ToString::to_string).collect()
            }
            Err(error) => vec![error.to_string()],
        }
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(self.path()).unwrap()
    }

    /// Flips a bit, asks `judge`, and flips it back.
    fn flipped<T>(&self, at: u64, judge: impl FnOnce(&Self) -> T) -> T {
        let (file, mut byte) = (self.file(), [0]);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at).unwrap();
        let judged = judge(self);
        file.write_all_at(&byte, at).unwrap();
        judged
    }

    /// Where files lie that must be whole: the UKI, and all that the manifest names with their Merkle trees.
    fn places(&self) -> BTreeMap<String, Vec<(u64, u64)>> {
        let disk = Disk::open(&self.path()).unwrap();
        let opened = Opened::new(&disk).unwrap();
        let (_, files) = opened.parts.files().unwrap();
        // Nothing tells of the boot loader.
        let files = files.into_iter().filter(|file| file.path.ends_with("rackstick_7.efi"));
        let mut places: BTreeMap<String, Vec<(u64, u64)>> =
            files.map(|file| (file.path, file.content.places().collect())).collect();
        for name in opened.fs.files("layers").unwrap() {
            let path = format!("layers/{name}");
            let file = opened.fs.file(&path).unwrap().unwrap();
            let verity = file.verity.unwrap();
            let parts = [file.content, verity.tree, verity.descriptor];
            places.insert(path, parts.iter().flat_map(|part| part.places().collect::<Vec<_>>()).collect());
        }
        places
    }
}

#[test]
fn a_new_image_is_whole_for_disks_of_both_kinds() {
    for sector in SectorSize::ALL {
        assert_eq!(Made::new(&Sample { sector, ..SAMPLE }).faults(), [""; 0], "{sector}");
    }
}

#[test]
fn a_flipped_bit_is_noticed_in_every_file_and_in_the_tables_and_told_with_its_place() {
    let made = Made::new(&SAMPLE);
    let places = made.places();
    assert_eq!(places.len(), 6, "{places:?}");
    for (path, pieces) in &places {
        for (start, length) in pieces {
            // First, last, and some between.
            let step = usize::try_from((length / 12).max(1)).unwrap();
            for at in (*start..start + length).step_by(step).chain([start + length - 1]) {
                let faults = made.flipped(at, Made::faults);
                let told = |fault: &String| fault.contains(path.as_str()) && fault.contains("; ");
                // What is damaged first may hide the rest of it, but not that there is something.
                assert!(faults.iter().any(told), "{path}, byte {at}: {faults:?}");
            }
        }
    }
    let (end, esp, data) = (made.extents.disk, made.extents.esp.0, made.extents.data.0);
    // Headers and entries in use, boot sector, FAT, the superblock of ext4 and its descriptors.
    let tables = (512..616).chain(1024..1280).chain(end - 33 * 512..end - 33 * 512 + 256).chain(end - 512..end - 412);
    let tables = tables.step_by(3).chain((esp + 11..esp + 50).step_by(7)).chain((data + 1024..data + 2048).step_by(41));
    for at in tables.chain((data + 4096..data + 4128).step_by(5)) {
        let faults = made.flipped(at, Made::faults);
        assert!(!faults.is_empty(), "byte {at}");
    }
    assert_eq!(made.faults(), [""; 0], "all was undone");
}

#[test]
fn a_damaged_block_is_told_by_its_number() {
    let made = Made::new(&SAMPLE);
    let places = made.places();
    let (path, pieces) = places.iter().max_by_key(|(_, pieces)| pieces[0].1).unwrap();
    let at = pieces[0].0 + 100 * 4096 + 17;
    let faults = made.flipped(at, Made::faults);
    let [fault] = &faults[..] else { panic!("{faults:?}") };
    let place = format!("damaged: 100, the first at byte {} of the image; copy", at - 17);
    assert!(fault.contains(path) && fault.contains(&place), "{fault}");
}

#[test]
fn an_image_that_ends_early_is_never_whole_and_nothing_panics() {
    let made = Made::new(&SAMPLE);
    let Extents { esp, data, disk } = made.extents;
    let mut lengths = vec![0, 1, 512, 1024, 4096, 17_408, esp.0, esp.0 + 512, esp.0 + esp.1 / 2, data.0];
    lengths.extend([data.0 + 1024, data.0 + 4096, data.0 + data.1 / 2, disk - 1, disk - 512, disk - 4096]);
    for length in lengths.into_iter().rev() {
        made.file().set_len(length).unwrap();
        assert!(!made.faults().is_empty(), "{length}");
        let _ = Disk::open(&made.path()).map(|disk| Opened::new(&disk).map(|opened| describe::describe(&opened)));
    }
}

/// Whatever the bytes: an answer, an error, but no panic. The bytes are those that tables and directories consist of.
#[test]
fn no_damage_makes_inspect_or_diff_panic() {
    let made = Made::new(&SAMPLE);
    let other = Made::new(&Sample { page: "other", ..SAMPLE });
    let other = Disk::open(&other.path()).unwrap();
    let other = Opened::new(&other).unwrap();
    let Extents { esp, data, .. } = made.extents;
    let root = data.0 + 4096;
    let places = (512..1400).step_by(13).chain((esp.0..esp.0 + 512).step_by(5));
    let of_files = made
        .places()
        .into_values()
        .flatten()
        .flat_map(|(start, length)| (start..start + length.min(6000)).step_by(131).collect::<Vec<_>>());
    for at in places.chain((root..root + 200_000).step_by(1021)).chain(of_files) {
        made.flipped(at, |made| {
            let Ok(disk) = Disk::open(&made.path()) else { return };
            let Ok(opened) = Opened::new(&disk) else { return };
            let _ = (describe::describe(&opened), diff::diff(&opened, &other, false));
        });
    }
}

#[test]
fn parts_of_two_builds_are_told_from_one() {
    let faults = Made::new(&Sample { uki_version: "8", ..SAMPLE }).faults();
    let [fault] = &faults[..] else { panic!("{faults:?}") };
    assert!(fault.contains("VERSION_ID in its .osrel is not 7") && fault.contains("build it again"), "{fault}");
}

#[test]
fn what_an_image_holds_is_told() {
    let made = Made::new(&SAMPLE);
    let disk = Disk::open(&made.path()).unwrap();
    let opened = Opened::new(&disk).unwrap();
    let text = describe::describe(&opened).unwrap();
    for part in [
        "rack sample 7, domain sample.internal",
        "for 512-byte sectors",
        "Linux 6.12 with 1 module and 0 files of firmware",
        ".osrel 42 bytes",
        "inside: private, the rack is 10.20.0.1/24, no NAT",
        "web: image web, 1 vCPU, 64 MiB",
        "base: web",
        "image web: Linux 6.12-cloud, 1 package",
        "nginx-light 1.26.3-3",
        "signatures: none yet",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let parts = Parts::find(&disk).unwrap().unwrap();
    assert_eq!(parts.table.iter().map(|found| found.number).collect::<Vec<_>>(), [1, 2]);
}

fn described(made: &Made) -> String {
    let disk = Disk::open(&made.path()).unwrap();
    describe::describe(&Opened::new(&disk).unwrap()).unwrap()
}

fn compared(a: &Made, b: &Made) -> Result<String, ImageError> {
    let (a, b) = (Disk::open(&a.path()).unwrap(), Disk::open(&b.path()).unwrap());
    diff::diff(&Opened::new(&a).unwrap(), &Opened::new(&b).unwrap(), false)
}

#[test]
fn packages_and_layers_are_told_base_by_base_and_no_list_is_empty() {
    let more: &[_] = &[
        ("old", "base debian:bookworm", "Package: libc6\nStatus: install ok installed\nVersion: 2.36\n"),
        ("app", "base", "Package: nginx-light\nStatus: install ok installed\nVersion: 1.26.3-3\n"),
        ("tar", "tar", "Package: musl\nStatus: install ok installed\nVersion: 1\n"),
    ];
    let text = described(&Made::new(&Sample { more, ..SAMPLE }));
    for part in [
        " base (the rack's own base): ",
        " base debian:bookworm: no guest\n",
        "image old: debian:bookworm, 1 package\n",
        "image tar: 1 package\n",
        "packages of every image on the rack's own base (1)\n  nginx-light 1.26.3-3\n",
        "packages of old (1)\n  libc6 2.36\n",
        "packages of tar (1)\n  musl 1\n",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(!text.contains("(0)") && !text.contains("besides"), "{text}");
    let at = |part: &str| text.find(part).unwrap();
    assert!(at(" web: web") < at(" base debian:bookworm") && at(" base debian:bookworm") < at(" tar: "), "{text}");
    // Of one base alone nothing needs a name.
    let text = described(&Made::new(&Sample { more: &more[1..2], ..SAMPLE }));
    assert!(text.contains("packages of every image (1)\n") && !text.contains("rack's own"), "{text}");
}

#[test]
fn secrets_in_an_image_are_told_by_name_and_no_value_ever_is() {
    let verified = |made: &Made| verify::verify(&Disk::open(&made.path()).unwrap(), &Progress::quiet()).unwrap();
    let none = Made::new(&SAMPLE);
    assert!(described(&none).contains("\nsecrets\n  no value is in the image; give"), "{}", described(&none));
    assert_eq!(verified(&none).secrets, "");

    // A value that a rack keeps, and another that it has not taken yet, in place of one that it keeps.
    let given: &[_] = &[("tls", "hunter2")];
    let some = Made::new(&Sample { given, kept: &[("tls", "hunter1")], ..SAMPLE });
    let all = Made::new(&Sample { given: &[("dkim", "hunter3")], kept: &[("tls", "hunter1")], ..SAMPLE });
    let text = described(&some);
    for part in [
        "no rack has taken yet, so pass it on to nobody: web/tls\n",
        "that a rack keeps, so pass it on to nobody: web/tls\n",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(text.contains("missing, so their guests wait; give them with `rackstick secrets`: web/dkim\n"), "{text}");
    let found = verified(&all);
    assert_eq!((found.secrets.as_str(), &found.faults[..]), ("web/dkim, web/tls", &[][..]));
    let said = compared(&some, &all).unwrap();
    assert!(said.starts_with("secrets\n  + web/dkim\n  ~ web/tls has another value\n"), "{said}");
    assert!(compared(&all, &none).unwrap().starts_with("secrets\n  - web/dkim\n  - web/tls\n"));
    // It is the value that counts, not where it lies.
    let taken = Made::new(&Sample { kept: given, ..SAMPLE });
    assert!(!compared(&some, &taken).unwrap().contains("secrets"));
    for text in [text, said, described(&all), format!("{found:?}")] {
        assert!(!text.contains("hunter"), "{text}");
    }
}

#[test]
fn secrets_that_can_not_be_read_are_faults() {
    let made = Made::new(&Sample { given: &[("dkim", "hunter2")], kept: &[("tls", "")], ..SAMPLE });
    let disk = Disk::open(&made.path()).unwrap();
    let parts = Parts::find(&disk).unwrap().unwrap();
    let at = secrets::find(&parts.esp).unwrap().unwrap().place(secrets::HEAD_SIZE as u64).unwrap();
    let faults = made.flipped(at + 3, Made::faults);
    let [slot, kept] = &faults[..] else { panic!("{faults:?}") };
    assert!(
        slot.starts_with("ESP, rackstick/secrets: the slot for secrets is damaged") && slot.contains("give"),
        "{slot}"
    );
    assert!(kept.starts_with("data partition, state/secrets/web/tls: it has 0 bytes"), "{kept}");
    assert!(described(&made).contains("state/secrets/web/tls: it has 0 bytes"));
    let error = compared(&made, &Made::new(&SAMPLE)).unwrap_err().to_string();
    assert!(error.contains("state/secrets/web/tls"), "{error}");
}

#[test]
fn differences_are_told_and_the_same_image_has_none() {
    let sample = |sample: &Sample| Made::new(sample);
    let compare = |a: &Made, b: &Made| compared(a, b).unwrap();
    let first = sample(&SAMPLE);
    assert_eq!(compare(&first, &sample(&SAMPLE)), "");
    let packages = "Package: nginx-light\nStatus: install ok installed\nVersion: 1.26.3-4\n\n\
                    Package: lynx\nStatus: install ok installed\nVersion: 2.9\n";
    let said = compare(&first, &sample(&Sample { memory_mib: 128, page: "hello, world", packages, ..SAMPLE }));
    for part in [
        "guest web\n  - 64 MiB\n  + 128 MiB\n",
        "packages of image web\n  + lynx 2.9\n  ~ nginx-light 1.26.3-3 -> 1.26.3-4\n",
        "layer web: ",
        "  ~ srv/index.html 5 bytes -> 12 bytes\n",
        "0 files gone, 0 new, 2 changed",
    ] {
        assert!(said.contains(part), "{part} in\n{said}");
    }
    assert!(!said.contains("layer base"), "{said}");
    let said = compare(&first, &sample(&Sample { sector: SectorSize::B4096, ..SAMPLE }));
    assert_eq!(said, "sizes\n  ~ sectors 512 bytes -> 4096 bytes\n");
    // Nothing that is compared, yet another byte.
    let other = sample(&SAMPLE);
    other.file().write_all_at(b"boot code", 0).unwrap();
    assert!(compare(&first, &other).starts_with("the disks have different bytes"));
}
