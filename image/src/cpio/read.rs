//! Reader of "newc" archives: says where each entry's content stands. The bytes may be anybody's: every number in them
//! is checked, and nothing is read or reserved beyond the limits below.

use std::{
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
};

use super::{ALIGN, S_IFREG};

const MAGIC: &[u8] = b"070701";
/// Magic number and thirteen fields of eight hexadecimal digits.
const HEADER: usize = 110;
/// Longest name with its NULs: the kernel's `PATH_MAX`, and what aligning a file's content may add.
const MAX_NAME: u64 = 4096 + 64;
const MAX_ENTRIES: u32 = 1 << 20;
const S_IFMT: u32 = 0o170_000;

// Positions among the fields.
const MODE: usize = 1;
const FILE_SIZE: usize = 6;
const NAME_SIZE: usize = 11;

/// Why an archive can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("it can't be read at byte {at}: {source}")]
    Io {
        /// Position in the file.
        at: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Not an entry.
    #[error("what stands at byte {at} is no entry of a newc archive: its {what} is wrong")]
    Damaged {
        /// Position in the file.
        at: u64,
        /// Which part.
        what: &'static str,
    },
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, as it stands in the archive.
    pub path: String,
    /// Kind and permission bits.
    pub mode: u32,
    /// Where in the file its content stands.
    pub content: Range<u64>,
}

impl Entry {
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }
}

/// The entries of an archive, one after the other, up to its trailer. After an error nothing follows.
#[derive(Debug)]
pub struct Entries<R> {
    input: R,
    /// Where the archive begins: alignment counts from there.
    start: u64,
    position: u64,
    end: u64,
    /// How many more are read.
    left: u32,
}

impl<R: Read + Seek> Entries<R> {
    /// Reads the archive that stands at `place` in `input`.
    pub fn new(input: R, place: Range<u64>) -> Self {
        Self { input, start: place.start, position: place.start, end: place.end, left: MAX_ENTRIES }
    }

    fn read(&mut self) -> Result<Option<Entry>, ReadError> {
        let at = self.position;
        let damaged = |what| ReadError::Damaged { at, what };
        let mut header = [0; HEADER];
        self.fill(&mut header)?;
        let digits = header.strip_prefix(MAGIC).ok_or(damaged("magic number"))?;
        let field = |index: usize, what| {
            let digits = digits.get(index * 8..index * 8 + 8).and_then(|digits| std::str::from_utf8(digits).ok());
            // from_str_radix would take a sign.
            let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
            digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or(damaged(what))
        };
        let (mode, size) = (field(MODE, "mode")?, u64::from(field(FILE_SIZE, "file size")?));
        let name_size = u64::from(field(NAME_SIZE, "name size")?);
        if !(1..=MAX_NAME).contains(&name_size) {
            return Err(damaged("name size"));
        }
        let mut name = vec![0; name_size as usize];
        self.fill(&mut name)?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let path = std::str::from_utf8(name).map_err(|_| damaged("name"))?.to_owned();
        if path == "TRAILER!!!" {
            return Ok(None);
        }
        let begin = self.aligned(self.position);
        // Both fit: a file position and a number of 32 bits.
        let content = begin..begin.saturating_add(size);
        if content.end > self.end {
            return Err(damaged("file size"));
        }
        self.position = self.aligned(content.end);
        Ok(Some(Entry { path, mode, content }))
    }

    fn aligned(&self, position: u64) -> u64 {
        self.start.saturating_add(position.saturating_sub(self.start).saturating_add(ALIGN - 1) / ALIGN * ALIGN)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ReadError> {
        let at = self.position;
        let end = at.saturating_add(buffer.len() as u64);
        if end > self.end {
            return Err(ReadError::Damaged { at, what: "length" });
        }
        self.input
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.input.read_exact(buffer))
            .map_err(|source| ReadError::Io { at, source })?;
        self.position = end;
        Ok(())
    }
}

impl<R: Read + Seek> Iterator for Entries<R> {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let entry = self.read().transpose();
        if !matches!(entry, Some(Ok(_))) {
            self.left = 0;
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::cpio::Writer;

    fn archive() -> Vec<u8> {
        let mut writer = Writer::new(b"0123456789ab".to_vec(), 7);
        writer.char_device("dev/console", 0o600, 5, 1).unwrap();
        writer.bytes("lib/a.ko.xz", 0o644, b"content").unwrap();
        writer.symlink("init", "lib/a.ko.xz").unwrap();
        writer.bytes("empty", 0o644, b"").unwrap();
        writer.finish().unwrap()
    }

    fn entries(bytes: &[u8]) -> Vec<Result<Entry, ReadError>> {
        Entries::new(Cursor::new(bytes), 12..bytes.len() as u64).collect()
    }

    #[test]
    fn every_file_is_found_where_it_stands() {
        let bytes = archive();
        let found: Vec<Entry> = entries(&bytes).into_iter().map(Result::unwrap).collect();
        let paths: Vec<&str> = found.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["dev", "dev/console", "lib", "lib/a.ko.xz", "init", "empty"]);
        let files: Vec<&[u8]> = found
            .iter()
            .filter(|entry| entry.is_file())
            .map(|entry| &bytes[entry.content.start as usize..entry.content.end as usize])
            .collect();
        assert_eq!(files, [b"content".as_slice(), b""]);
    }

    #[test]
    fn an_archive_cut_short_anywhere_ends_in_an_error() {
        let bytes = archive();
        for end in 12..bytes.len() {
            let found = entries(&bytes[..end]);
            // All that may be missing without notice is the padding behind the trailer.
            let whole = end + 3 >= bytes.len();
            assert!(whole || found.last().unwrap().is_err(), "{end} of {}", bytes.len());
        }
    }

    #[test]
    fn no_byte_whatever_its_value_makes_the_reader_panic_or_leave_the_archive() {
        let good = archive();
        for at in 12..good.len() {
            for value in [0, b'0', b'F', b'-', b'+', 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                for entry in entries(&bytes).into_iter().flatten() {
                    assert!(entry.content.start <= entry.content.end && entry.content.end <= bytes.len() as u64);
                }
            }
        }
    }
}
