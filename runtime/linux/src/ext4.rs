//! What ext4 is asked while it is mounted (Linux, fs/ext4/ioctl.c, fs/ext4/sysfs.c).

use std::{fs, io, os::fd::AsFd, path::Path};

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// Bytes of a block: all our file systems have these.
pub const BLOCK: u64 = 4096;

/// `EXT4_IOC_RESIZE_FS` (include/uapi/linux/ext4.h).
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);

/// Grows the mounted file system that `mounted` lies on to `blocks` blocks of its device. Does nothing where it has
/// them already. Every step goes through the journal: a power cut in the middle leaves some size in between, from which
/// it can be grown again.
///
/// # Errors
/// The kernel's: EPERM also where the file system has errors, EINVAL where it is larger already.
pub fn grow(mounted: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: the opcode takes a pointer to a __u64, which it only reads.
    Ok(unsafe { ioctl(mounted, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks)) }?)
}

/// How many errors the kernel has found in the file system on `device` (`vda`), since it was made or last checked.
///
/// # Errors
/// Reading `/sys`: also where no ext4 of that device is mounted.
pub fn errors(device: &str) -> io::Result<u64> {
    let text = fs::read_to_string(Path::new("/sys/fs/ext4").join(device).join("errors_count"))?;
    text.trim().parse().map_err(io::Error::other)
}
