//! Finds a section in a UKI that somebody else may have written. Microsoft, "PE Format", names as there.

use std::{
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
};

use super::pe::{COFF_HEADER_SIZE, MACHINE_AMD64, NUMBER_OF_SECTIONS, SECTION_HEADER_SIZE, SIZE_OF_OPTIONAL_HEADER};

/// Where the PE header may stand at most: it follows a DOS program of some hundred bytes.
const MAX_PE_OFFSET: u64 = 1 << 16;
/// The most sections that Windows' loader takes.
const MAX_SECTIONS: u16 = 96;

/// Why a file has no such section.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("its headers can't be read: {0}")]
    Io(#[from] io::Error),
    /// Not a PE file for x86-64.
    #[error("its {0} is wrong: it is no UKI for x86-64")]
    Damaged(&'static str),
    /// It lacks the section.
    #[error("it has no section {0}")]
    NoSection(String),
}

/// Where in the file the content of the section `name` stands; always within the file.
///
/// # Errors
/// [`ReadError`].
pub fn section(mut file: impl Read + Seek, name: &str) -> Result<Range<u64>, ReadError> {
    let length = file.seek(SeekFrom::End(0))?;
    let dos: [u8; 64] = read(&mut file, 0)?;
    if !dos.starts_with(b"MZ") {
        return Err(ReadError::Damaged("e_magic"));
    }
    let pe = u64::from(u32_at(&dos, 0x3c));
    if pe > MAX_PE_OFFSET {
        return Err(ReadError::Damaged("e_lfanew"));
    }
    let headers: [u8; 4 + COFF_HEADER_SIZE] = read(&mut file, pe)?;
    let (signature, coff) = headers.split_at(4);
    if signature != b"PE\0\0" || u16_at(coff, 0) != MACHINE_AMD64 {
        return Err(ReadError::Damaged("Signature"));
    }
    let sections = u16_at(coff, NUMBER_OF_SECTIONS);
    if sections > MAX_SECTIONS {
        return Err(ReadError::Damaged("NumberOfSections"));
    }
    let table = pe + 4 + COFF_HEADER_SIZE as u64 + u64::from(u16_at(coff, SIZE_OF_OPTIONAL_HEADER));
    for number in 0..u64::from(sections) {
        let header: [u8; SECTION_HEADER_SIZE] = read(&mut file, table + number * SECTION_HEADER_SIZE as u64)?;
        let found = header[..8].split(|&byte| byte == 0).next();
        if found != Some(name.as_bytes()) {
            continue;
        }
        // The rest of the raw data, if it is longer, is padding.
        let size = u64::from(u32_at(&header, 8).min(u32_at(&header, 16)));
        let start = u64::from(u32_at(&header, 20));
        if start + size > length {
            return Err(ReadError::Damaged("PointerToRawData"));
        }
        return Ok(start..start + size);
    }
    Err(ReadError::NoSection(name.to_owned()))
}

fn read<const N: usize>(file: &mut (impl Read + Seek), at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The caller's array is longer than `at + 2`.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|tail| tail.first_chunk().copied()).map_or(0, u16::from_le_bytes)
}

/// As [`u16_at`].
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|tail| tail.first_chunk().copied()).map_or(0, u32::from_le_bytes)
}
