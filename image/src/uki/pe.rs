//! A PE32+ executable's headers, read with care and extended by sections. Microsoft, "PE Format", names as there.

use std::ops::Range;

/// `IMAGE_FILE_MACHINE_AMD64`.
pub(super) const MACHINE_AMD64: u16 = 0x8664;
/// `Magic` of PE32+.
const PE32_PLUS: u16 = 0x20b;
/// `Subsystem` of an EFI application.
const EFI_APPLICATION: u16 = 10;
pub(super) const COFF_HEADER_SIZE: usize = 20;
/// Fields before the data directories.
const OPTIONAL_FIELDS_SIZE: usize = 112;
pub(super) const SECTION_HEADER_SIZE: usize = 40;
/// Index of the certificate table among the data directories.
const CERTIFICATE_TABLE: usize = 4;
/// The stub maps pages, whatever alignment its own sections have.
const PAGE_SIZE: u64 = 4096;

const CNT_CODE: u32 = 0x20;
const CNT_INITIALIZED_DATA: u32 = 0x40;
const MEM_READ: u32 = 0x4000_0000;

/// Why a stub cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StubError {
    /// The file ends in the middle of something.
    #[error("it ends before byte {needed}: it has {size} bytes and is cut short or damaged")]
    Short {
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        size: usize,
    },
    /// A field has an unusable value.
    #[error("{field} is {value:#x}: it is no EFI stub for x86-64, or damaged")]
    Field {
        /// The field's name in the PE specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A section of the same name is there.
    #[error("it has a section {0} already: give systemd's linuxx64.efi.stub, not a finished UKI")]
    SectionExists(&'static str),
    /// The headers cannot grow.
    #[error("its headers have room for {room} more sections, but {needed} are needed: use another version of the stub")]
    NoRoom {
        /// Section headers that fit.
        room: usize,
        /// Section headers needed.
        needed: usize,
    },
    /// The result has no valid sizes.
    #[error("with its sections it would have {0} bytes, but a PE file can have at most 4 GiB: make the initrd smaller")]
    TooLarge(u64),
}

/// A section to be appended.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewSection {
    /// At most 8 bytes.
    pub(super) name: &'static str,
    pub(super) size: u64,
    /// Whether it is counted as code.
    pub(super) code: bool,
}

/// A stub whose headers have been checked.
#[derive(Debug)]
pub(super) struct Stub<'a> {
    bytes: &'a [u8],
    /// Offset of the COFF header.
    coff: usize,
    /// Offset of the section table.
    table: usize,
    sections: usize,
    section_alignment: u64,
    file_alignment: u64,
    size_of_headers: usize,
    /// Where the last section's bytes end in the file, and where the last one ends in memory.
    file_end: u64,
    memory_end: u64,
}

// Offsets in the COFF header.
pub(super) const NUMBER_OF_SECTIONS: usize = 2;
const POINTER_TO_SYMBOL_TABLE: usize = 8;
const NUMBER_OF_SYMBOLS: usize = 12;
pub(super) const SIZE_OF_OPTIONAL_HEADER: usize = 16;
// Offsets in the optional header.
const SIZE_OF_CODE: usize = 4;
const SIZE_OF_INITIALIZED_DATA: usize = 8;
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const SIZE_OF_IMAGE: usize = 56;
const SIZE_OF_HEADERS: usize = 60;
pub(super) const CHECK_SUM: usize = 64;
const SUBSYSTEM: usize = 68;
const NUMBER_OF_RVA_AND_SIZES: usize = 108;

