//! What mkext4 does not know of fs-verity: the file system's feature, and files for which it is on from the start, so
//! that a rack need not read and hash its layers before it can use them. On-disk format: Linux, fs/ext4/verity.c, and
//! Documentation/filesystems/ext4/ ("Index Nodes", "Super Block").

use std::{
    fs::{self, File},
    io::{self, Cursor, Read},
    os::unix::fs::FileExt,
};

use mkext4::{
    csum,
    reader::{self, Fs},
};

use super::{BLOCK_SIZE, BLOCKS_PER_GROUP, Data, Ext4Error, INODE_SIZE, Measured};
use crate::{
    digest::VerityDigest,
    verity::{Hasher, Tree, tree_size},
};

/// The metadata begins at the next multiple of this past the file's end: the largest page that Linux knows of.
const METADATA_ALIGNMENT: u64 = 64 << 10;
/// `EXT4_VERITY_FL`.
pub(super) const FLAG: u32 = 0x0010_0000;

/// Where the Merkle tree of a file of `size` bytes begins, in bytes of the file.
pub(super) fn metadata_at(size: u64) -> u64 {
    size.next_multiple_of(METADATA_ALIGNMENT)
}

/// Bytes that ext4 stores for a file of `size` bytes: the file, its Merkle tree, and one block with the descriptor at
/// its begin and the descriptor's size in its last four bytes.
pub(super) fn stored_size(size: u64) -> u64 {
    metadata_at(size) + tree_size(size) + BLOCK_SIZE
}

impl Measured {
    /// The tree of a file of `size` bytes and the file's CRC-32C, if the hashes of its blocks are at hand and are those
    /// of its digest.
    pub(super) fn known(&self, size: u64) -> Option<(Tree, u32)> {
        let kept = self.kept.as_ref()?;
        // Whatever is wrong with them, the file itself has all that is needed.
        let leaves = fs::read(&kept.leaves).ok()?;
        let tree = Tree::of_leaves(size, &leaves).filter(|tree| tree.digest == self.digest)?;
        Some((tree, kept.crc))
    }
}

/// Where a file's tree comes from.
enum Hashing {
    /// Its bytes, as they are read.
    Now(Hasher),
    /// It is known, if the bytes have the checksum that they had then.
    Before { tree: Box<Tree>, then: u32, now: u32 },
}

/// Reads a file as ext4 stores it, hashed on the way unless its tree is known.
pub(super) struct Stored<R> {
    data: R,
    /// None once the file's end was reached.
    hashing: Option<Hashing>,
    size: u64,
    metadata: Cursor<Vec<u8>>,
    digest: Option<VerityDigest>,
}

impl<R: Read> Stored<R> {
    pub(super) fn new(data: R, known: Option<(Tree, u32)>) -> Self {
        let hashing = match known {
            Some((tree, then)) => Hashing::Before { tree: Box::new(tree), then, now: 0 },
            None => Hashing::Now(Hasher::keeping_the_tree()),
        };
        Self { data, hashing: Some(hashing), size: 0, metadata: Cursor::default(), digest: None }
    }

    /// The file's digest, once all of it was read.
    pub(super) fn digest(&self) -> Option<VerityDigest> {
        self.digest
    }

    fn end_of_data(&mut self, tree: Tree) {
        let mut bytes = vec![0; (metadata_at(self.size) - self.size) as usize];
        bytes.extend_from_slice(&tree.blocks);
        let mut block = [0; BLOCK_SIZE as usize];
        block[..tree.descriptor.len()].copy_from_slice(&tree.descriptor);
        block[BLOCK_SIZE as usize - 4..].copy_from_slice(&(tree.descriptor.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&block);
        self.metadata = Cursor::new(bytes);
        self.digest = Some(tree.digest);
    }
}

impl<R: Read> Read for Stored<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(mut hashing) = self.hashing.take() {
            let read = self.data.read(buffer);
            if !matches!(read, Ok(0)) || buffer.is_empty() {
                let bytes = buffer.get(..*read.as_ref().unwrap_or(&0)).unwrap_or_default();
                match &mut hashing {
                    Hashing::Now(hasher) => hasher.update(bytes),
                    Hashing::Before { now, .. } => *now = crc32c::crc32c_append(*now, bytes),
                }
                self.size += bytes.len() as u64;
                self.hashing = Some(hashing);
                return read;
            }
            self.end_of_data(match hashing {
                Hashing::Now(hasher) => hasher.finish_with_tree(),
                Hashing::Before { tree, then, now } if then == now => *tree,
                Hashing::Before { .. } => {
                    return Err(io::Error::other("it is no longer what it was when it was hashed"));
                }
            });
        }
        self.metadata.read(buffer)
    }
}

