//! Reader of a data partition that somebody else may have written: where a file's bytes lie, and its fs-verity
//! metadata. Knows only what the builder writes; what a rack has mounted since may have more features, and a journal
//! that is not empty. On-disk format: Linux, Documentation/filesystems/ext4/. mkext4 has a reader too, for its own
//! tests: it trusts sizes.

use mkext4::csum;

use super::{BLOCK_SIZE, BLOCKS_PER_GROUP, INODE_SIZE, verity};
use crate::{
    guid::Guid,
    view::{ReadError, View, ensure},
};

/// What is said of a file system whose journal has to be replayed.
pub const UNCLEAN: &str = "a rack runs on it, or was not switched off cleanly: its journal is not empty";
/// `EXT4_FEATURE_INCOMPAT_*`: filetype, extents, flex_bg.
const KNOWN_FEATURES: u32 = 0x2 | 0x40 | 0x200;
/// `EXT4_FEATURE_INCOMPAT_RECOVER`.
const RECOVER: u32 = 0x4;
/// `EXT4_FEATURE_RO_COMPAT_METADATA_CSUM`: all checksums below are there.
const METADATA_CSUM: u32 = 0x400;
const SUPERBLOCK_AT: u64 = 1024;
const MAGIC: u16 = 0xef53;
const DESCRIPTOR_SIZE: u64 = 32;
const ROOT: u32 = 2;
const EXTENTS_FLAG: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
/// Deepest tree of extents that Linux makes (`EXT4_MAX_EXTENT_DEPTH`).
const MAX_DEPTH: u16 = 5;
/// Entries and headers of such a tree have this many bytes.
const EXTENT_SIZE: usize = 12;
/// Most bytes of a directory: 200,000 names of layers.
const MAX_DIRECTORY: u64 = 16 << 20;
const S_IFMT: u16 = 0o170_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFREG: u16 = 0o100_000;
/// `EXT4_FT_DIR_CSUM`: the fake entry at a directory block's end that holds its checksum.
const CHECKSUM_ENTRY: u8 = 0xde;

/// A file system.
#[derive(Debug)]
pub struct Fs<'a> {
    view: View<'a>,
    seed: u32,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    /// Its UUID.
    pub uuid: Guid,
}

#[derive(Debug)]
struct Inode {
    number: u32,
    /// Where it stands.
    at: u64,
    mode: u16,
    size: u64,
    flags: u32,
    generation: u32,
    extents: [u8; 60],
}

/// A regular file.
#[derive(Debug)]
pub struct File<'a> {
    /// Its bytes.
    pub content: View<'a>,
    /// What fs-verity keeps of it; none if that is not on.
    pub verity: Option<Verity<'a>>,
}

/// What fs-verity keeps beside a file's bytes.
#[derive(Debug)]
pub struct Verity<'a> {
    /// The Merkle tree's blocks, the root first.
    pub tree: View<'a>,
    /// `struct fsverity_descriptor`.
    pub descriptor: View<'a>,
}

/// Whether what lies there is an ext4 that somebody has mounted for writing (`s_mtime`).
///
/// # Errors
/// [`ReadError`].
pub fn was_mounted(view: &View<'_>) -> Result<bool, ReadError> {
    let sb: [u8; 1024] = view.array(SUPERBLOCK_AT)?;
    Ok(short(&sb, 0x38) == MAGIC && word(&sb, 0x2c) != 0)
}

