//! A guest's volume as it is before its first use: an empty ext4 with a journal. Only ever written here; what a guest
//! has made of it is read by that guest's own kernel and by nobody else.

use std::{cell::RefCell, fs::File};

use mkext4::{FsBuilder, InodeCount, Options};

use crate::ext4::{Ext4Error, Sink};

/// Least size in MiB: below it the journal would be a large part of it.
pub const SIZE_MIN_MIB: u32 = 32;
/// Most in MiB, 8 TiB: the file system's block numbers have 32 bits, and so do those of the file below.
pub const SIZE_MAX_MIB: u32 = 8 << 20;
/// Longest name of a volume: the serial number by which a guest finds it (`VIRTIO_BLK_ID_BYTES` of virtio 1.2, 5.2.6).
pub const NAME_MAX: usize = 20;

/// A fresh file system is at most so big; the guest grows it to its volume. Making it takes the same moment for any
/// volume, and growing is tried by every first start of a big one.
const FRESH_MAX: u64 = 1 << 30;
/// One inode for so many bytes, as mke2fs has it: volumes hold mail and web pages as well as databases.
const BYTES_PER_INODE: u64 = 16 << 10;
/// Blocks of the journal by the size of the volume, as mke2fs has it up to 64 MiB.
const JOURNALS: [(u64, u32); 4] = [(128 << 20, 1024), (1 << 30, 4096), (2 << 30, 8192), (u64::MAX, 16384)];

/// Writes a fresh file system for a volume of `size` bytes into `file`, which must be empty or a hole, and gives it
/// that size. `epoch`: the time of its making, in seconds since 1970.
///
/// # Errors
/// [`Ext4Error`]: also where `size` is not one that [`SIZE_MIN_MIB`] and [`SIZE_MAX_MIB`] allow.
pub fn write(file: &File, size: u64, uuid: [u8; 16], epoch: i64) -> Result<(), Ext4Error> {
    let fresh = size.min(FRESH_MAX);
    let mut options = Options::new(fresh, uuid, epoch);
    options.journal_blocks = JOURNALS.iter().find(|(below, _)| size < *below).map(|(_, blocks)| *blocks);
    options.inodes = InodeCount::Exact(u32::try_from(fresh / BYTES_PER_INODE).unwrap_or(u32::MAX));
    // What the recipe gives is the guest's to use.
    options.reserved_percent = 0;
    let layout = FsBuilder::new(options)?.seal()?;
    file.set_len(size)?;
    layout.writer(Sink { disk: file, start: 0, origin: &RefCell::new(None), written: &|_| () })?.finish()?;
    Ok(())
}

/// Whether `length` is that of a volume's file: made by [`write`], perhaps grown since.
pub fn is_length(length: u64) -> bool {
    const MIB: u64 = 1 << 20;
    length.is_multiple_of(MIB) && (u64::from(SIZE_MIN_MIB)..=u64::from(SIZE_MAX_MIB)).contains(&(length / MIB))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::testing::{Mount, run};

    const MIB: u64 = 1 << 20;

    fn make(folder: &Path, size: u64) -> std::path::PathBuf {
        let path = folder.join(format!("{}-mib", size / MIB));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        write(&file, size, [7; 16], 1_700_000_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        assert!(is_length(size));
        path
    }

    #[test]
    fn a_fresh_volume_of_any_size_is_whole_for_e2fsck_and_small_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        for mib in [SIZE_MIN_MIB, 127, 128, 256, 1023, 1024, 1025, 4096, SIZE_MAX_MIB] {
            let path = make(folder.path(), u64::from(mib) * MIB);
            let name = path.to_str().unwrap();
            run("e2fsck", ["-fn", name]);
            let used = std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512;
            assert!(used < MIB, "{mib} MiB: {used} bytes used");
        }
    }

    #[test]
    fn the_kernel_mounts_it_empty_and_writes_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = make(folder.path(), 64 * 1024 * MIB);
        let mounted = Mount::new("ext4", "rw,errors=remount-ro", &path, folder.path().join("mounted"));
        let names =
            |folder: &Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let found: Vec<_> = names(mounted.path());
        assert_eq!(found, ["lost+found"]);
        std::fs::write(mounted.path().join("new"), "the guest writes here").unwrap();
        drop(mounted);
        run("e2fsck", ["-fn", path.to_str().unwrap()]);
    }

    #[test]
    fn only_lengths_that_a_volume_can_have_are_a_volumes() {
        for length in [0, 1, 4096, 31 * MIB, 32 * MIB + 512, (u64::from(SIZE_MAX_MIB) + 1) * MIB, u64::MAX] {
            assert!(!is_length(length), "{length}");
        }
        assert!(is_length(32 * MIB) && is_length(u64::from(SIZE_MAX_MIB) * MIB));
    }
}
