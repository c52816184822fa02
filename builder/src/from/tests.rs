//! Archives that mean harm, and those that only look so. What good ones become is judged in `tests/from.rs` by other
//! programs.

use std::{fs, io::Cursor, path::Path};

use ::tar::{EntryType, Header};
use rackstick_image::erofs::{Kind, Mtime, Node};

use super::{
    build::{ArchiveError, apply},
    notes::Notes,
    oci::{self, OciError},
    spool::{self, SpoolError},
    tar::{Entries, TarError},
    tree::{Files, PlaceError},
};
use crate::packing::Packing;

const EPOCH: i64 = 1_700_000_000;

/// An archive that is made entry by entry, as no program would.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(self, kind: u8, path: &str, link: &str, content: &[u8]) -> Self {
        self.sized(kind, path, link, content, content.len() as u64)
    }

    fn sized(mut self, kind: u8, path: &str, link: &str, content: &[u8], size: u64) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(if kind == b'5' { 0o755 } else { 0o4711 });
        header.set_uid(70_000);
        header.set_gid(5);
        header.set_mtime(2_000_000_000);
        header.set_size(size);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_device_major(if path.ends_with("zero") { 0 } else { 1 }).unwrap();
        header.set_device_minor(if path.ends_with("zero") { 0 } else { 3 }).unwrap();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.add(b'0', path, "", content.as_bytes())
    }

    fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        let mut text = Vec::new();
        for (name, value) in records {
            let body = [b" ", *name, b"=", *value, b"\n"].concat();
            let mut length = body.len() + 1;
            while length != body.len() + length.to_string().len() {
                length = body.len() + length.to_string().len();
            }
            text.extend_from_slice(length.to_string().as_bytes());
            text.extend_from_slice(&body);
        }
        self.add(b'x', "pax", "", &text)
    }
}

struct Bench {
    folder: tempfile::TempDir,
    files: Files,
    notes: Notes,
    count: usize,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, files: Files::new(Mtime::from_seconds(EPOCH)), notes: Notes::default(), count: 0 }
    }

    fn apply(&mut self, archive: Archive, oci: bool) -> Result<(), ArchiveError> {
        self.count += 1;
        let path = self.folder.path().join(self.count.to_string());
        let spooled = spool::spool(Cursor::new(archive.0), path).unwrap();
        apply(&mut self.files, &spooled, oci, EPOCH, &mut self.notes, &mut 0)
    }

    fn layers(archives: Vec<Archive>) -> Self {
        let mut bench = Self::new();
        for archive in archives {
            bench.apply(archive, true).unwrap();
            bench.files.next_layer();
        }
        bench
    }

    fn content(&self, path: &str) -> Option<String> {
        match &self.files.get(path.as_bytes())?.kind {
            Kind::File(source) => Some(std::io::read_to_string(source.reader().unwrap()).unwrap()),
            other => Some(format!("{other:?}")),
        }
    }

    fn has(&self, path: &str) -> bool {
        self.files.get_link(path.as_bytes()).is_some()
    }
}

fn refused(archive: Archive) -> String {
    Bench::new().apply(archive, false).unwrap_err().to_string()
}

#[test]
fn no_path_and_no_hard_link_leads_out_of_the_image() {
    for path in ["../x", "a/../../x", "./..", "/../x"] {
        assert!(refused(Archive::default().file(path, "")).contains("leads out"), "{path}");
        let link = Archive::default().file("a", "").add(b'1', "b", path, b"");
        assert!(refused(link).contains("leads out"), "{path}");
    }
    let mut bench = Bench::new();
    // Through links, absolute and relative, everything stays below the image's root.
    let archive = Archive::default()
        .add(b'2', "up", "../../../../srv", b"")
        .add(b'2', "out", "/etc", b"")
        .file("up/page", "1")
        .file("out/passwd", "2")
        .add(b'1', "/hard", "/out/passwd", b"");
    bench.apply(archive, false).unwrap();
    assert_eq!(bench.content("srv/page").as_deref(), Some("1"));
    assert_eq!(bench.content("etc/passwd").as_deref(), Some("2"));
    assert_eq!(bench.content("hard").as_deref(), Some("2"));
}

