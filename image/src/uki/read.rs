//! Finds sections and checksum of a UKI that somebody else may have written. Microsoft, "PE Format", names as there.

use std::{
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
};

use super::{
    checksum::Checksum,
    pe::{
        CHECK_SUM, COFF_HEADER_SIZE, MACHINE_AMD64, NUMBER_OF_SECTIONS, SECTION_HEADER_SIZE, SIZE_OF_OPTIONAL_HEADER,
    },
};

/// Bytes read at once.
const BUFFER_SIZE: usize = 1 << 20;
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

/// A section of a UKI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name, `.initrd`.
    pub name: String,
    /// Where in the file its content stands; always within the file.
    pub content: Range<u64>,
}

impl Section {
    /// What its header says, if that lies within a file of this length.
    fn within(header: &[u8; SECTION_HEADER_SIZE], length: u64) -> Result<Self, ReadError> {
        // The rest of the raw data, if it is longer, is padding.
        let size = u64::from(u32_at(header, 8).min(u32_at(header, 16)));
        let start = u64::from(u32_at(header, 20));
        if start + size > length {
            return Err(ReadError::Damaged("PointerToRawData"));
        }
        Ok(Self { name: String::from_utf8_lossy(name(header)).into_owned(), content: start..start + size })
    }
}

/// All sections, in the order of the headers.
///
/// # Errors
/// [`ReadError`].
pub fn sections(mut file: impl Read + Seek) -> Result<Vec<Section>, ReadError> {
    let length = file.seek(SeekFrom::End(0))?;
    headers(&mut file)?.iter().map(|header| Section::within(header, length)).collect()
}

/// Where in the file the content of the section `wanted` stands; always within the file.
///
/// # Errors
/// [`ReadError`].
pub fn section(mut file: impl Read + Seek, wanted: &str) -> Result<Range<u64>, ReadError> {
    let length = file.seek(SeekFrom::End(0))?;
    let headers = headers(&mut file)?;
    let header = headers.iter().find(|header| name(header) == wanted.as_bytes());
    let header = header.ok_or_else(|| ReadError::NoSection(wanted.to_owned()))?;
    Section::within(header, length).map(|section| section.content)
}

fn headers(mut file: impl Read + Seek) -> Result<Vec<[u8; SECTION_HEADER_SIZE]>, ReadError> {
    let coff = coff(&mut file)?;
    let header: [u8; COFF_HEADER_SIZE] = read(&mut file, coff)?;
    let count = u16_at(&header, NUMBER_OF_SECTIONS);
    if count > MAX_SECTIONS {
        return Err(ReadError::Damaged("NumberOfSections"));
    }
    let table = coff + COFF_HEADER_SIZE as u64 + u64::from(u16_at(&header, SIZE_OF_OPTIONAL_HEADER));
    let places = (0..u64::from(count)).map(|number| table + number * SECTION_HEADER_SIZE as u64);
    places.map(|at| Ok(read(&mut file, at)?)).collect()
}

fn name(header: &[u8; SECTION_HEADER_SIZE]) -> &[u8] {
    header[..8].split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The checksum that the headers of a PE file hold, and the one that it should be.
///
/// # Errors
/// [`ReadError`].
pub fn checksums(mut file: impl Read + Seek) -> Result<(u32, u32), ReadError> {
    let at = coff(&mut file)? + (COFF_HEADER_SIZE + CHECK_SUM) as u64;
    if !at.is_multiple_of(2) {
        return Err(ReadError::Damaged("e_lfanew"));
    }
    let held = u32::from_le_bytes(read(&mut file, at)?);
    let mut sum = Checksum::default();
    let mut buffer = vec![0; BUFFER_SIZE];
    file.seek(SeekFrom::Start(0))?;
    loop {
        let length = match file.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        if length == 0 {
            return Ok((held, sum.finish_without(held)));
        }
        sum.update(&buffer[..length]);
    }
}

/// Where the COFF header stands, behind the signature.
fn coff(mut file: impl Read + Seek) -> Result<u64, ReadError> {
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
    Ok(pe + 4)
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
