//! What a finished layer is known by: its fs-verity digest, by which everybody names it, and what is needed to use it
//! again without hashing all of it: a checksum, which finds what a disk let rot, and the hashes of its blocks, of which
//! its Merkle tree is made.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use rackstick_image::verity::Hasher;

use super::stage::protocol::Written;

/// Bytes read at once: large enough that system calls do not count, small enough for the second-level cache.
const READ_SIZE: usize = 256 << 10;

/// Reads the layer that was just written to `path`, and writes the hashes of its blocks beside it. Those are no secret
/// and need no care: what uses them compares what comes of them with the digest.
pub fn of(path: &Path) -> io::Result<Written> {
    let (mut hasher, mut crc, mut size) = (Hasher::keeping_the_tree(), 0, 0);
    read(File::open(path)?, |bytes| {
        hasher.update(bytes);
        crc = crc32c::crc32c_append(crc, bytes);
        size += bytes.len() as u64;
    })?;
    let tree = hasher.finish_with_tree();
    fs::write(leaves(path), tree.leaves(size))?;
    Ok(Written { digest: tree.digest, size, crc })
}

/// CRC-32C of what is read.
pub fn crc(from: impl Read) -> io::Result<u32> {
    let mut crc = 0;
    read(from, |bytes| crc = crc32c::crc32c_append(crc, bytes))?;
    Ok(crc)
}

/// Where the hashes of a layer's blocks are, under its last name and that which it had before.
pub fn leaves(path: &Path) -> PathBuf {
    path.with_extension("leaves")
}

fn read(mut from: impl Read, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => each(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
