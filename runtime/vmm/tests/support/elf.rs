//! The smallest ELF kernel with a PVH entry point: one segment to load, one note.

/// Where the code is loaded and starts.
pub const ENTRY: u32 = 0x10_0000;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const NOTE: usize = 24;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;

/// `code` as a kernel.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let code_at = note_at + NOTE;
    let mut elf = Vec::new();
    // 64 bits, little-endian, version 1; executable for x86-64.
    elf.extend(b"\x7FELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend(u64::from(ENTRY).to_le_bytes());
    elf.extend((HEADER as u64).to_le_bytes());
    elf.extend([0; 8 + 4]);
    for half in [HEADER, PROGRAM_HEADER, 2, 0, 0, 0] {
        elf.extend((half as u16).to_le_bytes());
    }
    let mut segment = |kind: u32, offset: usize, address: u64, size: usize| {
        elf.extend(kind.to_le_bytes());
        elf.extend(7_u32.to_le_bytes());
        for value in [offset as u64, address, address, size as u64, size as u64, 4] {
            elf.extend(value.to_le_bytes());
        }
    };
    segment(1, code_at, ENTRY.into(), code.len());
    segment(4, note_at, 0, NOTE);
    for word in [4_u32, 8, PHYS32_ENTRY] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(b"Xen\0");
    elf.extend(u64::from(ENTRY).to_le_bytes());
    elf.extend(code);
    elf
}