impl<'a> Stub<'a> {
    /// Checks everything that [`Stub::append`] relies on.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, StubError> {
        expect("e_magic", u16_at(bytes, 0)?.into(), u16::from_le_bytes(*b"MZ").into())?;
        let pe = u32_at(bytes, 0x3c)? as usize;
        expect("Signature", u32_at(bytes, pe)?.into(), u32::from_le_bytes(*b"PE\0\0").into())?;
        let coff = pe + 4;
        expect("Machine", u16_at(bytes, coff)?.into(), MACHINE_AMD64.into())?;
        let sections = usize::from(u16_at(bytes, coff + NUMBER_OF_SECTIONS)?);
        let optional = coff + COFF_HEADER_SIZE;
        let optional_size = usize::from(u16_at(bytes, coff + SIZE_OF_OPTIONAL_HEADER)?);
        expect("Magic", u16_at(bytes, optional)?.into(), PE32_PLUS.into())?;
        expect("Subsystem", u16_at(bytes, optional + SUBSYSTEM)?.into(), EFI_APPLICATION.into())?;
        let directories = u32_at(bytes, optional + NUMBER_OF_RVA_AND_SIZES)? as usize;
        if optional_size < OPTIONAL_FIELDS_SIZE || directories > (optional_size - OPTIONAL_FIELDS_SIZE) / 8 {
            return Err(StubError::Field { field: "SizeOfOptionalHeader", value: optional_size as u64 });
        }
        let alignment = |field, at| {
            let value = u32_at(bytes, optional + at)?;
            let good = value.is_power_of_two() && (512..=1 << 16).contains(&value);
            if good { Ok(u64::from(value)) } else { Err(StubError::Field { field, value: value.into() }) }
        };
        let section_alignment = alignment("SectionAlignment", SECTION_ALIGNMENT)?;
        let file_alignment = alignment("FileAlignment", FILE_ALIGNMENT)?;
        let size_of_headers = u32_at(bytes, optional + SIZE_OF_HEADERS)? as usize;
        let table = optional + optional_size;
        if size_of_headers > bytes.len() || table + sections * SECTION_HEADER_SIZE > size_of_headers {
            return Err(StubError::Field { field: "SizeOfHeaders", value: size_of_headers as u64 });
        }
        let (mut file_end, mut memory_end) = (size_of_headers as u64, size_of_headers as u64);
        for number in 0..sections {
            let at = table + number * SECTION_HEADER_SIZE;
            let field = |offset| u32_at(bytes, at + offset).map(u64::from);
            let (virtual_size, address, raw_size, raw_at) = (field(8)?, field(12)?, field(16)?, field(20)?);
            if raw_size > 0 {
                file_end = file_end.max(raw_at + raw_size);
            }
            memory_end = memory_end.max(address + virtual_size.max(raw_size));
        }
        if file_end > bytes.len() as u64 {
            return Err(StubError::Short { needed: file_end, size: bytes.len() });
        }
        let stub = Self {
            bytes,
            coff,
            table,
            sections,
            section_alignment,
            file_alignment,
            size_of_headers,
            file_end,
            memory_end,
        };
        Ok(stub)
    }

    /// The stub with new section headers, and where in the file each new section's bytes stand, padding behind it
    /// included. Whatever the stub has behind its last section (symbols, certificates) is left out.
    pub(super) fn append(&self, new: &[NewSection]) -> Result<(Vec<u8>, Vec<Range<u64>>), StubError> {
        let room = (self.first_byte() - self.table) / SECTION_HEADER_SIZE - self.sections;
        if new.len() > room {
            return Err(StubError::NoRoom { room, needed: new.len() });
        }
        // Fits: `parse` compared it with the length of `bytes`.
        let mut head = self.bytes[..self.file_end as usize].to_vec();
        let optional = self.coff + COFF_HEADER_SIZE;
        let memory_alignment = self.section_alignment.max(PAGE_SIZE);
        let (mut file_end, mut memory_end) = (self.file_end, self.memory_end);
        let mut extents = Vec::with_capacity(new.len());
        let (mut code, mut data) = (0, 0);
        for (number, section) in new.iter().enumerate() {
            if self.names().any(|name| name == padded(section.name)) {
                return Err(StubError::SectionExists(section.name));
            }
            let start = file_end.next_multiple_of(self.file_alignment);
            let address = memory_end.next_multiple_of(memory_alignment);
            let raw_size =
                section.size.checked_next_multiple_of(self.file_alignment).ok_or(StubError::TooLarge(u64::MAX))?;
            file_end = start.saturating_add(raw_size);
            memory_end = address.saturating_add(raw_size);
            let characteristics = if section.code { CNT_CODE } else { CNT_INITIALIZED_DATA } | MEM_READ;
            *if section.code { &mut code } else { &mut data } += raw_size;
            let largest = file_end.max(memory_end);
            // Room for the image's own rounding below.
            if largest > u64::from(u32::MAX) - memory_alignment {
                return Err(StubError::TooLarge(largest));
            }
            let at = self.table + (self.sections + number) * SECTION_HEADER_SIZE;
            let header = &mut head[at..at + SECTION_HEADER_SIZE];
            header.fill(0);
            header[..8].copy_from_slice(&padded(section.name));
            put_u32(header, 8, section.size as u32); // VirtualSize
            put_u32(header, 12, address as u32);
            put_u32(header, 16, raw_size as u32);
            put_u32(header, 20, start as u32);
            put_u32(header, 36, characteristics);
            extents.push(start..file_end);
        }
        let sections = (self.sections + new.len()) as u16; // there is room, so they are few
        head[self.coff + NUMBER_OF_SECTIONS..][..2].copy_from_slice(&sections.to_le_bytes());
        put_u32(&mut head, self.coff + POINTER_TO_SYMBOL_TABLE, 0);
        put_u32(&mut head, self.coff + NUMBER_OF_SYMBOLS, 0);
        for (field, more) in [(SIZE_OF_CODE, code), (SIZE_OF_INITIALIZED_DATA, data)] {
            let size = u64::from(u32_at(&head, optional + field)?).saturating_add(more);
            put_u32(&mut head, optional + field, u32::try_from(size).map_err(|_| StubError::TooLarge(size))?);
        }
        put_u32(&mut head, optional + SIZE_OF_IMAGE, memory_end.next_multiple_of(self.section_alignment) as u32);
        put_u32(&mut head, optional + CHECK_SUM, 0);
        if u32_at(&head, optional + NUMBER_OF_RVA_AND_SIZES)? as usize > CERTIFICATE_TABLE {
            // What was signed is not what this becomes.
            head[optional + OPTIONAL_FIELDS_SIZE + CERTIFICATE_TABLE * 8..][..8].fill(0);
        }
        Ok((head, extents))
    }

    /// Writes the checksum into what [`Stub::append`] made.
    pub(super) fn set_checksum(&self, head: &mut [u8], checksum: u32) {
        put_u32(head, self.coff + COFF_HEADER_SIZE + CHECK_SUM, checksum);
    }

    /// Where the headers must end: at `SizeOfHeaders`, or before if a section starts there.
    fn first_byte(&self) -> usize {
        let starts = (0..self.sections).filter_map(|number| {
            let at = self.table + number * SECTION_HEADER_SIZE;
            let (size, start) = (u32_at(self.bytes, at + 16).ok()?, u32_at(self.bytes, at + 20).ok()?);
            (size > 0).then_some(start as usize)
        });
        let end = starts.chain([self.size_of_headers]).min().unwrap_or(self.size_of_headers);
        end.max(self.table + self.sections * SECTION_HEADER_SIZE)
    }

    fn names(&self) -> impl Iterator<Item = [u8; 8]> {
        let table = &self.bytes[self.table..self.table + self.sections * SECTION_HEADER_SIZE];
        table.chunks_exact(SECTION_HEADER_SIZE).filter_map(|header| header.first_chunk().copied())
    }
}

fn expect(field: &'static str, value: u64, expected: u64) -> Result<(), StubError> {
    if value == expected { Ok(()) } else { Err(StubError::Field { field, value }) }
}

fn padded(name: &str) -> [u8; 8] {
    let mut padded = [0; 8];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], StubError> {
    let tail = bytes.get(at..).unwrap_or_default();
    tail.first_chunk().copied().ok_or(StubError::Short { needed: at as u64 + N as u64, size: bytes.len() })
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, StubError> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, StubError> {
    field(bytes, at).map(u32::from_le_bytes)
}

/// The place was read before, so it is there.
fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
