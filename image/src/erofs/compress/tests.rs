//! Compressed files judged by the kernel's own EROFS, by our reader, and by damages.

use std::{
    fs::{self, File},
    io::Cursor,
    num::NonZero,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use super::{super::*, EXTENT_SIZE, LEVEL};
use crate::{
    erofs::{
        format,
        read::{self, Layer},
    },
    source::{Source, SourceError},
    testing::{Flips, Mount, assert_huge, make_huge, run},
    view::{ReadError, View},
};

/// Sizes at which something begins or ends: blocks, extents, runs.
fn sizes() -> Vec<usize> {
    let around = |size: usize| [size - 1, size, size + 1];
    let edges = [4096, 8192, EXTENT_SIZE, EXTENT_SIZE + 4096, EXTENT_SIZE + 8192, 3 * EXTENT_SIZE, 16 * EXTENT_SIZE];
    [0, 1].into_iter().chain(edges.into_iter().flat_map(around)).chain([17 * EXTENT_SIZE + 5000]).collect()
}

/// Bytes of which zstd can make less, none the same as any before.
fn text(size: usize, seed: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(size + 32);
    let mut state = seed;
    while text.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.extend_from_slice(format!("{:x} of {seed}, ", state >> 48).as_bytes());
    }
    text.truncate(size);
    text
}

/// Bytes of which nobody can make less.
fn noise(size: usize, seed: usize) -> Vec<u8> {
    let mut state = seed as u64 + 88_172_645_463_325_252;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..size).map(|_| random()).collect()
}

/// Text and noise by turns, each of one extent.
fn mixed(size: usize, seed: usize) -> Vec<u8> {
    let (text, noise) = (text(size, seed), noise(size, seed));
    let pairs = text.chunks(EXTENT_SIZE).zip(noise.chunks(EXTENT_SIZE));
    pairs.enumerate().flat_map(|(n, (text, noise))| if n % 2 == 0 { text } else { noise }).copied().collect()
}

/// A folder of all sizes, of each kind.
fn make_sample(root: &Path) {
    for (name, make) in [("text", text as fn(usize, usize) -> Vec<u8>), ("noise", noise), ("mixed", mixed)] {
        fs::create_dir_all(root.join(name)).unwrap();
        for (number, size) in sizes().into_iter().enumerate() {
            let path = root.join(name).join(size.to_string());
            fs::write(&path, make(size, size)).unwrap();
            // Attributes end at any multiple of 4, and what follows them begins at one of 8.
            rustix::fs::lsetxattr(&path, "user.odd", &vec![7; number], rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
    fs::create_dir(root.join("zeroes")).unwrap();
    for size in sizes() {
        File::create(root.join("zeroes").join(size.to_string())).unwrap().set_len(size as u64).unwrap();
    }
    fs::hard_link(root.join("text/8193"), root.join("linked")).unwrap();
}

fn compressed(tree: &Tree, threads: usize, path: &Path) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let options = WriteOptions { compress: NonZero::new(threads), ..WriteOptions::default() };
    let summary = write(tree, &file, &options).unwrap();
    assert_eq!(file.metadata().unwrap().len(), summary.size);
    file
}

/// Paths with what is in the files there.
type Contents = Vec<(Vec<u8>, Vec<u8>)>;

/// What the reader finds in a layer, whose files must not be larger than 16 MiB.
fn contents(file: &File) -> Result<Contents, ReadError> {
    let layer = Layer::open(View::whole(file).unwrap())?;
    let content = |(path, inode): (Vec<u8>, read::Inode)| {
        let file = inode.kind == read::Kind::File;
        Ok((path, if file { layer.content(&inode)?.bytes(16 << 20)? } else { Vec::new() }))
    };
    layer.walk().map(|step| step.and_then(content)).collect()
}

#[test]
fn the_kernel_and_our_reader_give_back_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let [source, image] = ["source", "image"].map(|name| folder.path().join(name));
    make_sample(&source);
    let tree = scan(&source, &ScanOptions::default()).unwrap();
    let layer = compressed(&tree, 3, &image);
    let all: u64 = 4 * sizes().iter().map(|size| *size as u64).sum::<u64>();
    assert!(layer.metadata().unwrap().len() < all * 6 / 10, "{} of {all}", layer.metadata().unwrap().len());

    let found = contents(&layer).unwrap();
    assert_eq!(found.len(), 4 * sizes().len() + 6);
    for (path, content) in found {
        let path = source.join(String::from_utf8(path).unwrap());
        assert!(path.is_dir() || fs::read(&path).unwrap() == content, "{}", path.display());
    }

    let mounted = Mount::new("erofs", "ro", &image, folder.path().join("mounted"));
    run("diff", ["-r".as_ref(), "--no-dereference".as_ref(), source.as_path(), mounted.path()]);
    assert_eq!(fs::metadata(mounted.path().join("linked")).unwrap().nlink(), 2);
    drop(mounted);
    // Pieces in an order in which nothing has been read ahead.
    let mounted = Mount::new("erofs", "ro", &image, folder.path().join("again"));
    for name in ["text", "mixed", "zeroes"] {
        for size in sizes() {
            let path = format!("{name}/{size}");
            let (ours, theirs) =
                (fs::read(source.join(&path)).unwrap(), File::open(mounted.path().join(&path)).unwrap());
            for from in (0..size).step_by(50_021).collect::<Vec<_>>().into_iter().rev() {
                let mut piece = vec![0xee; 300.min(size - from)];
                theirs.read_exact_at(&mut piece, from as u64).unwrap();
                assert!(piece == ours[from..from + piece.len()], "{path} from {from}");
            }
        }
    }
}

#[test]
fn how_many_threads_compress_changes_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_sample(&source);
    let tree = scan(&source, &ScanOptions::default()).unwrap();
    let bytes = |threads| {
        let path = folder.path().join("image");
        compressed(&tree, threads, &path);
        fs::read(path).unwrap()
    };
    let one = bytes(1);
    assert!([2, 3, 16].into_iter().all(|threads| bytes(threads) == one));
}

