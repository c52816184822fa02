//! Reads qcow2 images, versions 2 and 3: QEMU's `docs/interop/qcow2.rst`. All of it is hostile: places are compared
//! with the file's length, tables have limits, and what would be read from other files is refused. All numbers have
//! their highest byte first.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
};

use rackstick_image::packed::{PackedError, Writer, is_size};
use ruzstd::decoding::StreamingDecoder;

/// How every image begins.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Largest table of the first level in bytes, as QEMU has it: stops a header that fills the memory.
const L1_MAX: u64 = 32 << 20;
/// Bits of a cluster's size, as the specification has them: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// How often the clusters of a disk may be larger than its file, once they are larger than [`SMALL_BYTES`]: stops a
/// small file whose tables name the same cluster, or a compressed one of nothing, millions of times.
const MAX_RATIO: u64 = 100;
/// Disks with so much on them are taken whatever their ratio.
const SMALL_BYTES: u64 = 1 << 30;
/// Longest name of another file that is told, in bytes (the specification has 1023).
const NAME_MAX: u64 = 1023;

/// Length of the header of version 2, and the least of version 3.
const HEADER_2: usize = 72;
const HEADER_3: usize = 104;
/// Bits of an entry that are a place in the file.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// Of an entry of the second level: it is compressed; it reads as zeroes.
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Incompatible features: a wrong reference count harms no reader, the kind of compression is read, all others are
/// refused.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// The header extension with the name of the external data file.
const DATA_FILE_NAME: u32 = 0x4441_5441;
/// The smallest unit of compressed data.
const SECTOR: u64 = 512;

/// Why an image can't be taken. Each is said behind the file's name.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The file can't be read.
    #[error("can't be read: {0}")]
    Read(#[from] io::Error),
    /// The packed disk can't be written.
    #[error("can't be packed: {0}")]
    Write(#[from] PackedError),
    /// Another version.
    #[error("is qcow2 of version {0}; versions 2 and 3 are known: convert it with `qemu-img convert -O qcow2`")]
    Version(u32),
    /// It stands on another image.
    #[error(
        "has a backing file, `{0}`, without which it is no whole disk: make it one with `qemu-img convert -O qcow2`, which copies what \
         both have"
    )]
    Backing(String),
    /// Its data is elsewhere.
    #[error("has its data in another file, `{0}`: make it one file with `qemu-img convert -O qcow2`")]
    External(String),
    /// It is encrypted.
    #[error("is encrypted; a rack has no key for it: convert it with `qemu-img convert -O qcow2`")]
    Encrypted,
    /// QEMU has found it damaged.
    #[error("is marked as corrupt: `qemu-img check -r all` mends it")]
    Corrupt,
    /// Something that is not known here.
    #[error("needs {0}, which can't be read here: convert it with `qemu-img convert -O qcow2`")]
    Feature(String),
    /// Its size.
    #[error("says that its disk has {0} bytes; a disk has a multiple of 512, and at most 8 TiB")]
    Size(u64),
    /// Something in it is wrong.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// Far more than fits.
    #[error("unpacks to more than {MAX_RATIO} times its {0} bytes: its tables name the same clusters again and again")]
    Bomb(u64),
}

#[derive(Debug, Clone, Copy)]
enum Compression {
    /// RFC 1951, without a header.
    Deflate,
    /// RFC 8878.
    Zstd,
}

/// An image whose header and first table were read.
#[derive(Debug)]
pub struct Image<'f> {
    file: &'f File,
    length: u64,
    size: u64,
    cluster_bits: u32,
    compression: Compression,
    l1: Vec<u64>,
}

