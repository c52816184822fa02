//! The on-disk structures, little endian, with the names of Linux' fs/erofs/erofs_fs.h.

use super::{
    BLOCK_SIZE,
    tree::{Device, Kind, Mtime},
};

/// `EROFS_SUPER_OFFSET`: where the superblock starts.
pub(super) const SUPER_OFFSET: usize = 1024;
/// Size of `struct erofs_super_block`.
pub(super) const SUPER_SIZE: usize = 128;
/// `EROFS_SUPER_MAGIC_V1`.
pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`.
pub(super) const COMPAT_SB_CHKSUM: u32 = 0x1;
/// `EROFS_FEATURE_COMPAT_MTIME`: inodes hold mtimes, not ctimes.
pub(super) const COMPAT_MTIME: u32 = 0x2;

/// `EROFS_FEATURE_INCOMPAT_ZERO_PADDING`: what fills a compressed extent up to whole blocks stands before its data.
const INCOMPAT_ZERO_PADDING: u32 = 0x1;
/// `EROFS_FEATURE_INCOMPAT_COMPR_CFGS`, which is `_BIG_PCLUSTER` too: the superblock says how files are compressed, and
/// an extent may have several blocks.
const INCOMPAT_COMPR_CFGS: u32 = 0x2;
/// What layers with compressed files need of their reader.
pub(super) const INCOMPAT_COMPRESSED: u32 = INCOMPAT_ZERO_PADDING | INCOMPAT_COMPR_CFGS;
/// `Z_EROFS_COMPRESSION_ZSTD`.
const ZSTD: u8 = 3;
/// `available_compr_algs` of layers with compressed files.
pub(super) const ALGORITHMS: u16 = 1 << ZSTD;
/// `struct z_erofs_zstd_cfgs` behind its length, which follows the superblock: format 0, and the largest window of any
/// extent as a power of two, less 10.
pub(super) const ZSTD_CONFIG: [u8; 8] = [6, 0, 0, EXTENT_SIZE.trailing_zeros() as u8 - 10, 0, 0, 0, 0];

/// An inode's number is its place in units of this many bytes (`EROFS_ISLOTBITS`).
pub(super) const SLOT_SIZE: u64 = 32;
/// Size of `struct erofs_inode_extended`. The compact form saves half of it, but has no mtime and 16-bit owners; with
/// 64 bytes for each inode, a Debian layer grows by 0.2 %.
pub(super) const INODE_SIZE: usize = 64;
/// Size of `struct erofs_xattr_ibody_header`.
pub(super) const XATTR_HEADER_SIZE: usize = 12;
/// Size of `struct erofs_xattr_entry` without name and value.
pub(super) const XATTR_ENTRY_SIZE: usize = 4;
/// Size of `struct erofs_dirent`.
pub(super) const DIRENT_SIZE: usize = 12;

/// `i_format` of an extended inode whose data are whole blocks (`EROFS_INODE_FLAT_PLAIN`).
pub(super) const FLAT_PLAIN: u16 = 0x1;
/// `i_format` of an extended inode whose last, partial block follows the inode (`EROFS_INODE_FLAT_INLINE`).
pub(super) const FLAT_INLINE: u16 = 0x1 | 2 << 1;

/// `i_format` of an extended inode whose data are compressed, with an index of 8 bytes for each block
/// (`EROFS_INODE_COMPRESSED_FULL`).
pub(super) const COMPRESSED_FULL: u16 = 0x1 | 1 << 1;

/// How much of a file is compressed at once, in bytes: whoever reads any byte of it unpacks what stands before that in
/// the extent. Half of it takes 3.5 % more disk, twice as much 3 % less.
pub(super) const EXTENT_SIZE: usize = 128 << 10;
/// `struct z_erofs_map_header`, with the 8 bytes behind it that nothing uses: `Z_EROFS_ADVISE_BIG_PCLUSTER_1`, zstd,
/// and 4 KiB for each entry of the index.
pub(super) const MAP_HEADER: [u8; 16] = [0, 0, 0, 0, 2, 0, ZSTD, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Size of `struct z_erofs_lcluster_index`.
pub(super) const CLUSTER_SIZE: usize = 8;

/// `struct z_erofs_lcluster_index`: what a block of a file's data is in a compressed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    /// `Z_EROFS_LCLUSTER_TYPE_PLAIN`: from here on not compressed, in this block.
    Plain { block: u32 },
    /// `Z_EROFS_LCLUSTER_TYPE_HEAD1`: an extent begins here, whose compressed data begin in this block.
    Head { block: u32 },
    /// `Z_EROFS_LCLUSTER_TYPE_NONHEAD`: within an extent, so many blocks from its head and from the next.
    Within { head: u16, next: u16 },
    /// The same for the first block behind a head, which says how many blocks the compressed extent has
    /// (`Z_EROFS_LI_D0_CBLKCNT`).
    Second { blocks: u16, next: u16 },
    /// The file ends after so many bytes of this block, with the extent that began before. Written as a plain one
    /// without data.
    End { offset: u16 },
}

/// `Z_EROFS_LI_D0_CBLKCNT`.
const BLOCK_COUNT: u16 = 1 << 11;

impl Cluster {
    pub(super) fn bytes(self) -> [u8; CLUSTER_SIZE] {
        let halves = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let (kind, offset, rest) = match self {
            Self::Plain { block } => (0_u16, 0, block),
            Self::Head { block } => (1, 0, block),
            Self::Within { head, next } => (2, 0, halves(head, next)),
            Self::Second { blocks, next } => (2, 0, halves(blocks | BLOCK_COUNT, next)),
            Self::End { offset } => (0, offset, 0),
        };
        let mut bytes = [0; CLUSTER_SIZE];
        let mut fields = Fields(&mut bytes);
        fields.u16(0, kind);
        fields.u16(2, offset);
        fields.u32(4, rest);
        bytes
    }

    /// The clusters of one extent of `length` bytes, whose `blocks` begin at `block`; with fewer than it would have
    /// uncompressed, it is compressed.
    pub(super) fn of_extent(length: usize, block: u32, blocks: u8) -> impl Iterator<Item = Self> {
        let count = length.div_ceil(BLOCK_SIZE);
        let packed = usize::from(blocks) < count;
        // Whole blocks of data: what an extent has behind them is only the place where it ends.
        let whole = length / BLOCK_SIZE;
        (0..count).map(move |index| match index {
            // An extent has at most 32 blocks, and callers know that all of them are in the layer.
            _ if !packed => Self::Plain { block: block + index as u32 },
            0 => Self::Head { block },
            _ if index == whole => Self::End { offset: (length % BLOCK_SIZE) as u16 },
            1 => Self::Second { blocks: u16::from(blocks), next: (whole - 1) as u16 },
            _ => Self::Within { head: index as u16, next: (whole - index) as u16 },
        })
    }
}

/// The superblock's variable fields.
pub(super) struct SuperBlock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) build_time: Mtime,
    pub(super) blocks: u32,
    pub(super) uuid: [u8; 16],
    pub(super) volume_name: [u8; 16],
    /// Whether files may be compressed.
    pub(super) compressed: bool,
}

impl SuperBlock {
    /// Writes the superblock into the first block, which must hold everything else already: the checksum covers it.
    pub(super) fn put(&self, block: &mut [u8; BLOCK_SIZE]) {
        let mut sb = Fields(&mut block[SUPER_OFFSET..SUPER_OFFSET + SUPER_SIZE]);
        sb.u32(0, MAGIC);
        sb.u32(4, 0); // checksum
        sb.u32(8, COMPAT_SB_CHKSUM | COMPAT_MTIME);
        sb.u8(12, BLOCK_SIZE.trailing_zeros() as u8); // blkszbits
        sb.u16(14, self.root_nid);
        sb.u64(16, self.inodes);
        sb.u64(24, self.build_time.seconds as u64);
        sb.u32(32, self.build_time.nanoseconds);
        sb.u32(36, self.blocks);
        sb.u32(40, 0); // meta_blkaddr: inode numbers count from the start
        sb.u32(44, 0); // xattr_blkaddr: no shared attributes
        sb.0[48..64].copy_from_slice(&self.uuid);
        sb.0[64..80].copy_from_slice(&self.volume_name);
        if self.compressed {
            sb.u32(80, INCOMPAT_COMPRESSED);
            sb.u16(84, ALGORITHMS);
            let behind = SUPER_OFFSET + SUPER_SIZE;
            block[behind..behind + ZSTD_CONFIG.len()].copy_from_slice(&ZSTD_CONFIG);
        }
        let checksum = checksum(block);
        Fields(&mut block[SUPER_OFFSET..]).u32(4, checksum);
    }
}

/// The superblock's checksum: of all that follows it in its block, with the checksum itself as zero.
pub(super) fn checksum(block: &[u8; BLOCK_SIZE]) -> u32 {
    let covered = &block[SUPER_OFFSET..];
    // The kernel's crc32c() starts with all ones and does not invert at the end.
    !crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&covered[..4]), &[0; 4]), &covered[8..])
}

/// `struct erofs_inode_extended`.
pub(super) struct Inode {
    pub(super) format: u16,
    pub(super) xattr_icount: u16,
    pub(super) mode: u16,
    pub(super) size: u64,
    /// `i_u`: first block of the data, how many they are compressed to, or the device's number.
    pub(super) block_or_device: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Mtime,
    pub(super) nlink: u32,
}

impl Inode {
    pub(super) fn put(&self, out: &mut [u8]) {
        let mut inode = Fields(out);
        inode.u16(0, self.format);
        inode.u16(2, self.xattr_icount);
        inode.u16(4, self.mode);
        inode.u64(8, self.size);
        inode.u32(16, self.block_or_device);
        inode.u32(20, self.number);
        inode.u32(24, self.uid);
        inode.u32(28, self.gid);
        inode.u64(32, self.mtime.seconds as u64);
        inode.u32(40, self.mtime.nanoseconds);
        inode.u32(44, self.nlink);
    }
}

/// `struct erofs_dirent`.
pub(super) fn put_dirent(out: &mut [u8], nid: u64, name_offset: u16, file_type: u8) {
    let mut dirent = Fields(out);
    dirent.u64(0, nid);
    dirent.u16(8, name_offset);
    dirent.u8(10, file_type);
}

/// `S_IFMT` bits of `i_mode`.
pub(super) fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice(_) => 0o020_000,
        Kind::Directory => 0o040_000,
        Kind::BlockDevice(_) => 0o060_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::Socket => 0o140_000,
    }
}

/// `file_type` of a directory entry (`EROFS_FT_*`).
pub(super) fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory => 2,
        Kind::CharDevice(_) => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

/// Linux' `new_encode_dev`.
pub(super) fn encode_device(device: Device) -> u32 {
    device.minor & 0xff | device.major << 8 | (device.minor & !0xff) << 12
}

/// Linux' `new_decode_dev`.
pub(super) fn decode_device(encoded: u32) -> Device {
    Device { major: encoded >> 8 & 0xfff, minor: encoded & 0xff | encoded >> 12 & !0xff }
}

/// Fields at fixed offsets of a structure.
struct Fields<'a>(&'a mut [u8]);

impl Fields<'_> {
    fn u8(&mut self, at: usize, value: u8) {
        self.0[at] = value;
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}