impl<'a> Fs<'a> {
    /// Reads the superblock.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(view: View<'a>) -> Result<Self, ReadError> {
        let sb: [u8; 1024] = view.array(SUPERBLOCK_AT)?;
        let require = |holds, what| ensure(holds, SUPERBLOCK_AT, what);
        require(short(&sb, 0x38) == MAGIC, "it has no superblock of ext4")?;
        require(csum::superblock(&sb) == word(&sb, 0x3fc), "its superblock's checksum is wrong")?;
        let (incompat, ro_compat) = (word(&sb, 0x60), word(&sb, 0x64));
        require(incompat & RECOVER == 0, UNCLEAN)?;
        let plain = incompat & !KNOWN_FEATURES == 0 && ro_compat & METADATA_CSUM != 0;
        require(plain, "it has features that a new image has not: a rack has used it")?;
        let geometry = word(&sb, 0x14) == 0
            && word(&sb, 0x18) == BLOCK_SIZE.trailing_zeros() - 10
            && u64::from(word(&sb, 0x20)) == BLOCKS_PER_GROUP
            && u64::from(short(&sb, 0x58)) == INODE_SIZE;
        require(geometry, "its superblock is none that Rackstick writes")?;
        let (blocks, inodes, inodes_per_group) = (u64::from(word(&sb, 0x04)), word(&sb, 0x00), word(&sb, 0x28));
        require(blocks > 0 && blocks * BLOCK_SIZE <= view.length(), "it says that it is larger than its partition")?;
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let possible = (1..=BLOCKS_PER_GROUP).contains(&u64::from(inodes_per_group))
            && u64::from(inodes) <= groups * u64::from(inodes_per_group);
        require(possible, "it says that it has more inodes than there can be")?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&sb[0x68..0x78]);
        Ok(Self { seed: csum::fs_seed(&uuid), uuid: Guid(uuid), blocks, inodes, inodes_per_group, view })
    }

    /// Whether what no file needs is as its checksums say: copies of the superblock, group descriptors, bitmaps.
    ///
    /// # Errors
    /// [`ReadError`]: the first fault that there is.
    pub fn check(&self) -> Result<(), ReadError> {
        /// `EXT4_BG_INODE_UNINIT`, `EXT4_BG_BLOCK_UNINIT`: the bitmap is not there yet.
        const INODE_UNINIT: u16 = 1;
        const BLOCK_UNINIT: u16 = 2;
        for group in 0..self.blocks.div_ceil(BLOCKS_PER_GROUP) {
            if group > 0 && verity::has_superblock(group) {
                let at = group * BLOCKS_PER_GROUP * BLOCK_SIZE;
                let sb: [u8; 1024] = self.view.array(at)?;
                ensure(csum::superblock(&sb) == word(&sb, 0x3fc), at, "a copy of the superblock is damaged")?;
            }
            let descriptor = self.descriptor(group)?;
            let flags = short(&descriptor, 0x12);
            let bitmap = |field: usize| self.block(u64::from(word(&descriptor, field)));
            if flags & BLOCK_UNINIT == 0 {
                let (at, bytes) = bitmap(0x00)?;
                let sound = csum::block_bitmap(self.seed, &bytes) == short(&descriptor, 0x18);
                ensure(sound, at, "a bitmap of blocks is damaged")?;
            }
            if flags & INODE_UNINIT == 0 {
                let (at, bytes) = bitmap(0x04)?;
                let sound = csum::inode_bitmap(self.seed, &bytes, self.inodes_per_group) == short(&descriptor, 0x1a);
                ensure(sound, at, "a bitmap of inodes is damaged")?;
            }
        }
        Ok(())
    }

    /// The names of the regular files in a directory, sorted; none if it is not there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn files(&self, path: &str) -> Result<Vec<String>, ReadError> {
        self.names(path, S_IFREG)
    }

    /// The names of the directories in a directory, sorted; none if it is not there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn directories(&self, path: &str) -> Result<Vec<String>, ReadError> {
        self.names(path, S_IFDIR)
    }

    fn names(&self, path: &str, kind: u16) -> Result<Vec<String>, ReadError> {
        let Some(directory) = self.resolve(path)? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for (name, number) in self.entries(&directory)? {
            let inode = self.inode(number)?;
            if inode.mode & S_IFMT == kind {
                let name = String::from_utf8(name);
                names.push(name.map_err(|_| ReadError::Damaged { at: inode.at, what: "a name is no text" })?);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The file at `path`, without slashes around it; none if it is not there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn file(&self, path: &str) -> Result<Option<File<'a>>, ReadError> {
        let Some(inode) = self.resolve(path)? else { return Ok(None) };
        ensure(inode.mode & S_IFMT == S_IFREG, inode.at, "it is no regular file")?;
        let stored = self.content(&inode)?;
        let missing = ReadError::Damaged { at: inode.at, what: "it is larger than what is stored of it" };
        let content = stored.part(0, inode.size).ok_or(missing)?;
        if inode.flags & verity::FLAG == 0 {
            return Ok(Some(File { content, verity: None }));
        }
        // The size is that of bytes on the disk, so nothing below leaves 64 bits.
        let (tree_at, tree_size) = (verity::metadata_at(inode.size), crate::verity::tree_size(inode.size));
        let tree = stored.part(tree_at, tree_size);
        let last = stored.part(tree_at + tree_size, BLOCK_SIZE);
        let (Some(tree), Some(last)) = (tree, last.filter(|_| stored.length() == verity::stored_size(inode.size)))
        else {
            return Err(ReadError::Damaged { at: inode.at, what: "its fs-verity metadata is not where it should be" });
        };
        let block: [u8; BLOCK_SIZE as usize] = last.array(0)?;
        let length = crate::verity::DESCRIPTOR_SIZE;
        let rest = block[length..BLOCK_SIZE as usize - 4].iter().all(|byte| *byte == 0);
        let sized = word(&block, BLOCK_SIZE as usize - 4) as usize == length;
        ensure(rest && sized, inode.at, "its fs-verity descriptor is damaged")?;
        let descriptor = last.part(0, length as u64).unwrap_or(last);
        Ok(Some(File { content, verity: Some(Verity { tree, descriptor }) }))
    }

    fn resolve(&self, path: &str) -> Result<Option<Inode>, ReadError> {
        let mut inode = self.inode(ROOT)?;
        for part in path.split('/') {
            let found = self.entries(&inode)?.into_iter().find(|(name, _)| name == part.as_bytes());
            let Some((_, number)) = found else { return Ok(None) };
            inode = self.inode(number)?;
        }
        Ok(Some(inode))
    }

    fn descriptor(&self, group: u64) -> Result<[u8; DESCRIPTOR_SIZE as usize], ReadError> {
        let at = BLOCK_SIZE + group * DESCRIPTOR_SIZE;
        let descriptor = self.view.array(at)?;
        let sound = csum::group_desc(self.seed, group as u32, &descriptor) == short(&descriptor, 0x1e);
        ensure(sound, at, "a group descriptor's checksum is wrong")?;
        Ok(descriptor)
    }

    /// A block, and where it stands.
    fn block(&self, number: u64) -> Result<(u64, [u8; BLOCK_SIZE as usize]), ReadError> {
        ensure(number < self.blocks, 0, "it names a block that is not there")?;
        let at = number * BLOCK_SIZE;
        Ok((at, self.view.array(at)?))
    }

    fn inode(&self, number: u32) -> Result<Inode, ReadError> {
        ensure((1..=self.inodes).contains(&number), 0, "it names an inode that is not there")?;
        let (group, index) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let table = u64::from(word(&self.descriptor(u64::from(group))?, 0x08));
        ensure(table < self.blocks, 0, "a table of inodes is not there")?;
        let at = table * BLOCK_SIZE + u64::from(index) * INODE_SIZE;
        let raw: [u8; INODE_SIZE as usize] = self.view.array(at)?;
        let generation = word(&raw, 0x64);
        let stored = u32::from(short(&raw, 0x7c)) | u32::from(short(&raw, 0x82)) << 16;
        let sound = short(&raw, 0x80) >= 4 && csum::inode(self.seed, number, generation, &raw) == stored;
        ensure(sound, at, "an inode's checksum is wrong")?;
        let size = u64::from(word(&raw, 0x04)) | u64::from(word(&raw, 0x6c)) << 32;
        let mut extents = [0; 60];
        extents.copy_from_slice(&raw[0x28..0x64]);
        Ok(Inode { number, at, mode: short(&raw, 0x00), size, flags: word(&raw, 0x20), generation, extents })
    }

    /// All that is stored of a file or directory, in whole blocks. Holes are refused: the builder leaves none.
    fn content(&self, inode: &Inode) -> Result<View<'a>, ReadError> {
        ensure(inode.flags & EXTENTS_FLAG != 0, inode.at, "it has no extents")?;
        let mut content = self.view.nothing();
        self.extents(inode, inode.at, &inode.extents, None, &mut content)?;
        Ok(content)
    }

    /// Adds what the node of a tree of extents stands for; `depth`: what it must say of its own height. The recursion
    /// ends: heights fall, and every node adds something, of which there is no more than the file system has.
    fn extents(
        &self,
        inode: &Inode,
        at: u64,
        node: &[u8],
        depth: Option<u16>,
        content: &mut View<'a>,
    ) -> Result<(), ReadError> {
        let require = |holds, what| ensure(holds, at, what);
        let (entries, height) = (short(node, 2), short(node, 6));
        let room = node.len() / EXTENT_SIZE - 1;
        require(short(node, 0) == EXTENT_MAGIC && usize::from(entries) <= room, "a node of extents is damaged")?;
        require(
            height <= depth.unwrap_or(MAX_DEPTH) && depth.is_none_or(|depth| height == depth),
            "extents are nested wrongly",
        )?;
        // Only an empty file has none.
        require(entries > 0 || depth.is_none(), "a node of extents is empty")?;
        for entry in node.chunks_exact(EXTENT_SIZE).skip(1).take(usize::from(entries)) {
            let next = content.length() / BLOCK_SIZE;
            require(u64::from(word(entry, 0)) == next, "extents overlap or leave a hole")?;
            if height > 0 {
                let block = u64::from(word(entry, 4)) | u64::from(short(entry, 8)) << 32;
                let (at, bytes) = self.block(block)?;
                let seed = csum::inode_seed(self.seed, inode.number, inode.generation);
                let sound = csum::extent_block(seed, &bytes) == word(&bytes, bytes.len() - 4);
                ensure(sound, at, "a block of extents has the wrong checksum")?;
                self.extents(inode, at, &bytes[..bytes.len() - 4], Some(height - 1), content)?;
            } else {
                let length = u64::from(short(entry, 4));
                let start = u64::from(word(entry, 8)) | u64::from(short(entry, 6)) << 32;
                require((1..=32768).contains(&length), "an extent is empty or was never written")?;
                require(start + length <= self.blocks, "an extent leaves the file system")?;
                require(next + length <= self.blocks, "a file is larger than its file system")?;
                let part = self.view.part(start * BLOCK_SIZE, length * BLOCK_SIZE);
                content.append(&part.ok_or(ReadError::Damaged { at, what: "an extent leaves the partition" })?)?;
            }
        }
        Ok(())
    }

    /// A directory's names with their inodes, without `.` and `..`. The index of a large one looks like empty entries.
    fn entries(&self, directory: &Inode) -> Result<Vec<(Vec<u8>, u32)>, ReadError> {
        let Inode { at, mode, size, .. } = *directory;
        ensure(mode & S_IFMT == S_IFDIR, at, "it is no directory")?;
        let content = self.content(directory)?;
        let whole = content.length() == size && size <= MAX_DIRECTORY;
        ensure(whole, at, "a directory is larger than it can be, or than what is stored of it")?;
        let seed = csum::inode_seed(self.seed, directory.number, directory.generation);
        let mut entries = Vec::new();
        for start in (0..size).step_by(BLOCK_SIZE as usize) {
            let block: [u8; BLOCK_SIZE as usize] = content.array(start)?;
            ensure(directory_block(seed, &block), at, "a directory's checksum is wrong")?;
            let mut rest = &block[..];
            while rest.len() >= 8 {
                let (number, length, name_length) = (word(rest, 0), usize::from(short(rest, 4)), usize::from(rest[6]));
                let sane = length >= 8 && length.is_multiple_of(4) && length <= rest.len();
                ensure(sane && (number == 0 || 8 + name_length <= length), at, "a directory's entry is damaged")?;
                let name = &rest[8..8 + name_length.min(length - 8)];
                if number != 0 && !matches!(name, b"." | b"..") {
                    entries.push((name.to_vec(), number));
                }
                rest = &rest[length..];
            }
        }
        Ok(entries)
    }
}

