//! Where everything goes. Inodes first, in depth-first order of sorted paths, each followed by its attributes and, for
//! directories and links, its last partial block; then whole blocks of directories and links; then each file's blocks.
//! In layers with compressed files, which are not for DAX, small files stand behind their inodes too. How many blocks a
//! file is compressed to is known only when it is written; room for its index is left behind its inode.

use super::{
    BLOCK_SIZE, TreeError,
    format::{CLUSTER_SIZE, DIRENT_SIZE, INODE_SIZE, MAP_HEADER, SLOT_SIZE, SUPER_OFFSET, SUPER_SIZE, ZSTD_CONFIG},
    tree::{Entry, Index, Kind, ROOT, Tree, show},
    xattr::{self, XattrError},
};

/// Most bytes of indexes of compressed files, since they are in memory until all is written: enough for 64 GiB of
/// files.
const MAX_INDEX: u64 = 128 << 20;

/// Most bytes of small files behind their inodes, for the same reason; further ones have blocks of their own.
const MAX_INLINE: u64 = 64 << 20;

/// Why a tree has no layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// An inode's attributes cannot be stored.
    #[error("/{path}: {source}")]
    Xattr {
        /// The inode's path.
        path: String,
        /// Why.
        source: XattrError,
    },
    /// Block numbers have 32 bits.
    #[error("the layer would have {blocks} blocks of 4 KiB, but 4294967295 (16 TiB) are possible: split it")]
    TooLarge {
        /// Blocks needed.
        blocks: u64,
    },
    /// The indexes of compressed files are in memory.
    #[error("the layer has more than 64 GiB of files, which can't be compressed: leave out `compress`, or split it")]
    TooLargeToCompress,
    /// Inode numbers that other programs see have 32 bits.
    #[error("the layer has {inodes} inodes, but 4294967295 are possible: split it")]
    TooManyInodes {
        /// Inodes in the tree.
        inodes: usize,
    },
    /// Something in the tree is malformed.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// One inode's place.
#[derive(Debug)]
pub(super) struct Placed {
    /// The inode in the tree.
    pub(super) index: Index,
    /// Byte offset of the inode.
    pub(super) offset: u64,
    /// Its attributes as they stand behind it.
    pub(super) xattrs: Vec<u8>,
    /// Size of the data in bytes.
    pub(super) size: u64,
    /// Whether the last `size % BLOCK_SIZE` bytes stand behind the attributes.
    pub(super) inline: bool,
    /// Whether room is left for the index of a compressed file.
    pub(super) indexed: bool,
    /// First whole block of the data; 0 if there is none.
    pub(super) block: u32,
    /// If it is compressed, how many blocks each extent has.
    pub(super) extents: Option<Vec<u8>>,
    /// Subdirectories, for the link count.
    pub(super) subdirectories: u32,
    /// The directory above; the root's is itself.
    pub(super) parent: Index,
}

impl Placed {
    /// Bytes of the data that stand in whole blocks, rounded up.
    fn blocks(&self) -> u64 {
        if self.inline { self.size / BLOCK_SIZE as u64 } else { self.size.div_ceil(BLOCK_SIZE as u64) }
    }

    /// Where the header of the index is.
    pub(super) fn index(&self) -> u64 {
        (self.offset + (INODE_SIZE + self.xattrs.len()) as u64).next_multiple_of(CLUSTER_SIZE as u64)
    }

    /// The inode's number.
    pub(super) fn nid(&self) -> u64 {
        self.offset / SLOT_SIZE
    }
}

/// Places of all inodes.
#[derive(Debug)]
pub(super) struct Layout {
    /// In the order of their offsets; the root first.
    pub(super) placed: Vec<Placed>,
    /// From the tree's index to the place in `placed`.
    pub(super) of_index: Vec<usize>,
    /// Bytes before the first file's block, a multiple of the block size.
    pub(super) head_size: u64,
    /// Blocks in all; of a layer with compressed files, as if none were.
    pub(super) blocks: u32,
}

impl Layout {
    /// Lays out `tree`, leaving room for indexes if files are to be compressed.
    pub(super) fn new(tree: &Tree, compressed: bool) -> Result<Self, LayoutError> {
        let mut layout = Self {
            placed: Vec::with_capacity(tree.inodes()),
            of_index: vec![usize::MAX; tree.inodes()],
            head_size: 0,
            blocks: 0,
        };
        if u32::try_from(tree.inodes()).is_err() {
            return Err(LayoutError::TooManyInodes { inodes: tree.inodes() });
        }
        let end = layout.place_inodes(tree, compressed)?;
        layout.place_blocks(tree, end)?;
        Ok(layout)
    }

    pub(super) fn of(&self, index: Index) -> &Placed {
        &self.placed[self.of_index[index]]
    }

