//! Bytes of layers that the image shares with the files they come from, where the file system of both can do that
//! (reflinks): nothing is copied, and the disk holds them once. copy_file_range(2).

use std::fs::File;

use super::BLOCK_SIZE;
use crate::source::{self, Source};

/// File systems that share whole blocks when they are asked to copy (linux/magic.h): XFS, Btrfs, bcachefs. The others
/// would copy them as we do, but more slowly.
const SHARING: [u64; 3] = [0x5846_5342, 0x9123_683e, 0xca45_1a4e];

/// Whether the file system of `disk` shares blocks.
pub(super) fn can_share(disk: &File) -> bool {
    rustix::fs::fstatfs(disk).is_ok_and(|found| SHARING.contains(&(found.f_type as u64)))
}

/// The file whose bytes are written.
pub(crate) struct Origin {
    file: File,
    at: u64,
    size: u64,
}

impl Origin {
    /// None if the bytes are no whole file's: those are small.
    pub(super) fn of(source: &Source) -> Option<Self> {
        let Source::Path { path, size } = source else { return None };
        // Whatever is wrong with it, who reads it says so.
        Some(Self { file: source::open(path, *size).ok()?, at: 0, size: *size })
    }

    /// The next `length` bytes are all zero.
    pub(super) fn skip(&mut self, length: usize) {
        self.at += length as u64;
    }

    /// Shares as much of the next `length` bytes as can be with byte `to` of `disk` on. How many bytes that are.
    pub(super) fn share(&mut self, length: usize, disk: &File, to: u64) -> usize {
        let left = self.size.saturating_sub(self.at).min(length as u64);
        let wanted = (left - left % BLOCK_SIZE) as usize;
        let (mut from, mut to) = (self.at, to);
        let mut shared = 0;
        while shared < wanted {
            match rustix::fs::copy_file_range(&self.file, Some(&mut from), disk, Some(&mut to), wanted - shared) {
                // The rest is written.
                Ok(0) | Err(_) => break,
                Ok(copied) => shared += copied,
            }
        }
        self.skip(length);
        shared
    }
}
