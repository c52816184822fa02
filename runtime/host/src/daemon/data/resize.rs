//! What growing needs to know and to say of a partition: how large the ext4 file system on it is, and to the kernel how
//! large the partition is now (Linux, include/uapi/linux/blkpg.h).

use std::{ffi::c_void, fs::File, io, os::unix::fs::FileExt};

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

const BLKPG: Opcode = opcode::none(0x12, 105);
const BLKPG_RESIZE_PARTITION: i32 = 3;
const BLKPG_NAME_LENGTH: usize = 64;

/// Where ext4's superblock stands, and the fields that are read of it (Documentation/filesystems/ext4, "Super Block").
const SUPER_BLOCK: u64 = 1024;
const BLOCKS_COUNT_LO: usize = 0x4;
const LOG_BLOCK_SIZE: usize = 0x18;
const MOUNT_TIME: usize = 0x2c;
const MAGIC: usize = 0x38;
const MOUNT_COUNT: usize = 0x34;
const FEATURE_INCOMPAT: usize = 0x60;
const BLOCKS_COUNT_HI: usize = 0x150;
const INCOMPAT_64BIT: u32 = 0x80;
const KBYTES_WRITTEN: usize = 0x178;
const HEAD: usize = 0x180;

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArgument {
    op: i32,
    flags: i32,
    length: i32,
    data: *mut c_void,
}

/// `struct blkpg_partition`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; BLKPG_NAME_LENGTH],
    volume_name: [u8; BLKPG_NAME_LENGTH],
}

/// Tells the kernel a partition's new length in bytes; also while it is mounted.
pub fn partition(disk: &File, number: u32, start: u64, length: u64) -> io::Result<()> {
    let bytes = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let mut partition = BlkpgPartition {
        start: bytes(start)?,
        length: bytes(length)?,
        number: i32::try_from(number).map_err(io::Error::other)?,
        device_name: [0; BLKPG_NAME_LENGTH],
        volume_name: [0; BLKPG_NAME_LENGTH],
    };
    let argument = BlkpgArgument {
        op: BLKPG_RESIZE_PARTITION,
        flags: 0,
        length: size_of::<BlkpgPartition>() as i32,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: the opcode takes a struct blkpg_ioctl_arg, which BlkpgArgument is; `data` points to a struct
    // blkpg_partition that lives until the call returns.
    unsafe { ioctl(disk, Setter::<BLKPG, BlkpgArgument>::new(argument)) }?;
    Ok(())
}

/// What is read of an ext4 file system without mounting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperBlock {
    /// Blocks that it has.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u64,
    /// Whether it can have 2^32 blocks and more.
    pub wide: bool,
    /// How far it was used.
    pub usage: Use,
}

/// How far a file system was used; the one that was used more is the larger. A copy is equal to what it is a copy of
/// until one of them is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Use {
    /// Whether it was ever mounted for writing: has a time of that.
    pub mounted: bool,
    /// What was written to it, in KiB, also by whoever made it. The kernel notes it when it is unmounted and about once
    /// an hour.
    pub written_kib: u64,
    /// How often it was mounted for writing; `e2fsck -f` makes this 0.
    pub mounts: u16,
}

impl SuperBlock {
    /// That of the file system on this partition; none if it is no ext4.
    pub fn read(device: &File) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD];
        match device.read_exact_at(&mut head, SUPER_BLOCK) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let block_size = 1024_u64.checked_shl(word(LOG_BLOCK_SIZE)).filter(|size| *size <= 1 << 16);
        let Some(block_size) = block_size.filter(|_| short(MAGIC) == 0xef53) else { return Ok(None) };
        let wide = word(FEATURE_INCOMPAT) & INCOMPAT_64BIT != 0;
        let high = if wide { u64::from(word(BLOCKS_COUNT_HI)) << 32 } else { 0 };
        let blocks = high | u64::from(word(BLOCKS_COUNT_LO));
        let written_kib = u64::from(word(KBYTES_WRITTEN)) | u64::from(word(KBYTES_WRITTEN + 4)) << 32;
        let usage = Use { written_kib, mounts: short(MOUNT_COUNT), mounted: word(MOUNT_TIME) != 0 };
        Ok(Some(Self { blocks, block_size, wide, usage }))
    }

    /// How many blocks it can have on a partition of this many bytes.
    pub fn blocks_in(&self, bytes: u64) -> u64 {
        let blocks = bytes / self.block_size;
        if self.wide { blocks } else { blocks.min(u64::from(u32::MAX)) }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use super::*;

    #[test]
    fn the_file_system_says_how_large_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for (options, size, wide) in [(&["-O", "^64bit"][..], 64 << 20, false), (&["-O", "64bit"], 48 << 20, true)] {
            let image = folder.path().join(format!("{wide}"));
            File::create(&image).unwrap().set_len(size).unwrap();
            let name = Path::new(&image).to_str().unwrap();
            let mut mke2fs = Command::new("mke2fs");
            let made = mke2fs.args(["-q", "-t", "ext4", "-b", "4096"]).args(options).arg(name).output().unwrap();
            assert!(made.status.success(), "{made:?}");
            let found = SuperBlock::read(&File::open(&image).unwrap()).unwrap().unwrap();
            assert_eq!((found.blocks, found.block_size, found.wide), (size / 4096, 4096, wide));
            assert_eq!((found.usage.mounts, found.usage.mounted), (0, false));
            let said = Command::new("dumpe2fs").args(["-h", name]).output().unwrap();
            let written = format!("{} kB", found.usage.written_kib);
            assert!(
                String::from_utf8_lossy(&said.stdout).contains(&format!("Lifetime writes:          {written}")),
                "{written}"
            );
            // 16 TiB is all that 32 bits can count.
            let most = found.blocks_in(32 << 40);
            assert_eq!(most, if wide { 32 << 28 } else { u64::from(u32::MAX) });
        }
        assert_eq!(SuperBlock::read(&tempfile::tempfile().unwrap()).unwrap(), None);
    }
}
