//! FAT32's fixed structures: boot sector, FSInfo and the allocation tables, for one size of file system.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Size of the ESP in bytes: room for the hosts of many generations. Sparse, so an image pays only for what is in it.
pub const SIZE: u64 = 1 << 30;
const SECTOR_SIZE: u64 = 512;
/// Bytes of a cluster: what Microsoft's table gives for this size; the 261,000 clusters are well above the 65,525 that make
/// a FAT32 file system.
pub(super) const CLUSTER_SIZE: u64 = 4096;
const SECTORS_PER_CLUSTER: u64 = CLUSTER_SIZE / SECTOR_SIZE;
const SECTORS: u64 = SIZE / SECTOR_SIZE;
const FATS: u64 = 2;
/// Entries for all clusters, even if the tables themselves took none.
const FAT_SECTORS: u64 = ((SECTORS / SECTORS_PER_CLUSTER + 2) * 4).div_ceil(SECTOR_SIZE);
/// At least 32, and so many that clusters lie on 4 KiB boundaries.
const RESERVED_SECTORS: u64 = (32 + FATS * FAT_SECTORS).next_multiple_of(SECTORS_PER_CLUSTER) - FATS * FAT_SECTORS;
const FIRST_DATA_SECTOR: u64 = RESERVED_SECTORS + FATS * FAT_SECTORS;
/// Clusters in all.
pub(super) const CLUSTERS: u32 = ((SECTORS - FIRST_DATA_SECTOR) / SECTORS_PER_CLUSTER) as u32;
/// Number of the first cluster, which starts the root directory.
pub(super) const FIRST_CLUSTER: u32 = 2;
const FS_INFO_SECTOR: u16 = 1;
const BACKUP_SECTOR: u16 = 6;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
const MEDIA: u8 = 0xf8;

/// Volume label.
pub(super) const LABEL: [u8; 11] = *b"ESP        ";

/// Clusters that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    /// The first one's number; meaningless where there are none.
    pub(super) first: u32,
    /// How many.
    pub(super) clusters: u32,
}

/// Where a cluster starts, in bytes.
pub(super) fn offset(cluster: u32) -> u64 {
    FIRST_DATA_SECTOR * SECTOR_SIZE + (u64::from(cluster) - u64::from(FIRST_CLUSTER)) * CLUSTER_SIZE
}

/// Writes all that stands before the clusters. `used` clusters from the first on are taken, by `chains`.
pub(super) fn write_head(
    disk: &File,
    start: u64,
    volume_id: u32,
    chains: impl Iterator<Item = Chain>,
    used: u32,
) -> io::Result<()> {
    let boot = boot_sector(volume_id, start);
    let info = fs_info(used);
    for base in [0, BACKUP_SECTOR] {
        let at = start + u64::from(base) * SECTOR_SIZE;
        disk.write_all_at(&boot, at)?;
        disk.write_all_at(&info, at + u64::from(FS_INFO_SECTOR) * SECTOR_SIZE)?;
    }
    let mut entries = vec![0; (FIRST_CLUSTER + used) as usize];
    entries[0] = END_OF_CHAIN & !0xff | u32::from(MEDIA);
    entries[1] = END_OF_CHAIN; // cleanly unmounted, no errors
    for Chain { first, clusters } in chains.filter(|chain| chain.clusters > 0) {
        let last = first + clusters - 1;
        (first..last).for_each(|cluster| entries[cluster as usize] = cluster + 1);
        entries[last as usize] = END_OF_CHAIN;
    }
    let fat: Vec<u8> = entries.iter().flat_map(|entry: &u32| entry.to_le_bytes()).collect();
    for number in 0..FATS {
        disk.write_all_at(&fat, start + (RESERVED_SECTORS + number * FAT_SECTORS) * SECTOR_SIZE)?;
    }
    Ok(())
}

fn boot_sector(volume_id: u32, start: u64) -> [u8; SECTOR_SIZE as usize] {
    let mut sector = [0; SECTOR_SIZE as usize];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x58, 0x90]); // BS_jmpBoot
    put(3, b"RACKSTCK"); // BS_OEMName
    put(11, &(SECTOR_SIZE as u16).to_le_bytes()); // BPB_BytsPerSec
    put(13, &[SECTORS_PER_CLUSTER as u8]); // BPB_SecPerClus
    put(14, &(RESERVED_SECTORS as u16).to_le_bytes()); // BPB_RsvdSecCnt
    put(16, &[FATS as u8]); // BPB_NumFATs
    put(21, &[MEDIA]); // BPB_Media
    put(24, &63_u16.to_le_bytes()); // BPB_SecPerTrk
    put(26, &255_u16.to_le_bytes()); // BPB_NumHeads
    put(28, &u32::try_from(start / SECTOR_SIZE).unwrap_or(0).to_le_bytes()); // BPB_HiddSec
    put(32, &(SECTORS as u32).to_le_bytes()); // BPB_TotSec32
    put(36, &(FAT_SECTORS as u32).to_le_bytes()); // BPB_FATSz32
    put(44, &FIRST_CLUSTER.to_le_bytes()); // BPB_RootClus
    put(48, &FS_INFO_SECTOR.to_le_bytes()); // BPB_FSInfo
    put(50, &BACKUP_SECTOR.to_le_bytes()); // BPB_BkBootSec
    put(64, &[0x80]); // BS_DrvNum
    put(66, &[0x29]); // BS_BootSig: the next three are there
    put(67, &volume_id.to_le_bytes()); // BS_VolID
    put(71, &LABEL); // BS_VolLab
    put(82, b"FAT32   "); // BS_FilSysType
    put(510, &[0x55, 0xaa]);
    sector
}

fn fs_info(used: u32) -> [u8; SECTOR_SIZE as usize] {
    let mut sector = [0; SECTOR_SIZE as usize];
    let mut put = |at: usize, value: u32| sector[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, 0x4161_5252); // FSI_LeadSig
    put(484, 0x6141_7272); // FSI_StrucSig
    put(488, CLUSTERS - used); // FSI_Free_Count
    put(492, FIRST_CLUSTER + used); // FSI_Nxt_Free
    put(508, 0xaa55_0000); // FSI_TrailSig
    sector
}