#[test]
fn a_layer_becomes_its_own_copy_and_its_compressed_form() {
    let folder = tempfile::tempdir().unwrap();
    let [source, plain, copy, direct, packed] =
        ["source", "plain", "copy", "direct", "packed"].map(|name| folder.path().join(name));
    make_sample(&source);
    let tree = scan(&source, &ScanOptions::default()).unwrap();
    write(&tree, File::create(&plain).unwrap(), &WriteOptions::default()).unwrap();
    let file = File::open(&plain).unwrap();
    let layer = Layer::open(View::whole(&file).unwrap()).unwrap();
    let again = tree_of(&layer, &plain).unwrap();
    write(&again, File::create(&copy).unwrap(), &WriteOptions::default()).unwrap();
    assert!(fs::read(&plain).unwrap() == fs::read(&copy).unwrap());
    let packed_file = compressed(&again, 2, &packed);
    compressed(&tree, 2, &direct);
    assert!(fs::read(&packed).unwrap() == fs::read(&direct).unwrap());
    let packed_layer = Layer::open(View::whole(&packed_file).unwrap()).unwrap();
    assert!(packed_layer.compressed && !layer.compressed);
    assert_eq!(packed_layer.file_bytes().unwrap(), layer.file_bytes().unwrap());
    assert!(matches!(tree_of(&packed_layer, &packed), Err(CopyError::Read(_))));
}

#[test]
fn what_can_not_become_smaller_stays_plain() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make_sample(&source);
    let tree = scan(&source, &ScanOptions::default()).unwrap();
    let file = compressed(&tree, 2, &folder.path().join("image"));
    let layer = Layer::open(View::whole(&file).unwrap()).unwrap();
    for size in sizes() {
        let is_plain = |kind: &str| {
            let inode = layer.find(&format!("{kind}/{size}")).unwrap().unwrap();
            layer.content(&inode).unwrap().plain().is_some()
        };
        assert!(is_plain("noise"), "{size}");
        // What has one block takes one, whatever is in it.
        assert_eq!(["text", "zeroes", "mixed"].map(is_plain), [size <= BLOCK_SIZE; 3], "{size}");
    }
}

#[test]
fn files_of_more_than_4_gib_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("huge");
    let size = (4 << 30) + 3 * EXTENT_SIZE as u64 + 17;
    make_huge(&source, size);
    let mut tree = Tree::new(Mtime::default());
    tree.insert(b"huge", Node::new(Kind::File(Source::Path { path: source, size }), 0o644, Mtime::default())).unwrap();
    let image = folder.path().join("image");
    let layer = compressed(&tree, 4, &image);
    assert!(layer.metadata().unwrap().len() < size / 30);
    let mounted = Mount::new("erofs", "ro", &image, folder.path().join("mounted"));
    assert_huge(&mounted.path().join("huge"), size);
}

