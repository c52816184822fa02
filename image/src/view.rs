//! A part of a disk image that is read as if it stood alone: a partition, a file in the partition's file system, a
//! section of that file. It is a list of places on the disk, so nothing of it is in memory. Readers of formats report
//! what they find by [`ReadError`].

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

/// Most places that one view is put together from: a file system of crumbs would fill the memory. A file of 8 TiB in
/// ext4's largest extents has as many.
pub const MAX_PIECES: usize = 1 << 16;

/// Why a format can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("it can't be read: {source}")]
    Io {
        /// Position in what is read.
        at: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The format is not kept.
    #[error("{what}")]
    Damaged {
        /// Position in what is read.
        at: u64,
        /// What is wrong there.
        what: &'static str,
    },
}

impl ReadError {
    /// Position in what was read.
    pub fn at(&self) -> u64 {
        let (Self::Io { at, .. } | Self::Damaged { at, .. }) = self;
        *at
    }
}

/// Turns a condition into [`ReadError::Damaged`].
pub(crate) fn ensure(holds: bool, at: u64, what: &'static str) -> Result<(), ReadError> {
    if holds { Ok(()) } else { Err(ReadError::Damaged { at, what }) }
}

/// A part of a disk.
#[derive(Debug, Clone)]
pub struct View<'a> {
    disk: &'a File,
    /// In order, without gaps.
    pieces: Vec<Piece>,
    length: u64,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Where it begins in the view.
    from: u64,
    length: u64,
    /// Where it begins on the disk.
    at: u64,
}

impl<'a> View<'a> {
    /// All of a disk.
    ///
    /// # Errors
    /// What the system says of its length.
    pub fn whole(disk: &'a File) -> io::Result<Self> {
        let length = { disk }.seek(SeekFrom::End(0))?;
        Ok(Self { disk, pieces: vec![Piece { from: 0, length, at: 0 }], length })
    }

    /// Nothing of the same disk; [`View::append`] makes it more.
    pub fn nothing(&self) -> Self {
        Self { disk: self.disk, pieces: Vec::new(), length: 0 }
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// `length` bytes from `start` on; none if they are not all in the view.
    pub fn part(&self, start: u64, length: u64) -> Option<Self> {
        let end = start.checked_add(length).filter(|end| *end <= self.length)?;
        let mut part = self.nothing();
        for piece in self.pieces.get(self.index(start)..)?.iter().take_while(|piece| piece.from < end) {
            let (from, to) = (piece.from.max(start), (piece.from + piece.length).min(end));
            if from < to {
                part.push(piece.at + (from - piece.from), to - from);
            }
        }
        Some(part)
    }

    /// Adds what stands in another view of the same disk.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] if it then had more than [`MAX_PIECES`].
    pub fn append(&mut self, other: &Self) -> Result<(), ReadError> {
        for piece in &other.pieces {
            self.push(piece.at, piece.length);
        }
        ensure(self.pieces.len() <= MAX_PIECES, self.length, "a file lies in more than 65536 pieces")
    }

    fn push(&mut self, at: u64, length: u64) {
        let from = self.length;
        // The sum of what lies on disks, a few times over.
        self.length = self.length.saturating_add(length);
        match self.pieces.last_mut() {
            Some(last) if last.at + last.length == at => last.length += length,
            _ => self.pieces.push(Piece { from, length, at }),
        }
    }

    /// Index of the piece that holds byte `at`.
    fn index(&self, at: u64) -> usize {
        self.pieces.partition_point(|piece| piece.from + piece.length <= at)
    }

    /// Where byte `at` stands on the disk; none if it is not in the view.
    pub fn place(&self, at: u64) -> Option<u64> {
        self.pieces.get(self.index(at)).map(|piece| piece.at + (at - piece.from))
    }

    /// Where its pieces lie on the disk, and how long they are.
    pub fn places(&self) -> impl Iterator<Item = (u64, u64)> {
        self.pieces.iter().map(|piece| (piece.at, piece.length))
    }

    /// Fills the buffer with what stands at `at`.
    ///
    /// # Errors
    /// [`ReadError`], also where the view ends before the buffer is full.
    pub fn read_at(&self, mut buffer: &mut [u8], mut at: u64) -> Result<(), ReadError> {
        let end = at.checked_add(buffer.len() as u64).filter(|end| *end <= self.length);
        ensure(end.is_some(), at, "it ends too early")?;
        for piece in self.pieces.get(self.index(at)..).unwrap_or_default() {
            if buffer.is_empty() {
                break;
            }
            let inside = at - piece.from;
            let here = (piece.length - inside).min(buffer.len() as u64);
            let (now, later) = buffer.split_at_mut(here as usize);
            self.disk.read_exact_at(now, piece.at + inside).map_err(|source| ReadError::Io { at, source })?;
            buffer = later;
            at += here;
        }
        Ok(())
    }

    /// `N` bytes at `at`.
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn array<const N: usize>(&self, at: u64) -> Result<[u8; N], ReadError> {
        let mut bytes = [0; N];
        self.read_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// All of it, if it is not longer than `limit`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn bytes(&self, limit: u64) -> Result<Vec<u8>, ReadError> {
        ensure(self.length <= limit, 0, "it is larger than such a file can be")?;
        let mut bytes = vec![0; self.length as usize];
        self.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Reads it from beginning to end.
    pub fn reader(&self) -> Reader<'_> {
        Reader { view: self, position: 0 }
    }
}

/// See [`View::reader`].
#[derive(Debug)]
pub struct Reader<'a> {
    view: &'a View<'a>,
    position: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.view.length.saturating_sub(self.position);
        let here = left.min(buffer.len() as u64) as usize;
        self.view.read_at(&mut buffer[..here], self.position).map_err(|error| match error {
            ReadError::Io { source, .. } => source,
            ReadError::Damaged { .. } => io::ErrorKind::UnexpectedEof.into(),
        })?;
        self.position += here as u64;
        Ok(here)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.view.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_of_pieces_reads_as_one_and_ends_where_it_ends() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let whole = View::whole(&file).unwrap();
        let mut view = whole.nothing();
        for (start, length) in [(7, 3), (0, 2), (2, 1), (5, 0)] {
            view.append(&whole.part(start, length).unwrap()).unwrap();
        }
        assert_eq!(view.bytes(6).unwrap(), b"789012");
        assert_eq!((view.pieces.len(), view.length()), (2, 6), "what lies together is one piece");
        assert_eq!(view.part(1, 4).unwrap().bytes(9).unwrap(), b"8901");
        assert_eq!([0, 2, 3, 5, 6].map(|at| view.place(at)), [Some(7), Some(9), Some(0), Some(2), None]);
        let mut text = String::new();
        let mut reader = view.reader();
        reader.seek(SeekFrom::Start(2)).unwrap();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "9012");
        assert!(view.bytes(5).is_err());
        for (start, length) in [(0, 7), (6, 1), (7, 0), (u64::MAX, 2), (1, u64::MAX)] {
            assert!(view.part(start, length).is_none(), "{start} {length}");
        }
        assert!(view.array::<1>(6).is_err() && view.array::<2>(u64::MAX).is_err());
    }

    #[test]
    fn crumbs_without_end_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let whole = View::whole(&file).unwrap();
        let (crumb, mut view) = (whole.part(3, 1).unwrap(), whole.nothing());
        let fitted = (0..).take_while(|_| view.append(&crumb).is_ok()).count();
        assert_eq!(fitted, MAX_PIECES);
    }
}