    /// Gives every inode its offset; returns where they end.
    fn place_inodes(&mut self, tree: &Tree, compressed: bool) -> Result<u64, LayoutError> {
        let mut cursor = (SUPER_OFFSET + SUPER_SIZE + if compressed { ZSTD_CONFIG.len() } else { 0 }) as u64;
        let (mut indexes, mut inlined) = (0_u64, 0);
        // (inode, directory above, path). A stack, not recursion: depth comes from archives.
        let mut stack = vec![(ROOT, ROOT, Vec::new())];
        while let Some((index, parent, path)) = stack.pop() {
            if self.of_index[index] != usize::MAX {
                continue; // another name of an inode that has its place
            }
            let entry = tree.entry(index);
            let xattrs =
                xattr::encode(&entry.node.xattrs).map_err(|source| LayoutError::Xattr { path: show(&path), source })?;
            let mut placed = Placed {
                index,
                offset: 0,
                xattrs,
                size: data_size(entry),
                inline: false,
                indexed: false,
                block: 0,
                extents: None,
                subdirectories: 0,
                parent,
            };
            for (name, &child) in entry.children.iter().rev() {
                placed.subdirectories += u32::from(tree.entry(child).node.kind == Kind::Directory);
                let slash = if path.is_empty() { &b""[..] } else { b"/" };
                stack.push((child, index, [&path, slash, name].concat()));
            }
            let is_file = matches!(entry.node.kind, Kind::File(_));
            // One block can't become less.
            placed.indexed = compressed && is_file && placed.size > BLOCK_SIZE as u64;
            let tail = (INODE_SIZE + placed.xattrs.len()) as u64 + placed.size % BLOCK_SIZE as u64;
            placed.inline = !placed.size.is_multiple_of(BLOCK_SIZE as u64) && tail <= BLOCK_SIZE as u64;
            if is_file {
                placed.inline &= compressed && !placed.indexed && inlined + placed.size <= MAX_INLINE;
                inlined += if placed.inline { placed.size } else { 0 };
            }
            if placed.indexed {
                indexes = indexes.saturating_add(index_size(placed.size));
                if indexes > MAX_INDEX {
                    return Err(LayoutError::TooLargeToCompress);
                }
            }
            cursor = place(&mut placed, cursor);
            self.of_index[index] = self.placed.len();
            self.placed.push(placed);
        }
        Ok(cursor)
    }

    /// Gives all data their blocks, after the inodes, which end at `end`.
    fn place_blocks(&mut self, tree: &Tree, end: u64) -> Result<(), LayoutError> {
        let mut next = end.div_ceil(BLOCK_SIZE as u64);
        let is_file = |placed: &Placed| matches!(tree.entry(placed.index).node.kind, Kind::File(_));
        for files in [false, true] {
            if files {
                self.head_size = next * BLOCK_SIZE as u64;
            }
            for placed in self.placed.iter_mut().filter(|placed| is_file(placed) == files) {
                let blocks = placed.blocks();
                if blocks > 0 {
                    placed.block = u32::try_from(next).map_err(|_| LayoutError::TooLarge { blocks: next })?;
                    next = next.saturating_add(blocks);
                }
            }
        }
        self.blocks = u32::try_from(next).map_err(|_| LayoutError::TooLarge { blocks: next })?;
        Ok(())
    }
}

/// Puts an inode at the first fitting place from `cursor` on; returns where it ends.
fn place(placed: &mut Placed, cursor: u64) -> u64 {
    let block_size = BLOCK_SIZE as u64;
    let fixed = INODE_SIZE as u64 + placed.xattrs.len() as u64;
    let tail = placed.size % block_size;
    let length = if placed.inline { fixed + tail } else { fixed };
    let index = if placed.indexed { index_size(placed.size) } else { 0 };
    let mut offset = cursor.next_multiple_of(SLOT_SIZE);
    // What fits into a block stays within one: inline data must, and readers are simpler for the rest.
    if offset % block_size + length.min(block_size) > block_size {
        offset = offset.next_multiple_of(block_size);
    }
    placed.offset = offset;
    if index > 0 { placed.index() + index } else { offset + length }
}

/// Bytes of the index of a compressed file of `size` bytes, with its header.
fn index_size(size: u64) -> u64 {
    MAP_HEADER.len() as u64 + size.div_ceil(BLOCK_SIZE as u64).saturating_mul(CLUSTER_SIZE as u64)
}

fn data_size(entry: &Entry) -> u64 {
    match &entry.node.kind {
        Kind::File(source) => source.size(),
        Kind::Symlink(target) => target.len() as u64,
        Kind::Directory => {
            let blocks = directory_blocks(entry);
            let last = blocks.last().map_or(0, |names| names.iter().map(|(name, _)| DIRENT_SIZE + name.len()).sum());
            ((blocks.len().saturating_sub(1)) * BLOCK_SIZE + last) as u64
        }
        Kind::CharDevice(_) | Kind::BlockDevice(_) | Kind::Fifo | Kind::Socket => 0,
    }
}

/// A directory entry's inode: itself, the one above, or a child.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    This,
    Above,
    Child(Index),
}

/// A directory's entries, `.` and `..` among them, sorted by bytes and cut into blocks.
pub(super) fn directory_blocks(entry: &Entry) -> Vec<Vec<(&[u8], Target)>> {
    let children = || entry.children.iter().map(|(name, &index)| (name.as_slice(), Target::Child(index)));
    let dots = [(&b"."[..], Target::This), (&b".."[..], Target::Above)];
    // Names such as `-` and `+x` sort before the dots, so they are merged in, not put first.
    let before = children().take_while(|(name, _)| *name < b".".as_slice());
    let between = children().filter(|(name, _)| *name > b".".as_slice() && *name < b"..".as_slice());
    let after = children().filter(|(name, _)| *name > b"..".as_slice());
    let all = before.chain([dots[0]]).chain(between).chain([dots[1]]).chain(after);
    let mut blocks: Vec<Vec<(&[u8], Target)>> = Vec::new();
    let mut used = BLOCK_SIZE;
    for (name, target) in all {
        let needed = DIRENT_SIZE + name.len();
        if used + needed > BLOCK_SIZE {
            blocks.push(Vec::new());
            used = 0;
        }
        used += needed;
        if let Some(block) = blocks.last_mut() {
            block.push((name, target));
        }
    }
    blocks
}
