//! The Merkle tree that ext4 keeps of a file, against the file's name and its bytes: says which blocks are not what
//! they were.

use sha2::{Digest, Sha256};

use super::{BLOCK_SIZE, DESCRIPTOR_SIZE, HASH_SIZE, HASHES_PER_BLOCK, descriptor, digest, hash_block};
use crate::{
    digest::VerityDigest,
    ext4::read::Verity,
    view::{ReadError, View},
};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// So many damaged blocks are told by number; more says no more.
pub const MAX_BLOCKS: usize = 8;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The digest of the file's bytes.
    pub digest: VerityDigest,
    /// What is wrong with what is stored beside the bytes.
    pub stored: Option<StoredFault>,
    /// The first [`MAX_BLOCKS`] blocks whose bytes are not those of the tree, if the tree is the one that the name
    /// says.
    pub blocks: Vec<u64>,
}

/// A fault of what is stored beside the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredFault {
    /// The descriptor is not the one that the name is the hash of.
    Descriptor,
    /// This block of the tree is not what the block above says, or the descriptor.
    Tree(u64),
}

/// Compares a file's bytes and its stored tree with the digest that it is named by. Reads each once, and the bytes
/// again only where they are damaged.
///
/// # Errors
/// [`ReadError`] where the disk can't be read.
pub fn check(content: &View<'_>, verity: &Verity<'_>, name: VerityDigest) -> Result<Checked, ReadError> {
    let found = digest(content.reader()).map_err(|source| ReadError::Io { at: 0, source })?;
    let stored = stored_fault(content.length(), verity, name)?;
    let mut blocks = Vec::new();
    if found != name && stored.is_none() && verity.tree.length() > 0 {
        let levels = Levels::new(content.length(), &verity.tree);
        let mut block = [0; BLOCK_SIZE];
        for index in 0..content.length().div_ceil(BLOCK) {
            let block = &mut block[..(content.length() - index * BLOCK).min(BLOCK) as usize];
            content.read_at(block, index * BLOCK)?;
            if hash_block(block) != levels.hash(0, index)? {
                blocks.push(index);
                if blocks.len() == MAX_BLOCKS {
                    break;
                }
            }
        }
    }
    Ok(Checked { digest: found, stored, blocks })
}

fn stored_fault(size: u64, verity: &Verity<'_>, name: VerityDigest) -> Result<Option<StoredFault>, ReadError> {
    let held: [u8; DESCRIPTOR_SIZE] = verity.descriptor.array(0)?;
    let mut root = [0; HASH_SIZE];
    root.copy_from_slice(&held[16..16 + HASH_SIZE]);
    if held != descriptor(size, root) || VerityDigest(Sha256::digest(held).into()) != name {
        return Ok(Some(StoredFault::Descriptor));
    }
    let levels = Levels::new(size, &verity.tree);
    // From the root down: what is wrong is told where it is, not by all that hangs on it.
    for level in (0..levels.starts.len()).rev() {
        let (start, count) = levels.starts[level];
        for index in 0..count {
            let block: [u8; BLOCK_SIZE] = verity.tree.array((start + index) * BLOCK)?;
            let expected = if level + 1 == levels.starts.len() { root } else { levels.hash(level + 1, index)? };
            if hash_block(&block) != expected {
                return Ok(Some(StoredFault::Tree(start + index)));
            }
        }
    }
    Ok(None)
}

/// Where the levels of a tree stand.
struct Levels<'v, 'a> {
    tree: &'v View<'a>,
    /// First block and number of blocks of each, that of the data's hashes first.
    starts: Vec<(u64, u64)>,
}

impl<'v, 'a> Levels<'v, 'a> {
    fn new(size: u64, tree: &'v View<'a>) -> Self {
        let mut counts = Vec::new();
        let mut below = size.div_ceil(BLOCK);
        while below > 1 {
            below = below.div_ceil(HASHES_PER_BLOCK);
            counts.push(below);
        }
        let above = |level: usize| counts[level + 1..].iter().sum();
        Self { tree, starts: (0..counts.len()).map(|level| (above(level), counts[level])).collect() }
    }

    /// The hash that a level has of block `index` below it; hashes fill their blocks, so they follow each other.
    fn hash(&self, level: usize, index: u64) -> Result<[u8; HASH_SIZE], ReadError> {
        self.tree.array(self.starts[level].0 * BLOCK + index * HASH_SIZE as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use super::*;
    use crate::{testing::Flips, verity::Hasher};

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    /// Bytes, tree and descriptor, one after the other.
    fn stored(size: usize) -> (File, VerityDigest) {
        let file = tempfile::tempfile().unwrap();
        let mut hasher = Hasher::keeping_the_tree();
        hasher.update(&bytes(size));
        let tree = hasher.finish_with_tree();
        file.write_all_at(&[&bytes(size), &tree.blocks[..], &tree.descriptor].concat(), 0).unwrap();
        (file, tree.digest)
    }

    fn check_of(file: &File, size: usize, name: VerityDigest) -> Checked {
        let (whole, size) = (View::whole(file).unwrap(), size as u64);
        let tree = whole.length() - size - DESCRIPTOR_SIZE as u64;
        let verity = Verity {
            tree: whole.part(size, tree).unwrap(),
            descriptor: whole.part(size + tree, DESCRIPTOR_SIZE as u64).unwrap(),
        };
        check(&whole.part(0, size).unwrap(), &verity, name).unwrap()
    }

    #[test]
    fn a_flip_anywhere_is_found_where_it_is() {
        for size in [0, 1, 4096, 4097, 600_000, 128 * 128 * 4096 + 5] {
            let (file, name) = stored(size);
            let whole = Checked { digest: name, stored: None, blocks: Vec::new() };
            assert_eq!(check_of(&file, size, name), whole, "{size} bytes");
            let (length, step) = (file.metadata().unwrap().len(), if size > 1 << 20 { 12_345_678 } else { 40_961 });
            let tree = length - size as u64 - DESCRIPTOR_SIZE as u64;
            let places = (0..length).step_by(step).chain((length - DESCRIPTOR_SIZE as u64..length).step_by(31));
            for flip in Flips::new(&file, places) {
                let at = flip.at;
                let found = flip.judge(|| check_of(&file, size, name));
                let expected = if at < size as u64 {
                    let blocks = if size > 4096 { vec![at / 4096] } else { Vec::new() };
                    assert_ne!(found.digest, name, "byte {at}");
                    Checked { digest: found.digest, blocks, ..whole.clone() }
                } else if at < size as u64 + tree {
                    Checked { stored: Some(StoredFault::Tree((at - size as u64) / 4096)), ..whole.clone() }
                } else {
                    Checked { stored: Some(StoredFault::Descriptor), ..whole.clone() }
                };
                assert_eq!(found, expected, "{size} bytes, byte {at}");
            }
        }
    }

    #[test]
    fn another_name_is_a_fault_of_both() {
        let (file, name) = stored(5000);
        let found = check_of(&file, 5000, VerityDigest([7; 32]));
        assert_eq!(found, Checked { digest: name, stored: Some(StoredFault::Descriptor), blocks: Vec::new() });
    }
}
