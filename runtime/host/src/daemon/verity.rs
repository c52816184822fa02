//! fs-verity on a file of the data partition: switching it on and asking for the digest. Follows Linux,
//! `include/uapi/linux/fsverity.h`.

use std::{fs::File, io};

use rackstick_image::digest::VerityDigest;
use rustix::{
    io::Errno,
    ioctl::{Opcode, Setter, Updater, ioctl, opcode},
};

const FS_VERITY_HASH_ALG_SHA256: u32 = 1;
/// Size of blocks and of the Merkle tree's, always this.
const BLOCK_SIZE: u32 = 4096;
const SHA256_SIZE: u16 = 32;

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// `struct fsverity_digest` with room for the digest, which the opcode's size does not count.
#[repr(C)]
struct Digest {
    digest_algorithm: u16,
    digest_size: u16,
    digest: [u8; SHA256_SIZE as usize],
}

const FS_IOC_ENABLE_VERITY: Opcode = opcode::write::<EnableArg>(b'f', 133);
const FS_IOC_MEASURE_VERITY: Opcode = opcode::read_write::<[u16; 2]>(b'f', 134);

/// Switches fs-verity on: reads the whole file once. Already on is fine. The file must not be open for writing.
pub fn enable(file: &File) -> io::Result<()> {
    let argument = EnableArg {
        version: 1,
        hash_algorithm: FS_VERITY_HASH_ALG_SHA256,
        block_size: BLOCK_SIZE,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    // SAFETY: the opcode takes a struct fsverity_enable_arg, which EnableArg is, and reads it only.
    match unsafe { ioctl(file, Setter::<FS_IOC_ENABLE_VERITY, EnableArg>::new(argument)) } {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The digest of a file that has fs-verity on; none if it has not.
pub fn measure(file: &File) -> io::Result<Option<VerityDigest>> {
    let mut digest = Digest { digest_algorithm: 0, digest_size: SHA256_SIZE, digest: [0; SHA256_SIZE as usize] };
    // SAFETY: the opcode takes a struct fsverity_digest and writes at most `digest_size` bytes behind its head, for
    // which Digest has room.
    match unsafe { ioctl(file, Updater::<FS_IOC_MEASURE_VERITY, Digest>::new(&mut digest)) } {
        Ok(()) if digest.digest_algorithm == FS_VERITY_HASH_ALG_SHA256 as u16 && digest.digest_size == SHA256_SIZE => {
            Ok(Some(VerityDigest(digest.digest)))
        }
        Ok(()) => Err(io::Error::other(format!(
            "its fs-verity digest is of algorithm {} with {} bytes, not SHA-256",
            digest.digest_algorithm, digest.digest_size
        ))),
        Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