impl<'f> Image<'f> {
    /// Opens an image of which everything needed is in this file.
    pub fn open(file: &'f File) -> Result<Self, Qcow2Error> {
        let length = file.metadata()?.len();
        let head = read(file, length, 0, HEADER_2 as u64, "its header")?;
        let version = u32_at(&head, 4);
        if version != 2 && version != 3 {
            return Err(Qcow2Error::Version(version));
        }
        let cluster_bits = u32_at(&head, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Qcow2Error::Damaged(format!(
                "its clusters have 2^{cluster_bits} bytes, and 2^9 to 2^21 are possible"
            )));
        }
        let (incompatible, compression) = match version {
            3 => features(file, length)?,
            _ => (0, Compression::Deflate),
        };
        if incompatible & CORRUPT != 0 {
            return Err(Qcow2Error::Corrupt);
        }
        if u32_at(&head, 32) != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        let backing = u64_at(&head, 8);
        if backing != 0 {
            let name = read(
                file,
                length,
                backing,
                u64::from(u32_at(&head, 16)).min(NAME_MAX),
                "the name of its backing file",
            )?;
            return Err(Qcow2Error::Backing(shown(&name)));
        }
        if incompatible & EXTERNAL_DATA != 0 {
            return Err(Qcow2Error::External(data_file(file, length)?));
        }
        if incompatible & EXTENDED_L2 != 0 {
            return Err(Qcow2Error::Feature("extended L2 entries".to_owned()));
        }
        let unknown = incompatible & !(DIRTY | COMPRESSION_TYPE);
        if unknown != 0 {
            return Err(Qcow2Error::Feature(format!("an unknown feature (bits {unknown:#x})")));
        }
        let size = u64_at(&head, 24);
        if !is_size(size) {
            return Err(Qcow2Error::Size(size));
        }
        // What an entry of the first level stands for: at least 32 KiB, at most 2^39 bytes.
        let covers = 1_u64 << (2 * cluster_bits - 3);
        let needed = size.div_ceil(covers);
        let there = u64::from(u32_at(&head, 36));
        if needed > there || needed * 8 > L1_MAX {
            return Err(Qcow2Error::Damaged(format!(
                "its first table has {there} entries, and its size needs {needed}"
            )));
        }
        let table = read(file, length, u64_at(&head, 40), needed * 8, "its first table")?;
        let l1 = table.chunks_exact(8).map(|entry| u64_at(entry, 0)).collect();
        Ok(Self { file, length, size, cluster_bits, compression, l1 })
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Gives the whole disk to `out`, which was begun with its size.
    pub fn copy<W: Write>(&self, out: &mut Writer<W>) -> Result<(), Qcow2Error> {
        let cluster = 1_u64 << self.cluster_bits;
        let covers = cluster * (cluster / 8);
        let most = SMALL_BYTES.max(self.length.saturating_mul(MAX_RATIO));
        let mut buffer = vec![0; cluster as usize];
        let mut unpacked = 0_u64;
        for (number, entry) in self.l1.iter().enumerate() {
            let left = self.size - out.position();
            let l2 = entry & PLACE;
            if l2 == 0 {
                out.skip(left.min(covers))?;
                continue;
            }
            let table = self.cluster(l2, cluster, || format!("its second table {number}"))?;
            let end = out.position() + left.min(covers);
            for entry in table.chunks_exact(8).map(|entry| u64_at(entry, 0)) {
                let here = cluster.min(end - out.position());
                if here == 0 {
                    break;
                }
                let place = entry & PLACE;
                if entry & COMPRESSED == 0 && (place == 0 || entry & ZERO != 0) {
                    out.skip(here)?;
                    continue;
                }
                unpacked += cluster;
                if unpacked > most {
                    return Err(Qcow2Error::Bomb(self.length));
                }
                if entry & COMPRESSED == 0 {
                    let at = out.position();
                    self.plain(place, &mut buffer, || format!("the cluster of byte {at} of the disk"))?;
                } else {
                    self.unpack(entry, &mut buffer, out.position())?;
                }
                // The rest of the last cluster is beside the disk.
                out.write(&buffer[..here as usize])?;
            }
        }
        Ok(())
    }

    /// A cluster that lies wholly in the file.
    fn cluster(&self, at: u64, cluster: u64, what: impl Fn() -> String) -> Result<Vec<u8>, Qcow2Error> {
        if !at.is_multiple_of(cluster) {
            return Err(Qcow2Error::Damaged(format!("{} does not begin with a cluster", what())));
        }
        read(self.file, self.length, at, cluster, &what())
    }