#[test]
fn a_file_that_changes_or_is_too_large_stops_all_threads() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..40 {
        fs::write(folder.path().join(format!("{n:02}")), text(100_000 + n, n)).unwrap();
    }
    let tree = scan(folder.path(), &ScanOptions::default()).unwrap();
    fs::write(folder.path().join("17"), b"shorter").unwrap();
    fs::remove_file(folder.path().join("23")).unwrap();
    let options = WriteOptions { compress: NonZero::new(4), ..WriteOptions::default() };
    for _ in 0..10 {
        let error = write(&tree, Cursor::new(Vec::new()), &options).unwrap_err();
        // The first one in the order of names, whichever thread came first.
        assert!(matches!(error, WriteError::Source(SourceError::Changed { .. })), "{error}");
    }
    let mut tree = Tree::new(Mtime::default());
    let huge = Kind::File(Source::Path { path: "/nowhere".into(), size: u64::MAX });
    tree.insert(b"huge", Node::new(huge, 0o600, Mtime::default())).unwrap();
    let error = write(&tree, Cursor::new(Vec::new()), &options).unwrap_err();
    assert!(matches!(error, WriteError::Layout(LayoutError::TooLargeToCompress)), "{error}");
}

/// The last name is a compressed file of several extents, the last of two blocks. With the place of its index, which no
/// checksum covers, and of its data.
fn victim(path: &Path) -> (File, Vec<u8>, u64, u64) {
    let content = [text(2 * EXTENT_SIZE, 1), noise(EXTENT_SIZE, 2), text(5000, 3)].concat();
    let mut tree = Tree::new(Mtime::default());
    for number in 0..50 {
        tree.insert(format!("before/{number}").as_bytes(), Node::new(Kind::Fifo, 0o644, Mtime::default())).unwrap();
    }
    let node = Node::new(Kind::File(Source::Bytes(content.clone())), 0o644, Mtime::default());
    tree.insert(b"file", node).unwrap();
    let file = compressed(&tree, 1, path);
    let layer = Layer::open(View::whole(&file).unwrap()).unwrap();
    let inode = layer.find("file").unwrap().unwrap();
    let index = inode.nid * format::SLOT_SIZE + (format::INODE_SIZE + format::MAP_HEADER.len()) as u64;
    assert!(index > 4096 + 16);
    let mut head = [0; 8];
    file.read_exact_at(&mut head, index).unwrap();
    let data = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]])) * BLOCK_SIZE as u64;
    (file, content, index, data)
}

/// Reads all and gives the last file's content.
fn last(file: &File) -> Result<Vec<u8>, ReadError> {
    contents(file).map(|mut all| all.pop().unwrap().1)
}

#[test]
fn no_byte_of_an_index_leads_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (file, content, index, data) = victim(&folder.path().join("layer"));
    assert!(last(&file).unwrap() == content);
    let end = index + content.len().div_ceil(BLOCK_SIZE) as u64 * 8;
    assert!(end <= data);
    for flip in Flips::new(&file, index - 16..end) {
        let at = flip.at;
        assert!(flip.judge(|| last(&file)).is_err(), "byte {at} of the index was not missed");
    }
    // What the superblock says of compression, with its checksum made right.
    let mut first = [0; BLOCK_SIZE];
    file.read_exact_at(&mut first, 0).unwrap();
    for at in (1024 + 80..1024 + 86).chain(1152..1160) {
        for value in [0, 1, 2, 4, 0x7f, 0xff].into_iter().filter(|value| *value != first[at]) {
            let mut block = first;
            block[at] = value;
            let sum = format::checksum(&block);
            block[1028..1032].copy_from_slice(&sum.to_le_bytes());
            file.write_all_at(&block, 0).unwrap();
            assert!(last(&file).is_err(), "byte {at} of value {value}");
        }
    }
    file.write_all_at(&first, 0).unwrap();
    assert!(last(&file).unwrap() == content);
}

