//! fs-verity file digests: SHA-256, 4096-byte blocks, no salt, as the kernel measures them.
//! Follows Linux, Documentation/filesystems/fsverity.rst, sections "Merkle tree" and "fs-verity descriptor".
//! [`stored`] checks what a file system keeps of them.

pub mod stored;

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use crate::digest::VerityDigest;

/// Size of data blocks and Merkle tree blocks in bytes.
pub const BLOCK_SIZE: usize = 4096;
/// Bytes of one SHA-256 hash.
const HASH_SIZE: usize = 32;
/// Bytes of `struct fsverity_descriptor`.
pub(crate) const DESCRIPTOR_SIZE: usize = 256;
/// Hashes in one tree block.
pub const HASHES_PER_BLOCK: u64 = (BLOCK_SIZE / HASH_SIZE) as u64;
/// Bytes read at once: large enough that system calls do not count, small enough for the second-level cache.
const READ_SIZE: usize = 64 * BLOCK_SIZE;

/// Reads `source` to its end and returns the digest that `FS_IOC_MEASURE_VERITY` gives for a file with these bytes.
pub fn digest(mut source: impl Read) -> io::Result<VerityDigest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes of the Merkle tree of a file of `size` bytes, as ext4 stores it past the file's end (without the descriptor).
pub fn tree_size(size: u64) -> u64 {
    let mut blocks = size.div_ceil(BLOCK_SIZE as u64);
    let mut tree_blocks = 0;
    while blocks > 1 {
        blocks = blocks.div_ceil(HASHES_PER_BLOCK);
        tree_blocks += blocks;
    }
    tree_blocks * BLOCK_SIZE as u64
}

impl Tree {
    /// The hashes of all blocks of a file of `size` bytes, if it has more than one: all that a tree is made of.
    pub fn leaves(&self, size: u64) -> &[u8] {
        let count = size.div_ceil(BLOCK_SIZE as u64);
        let level = count.div_ceil(HASHES_PER_BLOCK) as usize * BLOCK_SIZE;
        let start = self.blocks.len().saturating_sub(level);
        self.blocks[start..].get(..count as usize * HASH_SIZE).unwrap_or_default()
    }

    /// The tree of a file of `size` bytes whose blocks have these hashes; none if that is another number of blocks.
    /// That it is the file's, its digest tells.
    pub fn of_leaves(size: u64, leaves: &[u8]) -> Option<Self> {
        let count = size.div_ceil(BLOCK_SIZE as u64);
        if count < 2 || leaves.len() as u64 != count.checked_mul(HASH_SIZE as u64)? {
            return None;
        }
        let mut hasher = Hasher { size, ..Hasher::keeping_the_tree() };
        leaves.as_chunks().0.iter().for_each(|hash| hasher.push(0, *hash));
        Some(hasher.finish_with_tree())
    }
}

/// The digest of bytes that arrive in pieces; holds one tree block per level, so memory grows with the logarithm of the
/// size, unless the tree is kept, which is 1/127 of it.
#[derive(Debug, Default)]
pub struct Hasher {
    size: u64,
    partial: Vec<u8>,
    levels: Vec<Level>,
    keep_tree: bool,
}

/// One level of the tree.
#[derive(Debug, Default)]
struct Level {
    /// The block that is being filled.
    block: Vec<u8>,
    /// Hashes that this level has had in all.
    hashes: u64,
    /// Blocks that are full, if the tree is kept.
    kept: Vec<u8>,
}

/// All that fs-verity stores beside a file's bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree {
    /// The file's digest.
    pub digest: VerityDigest,
    /// `struct fsverity_descriptor`, without a signature.
    pub descriptor: [u8; DESCRIPTOR_SIZE],
    /// The Merkle tree's blocks, from the root's to the leaves'; [`tree_size`] bytes.
    pub blocks: Vec<u8>,
}

impl Hasher {
    /// A hasher that has seen no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A hasher that has seen no bytes and keeps the Merkle tree.
    pub fn keeping_the_tree() -> Self {
        Self { keep_tree: true, ..Self::default() }
    }

