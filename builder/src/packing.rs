//! How files are packed, told by those that they begin with, whatever a file's name says.

use std::fmt;

/// What a packer makes. Which of them are unpacked is for whoever asks to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// gzip (RFC 1952).
    Gzip,
    /// zstd (RFC 8878).
    Zstd,
    /// xz (its file format 1.2).
    Xz,
    /// bzip2.
    Bzip2,
    /// lz4.
    Lz4,
    /// compress(1).
    Compress,
    /// lzip.
    Lzip,
}

/// What each begins with, and its name.
const KNOWN: [(Packing, &[u8], &str); 7] = [
    (Packing::Gzip, &[0x1f, 0x8b], "gzip"),
    (Packing::Zstd, &[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (Packing::Xz, &[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (Packing::Bzip2, b"BZh", "bzip2"),
    (Packing::Lz4, &[0x04, 0x22, 0x4d, 0x18], "lz4"),
    (Packing::Compress, &[0x1f, 0x9d], "compress"),
    (Packing::Lzip, b"LZIP", "lzip"),
];

impl Packing {
    /// That of bytes which begin like this; none if they are not compressed in any way that is known.
    pub fn of(begin: &[u8]) -> Option<Self> {
        KNOWN.into_iter().find(|(_, magic, _)| begin.starts_with(magic)).map(|(packing, ..)| packing)
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        KNOWN.iter().filter(|(packing, ..)| packing == self).try_for_each(|(.., name)| f.write_str(name))
    }
}