#[test]
fn links_in_a_circle_and_paths_through_files_are_refused() {
    let circle = Archive::default().add(b'2', "a", "b", b"").add(b'2', "b", "a", b"").file("a/x", "");
    assert!(refused(circle).contains("in a circle"));
    assert!(refused(Archive::default().file("a", "").file("a/b", "")).contains("is no folder"));
    for target in ["nothing", "folder"] {
        let link = Archive::default().add(b'5', "folder/", "", b"").add(b'1', "x", target, b"");
        assert!(refused(link).contains("is a hard link to"), "{target}");
    }
    assert!(refused(Archive::default().add(b'2', "./", "x", b"")).contains("root folder"));
    // No path is too deep by itself, but by a link to the deepest folder.
    let name = "d/".repeat(600);
    let deep = Archive::default().pax(&[(b"path", name.as_bytes())]).add(b'5', "x", "", b"");
    let deep = deep.pax(&[(b"linkpath", name.as_bytes())]).add(b'2', "deepest", "", b"");
    let further = format!("deepest/{name}x");
    assert!(refused(deep.pax(&[(b"path", further.as_bytes())]).file("x", "")).contains("within each other"));
    let name = "d/".repeat(1100) + "x";
    let deep = Archive::default().pax(&[(b"path", name.as_bytes())]).file("x", "");
    assert!(refused(deep).contains("within each other"));
}

#[test]
fn the_last_of_two_entries_counts_and_that_is_said() {
    let mut bench = Bench::new();
    let archive = Archive::default()
        .file("x", "old")
        .file("x", "new")
        .add(b'5', "d/", "", b"")
        .file("d/y", "")
        .add(b'5', "d/", "", b"")
        .file("z", "file")
        .add(b'5', "z/", "", b"")
        .file("z/in", "");
    bench.apply(archive, false).unwrap();
    assert_eq!(bench.content("x").as_deref(), Some("new"));
    assert!(bench.has("d/y"), "a folder that is named again keeps what is in it");
    assert!(bench.has("z/in"));
    assert_eq!(bench.files.repeated, (2, b"z".to_vec()));
}

#[test]
fn whiteouts_remove_what_lower_layers_brought_and_nothing_else() {
    let lower = || {
        Archive::default()
            .file("a/old", "")
            .file("a/kept", "")
            .file("b/old", "")
            .file("b/deep/old", "")
            .file("c", "lower")
    };
    let upper = Archive::default()
        .file("a/.wh.old", "")
        .file("a/.wh.never-there", "")
        .file("b/new", "")
        .file("b/deep/new", "")
        // After what it must not remove.
        .file("b/.wh..wh..opq", "")
        .file("c", "upper")
        .file(".wh.c", "")
        .file(".wh..wh.plnk", "");
    let bench = Bench::layers(vec![lower(), upper]);
    for (path, there) in [
        ("a/old", false),
        ("a/kept", true),
        ("b/old", false),
        ("b/deep/old", false),
        ("b/new", true),
        ("b/deep/new", true),
        ("c", true),
        (".wh.c", false),
        (".wh..wh.plnk", false),
    ] {
        assert_eq!(bench.has(path), there, "{path}");
    }
    assert_eq!(bench.content("c").as_deref(), Some("upper"));
    // A whole folder, and a name through a link.
    let folder = Archive::default().file(".wh.b", "").add(b'2', "l", "a", b"").file("l/.wh.kept", "");
    let bench = Bench::layers(vec![lower(), folder]);
    assert!(!bench.has("b") && !bench.has("a/kept") && bench.has("a/old"));
    // In a tarball such names are names.
    let mut bench = Bench::new();
    bench.apply(lower().file("a/.wh.old", ""), false).unwrap();
    assert!(bench.has("a/old") && bench.has("a/.wh.old"));
}

#[test]
fn devices_are_described_in_a_tarball_and_left_out_of_an_oci_image() {
    let archive =
        || Archive::default().add(b'3', "dev/null", "", b"").add(b'3', "dev/zero", "", b"").add(b'6', "p", "", b"");
    let mut bench = Bench::new();
    bench.apply(archive(), false).unwrap();
    assert!(bench.has("dev/null") && !bench.has("dev/zero") && bench.has("p"), "0:0 would hide other layers' files");
    let mut bench = Bench::new();
    bench.apply(archive(), true).unwrap();
    assert!(!bench.has("dev/null") && bench.has("p"));
    let said = bench.notes.lines().join("\n");
    assert!(said.contains("`dev/null`: a device is left out"), "{said}");
}

