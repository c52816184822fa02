//! Unpacks the ELF `vmlinux` out of a `vmlinuz`, so that a guest's start does not pay for it.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header" (fields `setup_sects`, `header`,
//! `version`, `payload_offset`, `payload_length`) and the size that the kernel's build appends to the payload.

use std::{fs::File, io::Read, os::unix::fs::FileExt};

use rackstick::packing::Packing;
use thiserror::Error;

/// The most a payload may unpack to: a decompression bomb in a kernel package stops here. Debian's are below 64 MiB.
const MAX_VMLINUX: u64 = 512 << 20;
/// `payload_offset` and `payload_length` exist from this version of the boot protocol on.
const MIN_PROTOCOL: u16 = 0x0208;

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL_VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

const ELF_MAGIC: [u8; 4] = [0x7f, b'E', b'L', b'F'];

/// Why a `vmlinuz` can't be unpacked.
#[derive(Debug, Error)]
pub enum VmlinuxError {
    /// No boot protocol header.
    #[error("is not a bzImage: no `HdrS` at offset 0x202")]
    NotBzImage,
    /// Older than `payload_offset`.
    #[error("speaks boot protocol {0:#06x}; {MIN_PROTOCOL:#06x} or newer is needed to find its payload")]
    OldProtocol(u16),
    /// The header points outside the file.
    #[error("says that its payload is at {offset:#x} with {length:#x} bytes, but the file has {size:#x}")]
    Truncated {
        /// Where the payload would be.
        offset: usize,
        /// How long it would be.
        length: usize,
        /// How long the file is.
        size: usize,
    },
    /// A compression we don't read.
    #[error("has a payload that is neither zstd nor xz nor ELF: it begins with {0:02x?}")]
    UnknownCompression([u8; 4]),
    /// The payload is broken.
    #[error("has a payload that does not unpack: {0}")]
    Unpack(String),
    /// The payload is too large.
    #[error("unpacks to more than {MAX_VMLINUX} bytes")]
    TooLarge,
    /// The file can't be read.
    #[error("can't be read: {0}")]
    Read(#[from] std::io::Error),
    /// What came out is no ELF file.
    #[error("has a payload that is not an ELF file")]
    NotElf,
}

/// Unpacks the `vmlinux` in `vmlinuz`, the bytes of a bzImage.
pub fn unpack(vmlinuz: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    let word = |offset: usize| -> Option<[u8; 4]> { vmlinuz.get(offset..offset + 4)?.try_into().ok() };
    if word(HEADER_MAGIC).as_ref() != Some(b"HdrS") {
        return Err(VmlinuxError::NotBzImage);
    }
    let field = |offset| word(offset).map(u32::from_le_bytes).ok_or(VmlinuxError::NotBzImage);
    let protocol = (field(PROTOCOL_VERSION)? & 0xffff) as u16;
    if protocol < MIN_PROTOCOL {
        return Err(VmlinuxError::OldProtocol(protocol));
    }
    // Four sectors where the field is 0, for boot loaders of the last century.
    let setup_sectors = match vmlinuz[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let offset = (setup_sectors + 1) * SECTOR + field(PAYLOAD_OFFSET)? as usize;
    let length = field(PAYLOAD_LENGTH)? as usize;
    let payload = offset
        .checked_add(length)
        .and_then(|end| vmlinuz.get(offset..end))
        .ok_or(VmlinuxError::Truncated { offset, length, size: vmlinuz.len() })?;

    let vmlinux = match Packing::of(payload) {
        Some(Packing::Zstd) => {
            read(ruzstd::decoding::StreamingDecoder::new(payload).map_err(|e| VmlinuxError::Unpack(e.to_string()))?)?
        }
        Some(Packing::Xz) => read(lzma_rust2::XzReader::new(payload, false))?,
        None if payload.starts_with(&ELF_MAGIC) => payload.to_vec(),
        _ => return Err(VmlinuxError::UnknownCompression(payload.first_chunk().copied().unwrap_or_default())),
    };
    if !vmlinux.starts_with(&ELF_MAGIC) {
        return Err(VmlinuxError::NotElf);
    }
    Ok(vmlinux)
}

/// What boots of a kernel that somebody names: the unpacked `vmlinux`, where it is packed as we know it, else the file
/// as it is, which unpacks itself.
pub fn bootable(kernel: &File) -> Result<Vec<u8>, VmlinuxError> {
    let size = kernel.metadata()?.len();
    if size > MAX_VMLINUX {
        return Err(VmlinuxError::TooLarge);
    }
    let mut bytes = vec![0; size as usize];
    kernel.read_exact_at(&mut bytes, 0)?;
    match unpack(&bytes) {
        Ok(vmlinux) => Ok(vmlinux),
        Err(VmlinuxError::UnknownCompression(_)) => Ok(bytes),
        Err(VmlinuxError::NotBzImage) if bytes.starts_with(&ELF_MAGIC) => Ok(bytes),
        Err(error) => Err(error),
    }
}

fn read(source: impl Read) -> Result<Vec<u8>, VmlinuxError> {
    let mut out = Vec::new();
    source.take(MAX_VMLINUX + 1).read_to_end(&mut out).map_err(|e| VmlinuxError::Unpack(e.to_string()))?;
    if out.len() as u64 > MAX_VMLINUX {
        return Err(VmlinuxError::TooLarge);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR];
        image[SETUP_SECTS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn what_was_packed_comes_out_again() {
        let elf = [&ELF_MAGIC[..], &[7; 5000]].concat();
        let zstd = ruzstd::encoding::compress_to_vec(&elf[..], ruzstd::encoding::CompressionLevel::Fastest);
        // The kernel's build appends the unpacked size.
        let with_size = [zstd, 5004_u32.to_le_bytes().to_vec()].concat();
        assert_eq!(unpack(&bz_image(&with_size)).unwrap(), elf);
        assert_eq!(unpack(&bz_image(&elf)).unwrap(), elf);
    }

    #[test]
    fn a_kernel_that_is_unpacked_or_packed_in_another_way_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let elf = [&ELF_MAGIC[..], &[7; 5000]].concat();
        let gzip = bz_image(&[0x1f, 0x8b, 8, 0, 1]);
        let boots = |bytes: &[u8]| {
            std::fs::write(folder.path().join("kernel"), bytes).unwrap();
            bootable(&File::open(folder.path().join("kernel")).unwrap())
        };
        assert_eq!(boots(&elf).unwrap(), elf);
        assert_eq!(boots(&bz_image(&elf)).unwrap(), elf);
        assert_eq!(boots(&gzip).unwrap(), gzip);
        assert!(matches!(boots(b"#!/bin/sh"), Err(VmlinuxError::NotBzImage)));
    }

    #[test]
    fn a_hostile_header_is_an_error_and_never_a_panic() {
        assert!(matches!(unpack(&[]), Err(VmlinuxError::NotBzImage)));
        assert!(matches!(unpack(&[0; 0x300]), Err(VmlinuxError::NotBzImage)));
        let good = bz_image(&ELF_MAGIC);
        for cut in 0..good.len() {
            assert!(unpack(&good[..cut]).is_err());
        }
        for field in [PAYLOAD_OFFSET, PAYLOAD_LENGTH] {
            let mut bad = good.clone();
            bad[field..field + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert!(matches!(unpack(&bad), Err(VmlinuxError::Truncated { .. })));
        }
        assert!(matches!(unpack(&bz_image(b"????")), Err(VmlinuxError::UnknownCompression(_))));
    }
}
