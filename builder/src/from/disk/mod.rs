//! Whole disks, raw or qcow2, as the packed file (`rackstick_image::packed`) that a generation carries. What format a
//! file has is told by its first bytes, whatever its name says; nothing of what is on the disk is looked at.

mod qcow2;

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};

use rackstick_image::packed::{PackedError, Writer};

pub use qcow2::Qcow2Error;

use crate::packing::Packing;

/// So much of a file's begin tells its format.
const HEAD: usize = 512;
/// What is no disk image that can be read here, by where the mark stands, and what it is.
const OTHERS: [(usize, &[u8], &str); 8] = [
    (0, b"KDMV", "a disk of VMware (VMDK)"),
    (0, b"# Disk DescriptorFile", "the description of a disk of VMware (VMDK)"),
    (0, b"vhdxfile", "a disk of Hyper-V (VHDX)"),
    (0, b"conectix", "a disk of Hyper-V (VHD)"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a disk of VirtualBox (VDI)"),
    (0, b"QED\0", "a disk in QED format"),
    (0, b"PK\x03\x04", "a zip archive"),
    (257, b"ustar", "a tar archive"),
];

/// Why a disk can't be packed. Each is said behind the file's name.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file can't be read.
    #[error("can't be read: {0}")]
    Read(#[from] io::Error),
    /// Not a disk.
    #[error("is {0}, and neither raw nor qcow2: unpack it, or convert it with `qemu-img convert -O qcow2`")]
    Other(String),
    /// Its size.
    #[error("is no disk: {0}")]
    Size(PackedError),
    /// A qcow2 that can't be taken.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
    /// The packed file.
    #[error("can't be packed: {0}")]
    Write(PackedError),
}

impl DiskError {
    /// Whether not the disk is at fault but what it is packed to.
    pub fn is_of_our_disk(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Qcow2(Qcow2Error::Write(PackedError::Io(_))))
    }
}

/// Packs the disk in `source` into `out`. Returns its size in bytes and what it was written to.
pub fn pack<W: Write>(source: &File, out: W) -> Result<(u64, W), DiskError> {
    let mut head = [0; HEAD];
    let length = source.metadata()?.len();
    let known = length.min(HEAD as u64) as usize;
    source.read_exact_at(&mut head[..known], 0)?;
    if head.starts_with(&qcow2::MAGIC) {
        let image = qcow2::Image::open(source)?;
        let mut writer = Writer::new(out, image.size()).map_err(DiskError::Size)?;
        image.copy(&mut writer)?;
        return Ok((image.size(), writer.finish().map_err(DiskError::Write)?));
    }
    let is = |(at, mark, _): &&(usize, &[u8], &str)| head[*at..].starts_with(mark);
    let other = OTHERS.iter().find(is).map(|(.., what)| (*what).to_owned());
    let packed = || Packing::of(&head).map(|packing| format!("packed with {packing}"));
    if let Some(what) = other.or_else(packed) {
        return Err(DiskError::Other(what));
    }
    let mut writer = Writer::new(out, length).map_err(DiskError::Size)?;
    writer.file(source).map_err(DiskError::Write)?;
    Ok((length, writer.finish().map_err(DiskError::Write)?))
}

#[cfg(test)]
mod tests;