/// Gives the inodes of files with fs-verity their flag and their size without the metadata.
pub(super) fn switch_on(disk: &File, start: u64, data: &Data) -> Result<(), Ext4Error> {
    let fs = Fs::open(Partition { disk, start })?;
    let protected = data.files.iter().filter(|(_, file)| file.verity.is_some());
    for (path, file) in protected {
        let failed = |source| Ext4Error::File { path: path.clone(), source };
        let number = fs.resolve(&format!("/{path}")).map_err(failed)?;
        let inode = fs.inode(number).map_err(failed)?;
        let mut raw = fs.inode_raw(number).map_err(failed)?;
        // `i_flags`, `i_size_lo`, `i_size_high`.
        let size = file.source.size();
        put(&mut raw, 0x20, &(inode.flags | FLAG).to_le_bytes());
        put(&mut raw, 0x04, &(size as u32).to_le_bytes());
        put(&mut raw, 0x6c, &((size >> 32) as u32).to_le_bytes());
        // `i_checksum_lo`, `i_checksum_hi`.
        let [a, b, c, d] = csum::inode(fs.fs_seed(), number, inode.generation, &raw).to_le_bytes();
        put(&mut raw, 0x7c, &[a, b]);
        put(&mut raw, 0x82, &[c, d]);

        let (index, per_group) = (u64::from(number) - 1, u64::from(fs.superblock().inodes_per_group));
        let table = fs.group_desc(index / per_group).map_err(failed)?.inode_table;
        disk.write_all_at(&raw, start + table * BLOCK_SIZE + index % per_group * INODE_SIZE)?;
    }
    Ok(())
}

fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
    raw[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The partition as mkext4 reads it.
struct Partition<'a> {
    disk: &'a File,
    start: u64,
}

impl reader::ReadAt for Partition<'_> {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self.disk, buffer, self.start + offset)
    }
}