    /// Appends `bytes`.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.size += bytes.len() as u64;
        if !self.partial.is_empty() {
            let taken = bytes.len().min(BLOCK_SIZE - self.partial.len());
            self.partial.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.partial.len() < BLOCK_SIZE {
                return;
            }
            let hash = hash_block(&self.partial);
            self.partial.clear();
            self.push(0, hash);
        }
        let mut blocks = bytes.chunks_exact(BLOCK_SIZE);
        for block in &mut blocks {
            self.push(0, hash_block(block));
        }
        self.partial.extend_from_slice(blocks.remainder());
    }

    /// The digest of all bytes seen.
    pub fn finish(self) -> VerityDigest {
        self.finish_with_tree().digest
    }

    /// The digest of all bytes seen, with the tree if it was kept.
    pub fn finish_with_tree(mut self) -> Tree {
        if !self.partial.is_empty() {
            let hash = hash_block(&self.partial);
            self.push(0, hash);
        }
        let descriptor = descriptor(self.size, self.root());
        let blocks = self.levels.iter().rev().flat_map(|level| &level.kept).copied().collect();
        Tree { digest: VerityDigest(Sha256::digest(descriptor).into()), descriptor, blocks }
    }

    /// Appends a hash to a level, and hashes every block that this fills into the level above.
    fn push(&mut self, mut level: usize, mut hash: [u8; HASH_SIZE]) {
        loop {
            if level == self.levels.len() {
                self.levels.push(Level::default());
            }
            let Level { block, hashes, .. } = &mut self.levels[level];
            block.extend_from_slice(&hash);
            *hashes += 1;
            if block.len() < BLOCK_SIZE {
                return;
            }
            hash = self.levels[level].close(self.keep_tree);
            level += 1;
        }
    }

    /// The root is the only hash of the highest level; an empty file's is all zeroes.
    fn root(&mut self) -> [u8; HASH_SIZE] {
        let mut level = 0;
        while level < self.levels.len() {
            let Level { block, hashes, .. } = &mut self.levels[level];
            if *hashes == 1 {
                let mut root = [0; HASH_SIZE];
                root.copy_from_slice(block);
                return root;
            }
            if !block.is_empty() {
                let hash = self.levels[level].close(self.keep_tree);
                self.push(level + 1, hash);
            }
            level += 1;
        }
        [0; HASH_SIZE]
    }
}

impl Level {
    /// Ends the block that is being filled, with zeroes if it is not full; gives its hash.
    fn close(&mut self, keep: bool) -> [u8; HASH_SIZE] {
        let hash = hash_block(&self.block);
        if keep {
            self.kept.extend_from_slice(&self.block);
            self.kept.resize(self.kept.len().next_multiple_of(BLOCK_SIZE), 0);
        }
        self.block.clear();
        hash
    }
}

/// Hashes a block of up to 4096 bytes as if zeroes followed it.
fn hash_block(block: &[u8]) -> [u8; HASH_SIZE] {
    const ZEROES: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
    let mut sha = Sha256::new();
    sha.update(block);
    sha.update(&ZEROES[block.len()..]);
    sha.finalize().into()
}

/// `struct fsverity_descriptor` (little endian).
fn descriptor(size: u64, root: [u8; HASH_SIZE]) -> [u8; DESCRIPTOR_SIZE] {
    let mut descriptor = [0; DESCRIPTOR_SIZE];
    descriptor[0] = 1; // version
    descriptor[1] = 1; // hash_algorithm: FS_VERITY_HASH_ALG_SHA256
    descriptor[2] = BLOCK_SIZE.trailing_zeros() as u8; // log_blocksize
    descriptor[8..16].copy_from_slice(&size.to_le_bytes());
    descriptor[16..16 + HASH_SIZE].copy_from_slice(&root);
    descriptor
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    /// Bytes whose blocks differ: the period is no multiple of the block size.
    fn bytes(size: usize) -> Vec<u8> {
        let period: Vec<u8> = (0..100_003_usize).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut bytes = period.repeat(size.div_ceil(period.len()));
        bytes.truncate(size);
        bytes
    }

    #[test]
    fn digests_equal_those_of_fsverity_utils() {
        let folder = tempfile::tempdir().unwrap();
        let block = BLOCK_SIZE;
        let mut sizes = vec![0, 1, block - 1, block, block + 1, 2 * block, 127 * block, 128 * block - 1, 128 * block];
        sizes.extend([128 * block + 1, 129 * block, 256 * block, 257 * block + 7, 5 << 20, (9 << 20) + 4095]);
        // A full second level, one block less and one byte more.
        sizes.extend([(64 << 20) - block, 64 << 20, (64 << 20) + 1]);
        for size in sizes {
            let bytes = bytes(size);
            let path = folder.path().join(size.to_string());
            fs::write(&path, &bytes).unwrap();
            let output = Command::new("fsverity").args(["digest", "--compact"]).arg(&path).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let theirs: VerityDigest = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
            assert_eq!(digest(bytes.as_slice()).unwrap(), theirs, "{size} bytes");
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn pieces_of_any_size_give_the_same_digest() {
        let bytes = bytes(200 * BLOCK_SIZE + 17);
        let whole = digest(bytes.as_slice()).unwrap();
        for piece in [61, 4095, 4096, 4097, 100_000] {
            let mut hasher = Hasher::new();
            bytes.chunks(piece).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), whole, "pieces of {piece}");
        }
    }

    #[test]
    fn the_tree_has_a_block_for_every_128_blocks_below() {
        assert_eq!(tree_size(0), 0);
        assert_eq!(tree_size(4096), 0);
        assert_eq!(tree_size(4097), 4096);
        assert_eq!(tree_size(128 * 4096 + 1), 3 * 4096);
        assert_eq!(Tree::of_leaves(3 * 4096, &[0; 64]), None, "one hash is missing");
        for size in [0, 1, 4096, 4097, 128 * 4096, 128 * 4096 + 1, 129 * 128 * 4096] {
            let mut hasher = Hasher::keeping_the_tree();
            hasher.update(&bytes(size));
            let tree = hasher.finish_with_tree();
            assert_eq!(tree.blocks.len() as u64, tree_size(size as u64), "{size} bytes");
            let again = Tree::of_leaves(size as u64, tree.leaves(size as u64));
            assert_eq!(again, (size > 4096).then_some(tree), "{size} bytes");
        }
    }
}
