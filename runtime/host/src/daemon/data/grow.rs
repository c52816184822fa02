//! The data partition grows to its disk, online, and costs nothing once it has: the second partition table, the first,
//! the protective MBR, the kernel's idea of the partition, the file system. A cut anywhere leaves a disk that boots,
//! and the next boot goes on from there: each step looks at what is, not at what was done.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rackstick_image::gpt::{
    grow::{Growth, Write},
    read::Disk,
};
use rackstick_linux::ext4;

use super::resize::{self, SuperBlock};

/// `/sys/class/block/*/size` counts in these, whatever the disk.
const SYSFS_SECTOR: u64 = 512;

/// Why it did not grow. It serves at the size it has.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step failed.
    #[error(
        "the data partition {} can't grow to its disk, it stays as large as it is: can't {what}: {source}",
        device.display()
    )]
    Step {
        /// The partition.
        device: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes of the file system before.
    pub before: u64,
    /// Bytes of the file system now.
    pub now: u64,
    /// The partition that lies behind it, so that it can't grow.
    pub hindered_by: Option<u32>,
}

/// A partition as sysfs shows it.
struct Partition {
    disk: PathBuf,
    sector: u64,
    number: u32,
    size: u64,
}

/// Makes the mounted data partition as large as its disk. `begins` is called before the first change with the size that
/// is aimed at, in bytes, and not at all if nothing is to be done.
pub fn grow(device: &Path, mounted: &Path, begins: impl Fn(u64)) -> Result<Outcome, Error> {
    let step = |what| move |source| Error::Step { device: device.to_owned(), what, source };
    let partition = Partition::of(device).map_err(step("find its disk"))?;
    let disk = File::open(&partition.disk).map_err(step("open its disk"))?;
    let begun = std::cell::Cell::new(false);
    let begin = |aim| {
        if !begun.replace(true) {
            begins(aim);
        }
    };

    let growth = growth(&disk, &partition).map_err(step("read its disk's partition table"))?;
    let length = growth.as_ref().map_or(partition.size, |growth| growth.length.max(partition.size));
    if let Some(growth) = &growth {
        if !growth.writes.is_empty() {
            begin(length);
            let disk = File::options().write(true).open(&partition.disk).map_err(step("open its disk for writing"))?;
            apply(&disk, &growth.writes).map_err(step("write its disk's partition table"))?;
        }
        if length > partition.size {
            begin(length);
            resize::partition(&disk, partition.number, growth.start, length)
                .map_err(step("tell the kernel the partition's new size"))?;
        }
    }

    let super_block = || SuperBlock::read(&File::open(device)?)?.ok_or_else(|| io::Error::other("it is no ext4"));
    let found = super_block().map_err(step("read its superblock"))?;
    let wanted = found.blocks_in(length);
    let mut now = found;
    if wanted > found.blocks {
        begin(length);
        let folder = File::open(mounted).map_err(step("open its root folder"))?;
        ext4::grow(&folder, wanted).map_err(step("make its file system larger"))?;
        now = super_block().map_err(step("read its superblock"))?;
    }
    let bytes = |super_block: SuperBlock| super_block.blocks.saturating_mul(super_block.block_size);
    Ok(Outcome { before: bytes(found), now: bytes(now), hindered_by: growth.and_then(|growth| growth.hindered_by) })
}

fn growth(disk: &File, partition: &Partition) -> io::Result<Option<Growth>> {
    let Some(disk) = Disk::new(disk, partition.sector)? else { return Ok(None) };
    let Some(table) = disk.table()? else { return Ok(None) };
    disk.growth(&table, partition.number)
}

/// Each write is on the disk before the next begins.
fn apply(disk: &File, writes: &[Write]) -> io::Result<()> {
    for Write { at, bytes } in writes {
        disk.write_all_at(bytes, *at)?;
        disk.sync_all()?;
    }
    Ok(())
}

impl Partition {
    fn of(device: &Path) -> io::Result<Self> {
        let name = device.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = fs::canonicalize(Path::new("/sys/class/block").join(name))?;
        let above = folder.parent().ok_or(io::ErrorKind::NotFound)?;
        let disk = above.file_name().ok_or(io::ErrorKind::NotFound)?;
        let number =
            |path: PathBuf| -> io::Result<u64> { fs::read_to_string(path)?.trim().parse().map_err(io::Error::other) };
        Ok(Self {
            disk: Path::new("/dev").join(disk),
            sector: number(above.join("queue/logical_block_size"))?,
            number: u32::try_from(number(folder.join("partition"))?).map_err(io::Error::other)?,
            size: number(folder.join("size"))?.saturating_mul(SYSFS_SECTOR),
        })
    }
}
