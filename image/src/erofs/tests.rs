//! The writer judged by others: `fsck.erofs`, the kernel's own EROFS, `diff -r`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    fs::{self, File},
    io::{Cursor, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::*;
use crate::{
    source::{Source, SourceError},
    testing::{Mount, assert_huge, assert_same, make_huge, run},
};

const FILES: usize = 10_000;

fn contents(seed: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 + seed * 13 + at / 251) as u8).collect()
}

fn mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn node(path: &Path, file_type: FileType, major: u32, minor: u32) {
    let mode = Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(CWD, path, file_type, mode, rustix::fs::makedev(major, minor)).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// An ACL in the form in which system.posix_acl_* holds it: entries of tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Everything that a layer can hold. `reverse` makes the same tree in another order, so that the file system lists it
/// differently.
fn make_sample(root: &Path, files: usize, reverse: bool) {
    fs::create_dir(root).unwrap();
    let plain = root.join("plain");
    let mut made: Vec<PathBuf> = Vec::new();
    for folder in ["plain/many", "plain/-/+/...", "plain/empty", "plain/xattrs", "special"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let mut order: Vec<usize> = (0..files).collect();
    if reverse {
        order.reverse();
    }
    for n in order {
        let path = plain.join(format!("many/file-{n:05}-{}", "x".repeat(n % 50)));
        fs::write(&path, contents(n, n % 9 * 650)).unwrap();
        made.push(path);
    }
    let mut odd_names: Vec<Vec<u8>> =
        [&b"!"[..], b"-x", b".a", b"..b", b"a b\n", b"\xff\xfe", b"~"].map(Vec::from).into();
    odd_names.push(vec![b'n'; 255]);
    for (n, name) in odd_names.iter().enumerate() {
        let path = plain.join(OsStr::from_bytes(name));
        fs::write(&path, contents(n, [0, 1, 4095, 4096, 4097, 100_000, 1 << 20, 3_000_001][n])).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode([0o4755, 0o2711, 0o1600, 0o000, 0o777][n % 5])).unwrap();
        made.push(path);
    }
    std::os::unix::fs::lchown(&made[files], Some(70_000), Some(4_294_967_294)).unwrap();
    let sparse = File::create(plain.join("sparse")).unwrap();
    sparse.write_all_at(b"in the middle", 7 << 20).unwrap();
    sparse.set_len(20 << 20).unwrap();
    made.push(plain.join("sparse"));
    let (first, second) = (plain.join("many/linked"), plain.join("-/linked"));
    let (first, second) = if reverse { (second, first) } else { (first, second) };
    fs::write(&first, b"three names").unwrap();
    fs::hard_link(&first, &second).unwrap();
    fs::hard_link(&first, plain.join("zz-linked")).unwrap();
    made.push(first);
    for (name, length) in [("short", 1), ("long", 300), ("longest", 4095)] {
        let path = plain.join("empty").join(name);
        symlink(&"./".repeat(2048)[..length], &path).unwrap();
        made.push(path);
    }
    let xattrs = plain.join("xattrs");
    for (n, name) in ["capable", "acl", "several", "folder"].iter().enumerate() {
        let path = xattrs.join(name);
        if n == 3 {
            fs::create_dir(&path).unwrap()
        } else {
            fs::write(&path, contents(n, 5000)).unwrap()
        }
        made.push(path);
    }
    let access = acl(&[(1, 7, u32::MAX), (2, 5, 70_001), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]);
    set_xattr(
        &xattrs.join("capable"),
        "security.capability",
        &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    set_xattr(&xattrs.join("acl"), "system.posix_acl_access", &access);
    set_xattr(&xattrs.join("folder"), "system.posix_acl_default", &access);
    set_xattr(&xattrs.join("folder"), "trusted.overlay.opaque", b"y");
    set_xattr(&xattrs.join("several"), "user.empty", b"");
    set_xattr(&xattrs.join("several"), "user.large", &contents(5, 2000));
    set_xattr(&xattrs.join("several"), "trusted.mine", b"0");
    let special = root.join("special");
    node(&special.join("fifo"), FileType::Fifo, 0, 0);
    node(&special.join("socket"), FileType::Socket, 0, 0);
    node(&special.join("whiteout"), FileType::CharacterDevice, 0, 0);
    node(&special.join("console"), FileType::CharacterDevice, 5, 1);
    node(&special.join("large"), FileType::BlockDevice, 4095, 1_048_575);
    made.extend(fs::read_dir(&special).unwrap().map(|entry| entry.unwrap().path()));
    for path in &made {
        let salt = path.file_name().unwrap().len() as i64;
        mtime(path, 1_600_000_000 + salt * 86_400, 123_456_789);
    }
    mtime(&made[files + 1], -86_400, 1);
    let folders =
        ["plain/many", "plain/-/+/...", "plain/-/+", "plain/-", "plain/empty", "plain/xattrs", "plain", "special", ""];
    folders.iter().for_each(|folder| mtime(&root.join(folder), 1_650_000_000, 42));
}

/// What the kernel says of everything below `root`, by path; hard links as the list of their names.
fn census(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut names: HashMap<u64, BTreeSet<PathBuf>> = HashMap::new();
    let mut stack = vec![root.to_path_buf()];
    let mut inodes = Vec::new();
    while let Some(path) = stack.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let relative = path.strip_prefix(root).unwrap().to_path_buf();
        let size = if metadata.is_dir() { 0 } else { metadata.len() };
        let mut line = format!(
            "{:o} {}:{} {size} {}.{} dev {:x} links {}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.rdev(),
            metadata.nlink()
        );
        if metadata.is_symlink() {
            line += &format!(" -> {}", fs::read_link(&path).unwrap().display());
        }
        let mut list = vec![0_u8; 65536];
        let length = rustix::fs::llistxattr(&path, list.as_mut_slice()).unwrap();
        let mut attributes: Vec<&[u8]> =
            list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
        attributes.sort();
        for name in attributes {
            let mut value = vec![0_u8; 65536];
            let length = rustix::fs::lgetxattr(&path, OsStr::from_bytes(name), value.as_mut_slice()).unwrap();
            line += &format!(" {}={:x?}", name.escape_ascii(), &value[..length]);
        }
        if metadata.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if metadata.nlink() > 1 {
            names.entry(metadata.ino()).or_default().insert(relative.clone());
            inodes.push((relative.clone(), metadata.ino()));
        }
        found.insert(relative, line);
    }
    for (path, inode) in inodes {
        found.get_mut(&path).unwrap().push_str(&format!(" names {:?}", names[&inode]));
    }
    found
}

fn write_file(tree: &Tree, path: &Path) -> Summary {
    let summary = write(tree, File::create(path).unwrap(), &WriteOptions::default()).unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), summary.size);
    summary
}

