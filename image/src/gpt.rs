//! Partition tables: written here, [`read`] and made larger ([`grow`]) where they are found, [`check`]ed as a whole.
//! Follows the UEFI Specification 2.10, chapter 5 "GUID Partition Table (GPT) Disk Layout".

pub mod check;
pub mod grow;
pub mod read;

use std::{collections::BTreeMap, fs::File, io::Seek};

use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition::Partition as Entry, partition_types};
use uuid::Uuid;

use crate::{guid::Guid, sector::SectorSize};

/// Partitions start and end at multiples of this many bytes: flash and RAID stripes work in such units.
pub const ALIGNMENT: u64 = 1 << 20;
/// `{c12a7328-f81f-11d2-ba4b-00a0c93ec93b}` and `{0fc63daf-8483-4772-8e79-3d69d8477de4}`.
const TYPES: [partition_types::Type; 2] = [partition_types::EFI, partition_types::LINUX_FS];

/// Why a partition table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// A partition does not lie on whole alignment units inside the disk, behind the one before.
    #[error(
        "partition `{name}` cannot lie at byte {start} with {size} bytes on a disk of {disk} bytes: units are 1 MiB"
    )]
    Place {
        /// The partition's name.
        name: String,
        /// Its start in bytes.
        start: u64,
        /// Its size in bytes.
        size: u64,
        /// The disk's size in bytes.
        disk: u64,
    },
    /// The table could not be written.
    #[error("cannot write the partition table: {0}")]
    Table(#[from] gpt::GptError),
    /// The protective MBR could not be written.
    #[error("cannot write the protective MBR: {0}")]
    Mbr(#[from] gpt::mbr::MBRError),
    /// The disk could not be written.
    #[error("cannot write the partition table: {0}")]
    Io(#[from] std::io::Error),
}

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// The EFI system partition.
    Esp,
    /// Linux file system data.
    LinuxData,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// What it is for.
    pub kind: Type,
    /// Its own GUID.
    pub guid: Guid,
    /// Its name, at most 36 characters.
    pub name: &'static str,
    /// Where it starts, in bytes, a multiple of [`ALIGNMENT`] from 1 MiB on.
    pub start: u64,
    /// Its size in bytes, a multiple of [`ALIGNMENT`].
    pub size: u64,
}

/// Writes the protective MBR and both copies of the table to a `disk` that already has its size; nothing else is
/// touched.
pub fn write(mut disk: &File, sector: SectorSize, disk_guid: Guid, partitions: &[Partition]) -> Result<(), GptError> {
    let size = disk.metadata()?.len();
    let block = sector.bytes();
    let block_size = match sector {
        SectorSize::B512 => LogicalBlockSize::Lb512,
        SectorSize::B4096 => LogicalBlockSize::Lb4096,
    };
    let mut free = ALIGNMENT;
    let mut entries = BTreeMap::new();
    for (number, partition) in (1..).zip(partitions) {
        let Partition { kind, guid, name, start, size: length } = partition.clone();
        let end = start.checked_add(length).filter(|end| size.checked_sub(ALIGNMENT).is_some_and(|last| *end <= last));
        let aligned = start.is_multiple_of(ALIGNMENT) && length.is_multiple_of(ALIGNMENT) && length > 0;
        let Some(end) = end.filter(|_| aligned && start >= free) else {
            return Err(GptError::Place { name: name.into(), start, size: length, disk: size });
        };
        free = end;
        let entry = Entry {
            part_type_guid: TYPES[kind as usize].clone(),
            part_guid: Uuid::from_bytes(guid.0),
            first_lba: start / block,
            last_lba: end / block - 1,
            flags: 0,
            name: name.into(),
        };
        entries.insert(number, entry);
    }
    disk.rewind()?;
    let last = u32::try_from(size / block - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(last).overwrite_lba0(&mut disk)?;
    let config = GptConfig::new().writable(true).logical_block_size(block_size);
    let mut table = config.create_from_device(disk, Some(Uuid::from_bytes(disk_guid.0)))?;
    table.update_partitions(entries)?;
    table.write()?;
    Ok(())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod places {
    use super::*;
    use crate::guid;

    #[test]
    fn partitions_that_overlap_or_leave_the_disk_are_errors() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(16 << 20).unwrap();
        let at =
            |start, size| Partition { kind: Type::LinuxData, guid: guid::derive(&[b"p"]), name: "data", start, size };
        let mib = ALIGNMENT;
        assert!(write(&disk, SectorSize::B512, guid::derive(&[b"d"]), &[at(mib, mib), at(2 * mib, 13 * mib)]).is_ok());
        for bad in [
            vec![at(0, mib)],
            vec![at(mib, 0)],
            vec![at(mib, mib + 512)],
            vec![at(mib, 15 * mib)],
            vec![at(mib, 3 * mib), at(3 * mib, mib)],
            vec![at(u64::MAX - mib + 1, mib)],
        ] {
            let error = write(&disk, SectorSize::B512, guid::derive(&[b"d"]), &bad).unwrap_err();
            assert!(matches!(error, GptError::Place { .. }), "{bad:?}: {error}");
        }
    }
}
