//! Checksums made right again: a reader that refuses all that was changed by its sum has nothing behind that tried.

/// A superblock of EROFS: CRC32C without the last inversion, over its block from itself on, its own field zero.
pub fn erofs(bytes: &mut [u8]) {
    const AT: usize = 1024;
    if let Some(block) = bytes.get_mut(AT..4096) {
        block[4..8].fill(0);
        let sum = !crc32c::crc32c(block);
        block[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Both headers of a GPT with sectors of 512 bytes, and their arrays (UEFI 2.10, 5.3.2).
pub fn gpt(bytes: &mut [u8]) {
    let last = (bytes.len() / 512).saturating_sub(1);
    for sector in [1, last] {
        if !bytes.get(sector * 512..).is_some_and(|header| header.starts_with(b"EFI PART")) {
            continue;
        }
        let field = |bytes: &[u8], at: usize, width: usize| {
            let raw = bytes.get(sector * 512 + at..sector * 512 + at + width)?;
            Some(raw.iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte)))
        };
        let fields = [(72, 8), (80, 4), (84, 4), (12, 4)].map(|(at, width)| field(bytes, at, width));
        let [Some(place), Some(count), Some(size), Some(header)] = fields else { continue };
        let array = || bytes.get(place.checked_mul(512)?..)?.get(..count.checked_mul(size)?);
        if let Some(sum) = array().map(crc32) {
            bytes[sector * 512 + 88..][..4].copy_from_slice(&sum.to_le_bytes());
        }
        if let Some(header) = bytes[sector * 512..].get_mut(..header.max(20)) {
            header[16..20].fill(0);
            let sum = crc32(header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// Every header of tar that is one by its magic, wherever it stands (POSIX.1-1988, ustar).
pub fn tar(bytes: &mut [u8]) {
    let magics: Vec<usize> = (257..bytes.len()).filter(|at| bytes[*at..].starts_with(b"ustar")).collect();
    for header in magics.into_iter().map(|at| at - 257) {
        if let Some(header) = bytes.get_mut(header..header + 512) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    sum.sum()
}
