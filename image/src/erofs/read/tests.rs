//! The reader judged by what mkfs.erofs wrote, and by damages.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, symlink},
    path::Path,
};

use super::{
    super::{Node, Tree, WriteOptions, write},
    *,
};
use crate::{
    source::Source,
    testing::{Flips, run},
};

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A tree with everything that a layer can hold.
fn sample() -> Tree {
    use crate::erofs::Kind;
    let mut tree = Tree::new(Mtime { seconds: 1_700_000_000, nanoseconds: 5 });
    let mut add = |path: &str, kind, mode| {
        let mut node = Node::new(kind, mode, Mtime { seconds: -5, nanoseconds: 7 });
        (node.uid, node.gid) = (1000, 70_000);
        if path.contains("capable") {
            node.xattrs.insert(b"security.capability".to_vec(), vec![2; 20]);
            node.xattrs.insert(b"user.empty".to_vec(), Vec::new());
        }
        tree.insert(path.as_bytes(), node).unwrap();
    };
    for (n, size) in [0, 1, 4095, 4096, 4097, 20_000].into_iter().enumerate() {
        add(&format!("usr/lib/file{n}"), Kind::File(Source::Bytes(bytes(size))), 0o644);
    }
    (0..400)
        .for_each(|n| add(&format!("usr/many/a name of some length {n}"), Kind::File(Source::Bytes(bytes(n))), 0o600));
    add("usr/bin/capable", Kind::File(Source::Bytes(bytes(5000))), 0o4755);
    add("usr/-", Kind::Symlink(b"lib/file1".to_vec()), 0o777);
    add("usr/long", Kind::Symlink(vec![b'x'; 4095]), 0o777);
    add("gone", Kind::CharDevice(Device { major: 0, minor: 0 }), 0);
    add("dev/large", Kind::BlockDevice(Device { major: 4095, minor: 1_048_575 }), 0o640);
    add("pipe", Kind::Fifo, 0o600);
    add("socket", Kind::Socket, 0o600);
    tree.link(b"usr/linked", b"usr/lib/file4").unwrap();
    tree
}

fn make(tree: &Tree, path: &Path) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    write(tree, &file, &WriteOptions::default()).unwrap();
    file
}

/// What the reader finds, as text, with a sum of each file's bytes.
fn read(file: &File) -> Result<Vec<String>, ReadError> {
    let layer = Layer::open(View::whole(file).unwrap())?;
    let describe = |(path, inode): (Vec<u8>, Inode)| {
        let content = if inode.kind == Kind::Directory { Vec::new() } else { layer.content(&inode)?.bytes(1 << 24)? };
        let xattrs = layer.xattrs(&inode)?;
        let sum = crc32c::crc32c(&content);
        let path = path.escape_ascii();
        let Inode { kind, mode, uid, gid, mtime, .. } = inode;
        Ok(format!("{path} {kind:?} {mode:o} {uid}:{gid} {mtime:?} {} {sum} {xattrs:?}", content.len()))
    };
    layer.walk().map(|step| step.and_then(describe)).collect()
}

#[test]
fn what_was_written_is_read_back_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let tree = sample();
    let file = make(&tree, &folder.path().join("layer"));
    let layer = Layer::open(View::whole(&file).unwrap()).unwrap();
    let walked: Vec<(Vec<u8>, Inode)> = layer.walk().map(Result::unwrap).collect();
    // One inode has two names.
    assert_eq!((walked.len(), layer.inodes), (tree.inodes() + 1, tree.inodes() as u64));
    let parts = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
    assert!(walked[1..].windows(2).all(|pair| parts(&pair[0].0) < parts(&pair[1].0)));
    for (path, inode) in &walked {
        let node = tree.get(path).unwrap();
        assert_eq!((inode.mode, inode.uid, inode.gid, inode.mtime), (node.mode, node.uid, node.gid, node.mtime));
        assert_eq!(layer.xattrs(inode).unwrap(), node.xattrs);
        let content = || layer.content(inode).unwrap().bytes(1 << 24).unwrap();
        match (&node.kind, inode.kind) {
            (crate::erofs::Kind::File(Source::Bytes(bytes)), Kind::File) => assert!(content() == *bytes),
            (crate::erofs::Kind::Symlink(target), Kind::Symlink) => assert_eq!(content(), *target),
            (crate::erofs::Kind::CharDevice(a), Kind::CharDevice(b)) => assert_eq!(*a, b),
            (crate::erofs::Kind::BlockDevice(a), Kind::BlockDevice(b)) => assert_eq!(*a, b),
            (crate::erofs::Kind::Directory, Kind::Directory) => {}
            (crate::erofs::Kind::Fifo, Kind::Fifo) | (crate::erofs::Kind::Socket, Kind::Socket) => {}
            (written, read) => panic!("{written:?} became {read:?}"),
        }
    }
    let find = |path| layer.find(path).unwrap();
    assert!(find("gone").unwrap().is_whiteout() && !find("pipe").unwrap().is_whiteout());
    assert_eq!(find("usr/linked"), find("usr/lib/file4"));
    assert_eq!(find("usr/lib/file4").unwrap().links, 2);
    assert_eq!(["usr/none", "pipe/x", "", "usr/lib/"].map(find), [None; 4]);
}

