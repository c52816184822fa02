//! How bytes are compressed, told by those that they begin with, whatever a file's name says.

use std::fmt;

/// A compression. Which of them are unpacked is for whoever asks to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
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
const KNOWN: [(Compression, &[u8], &str); 7] = [
    (Compression::Gzip, &[0x1f, 0x8b], "gzip"),
    (Compression::Zstd, &[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (Compression::Xz, &[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (Compression::Bzip2, b"BZh", "bzip2"),
    (Compression::Lz4, &[0x04, 0x22, 0x4d, 0x18], "lz4"),
    (Compression::Compress, &[0x1f, 0x9d], "compress"),
    (Compression::Lzip, b"LZIP", "lzip"),
];

impl Compression {
    /// That of bytes which begin like this; none if they are not compressed in any way that is known.
    pub fn of(begin: &[u8]) -> Option<Self> {
        KNOWN.into_iter().find(|(_, magic, _)| begin.starts_with(magic)).map(|(compression, ..)| compression)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        KNOWN.iter().filter(|(compression, ..)| compression == self).try_for_each(|(.., name)| f.write_str(name))
    }
}
