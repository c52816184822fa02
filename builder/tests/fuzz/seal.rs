//! Checksums made right again: a reader that refuses all that was changed by its sum has nothing behind that tried.

use rackstick_image::digest::Sha256;

/// Of a SHA-256 in hexadecimal.
const DIGITS: usize = 64;
/// How often names are made right: an index names a manifest, which names a configuration and layers. Chance may make a
/// file name itself, which never fits.
const MAX_CHAIN: usize = 4;

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
    for header in headers(bytes) {
        if let Some(header) = bytes.get_mut(header..header + 512) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}

/// An archive of a container image: each file that is named by its SHA-256 gets the name that fits, and so does
/// whatever names it (OCI image layout, and what `docker save` writes).
pub fn oci(bytes: &mut [u8]) {
    tar(bytes);
    for _ in 0..MAX_CHAIN {
        let mut fits = true;
        for header in headers(bytes) {
            let Some((name, content)) = named_by_digest(&bytes[header..]) else { continue };
            let right = Sha256::of(content).to_string().into_bytes();
            if name == right {
                continue;
            }
            fits = false;
            for at in 0..=bytes.len() - DIGITS {
                if bytes[at..].starts_with(&name) {
                    bytes[at..at + DIGITS].copy_from_slice(&right);
                }
            }
        }
        if fits {
            break;
        }
    }
    tar(bytes);
}

/// Of a file in a tar archive that is named by a digest: that name and its content.
fn named_by_digest(entry: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let field = |from: usize, to: usize| entry.get(from..to)?.split(|byte| *byte == 0).next();
    let name = field(0, 100)?.rsplit(|byte| *byte == b'/').next()?.get(..DIGITS)?;
    let size = usize::from_str_radix(std::str::from_utf8(field(124, 136)?).ok()?.trim(), 8).ok()?;
    let content = entry.get(512..)?.get(..size)?;
    name.iter().all(u8::is_ascii_hexdigit).then(|| (name.to_owned(), content))
}

/// Where tar headers stand, by their magic.
fn headers(bytes: &[u8]) -> Vec<usize> {
    (257..bytes.len()).filter(|at| bytes[*at..].starts_with(b"ustar")).map(|at| at - 257).collect()
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    sum.sum()
}
