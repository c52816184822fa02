//! Free blocks of an ext4 file system. Linux, Documentation/filesystems/ext4/: "Super Block", "Block Group
//! Descriptors", "Block and Inode Bitmaps".

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use super::{Runs, u16_at, u32_at};

/// Where the superblock stands, and its size.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK: usize = 1024;
const MAGIC: u16 = 0xef53;
/// `s_state`: it was unmounted, and has no errors.
const CLEAN: u16 = 1;
/// Features of `s_feature_incompat` that leave bitmaps what they are: filetype, extents, 64bit, flex_bg, csum_seed. A
/// journal that must be replayed (recover) is not among them.
const INCOMPAT: u32 = 0x2 | 0x40 | INCOMPAT_64BIT | 0x200 | 0x2000;
const INCOMPAT_64BIT: u32 = 0x80;
/// `s_feature_ro_compat`: a bit of a bitmap stands for several blocks.
const BIGALLOC: u32 = 0x200;
/// `bg_flags`: there is no bitmap yet.
const BLOCK_UNINIT: u16 = 0x2;
/// The least blocks of a group that mke2fs takes. Stops an image that would have its every block looked up.
const LEAST_PER_GROUP: u64 = 256;

/// What is free, in bytes from the disk's begin; none if the partition holds no ext4 that is understood.
pub(super) fn free(image: &File, partition: &Range<u64>) -> io::Result<Option<Vec<Range<u64>>>> {
    let length = partition.end - partition.start;
    let mut sb = [0; SUPERBLOCK];
    if length < SUPERBLOCK_AT + SUPERBLOCK as u64 {
        return Ok(None);
    }
    image.read_exact_at(&mut sb, partition.start + SUPERBLOCK_AT)?;
    let incompat = u32_at(&sb, 96);
    let (log_block, per_group) = (u32_at(&sb, 24), u64::from(u32_at(&sb, 32)));
    if u16_at(&sb, 56) != MAGIC
        || u16_at(&sb, 58) != CLEAN
        || incompat & !INCOMPAT != 0
        || u32_at(&sb, 100) & BIGALLOC != 0
        || log_block > 6
    {
        return Ok(None);
    }
    let block = 1024u64 << log_block;
    let first = u64::from(u32_at(&sb, 20));
    let wide = incompat & INCOMPAT_64BIT != 0;
    let high = if wide { u64::from(u32_at(&sb, 336)) << 32 } else { 0 };
    let blocks = u64::from(u32_at(&sb, 4)) | high;
    let descriptor = if wide { usize::from(u16_at(&sb, 254)) } else { 32 };
    let fits = blocks.checked_mul(block).is_some_and(|bytes| bytes <= length) && first < blocks;
    let groups_sane = (LEAST_PER_GROUP..=block * 8).contains(&per_group);
    if !fits || !groups_sane || !(if wide { 64 } else { 32 }..=1024).contains(&descriptor) {
        return Ok(None);
    }
    let groups = (blocks - first).div_ceil(per_group);
    // Descriptors follow the superblock's block.
    let descriptors_at = (first + 1) * block;
    let mut runs = Runs::default();
    let (mut entry, mut bitmap) = (vec![0; descriptor], vec![0; block as usize]);
    for group in 0..groups {
        let at = descriptors_at + group * descriptor as u64;
        if at + descriptor as u64 > length {
            return Ok(None);
        }
        image.read_exact_at(&mut entry, partition.start + at)?;
        if u16_at(&entry, 18) & BLOCK_UNINIT != 0 {
            continue;
        }
        let high = if wide { u64::from(u32_at(&entry, 32)) << 32 } else { 0 };
        let bitmap_block = u64::from(u32_at(&entry, 0)) | high;
        if bitmap_block >= blocks {
            return Ok(None);
        }
        image.read_exact_at(&mut bitmap, partition.start + bitmap_block * block)?;
        let start = first + group * per_group;
        for index in 0..per_group.min(blocks - start) {
            if bitmap[(index / 8) as usize] & 1 << (index % 8) == 0 {
                runs.add(partition.start + (start + index) * block, block);
            }
        }
    }
    Ok(Some(runs.0))
}
