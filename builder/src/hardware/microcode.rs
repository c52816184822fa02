//! Microcode: what processors are repaired with before anything runs on them. The kernel looks for it in an
//! uncompressed cpio before the initrd (Linux, Documentation/arch/x86/microcode.rst), which is the UKI's section
//! `.ucode`.
//!
//! Intel's updates follow the Software Developer's Manual, volume 3, section 11.11.1; AMD's are containers that the
//! kernel reads one after the other.

use std::{collections::BTreeSet, path::Path};

use rackstick_image::cpio::{self, Writer};
use thiserror::Error;

use crate::package::{self, PackageError};

const AMD: (&str, &str) = ("kernel/x86/microcode/AuthenticAMD.bin", "lib/firmware/amd-ucode/");
const INTEL: (&str, &str) = ("kernel/x86/microcode/GenuineIntel.bin", "lib/firmware/intel-ucode/");
const MODE: u32 = 0o644;
/// The processor wants an update at a multiple of this many bytes; the kernel loads it from where it lies.
const ALIGN: u64 = 16;

/// What an AMD container begins with.
const AMD_MAGIC: &[u8] = &0x0041_4d44_u32.to_le_bytes();
const INTEL_HEADER: usize = 48;
/// The version of the header, its first word.
const INTEL_VERSION: u32 = 1;
/// Offset of the data's size.
const INTEL_DATA_SIZE: usize = 28;
/// Offset of the whole update's size.
const INTEL_TOTAL_SIZE: usize = 32;
/// The whole update's size where the data's size is 0.
const INTEL_DEFAULT_SIZE: u32 = 2048;

/// Why there is no microcode.
#[derive(Debug, Error)]
pub enum MicrocodeError {
    /// A package can't be read.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The archive.
    #[error(transparent)]
    Cpio(#[from] cpio::Error),
    /// The packages hold none for a vendor's processors.
    #[error("no package of the host holds {0}*; renew the lock with `rackstick lock --update`")]
    None(&'static str),
    /// A file is not what it should be.
    #[error("{file} is no microcode: {what} at byte {offset}; take another version of its package")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: usize,
    },
}

/// The cpio with the microcode in `packages`. `epoch`: every file's time.
pub fn archive<'p>(packages: impl Iterator<Item = &'p Path>, epoch: u32) -> Result<Vec<u8>, MicrocodeError> {
    let (mut amd, mut intel) = (Vec::new(), Vec::new());
    let mut known = BTreeSet::new();
    for package in packages {
        let found = package::files(package, |path| {
            let path = path.strip_prefix("usr/").unwrap_or(path);
            path.starts_with(AMD.1) || path.starts_with(INTEL.1)
        })?;
        for (file, content) in found {
            if file.contains(AMD.1) {
                check_amd(&file, &content)?;
                amd.extend(content);
                continue;
            }
            for update in intel_updates(&file, &content)? {
                // One update for several processors stands in the files of each: a third of all bytes.
                if known.insert(update.to_vec()) {
                    intel.extend(update);
                }
            }
        }
    }
    let mut archive = Writer::new(Vec::new(), epoch);
    for ((path, folder), content) in [(AMD, amd), (INTEL, intel)] {
        if content.is_empty() {
            return Err(MicrocodeError::None(folder));
        }
        archive.aligned(path, MODE, &content, ALIGN)?;
    }
    Ok(archive.finish()?)
}

fn check_amd(file: &str, content: &[u8]) -> Result<(), MicrocodeError> {
    if content.starts_with(AMD_MAGIC) {
        return Ok(());
    }
    Err(MicrocodeError::Damaged { file: file.to_owned(), what: "it does not begin as a container does", offset: 0 })
}

/// The updates that a file of Intel's consists of, each checked as the processor would.
fn intel_updates<'c>(file: &str, content: &'c [u8]) -> Result<Vec<&'c [u8]>, MicrocodeError> {
    let mut updates = Vec::new();
    let mut offset = 0;
    while offset < content.len() {
        let damaged = |what| MicrocodeError::Damaged { file: file.to_owned(), what, offset };
        let rest = &content[offset..];
        let header = rest.get(..INTEL_HEADER).ok_or_else(|| damaged("its header is cut off"))?;
        let word = |at: usize| header[at..].first_chunk().copied().map_or(0, u32::from_le_bytes);
        if word(0) != INTEL_VERSION {
            return Err(damaged("its header has an unknown version"));
        }
        let size = if word(INTEL_DATA_SIZE) == 0 { INTEL_DEFAULT_SIZE } else { word(INTEL_TOTAL_SIZE) } as usize;
        let update = rest.get(..size).filter(|update| update.len() >= INTEL_HEADER && size.is_multiple_of(4));
        let update = update.ok_or_else(|| damaged("its size is wrong"))?;
        let words = update.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        if words.fold(0, u32::wrapping_add) != 0 {
            return Err(damaged("its checksum is wrong"));
        }
        updates.push(update);
        offset += size;
    }
    Ok(updates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(fill: u8, size: usize) -> Vec<u8> {
        let mut update = vec![fill; size];
        update[..4].copy_from_slice(&1_u32.to_le_bytes());
        update[28..32].copy_from_slice(&(size as u32 - 48).to_le_bytes());
        update[32..36].copy_from_slice(&(size as u32).to_le_bytes());
        update[16..20].copy_from_slice(&[0; 4]);
        let sum = update.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).fold(0, u32::wrapping_add);
        update[16..20].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
        update
    }

    #[test]
    fn a_file_of_intels_is_taken_apart_and_damage_is_found() {
        let file = [update(3, 1024), update(4, 2048)].concat();
        let lengths: Vec<usize> = intel_updates("a", &file).unwrap().iter().map(|update| update.len()).collect();
        assert_eq!(lengths, [1024, 2048]);
        for (at, what) in [(0, "version"), (33, "size"), (500, "checksum"), (1024, "version"), (2000, "checksum")] {
            let mut bad = file.clone();
            bad[at] ^= 0x40;
            let error = intel_updates("06-8f-04", &bad).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("06-8f-04"), "{error}");
        }
        for cut in 1..1024 {
            assert!(intel_updates("a", &file[..1024 + cut]).is_err(), "{cut}");
        }
    }
}