/// `i_format`'s data layout of every regular file, found by the inode numbers that the kernel gives.
fn inlined_files(mounted: &Path, image: &Path) -> usize {
    let image = File::open(image).unwrap();
    let mut stack = vec![mounted.to_path_buf()];
    let (mut files, mut inlined) = (0, 0);
    while let Some(folder) = stack.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                stack.push(path);
            } else if metadata.is_file() {
                let mut format = [0; 2];
                image.read_exact_at(&mut format, metadata.ino() * 32).unwrap();
                files += 1;
                inlined += usize::from(u16::from_le_bytes(format) >> 1 & 7 != 0);
            }
        }
    }
    assert!(files > FILES);
    inlined
}

#[test]
fn the_kernel_reads_back_every_byte_and_attribute_of_a_large_tree() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let image = folder.path().join("image");
    make_sample(&source, FILES, false);
    let tree = scan(&source, &ScanOptions::default()).unwrap();
    let summary = write_file(&tree, &image);
    assert_eq!(summary.size % 4096, 0);
    let allocated = fs::metadata(&image).unwrap().blocks() * 512;
    assert!(allocated + (15 << 20) < summary.size, "holes were written: {allocated} of {}", summary.size);

    run("fsck.erofs", [&image]);
    let mounted = Mount::new("erofs", "ro", &image, folder.path().join("mounted"));
    let (ours, theirs) = (census(&source), census(mounted.path()));
    assert!(ours.len() > FILES + 30);
    for (path, line) in &ours {
        assert_eq!(theirs.get(path), Some(line), "{}", path.display());
    }
    assert_eq!(ours.len(), theirs.len());
    run(
        "diff",
        ["-r".as_ref(), "--no-dereference".as_ref(), source.join("plain").as_path(), &mounted.path().join("plain")],
    );
    assert_eq!(inlined_files(mounted.path(), &image), 0, "an inlined file is off DAX");
    drop(mounted);
}

