//! A file that is put together from others, and that nobody needs to write before it is written where it goes.

use std::io::{self, Read, Write};

use crate::source::{Source, SourceError, read_error};

/// Bytes read at once.
const BUFFER_SIZE: usize = 1 << 20;

/// What it consists of, in order. What is written to it comes behind that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pieces(Vec<Source>);

impl Pieces {
    /// Adds a piece behind the others.
    pub fn push(&mut self, piece: Source) {
        self.0.push(piece);
    }

    /// Adds all pieces of another file.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.0.iter().map(Source::size).fold(0, u64::saturating_add)
    }

    /// Hands out all bytes, in order.
    pub fn each<E: From<SourceError>>(&self, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut buffer = Vec::new();
        for piece in &self.0 {
            let path = match piece {
                Source::Bytes(bytes) => {
                    bytes.chunks(BUFFER_SIZE).try_for_each(&mut take)?;
                    continue;
                }
                Source::Path { path, .. } | Source::Part { path, .. } => path,
            };
            buffer.resize(BUFFER_SIZE, 0);
            let (mut reader, mut left) = (piece.reader()?, piece.size());
            while left > 0 {
                match reader.read(&mut buffer) {
                    Ok(0) => return Err(SourceError::Changed { path: path.clone(), size: piece.size() }.into()),
                    Ok(read) => {
                        take(&buffer[..read])?;
                        left -= read as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(read_error(path)(error).into()),
                }
            }
        }
        Ok(())
    }

    /// All bytes, in memory.
    pub fn read(&self) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        self.each(|piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, SourceError>(())
        })?;
        Ok(bytes)
    }

    /// The bytes before the first piece that is not in memory.
    pub(crate) fn head(&mut self) -> &mut [u8] {
        match self.0.first_mut() {
            Some(Source::Bytes(bytes)) => bytes,
            _ => &mut [],
        }
    }
}

impl From<Source> for Pieces {
    fn from(source: Source) -> Self {
        Self(vec![source])
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.last_mut() {
            Some(Source::Bytes(last)) => last.extend_from_slice(bytes),
            _ => self.0.push(Source::Bytes(bytes.to_vec())),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_bytes_are_those_of_all_pieces_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let large: Vec<u8> = (0..3_000_001_u32).map(|at| (at >> 3) as u8).collect();
        fs::write(&path, &large).unwrap();
        let mut pieces = Pieces::default();
        assert_eq!((pieces.size(), pieces.read().unwrap()), (0, vec![]));
        pieces.write_all(b"ab").unwrap();
        pieces.write_all(b"c").unwrap();
        pieces.push(Source::file(&path).unwrap());
        pieces.push(Source::Part { path: path.clone(), offset: 8, size: 1 });
        pieces.write_all(b"d").unwrap();
        pieces.append(Source::Bytes(large.clone()).into());
        let expected = [b"abc", large.as_slice(), &[1], b"d", &large].concat();
        assert_eq!(pieces.size(), expected.len() as u64);
        assert!(pieces.read().unwrap() == expected);

        fs::write(&path, &large[1..]).unwrap();
        assert!(matches!(pieces.read(), Err(SourceError::Changed { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(pieces.read(), Err(SourceError::Read { .. })));
    }
}