/// Sets the feature without which `FS_IOC_ENABLE_VERITY` says EOPNOTSUPP, in every copy of the superblock; mkext4
/// cannot.
pub(super) fn add_feature(disk: &File, start: u64, size: u64) -> Result<(), Ext4Error> {
    const SIZE: usize = 1024;
    const MAGIC: usize = 0x38;
    const FEATURE_RO_COMPAT: usize = 0x64;
    const CHECKSUM: usize = 0x3fc;
    const RO_COMPAT_VERITY: u32 = 0x8000;
    let field = |sb: &[u8; SIZE], at: usize| u32::from_le_bytes([sb[at], sb[at + 1], sb[at + 2], sb[at + 3]]);
    // The kernel's crc32c() starts with all ones and does not invert at the end.
    let checksum = |sb: &[u8; SIZE]| !crc32c::crc32c(&sb[..CHECKSUM]);
    for group in 0..size.div_ceil(BLOCKS_PER_GROUP * BLOCK_SIZE) {
        if !has_superblock(group) {
            continue;
        }
        let offset = start + if group == 0 { 1024 } else { group * BLOCKS_PER_GROUP * BLOCK_SIZE };
        let mut sb = [0; SIZE];
        disk.read_exact_at(&mut sb, offset)?;
        if sb[MAGIC..MAGIC + 2] != [0x53, 0xef] || field(&sb, CHECKSUM) != checksum(&sb) {
            return Err(Ext4Error::SuperBlock(offset));
        }
        let features = field(&sb, FEATURE_RO_COMPAT) | RO_COMPAT_VERITY;
        sb[FEATURE_RO_COMPAT..FEATURE_RO_COMPAT + 4].copy_from_slice(&features.to_le_bytes());
        let sum = checksum(&sb);
        sb[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        disk.write_all_at(&sb, offset)?;
    }
    Ok(())
}

/// Feature `sparse_super`: copies in groups 0, 1 and powers of 3, 5 and 7.
pub(super) fn has_superblock(group: u64) -> bool {
    let power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || power_of(3) || power_of(5) || power_of(7)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::fd::AsRawFd};

    use super::*;
    use crate::{
        ext4::{DataFile, Kept},
        guid,
        source::Source,
        testing::run,
        verity,
    };

    fn empty() -> Data {
        let uuid = guid::derive(&[b"test"]);
        Data { uuid, label: "data".into(), epoch: 1_700_000_000, directories: BTreeMap::new(), files: BTreeMap::new() }
    }

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    /// The bytes that ext4 has for a file, to the end of its last block.
    fn stored(disk: &File, path: &str) -> Vec<u8> {
        let fs = Fs::open(disk).unwrap();
        let number = fs.resolve(path).unwrap();
        let mut bytes = Vec::new();
        for extent in fs.extents(number, &fs.inode(number).unwrap()).unwrap() {
            bytes.resize(u64::from(extent.logical) as usize * BLOCK_SIZE as usize, 0);
            for block in extent.physical..extent.physical + u64::from(extent.len) {
                bytes.extend(fs.read_block(block).unwrap());
            }
        }
        bytes
    }

    #[test]
    fn e2fsck_accepts_files_with_fs_verity_and_their_metadata_is_that_of_fsverity_utils() {
        let folder = tempfile::tempdir().unwrap();
        let sizes = [0, 1, 4096, 65_536, 65_537, 300_000, (128 << 12) + 1, 20_000_003];
        let file = |size| {
            let source = Source::Bytes(bytes(size));
            let digest = verity::digest(source.reader().unwrap()).unwrap();
            (format!("layers/{size}"), DataFile { mode: 0o444, source, verity: Some(digest.into()) })
        };
        let data = Data { files: sizes.map(file).into(), ..empty() };
        let image = folder.path().join("data");
        let disk = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
        disk.set_len(data.size()).unwrap();
        super::super::write(&disk, 0, &data, &|_| ()).unwrap();
        run("e2fsck", ["-fn", image.to_str().unwrap()]);

        let at = |name: &str| folder.path().join(name);
        for size in sizes {
            fs::write(at("file"), bytes(size)).unwrap();
            let option = |name: &str, file: &str| format!("--{name}={}", at(file).display());
            let options = ["digest".into(), option("out-merkle-tree", "tree"), option("out-descriptor", "descriptor")];
            run("fsverity", options.iter().map(Into::into).chain([at("file")]));
            let mut expected = bytes(size);
            expected.resize(size.next_multiple_of(65_536), 0);
            expected.extend(fs::read(at("tree")).unwrap());
            let descriptor = fs::read(at("descriptor")).unwrap();
            let mut last = vec![0; 4096];
            last[..descriptor.len()].copy_from_slice(&descriptor);
            last[4092..].copy_from_slice(&u32::try_from(descriptor.len()).unwrap().to_le_bytes());
            expected.extend(last);
            assert!(stored(&disk, &format!("/layers/{size}")) == expected, "{size} bytes");
            let stat = run("debugfs", ["-R", &format!("stat /layers/{size}"), image.to_str().unwrap()]);
            assert!(stat.contains("Flags: 0x180000") && stat.contains(&format!(" Size: {size}\n")), "{stat}");
        }
    }

    #[test]
    fn a_file_that_is_not_what_its_digest_says_is_an_error() {
        let file =
            DataFile { mode: 0o444, source: Source::Bytes(bytes(5000)), verity: Some(VerityDigest([7; 32]).into()) };
        let data = Data { files: [("layers/x".into(), file)].into(), ..empty() };
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(data.size()).unwrap();
        let error = super::super::write(&disk, 0, &data, &|_| ()).unwrap_err();
        assert!(matches!(&error, Ext4Error::Digest { path, .. } if path == "layers/x"), "{error}");
    }

    #[test]
    fn known_hashes_of_blocks_give_the_same_bytes_and_wrong_ones_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let mut hasher = Hasher::keeping_the_tree();
        hasher.update(&bytes(3_000_001));
        let tree = hasher.finish_with_tree();
        let written = |source: Vec<u8>, leaves: Option<&[u8]>| {
            let path = folder.path().join("leaves");
            leaves.iter().for_each(|leaves| fs::write(&path, leaves).unwrap());
            let crc = crc32c::crc32c(&bytes(3_000_001));
            let verity = Some(Measured { digest: tree.digest, kept: leaves.map(|_| Kept { leaves: path, crc }) });
            let file = DataFile { mode: 0o444, source: Source::Bytes(source), verity };
            let data = Data { files: [("layers/x".into(), file)].into(), ..empty() };
            let disk = tempfile::tempfile().unwrap();
            disk.set_len(data.size()).unwrap();
            super::super::write(&disk, 0, &data, &|_| ())
                .map(|()| fs::read(format!("/proc/self/fd/{}", disk.as_raw_fd())).unwrap())
        };
        let leaves = tree.leaves(3_000_001);
        let plain = written(bytes(3_000_001), None).unwrap();
        assert!(written(bytes(3_000_001), Some(leaves)).unwrap() == plain);
        let mut wrong = leaves.to_vec();
        wrong[40] ^= 1;
        let mut other = bytes(3_000_001);
        other[5000] ^= 1;
        // Neither are right ones with other bytes: the file would not fit its tree.
        let error = written(other.clone(), Some(leaves)).unwrap_err();
        assert!(error.to_string().contains("layers/x"), "{error}");
        for leaves in [&wrong[..], &leaves[32..], &[]] {
            assert!(written(bytes(3_000_001), Some(leaves)).unwrap() == plain);
            assert!(matches!(written(other.clone(), Some(leaves)), Err(Ext4Error::Digest { .. })));
        }
    }

    #[test]
    fn copies_of_the_superblock_stand_where_sparse_super_says() {
        let groups: Vec<u64> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }
}