#[test]
fn the_order_in_which_files_were_made_leaves_no_trace_and_fsck_unpacks_them() {
    let folder = tempfile::tempdir().unwrap();
    let [source, other, unpacked, image, again] =
        ["source", "other", "unpacked", "image", "again"].map(|name| folder.path().join(name));
    make_sample(&source, 500, false);
    make_sample(&other, 500, true);
    let summary = write_file(&scan(&source, &ScanOptions::default()).unwrap(), &image);
    assert_eq!(write_file(&scan(&other, &ScanOptions::default()).unwrap(), &again), summary);
    assert_same(&image, &again);
    run("fsck.erofs", [format!("--extract={}", unpacked.display()).as_ref(), image.as_os_str()]);
    run("diff", ["-r".as_ref(), "--no-dereference".as_ref(), source.join("plain").as_path(), &unpacked.join("plain")]);
}

#[test]
fn files_of_more_than_4_gib_are_read_back_and_cost_only_their_data() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("huge");
    let size = (5 << 30) + 17;
    make_huge(&source, size);
    let mut tree = Tree::new(Mtime::default());
    let node = |kind| Node::new(kind, 0o644, Mtime::default());
    tree.insert(b"huge", node(Kind::File(Source::Path { path: source, size }))).unwrap();
    tree.insert(b"small", node(Kind::File(Source::Bytes(b"behind it".to_vec())))).unwrap();
    let image = folder.path().join("image");
    write_file(&tree, &image);
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < 1 << 20);
    run("fsck.erofs", [&image]);
    let mounted = Mount::new("erofs", "ro", &image, folder.path().join("mounted"));
    assert_huge(&mounted.path().join("huge"), size);
    assert_eq!(fs::read(mounted.path().join("small")).unwrap(), b"behind it");
}

#[test]
fn attributes_up_to_the_largest_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(Mtime::default());
    for (name, values) in [("few", vec![10, 0, 255]), ("block", vec![4000, 60]), ("most", vec![65_520; 4])] {
        let mut node = Node::new(Kind::File(Source::Bytes(b"content".to_vec())), 0o644, Mtime::default());
        for (n, length) in values.into_iter().enumerate() {
            node.xattrs.insert(format!("trusted.{n}").into_bytes(), contents(n, length));
        }
        tree.insert(name.as_bytes(), node.clone()).unwrap();
        node.kind = Kind::Symlink(b"target".to_vec());
        tree.insert(format!("{name}-link").as_bytes(), node).unwrap();
    }
    let image = folder.path().join("image");
    write_file(&tree, &image);
    run("fsck.erofs", [&image]);
    let mounted = Mount::new("erofs", "ro", &image, folder.path().join("mounted"));
    for name in ["few", "block", "most", "few-link", "block-link", "most-link"] {
        for (attribute, expected) in &tree.get(name.as_bytes()).unwrap().xattrs {
            let mut value = vec![0; 65_536];
            let path = mounted.path().join(name);
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(attribute), value.as_mut_slice()).unwrap();
            assert_eq!(&value[..length], expected, "{name} {}", attribute.escape_ascii());
        }
    }
    assert_eq!(fs::read_link(mounted.path().join("most-link")).unwrap(), Path::new("target"));
}