#[test]
fn owners_modes_times_and_attributes_are_the_archives_with_later_times_clamped() {
    let capability = b"\x01\x00\x00\x02\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let archive = Archive::default()
        .file("late", "")
        .pax(&[
            (b"mtime", b"1234567890.5"),
            (b"uid", b"3000000000"),
            (b"SCHILY.xattr.security.capability", capability),
            (b"SCHILY.xattr.security.selinux", b"label"),
            (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
            (b"SCHILY.xattr.user.lines", b"a\nb=c"),
        ])
        .file("x", "");
    let mut bench = Bench::new();
    bench.apply(archive, false).unwrap();
    let Node { mode, uid, gid, mtime, .. } = *bench.files.get(b"late").unwrap();
    assert_eq!((mode, uid, gid, mtime), (0o4711, 70_000, 5, Mtime::from_seconds(EPOCH)));
    let node = bench.files.get(b"x").unwrap();
    assert_eq!((node.uid, node.mtime), (3_000_000_000, Mtime { seconds: 1_234_567_890, nanoseconds: 500_000_000 }));
    let names: Vec<_> = node.xattrs.keys().map(|name| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["security.capability", "user.lines"]);
    assert_eq!(node.xattrs[&b"security.capability"[..]], capability);
    assert_eq!(node.xattrs[&b"user.lines"[..]], b"a\nb=c");
    let bad = Archive::default().pax(&[(b"SCHILY.xattr.security.capability", b"short")]).file("x", "");
    assert!(refused(bad).contains("`x`: security.capability"));
    let nobody = Archive::default().pax(&[(b"uid", b"4294967295")]).file("x", "");
    assert!(refused(nobody).contains("owner"));
}

#[test]
fn what_is_cut_off_damaged_or_endless_is_refused_with_its_place() {
    let whole = Archive::default().file("a", "content").pax(&[(b"path", b"long")]).file("b", "content").0;
    let mut outcomes = [0; 2];
    for length in 0..whole.len() {
        let mut entries = Entries::new(Cursor::new(&whole[..length])).unwrap();
        let end = loop {
            match entries.next() {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        outcomes[usize::from(end.is_ok())] += 1;
    }
    // Whole entries, and those whose padding alone is cut.
    assert!(outcomes[0] > 2000 && outcomes[1] < 1100, "{outcomes:?}");
    for position in [0, 100, 124, 148, 156, 257] {
        let mut damaged = whole.clone();
        damaged[position] ^= 0x41;
        let said = Bench::new().apply(Archive(damaged), false).unwrap_err().to_string();
        assert!(said.contains("at byte 0"), "{position}: {said}");
    }
    assert!(refused(Archive::default().sized(b'0', "a", "", b"x", 1 << 40)).contains("ends within a file"));
    assert!(refused(Archive::default().sized(b'L', "a", "", b"x", 1 << 32)).contains("longer than 4096 bytes"));
    assert!(refused(Archive::default().sized(b'x', "a", "", b"x", 1 << 32)).contains("larger than 1 MiB"));
    let huge = Archive::default().pax(&[(b"size", b"18446744073709551615")]).file("a", "x");
    assert!(refused(huge).contains("ends within a file"));
    for record in [&b"8 path=x\n"[..], b"x path=x\n", b"99 path=x\n", b"8 path=x", b"8 pathx\n"] {
        assert!(
            refused(Archive::default().add(b'x', "p", "", record).file("a", "")).contains("malformed"),
            "{record:?}"
        );
    }
    let nul = Archive::default().pax(&[(b"path", b"a\0b")]).file("a", "");
    assert!(refused(nul).contains("NUL"));
}

#[test]
fn sparse_files_and_unknown_types_are_refused_in_words() {
    assert!(refused(Archive::default().add(b'S', "disk", "", b"")).contains("`disk` as a sparse file"));
    let pax = Archive::default().pax(&[(b"GNU.sparse.major", b"1")]).file("disk", "");
    assert!(refused(pax).contains("without --sparse"));
    assert!(refused(Archive::default().add(b'M', "x", "", b"")).contains("of type `M`"));
}

#[test]
fn random_damage_never_makes_it_panic() {
    let whole = Archive::default()
        .pax(&[(b"path", b"long/name"), (b"SCHILY.xattr.user.x", b"1")])
        .file("a", "content")
        .add(b'L', "././@LongLink", "", b"another/long/name\0")
        .file("b", "content")
        .add(b'1', "c", "long/name", b"")
        .0;
    let mut state = 1_u64;
    let mut random = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    for _ in 0..3000 {
        let mut bytes = whole.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        // So that the damage gets past the checksums.
        for header in bytes.chunks_exact_mut(512) {
            if header[257..262] == *b"ustar" {
                let mut fixed = Header::new_old();
                fixed.as_mut_bytes().copy_from_slice(header);
                fixed.set_cksum();
                header.copy_from_slice(fixed.as_bytes());
            }
        }
        let mut entries = Entries::new(Cursor::new(bytes)).unwrap();
        let mut files = Files::new(Mtime::default());
        while let Ok(Some(entry)) = entries.next() {
            let node = Node::new(Kind::Directory, 0o755, Mtime::default());
            // Whether it has a place does not matter here.
            let _ = files.put(&entry.path, node);
        }
        // Nor whether a layer can hold such names.
        let _ = files.export(0);
    }
}

fn spooled(bytes: &[u8]) -> Result<Vec<u8>, SpoolError> {
    let folder = tempfile::tempdir().unwrap();
    let plain = spool::spool(bytes, folder.path().join("plain"))?;
    Ok(fs::read(plain.path).unwrap())
}

#[test]
fn every_usual_compression_is_unpacked_and_others_are_named() {
    let text = b"some text, some text\n".repeat(5000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    fs::write(&path, &text).unwrap();
    let pack = |program: &str| {
        let output = std::process::Command::new(program).arg("-c").arg(&path).output().unwrap();
        assert!(output.status.success(), "{program}");
        output.stdout
    };
    for program in ["gzip", "xz", "zstd"] {
        let packed = pack(program);
        assert_eq!(spooled(&packed).unwrap(), text, "{program}");
        // As parallel packers write it: several in a row.
        assert_eq!(spooled(&packed.repeat(3)).unwrap(), text.repeat(3), "{program}");
        assert!(spooled(&packed[..packed.len() / 2]).is_err(), "{program}");
    }
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &pack("zstd")].concat();
    assert_eq!(spooled(&[pack("zstd"), skippable].concat()).unwrap(), text.repeat(2));
    assert!(matches!(spooled(b"BZh91AY"), Err(SpoolError::Packing(Packing::Bzip2))));
    assert_eq!(spooled(&text).unwrap(), text);
}

#[test]
fn an_archive_of_zeros_without_end_is_refused_before_the_disk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let zeros = std::io::Read::take(std::io::repeat(0), 1 << 40);
    let bomb = flate2::read::GzEncoder::new(zeros, flate2::Compression::fast());
    let error = spool::spool_within(bomb, folder.path().join("plain"), 1 << 20).unwrap_err();
    assert!(matches!(error, SpoolError::Bomb { .. }), "{error}");
    assert!(fs::metadata(folder.path().join("plain")).unwrap().len() <= 64 << 20);
}

/// A layout whose one text is `index`.
fn layout(index: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("index.json"), index).unwrap();
    folder
}

fn find(folder: &Path) -> Result<(), OciError> {
    let scratch = tempfile::tempdir().unwrap();
    oci::find(&oci::Place::open(folder, scratch.path())?).map(drop)
}

#[test]
fn a_layout_that_lies_is_refused() {
    let digest = "a".repeat(64);
    let index = |digest: &str| format!(r#"{{"manifests": [{{"digest": "{digest}", "size": 2}}]}}"#);
    for (text, said) in [
        ("{}".to_owned(), "holds no OCI image"),
        ("not json".to_owned(), "no valid index"),
        (index("sha256:../../../../etc/passwd"), "only those of the form"),
        (index(&format!("sha512:{digest}")), "only those of the form"),
        (index(&format!("sha256:{digest}")), "lacks `blobs/sha256/aaaa"),
    ] {
        let error = find(layout(&text).path()).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
    let folder = layout(&index(&format!("sha256:{digest}")));
    fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
    fs::write(folder.path().join("blobs/sha256").join(&digest), "{}").unwrap();
    assert!(matches!(find(folder.path()), Err(OciError::Hash { .. })));
    let large = layout(&" ".repeat((4 << 20) + 1));
    assert!(matches!(find(large.path()), Err(OciError::TooLarge { .. })));
    let many = layout(&format!(
        r#"{{"manifests": [{}]}}"#,
        vec![r#"{"platform": {"os": "linux", "architecture": "arm64"}}"#; 1025].join(",")
    ));
    assert!(matches!(find(many.path()), Err(OciError::TooMany { .. })));
    let other = layout(r#"{"manifests": [{"platform": {"os": "linux", "architecture": "arm64"}}]}"#);
    let error = find(other.path()).unwrap_err().to_string();
    assert!(error.contains("linux/amd64, only for linux/arm64"), "{error}");
}

#[test]
fn kinds_of_errors_are_told_apart() {
    // What is not in the messages above.
    let mut bench = Bench::new();
    let error = bench.apply(Archive(vec![1; 512]), false).unwrap_err();
    assert!(matches!(error, ArchiveError::Tar(TarError::Damaged { at: 0, .. })), "{error}");
    assert!(matches!(bench.files.link(b"x", b"y"), Err(PlaceError::NoTarget { .. })));
}