#[test]
fn a_file_system_of_mkfs_erofs_is_read_as_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let (source, image) = (folder.path().join("source"), folder.path().join("image"));
    fs::create_dir_all(source.join("a/b")).unwrap();
    for n in 0..300 {
        fs::write(source.join(format!("a/b/file {n:0>60}")), bytes(n * 37)).unwrap();
    }
    symlink("b/none", source.join("a/link")).unwrap();
    fs::hard_link(source.join(format!("a/b/file {:0>60}", 7)), source.join("a/again")).unwrap();
    // The form that layers have.
    let options = ["--quiet", "-Eforce-inode-extended,noinline_data", "-x-1"];
    run("mkfs.erofs", options.map(Path::new).into_iter().chain([image.as_path(), &source]));
    let file = File::open(&image).unwrap();
    let layer = Layer::open(View::whole(&file).unwrap()).unwrap();
    let mut seen = 0;
    for step in layer.walk() {
        let (path, inode) = step.unwrap();
        let at = source.join(String::from_utf8(path).unwrap());
        let metadata = fs::symlink_metadata(&at).unwrap();
        assert_eq!((u32::from(inode.mode), inode.uid), (metadata.mode() & 0o7777, metadata.uid()));
        assert_eq!((inode.mtime.seconds, u64::from(inode.links)), (metadata.mtime(), metadata.nlink()), "{at:?}");
        let content = || layer.content(&inode).unwrap().bytes(1 << 24).unwrap();
        match inode.kind {
            Kind::File => assert!(content() == fs::read(&at).unwrap()),
            Kind::Symlink => assert_eq!(content(), b"b/none"),
            other => assert_eq!(other, Kind::Directory),
        }
        seen += 1;
    }
    assert_eq!(seen, 305);
}

#[test]
fn no_byte_of_its_metadata_makes_the_reader_panic_or_run_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer");
    let file = make(&sample(), &path);
    let good = read(&file).unwrap();
    let (mut noticed, mut all) = (0, 0);
    let end = file.metadata().unwrap().len();
    // The first block's checksum tells everything in it; elsewhere only structure can be wrong.
    for flip in Flips::new(&file, (1024..4096).step_by(5).chain((4096..20_000).step_by(13))) {
        let at = flip.at;
        let found = flip.judge(|| read(&file));
        let changed = found.as_ref().map_or(true, |found| *found != good);
        assert!(at >= 4096 || found.is_err(), "byte {at}");
        all += 1;
        noticed += u32::from(changed);
    }
    assert!(noticed * 2 > all, "{noticed} of {all}");
    for length in [0, 1024, 4095, 4096, end - 1, end - 4096, end + 4096] {
        file.set_len(length).unwrap();
        assert!(read(&file).is_err(), "{length}");
    }
}

/// Damages with a right checksum, so that what it hides is reached.
#[test]
fn no_value_of_the_superblock_or_an_inode_makes_the_reader_panic_or_leave_the_layer() {
    let folder = tempfile::tempdir().unwrap();
    let file = make(&sample(), &folder.path().join("layer"));
    let mut good = [0; BLOCK_SIZE];
    file.read_exact_at(&mut good, 0).unwrap();
    let mut judged = 0;
    for at in (1024 + 8..1024 + 128).chain(1152..1152 + 64).chain((1216..2600).step_by(7)) {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut block = good;
            block[at] = value;
            let sum = format::checksum(&block);
            block[1028..1032].copy_from_slice(&sum.to_le_bytes());
            file.write_all_at(&block, 0).unwrap();
            judged += u32::from(read(&file).is_err());
        }
    }
    assert!(judged > 200, "{judged}");
}

#[test]
fn a_directory_within_itself_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(Mtime::default());
    for path in ["a/b/c/file", "d"] {
        let kind = crate::erofs::Kind::File(Source::Bytes(bytes(3)));
        tree.insert(path.as_bytes(), Node::new(kind, 0o644, Mtime::default())).unwrap();
    }
    let file = make(&tree, &folder.path().join("layer"));
    let layer = Layer::open(View::whole(&file).unwrap()).unwrap();
    let [a, b, c] = ["a", "a/b", "a/b/c"].map(|path| layer.find(path).unwrap().unwrap());
    // In `b`, the name `c` comes to mean `a`, or `b` itself.
    let place = layer.plain(&b).unwrap().place(0).unwrap() + 2 * DIRENT_SIZE as u64;
    let mut block = [0; BLOCK_SIZE];
    file.read_exact_at(&mut block, 0).unwrap();
    assert_eq!(long(&block, place as usize), c.nid);
    for target in [a.nid, b.nid, 0, 1, u64::MAX, u64::MAX / 32] {
        let mut block = block;
        block[place as usize..][..8].copy_from_slice(&target.to_le_bytes());
        let sum = format::checksum(&block);
        block[1028..1032].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&block, 0).unwrap();
        assert!(read(&file).is_err(), "{target}");
    }
}