#[test]
fn a_changed_file_changes_its_own_blocks_and_metadata_only() {
    let build = |changed: usize| {
        let mut tree = Tree::new(Mtime::default());
        for n in 0..200 {
            let size = if n == 3 { changed } else { 50_000 };
            let file = Kind::File(Source::Bytes((0..size).map(|at| (at / 4096 * 200 + n) as u8).collect()));
            tree.insert(format!("usr/lib/file{n}").as_bytes(), Node::new(file, 0o644, Mtime::default())).unwrap();
        }
        let mut out = Cursor::new(Vec::new());
        write(&tree, &mut out, &WriteOptions::default()).unwrap();
        out.into_inner()
    };
    let (old, new) = (build(50_000), build(70_000));
    let known: BTreeSet<&[u8]> = old.chunks(BLOCK_SIZE).collect();
    let fresh = new.chunks(BLOCK_SIZE).filter(|block| !known.contains(block)).count();
    // 200 inodes and two directories in 6 blocks, and the grown file's last 6.
    assert!(fresh <= 12, "{fresh} new blocks");
}

#[test]
fn an_overlay_upper_directory_becomes_a_layer() {
    let folder = tempfile::tempdir().unwrap();
    let upper = folder.path().join("upper");
    fs::create_dir_all(upper.join("hidden")).unwrap();
    node(&upper.join("gone"), FileType::CharacterDevice, 0, 0);
    set_xattr(&upper.join("hidden"), "user.overlay.opaque", b"y");
    set_xattr(&upper.join("hidden"), "user.overlay.origin", &[0; 29]);
    set_xattr(&upper, "user.overlay.impure", b"y");
    fs::write(upper.join("kept"), b"").unwrap();
    set_xattr(&upper.join("kept"), "user.mine", b"1");
    mtime(&upper.join("kept"), 2_000_000_000, 5);
    mtime(&upper.join("gone"), 1_000_000_000, 5);
    let options = ScanOptions { clamp_mtime: Some(1_500_000_000), origin: Origin::OverlayUpper };
    let tree = scan(&upper, &options).unwrap();
    let names = |path: &str| tree.get(path.as_bytes()).unwrap().xattrs.keys().cloned().collect::<Vec<_>>();
    assert_eq!(tree.get(b"gone").unwrap().kind, Kind::CharDevice(Device { major: 0, minor: 0 }));
    assert_eq!(names("hidden"), [b"trusted.overlay.opaque"]);
    assert_eq!(names("kept"), [b"user.mine"]);
    assert!(names("").is_empty());
    assert_eq!(tree.get(b"kept").unwrap().mtime, Mtime::from_seconds(1_500_000_000));
    assert_eq!(tree.get(b"gone").unwrap().mtime, Mtime { seconds: 1_000_000_000, nanoseconds: 5 });

    // The kernel's overlayfs agrees about whiteouts and opaque directories.
    let image = folder.path().join("image");
    write_file(&tree, &image);
    let base = folder.path().join("base");
    fs::create_dir_all(base.join("hidden/below")).unwrap();
    fs::write(base.join("gone"), b"").unwrap();
    let layer = Mount::new("erofs", "ro", &image, folder.path().join("layer"));
    let merged = folder.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let lower = format!("lowerdir={}:{}", layer.path().display(), base.display());
    run("mount", ["-t", "overlay", "-o", &lower, "overlay", merged.to_str().unwrap()]);
    let listed = run("find", [merged.as_os_str(), "-printf".as_ref(), "%P\n".as_ref()]);
    run("umount", [&merged]);
    assert_eq!(listed.lines().collect::<BTreeSet<_>>(), ["", "hidden", "kept"].into());

    set_xattr(&upper.join("hidden"), "user.overlay.redirect", b"/elsewhere");
    assert!(matches!(scan(&upper, &options), Err(ScanError::Xattr { .. })));
}