#[test]
fn frames_that_are_not_what_they_should_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, content, index, data) = victim(&folder.path().join("layer"));
    let mut second = [0; 8];
    file.read_exact_at(&mut second, index + 8).unwrap();
    let length = usize::from(second[4]) * BLOCK_SIZE;
    let mut good = vec![0; length];
    file.read_exact_at(&mut good, data).unwrap();
    let frame = good[good.iter().position(|byte| *byte != 0).unwrap()..].to_vec();
    // A frame in place of the first extent's; whether it was taken.
    let taken = |frame: &[u8]| {
        assert!(frame.len() <= length && frame.len() > length - BLOCK_SIZE, "{} of {length}", frame.len());
        let padded = [vec![0; length - frame.len()], frame.to_vec()].concat();
        file.write_all_at(&padded, data).unwrap();
        let found = last(&file);
        file.write_all_at(&good, data).unwrap();
        found.is_ok()
    };
    assert!(taken(&frame));
    // Its begin is cut off, or its end; something stands behind it.
    assert!(!taken(&frame[1..]) && !taken(&frame[..frame.len() - 1]));
    let room = length - frame.len();
    for tail in [&zstd::bulk::compress(b"", 3).unwrap()[..], &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], b"x", &[0]] {
        assert!(tail.len() <= room && !taken(&[&frame[..], tail].concat()), "{tail:x?}");
    }
    // What unpacks to less or to more.
    assert!(!taken(&zstd::bulk::compress(&noise(length - 100, 9), 3).unwrap()));
    for size in [EXTENT_SIZE - 1, EXTENT_SIZE + 1] {
        assert!(!taken(&zstd::bulk::compress(&text(size, 1), LEVEL).unwrap()), "{size}");
    }
    // A frame that does not tell its size, of blocks of one repeated byte that make 128 KiB each: over a GiB. The same,
    // once, and with a window of 2 GiB.
    let block = |last: u32| {
        let [a, b, c, _] = (last | 1 << 1 | (128 << 10) << 3_u32).to_le_bytes();
        [a, b, c, b'!']
    };
    for window in [7 << 3, 21 << 3] {
        let header = [0x28, 0xb5, 0x2f, 0xfd, 0, window];
        let blocks = (length - header.len()) / 4;
        assert!(!taken(&[&header[..], &block(0).repeat(blocks - 1), &block(1)].concat()));
    }
    assert!(!taken(&noise(length, 3)));
    // Most damages of what is packed can't be told from other content; none is a panic, and sizes stay.
    for flip in Flips::new(&file, (data..data + length as u64).step_by(37)) {
        let found = flip.judge(|| last(&file));
        assert!(found.is_err() || found.is_ok_and(|found| found.len() == content.len()));
    }
    // Padding of a whole block, behind which the kernel does not look.
    let small = zstd::bulk::compress(&vec![7; EXTENT_SIZE], 3).unwrap();
    file.write_all_at(&[vec![0; length - small.len()], small].concat(), data).unwrap();
    assert!(last(&file).is_err());
}

#[test]
fn extents_can_not_share_blocks_or_be_counted_wrongly() {
    let folder = tempfile::tempdir().unwrap();
    let (file, content, index, _) = victim(&folder.path().join("layer"));
    let head = |extent: u64| index + extent * (EXTENT_SIZE / BLOCK_SIZE) as u64 * 8;
    let block_of = |extent: u64| {
        let mut entry = [0; 8];
        file.read_exact_at(&mut entry, head(extent)).unwrap();
        u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]])
    };
    for extent in 0..4 {
        let good = block_of(extent);
        for block in [block_of((extent + 1) % 4), 0, good - 1, good + 1, u32::MAX] {
            file.write_all_at(&block.to_le_bytes(), head(extent) + 4).unwrap();
            // Of the plain extent only the first block's place is another then.
            assert!(last(&file).is_err(), "extent {extent} at {block}");
        }
        file.write_all_at(&good.to_le_bytes(), head(extent) + 4).unwrap();
    }
    assert!(last(&file).unwrap() == content);
    // How many blocks all have, in the inode.
    let counted = index - (format::INODE_SIZE + format::MAP_HEADER.len()) as u64 + 16;
    let mut count = [0; 4];
    file.read_exact_at(&mut count, counted).unwrap();
    let good = u32::from_le_bytes(count);
    for count in [good - 1, good + 1, 0, u32::MAX] {
        file.write_all_at(&count.to_le_bytes(), counted).unwrap();
        assert!(last(&file).is_err(), "{count} blocks");
    }
}