    /// A cluster of data. QEMU does not write the end of the file's last cluster where that is zero.
    fn plain(&self, at: u64, buffer: &mut [u8], what: impl Fn() -> String) -> Result<(), Qcow2Error> {
        let cluster = buffer.len() as u64;
        if !at.is_multiple_of(cluster) || at >= self.length {
            return Err(Qcow2Error::Damaged(format!(
                "{} lies beside the file, or does not begin with a cluster",
                what()
            )));
        }
        let there = cluster.min(self.length - at) as usize;
        let (there, beyond) = buffer.split_at_mut(there);
        self.file.read_exact_at(there, at)?;
        beyond.fill(0);
        Ok(())
    }

    /// A compressed cluster ("Compressed Clusters Descriptor"). `position`: which one, for messages.
    fn unpack(&self, entry: u64, buffer: &mut [u8], position: u64) -> Result<(), Qcow2Error> {
        let damaged = |what: String| Qcow2Error::Damaged(format!("the cluster of byte {position} of the disk {what}"));
        // The higher the number of bits for sectors, the fewer are left for the place.
        let place_bits = 62 - (self.cluster_bits - 8);
        let at = entry & ((1 << place_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> place_bits;
        let end = ((at / SECTOR) + sectors + 1) * SECTOR;
        // The last one may end before its sector does.
        let end = end.min(self.length);
        let length =
            end.checked_sub(at).filter(|length| *length > 0).ok_or_else(|| damaged("lies beside the file".into()))?;
        let packed = read(self.file, self.length, at, length, "a compressed cluster")?;
        match self.compression {
            Compression::Deflate => flate2::read::DeflateDecoder::new(&packed[..]).read_exact(buffer),
            Compression::Zstd => match StreamingDecoder::new(&packed[..]) {
                Ok(mut decoder) => decoder.read_exact(buffer),
                Err(error) => Err(io::Error::other(error)),
            },
        }
        .map_err(|error| damaged(format!("can't be unpacked: {error}")))
    }
}

/// The incompatible features and the compression of a header of version 3.
fn features(file: &File, length: u64) -> Result<(u64, Compression), Qcow2Error> {
    let head = read(file, length, 0, HEADER_3 as u64, "its header")?;
    let incompatible = u64_at(&head, 72);
    if incompatible & COMPRESSION_TYPE == 0 {
        return Ok((incompatible, Compression::Deflate));
    }
    let kind = read(file, length, HEADER_3 as u64, 1, "its header")?;
    match kind[..] {
        [0] => Ok((incompatible, Compression::Deflate)),
        [1] => Ok((incompatible, Compression::Zstd)),
        _ => Err(Qcow2Error::Feature(format!("an unknown compression ({kind:?})"))),
    }
}

/// The name of the external data file, by the header's extensions, which are within the first cluster; `unnamed` if
/// none has it.
fn data_file(file: &File, length: u64) -> Result<String, Qcow2Error> {
    let head = read(file, length, 0, HEADER_3 as u64, "its header")?;
    let mut at = u64::from(u32_at(&head, 100));
    // Extensions are a few: the type, the length, and the content, up to a multiple of 8 bytes.
    for _ in 0..16 {
        let Ok(extension) = read(file, length, at, 8, "an extension") else { break };
        let (kind, long) = (u32_at(&extension, 0), u64::from(u32_at(&extension, 4)));
        match kind {
            0 => break,
            DATA_FILE_NAME => {
                return Ok(shown(&read(file, length, at + 8, long.min(NAME_MAX), "its data file's name")?));
            }
            _ => at += 8 + long.next_multiple_of(8),
        }
    }
    Ok("unnamed".to_owned())
}

/// A piece of the file, which must be there.
fn read(file: &File, length: u64, at: u64, count: u64, what: &str) -> Result<Vec<u8>, Qcow2Error> {
    if at.checked_add(count).is_none_or(|end| end > length) {
        return Err(Qcow2Error::Damaged(format!("{what} lies beside the file")));
    }
    let mut bytes = vec![0; count as usize];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// A name of somebody's, for a message.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}