#[test]
fn sources_that_changed_since_the_scan_stop_the_build() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for change in ["grown", "shrunk", "link", "fifo", "gone"] {
        fs::write(&path, b"12345678").unwrap();
        let tree = scan(folder.path(), &ScanOptions::default()).unwrap();
        if change == "grown" {
            File::options().append(true).open(&path).unwrap().write_all(b"9").unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        match change {
            "shrunk" => fs::write(&path, b"1").unwrap(),
            "link" => symlink("/etc/hostname", &path).unwrap(),
            "fifo" => node(&path, FileType::Fifo, 0, 0),
            _ => {}
        }
        let error = write(&tree, Cursor::new(Vec::new()), &WriteOptions::default()).unwrap_err();
        let expected = matches!(change, "grown" | "shrunk" | "fifo");
        assert_eq!(matches!(error, WriteError::Source(SourceError::Changed { .. })), expected, "{change}: {error}");
        assert_eq!(matches!(error, WriteError::Source(SourceError::Read { .. })), !expected, "{change}: {error}");
        let _ = fs::remove_file(&path);
    }
}

/// Calls `check` with trees of random shape and odd names, the same ones each time.
fn for_odd_trees(count: u32, mut check: impl FnMut(&Tree)) {
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..count {
        let mut tree = Tree::new(Mtime { seconds: random(u64::MAX) as i64, nanoseconds: 0 });
        let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
        for _ in 0..random(60) {
            let mut path = paths[random(paths.len() as u64) as usize].clone();
            for _ in 0..random(4) {
                path.push(b'/');
                let length = if random(8) == 0 { random(300) } else { random(6) };
                path.extend((0..length).map(|_| b"./ab\0\xff-"[random(7) as usize]));
            }
            let kind = match random(7) {
                0 => Kind::File(Source::Bytes(vec![7; random(9000) as usize])),
                1 => Kind::Symlink(vec![b'/'; random(4200) as usize]),
                2 => Kind::CharDevice(Device { major: random(5000) as u32, minor: random(2_000_000) as u32 }),
                3 => Kind::Fifo,
                4 => Kind::Socket,
                _ => Kind::Directory,
            };
            let mut node = Node::new(kind, random(0o10000) as u16, Mtime::default());
            node.uid = random(u64::from(u32::MAX)) as u32;
            if random(3) == 0 {
                node.xattrs.insert(b"user.odd".to_vec(), vec![1; random(5000) as usize]);
            }
            let target = &paths[random(paths.len() as u64) as usize];
            let done = if random(5) == 0 { tree.link(&path, target) } else { tree.insert(&path, node) };
            if done.is_ok() {
                paths.push(path);
            }
        }
        check(&tree);
    }
}

#[test]
fn odd_trees_give_clean_layers_and_odd_input_gives_errors() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let mut number = 0;
    for_odd_trees(600, |tree| {
        number += 1;
        if number % 10 == 0 {
            write_file(tree, &image);
            run("fsck.erofs", [&image]);
        } else {
            write(tree, Cursor::new(Vec::new()), &WriteOptions::default()).unwrap();
        }
    });
    let deep = "d/".repeat(50_000) + "leaf";
    let mut tree = Tree::new(Mtime::default());
    tree.insert(deep.as_bytes(), Node::new(Kind::Fifo, 0o600, Mtime::default())).unwrap();
    write(&tree, Cursor::new(Vec::new()), &WriteOptions::default()).unwrap();
    let huge = Source::Path { path: "/nowhere".into(), size: u64::MAX };
    tree.insert(b"huge", Node::new(Kind::File(huge), 0o600, Mtime::default())).unwrap();
    let error = write(&tree, Cursor::new(Vec::new()), &WriteOptions::default()).unwrap_err();
    assert!(matches!(error, WriteError::Layout(_)), "{error}");
}
