//! Memory that a disk can be read into and written from without the page cache: open(2), O_DIRECT.

/// What all disks accept: a page.
const ALIGNMENT: usize = 4096;

/// A piece of memory that begins at a page.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Zeroes.
    pub fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start, length }
    }

    /// Its first bytes.
    pub fn first(&mut self, length: u64) -> &mut [u8] {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(self.length);
        &mut self.bytes[self.start..self.start + length]
    }
}
