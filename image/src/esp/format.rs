//! FAT32's fixed structures: boot sector, FSInfo and the allocation tables, for one size of file system.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::sector::SectorSize;

/// Size of the ESP in bytes: room for the hosts of eight generations. Sparse, so an image's file pays only for what is
/// in it, but all of it has to be hashed.
pub const SIZE: u64 = 512 << 20;
/// Bytes of a cluster: what Microsoft's table gives for this size, and at least one sector of any disk; the 130,000
/// clusters are well above the 65,525 that make a FAT32 file system.
pub(super) const CLUSTER_SIZE: u64 = 4096;
const FATS: u64 = 2;
/// Number of the first cluster, which starts the root directory.
pub(super) const FIRST_CLUSTER: u32 = 2;
const FS_INFO_SECTOR: u16 = 1;
const BACKUP_SECTOR: u16 = 6;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
const MEDIA: u8 = 0xf8;
/// What boot sector and FSInfo fill of their sectors, whatever the size of these.
const HEAD_SIZE: usize = 512;

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

/// Where things lie, in sectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    sector_size: u64,
    sectors_per_cluster: u64,
    sectors: u64,
    reserved_sectors: u64,
    fat_sectors: u64,
    /// Clusters in all.
    pub(super) clusters: u32,
}

impl Geometry {
    /// The file system on a disk with such sectors.
    pub(super) fn new(sector: SectorSize) -> Self {
        let sector_size = sector.bytes();
        let sectors_per_cluster = CLUSTER_SIZE / sector_size;
        let sectors = SIZE / sector_size;
        // Entries for all clusters, even if the tables themselves took none.
        let fat_sectors = ((SIZE / CLUSTER_SIZE + 2) * 4).div_ceil(sector_size);
        // At least 32, and so many that clusters lie on 4 KiB boundaries.
        let head = (32 + FATS * fat_sectors).next_multiple_of(sectors_per_cluster);
        let clusters = ((sectors - head) / sectors_per_cluster) as u32;
        let reserved_sectors = head - FATS * fat_sectors;
        Self { sector_size, sectors_per_cluster, sectors, reserved_sectors, fat_sectors, clusters }
    }

    /// Where a cluster starts, in bytes.
    pub(super) fn offset(&self, cluster: u32) -> u64 {
        let first = (self.reserved_sectors + FATS * self.fat_sectors) * self.sector_size;
        first + (u64::from(cluster) - u64::from(FIRST_CLUSTER)) * CLUSTER_SIZE
    }
}

/// Writes all that stands before the clusters. `used` clusters from the first on are taken, by `chains`.
pub(super) fn write_head(
    geometry: &Geometry,
    disk: &File,
    start: u64,
    volume_id: u32,
    chains: impl Iterator<Item = Chain>,
    used: u32,
) -> io::Result<()> {
    let boot = boot_sector(geometry, volume_id, start);
    let info = fs_info(geometry.clusters, used);
    let sector_size = geometry.sector_size;
    for base in [0, BACKUP_SECTOR] {
        let at = start + u64::from(base) * sector_size;
        disk.write_all_at(&boot, at)?;
        disk.write_all_at(&info, at + u64::from(FS_INFO_SECTOR) * sector_size)?;
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
        disk.write_all_at(&fat, start + (geometry.reserved_sectors + number * geometry.fat_sectors) * sector_size)?;
    }
    Ok(())
}

fn boot_sector(geometry: &Geometry, volume_id: u32, start: u64) -> [u8; HEAD_SIZE] {
    let mut sector = [0; HEAD_SIZE];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x58, 0x90]); // BS_jmpBoot
    put(3, b"RACKSTCK"); // BS_OEMName
    put(11, &(geometry.sector_size as u16).to_le_bytes()); // BPB_BytsPerSec
    put(13, &[geometry.sectors_per_cluster as u8]); // BPB_SecPerClus
    put(14, &(geometry.reserved_sectors as u16).to_le_bytes()); // BPB_RsvdSecCnt
    put(16, &[FATS as u8]); // BPB_NumFATs
    put(21, &[MEDIA]); // BPB_Media
    put(24, &63_u16.to_le_bytes()); // BPB_SecPerTrk
    put(26, &255_u16.to_le_bytes()); // BPB_NumHeads
    put(28, &u32::try_from(start / geometry.sector_size).unwrap_or(0).to_le_bytes()); // BPB_HiddSec
    put(32, &(geometry.sectors as u32).to_le_bytes()); // BPB_TotSec32
    put(36, &(geometry.fat_sectors as u32).to_le_bytes()); // BPB_FATSz32
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

fn fs_info(clusters: u32, used: u32) -> [u8; HEAD_SIZE] {
    let mut sector = [0; HEAD_SIZE];
    let mut put = |at: usize, value: u32| sector[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, 0x4161_5252); // FSI_LeadSig
    put(484, 0x6141_7272); // FSI_StrucSig
    put(488, clusters - used); // FSI_Free_Count
    put(492, FIRST_CLUSTER + used); // FSI_Nxt_Free
    put(508, 0xaa55_0000); // FSI_TrailSig
    sector
}