/// Whether a directory block's checksum is right: at its end, or among an index's entries.
fn directory_block(seed: u32, block: &[u8; BLOCK_SIZE as usize]) -> bool {
    let tail = &block[block.len() - 12..];
    if word(tail, 0) == 0 && short(tail, 4) == 12 && tail[6] == 0 && tail[7] == CHECKSUM_ENTRY {
        return csum::dirent_block(seed, block) == word(tail, 8);
    }
    // `struct dx_root` has its entries behind `.`, `..` and a head of eight bytes, `struct dx_node` behind one empty
    // entry.
    let count_at = if word(block, 0) == 0 { 0x08 } else { 0x20 };
    let (limit, count) = (short(block, count_at), short(block, count_at + 2));
    let tail = count_at + usize::from(limit) * 8;
    let fits = count <= limit && tail + 8 <= block.len();
    fits && csum::dx_block(seed, block, count_at, count, limit) == word(block, tail + 4)
}

/// The number at `at`; 0 behind the end, where no caller looks.
fn short(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).map_or(0, u16::from_le_bytes)
}

/// As [`short`].
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{
        ext4::{Data, DataFile, write},
        guid,
        source::Source,
        testing::{Flips, run},
        verity::digest,
    };

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    const SIZES: [usize; 4] = [0, 1, 4097, 600_003];

    fn make(path: &Path, many: usize) -> fs::File {
        let file = |source: Source| {
            let verity = digest(source.reader().unwrap()).unwrap();
            DataFile { mode: 0o444, source, verity: Some(verity.into()) }
        };
        let mut files: std::collections::BTreeMap<String, DataFile> =
            SIZES.map(|size| (format!("layers/{size}"), file(Source::Bytes(bytes(size))))).into();
        let plain = DataFile { mode: 0o444, source: Source::Bytes(b"{}".to_vec()), verity: None };
        files.insert("generations/1/manifest.json".into(), plain);
        // So many names that the directory has an index.
        files.extend((0..many).map(|n| (format!("layers/{n:0>64}"), file(Source::Bytes(bytes(n))))));
        let uuid = guid::derive(&[b"test"]);
        let directories = [("volumes".to_owned(), 0o700)].into();
        let data = Data { uuid, label: "data".into(), epoch: 1_700_000_000, directories, files };
        let disk = fs::File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        disk.set_len(data.size()).unwrap();
        write(&disk, 0, &data, &|_| ()).unwrap();
        disk
    }

    /// A file's name, bytes and Merkle tree.
    type Found = (String, Vec<u8>, Option<Vec<u8>>);

    /// All that is in it.
    fn read(disk: &fs::File) -> Result<Vec<Found>, ReadError> {
        let fs = Fs::open(View::whole(disk).unwrap())?;
        fs.check()?;
        let mut found = Vec::new();
        for folder in ["layers", "generations/1", "volumes", "nowhere"] {
            for name in fs.files(folder)? {
                let file = fs.file(&format!("{folder}/{name}"))?.unwrap();
                let tree = file.verity.map(|verity| verity.tree.bytes(1 << 20)).transpose()?;
                found.push((name, file.content.bytes(1 << 24)?, tree));
            }
        }
        Ok(found)
    }

    #[test]
    fn what_was_written_is_read_back_with_its_merkle_trees() {
        let folder = tempfile::tempdir().unwrap();
        for many in [0, 700] {
            let disk = make(&folder.path().join("data"), many);
            let found = read(&disk).unwrap();
            assert_eq!(found.len(), SIZES.len() + many + 1);
            let find = |name: &str| found.iter().find(|(found, ..)| found == name).unwrap();
            for size in SIZES {
                let (_, content, tree) = find(&size.to_string());
                let mut hasher = crate::verity::Hasher::keeping_the_tree();
                hasher.update(&bytes(size));
                assert!(*content == bytes(size) && tree.as_ref() == Some(&hasher.finish_with_tree().blocks), "{size}");
            }
            let (_, manifest, tree) = find("manifest.json");
            assert!(manifest == b"{}" && tree.is_none());
            let fs = Fs::open(View::whole(&disk).unwrap()).unwrap();
            assert_eq!(fs.directories("generations").unwrap(), ["1"]);
            assert!(fs.files("generations").unwrap().is_empty() && fs.directories("nowhere").unwrap().is_empty());
        }
    }

    #[test]
    fn a_file_of_many_extents_that_the_kernel_and_debugfs_wrote_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let disk = make(&at("data"), 0);
        // Debugfs gives a file what is free, between others' blocks.
        let debugfs = |request: &str| run("debugfs", ["-w", "-R", request, at("data").to_str().unwrap()]);
        fs::write(at("file"), bytes(8192)).unwrap();
        (0..400).for_each(|n| drop(debugfs(&format!("write {} f{n}", at("file").display()))));
        (0..400).step_by(2).for_each(|n| drop(debugfs(&format!("rm f{n}"))));
        fs::write(at("large"), bytes(5_000_000)).unwrap();
        debugfs(&format!("write {} large", at("large").display()));
        let said = debugfs("ex large");
        assert!(said.lines().count() > 5, "{said}");
        let fs = Fs::open(View::whole(&disk).unwrap()).unwrap();
        assert!(fs.file("large").unwrap().unwrap().content.bytes(1 << 24).unwrap() == bytes(5_000_000));
        assert!(fs.file("f1").unwrap().unwrap().content.bytes(1 << 24).unwrap() == bytes(8192));
        assert!(fs.file("f2").unwrap().is_none());
    }

    #[test]
    fn no_byte_of_its_tables_makes_the_reader_panic_and_checksums_tell_nearly_all() {
        let folder = tempfile::tempdir().unwrap();
        let disk = make(&folder.path().join("data"), 0);
        let good = read(&disk).unwrap();
        let fs = Fs::open(View::whole(&disk).unwrap()).unwrap();
        let table = u64::from(word(&fs.descriptor(0).unwrap(), 0x08)) * BLOCK_SIZE;
        let layers = fs.resolve("layers").unwrap().unwrap();
        let entries = fs.content(&layers).unwrap().place(0).unwrap();
        let places = (1024..2048).step_by(3).chain(BLOCK_SIZE..BLOCK_SIZE + DESCRIPTOR_SIZE);
        let places = places.chain((table + 256..table + 512).chain(layers.at..layers.at + 256));
        for flip in Flips::new(&disk, places.chain((entries..entries + 400).step_by(3))) {
            let at = flip.at;
            assert!(flip.judge(|| read(&disk)).is_err(), "byte {at}");
        }
        assert!(read(&disk).unwrap() == good);
        for length in [0, 1024, 4096, table, good.len() as u64] {
            disk.set_len(length).unwrap();
            assert!(read(&disk).is_err(), "{length}");
        }
    }

    /// With checksums that are right, so that what they hide is reached.
    #[test]
    fn no_extent_or_size_that_an_inode_claims_makes_the_reader_panic_or_read_far() {
        use std::os::unix::fs::FileExt;
        let folder = tempfile::tempdir().unwrap();
        let disk = make(&folder.path().join("data"), 0);
        let fs = Fs::open(View::whole(&disk).unwrap()).unwrap();
        let inode = fs.resolve("layers/4097").unwrap().unwrap();
        let good: [u8; 256] = fs.view.array(inode.at).unwrap();
        // Mode, size, flags, then the tree's header and first entry.
        for at in [0x00, 0x01, 0x04, 0x06, 0x20, 0x22, 0x28, 0x2a, 0x2c, 0x2e, 0x34, 0x38, 0x3a, 0x3c, 0x3e, 0x6c, 0x6f]
        {
            for value in [0, 1, 2, 5, 0x7f, 0x80, 0xff] {
                let mut raw = good;
                raw[at] = value;
                let sum = csum::inode(fs.seed, inode.number, inode.generation, &raw).to_le_bytes();
                (raw[0x7c], raw[0x7d], raw[0x82], raw[0x83]) = (sum[0], sum[1], sum[2], sum[3]);
                disk.write_all_at(&raw, inode.at).unwrap();
                if let Ok(Some(file)) = fs.file("layers/4097") {
                    assert!(file.content.length() <= fs.view.length(), "{at:#x} {value}");
                }
            }
        }
    }
}
