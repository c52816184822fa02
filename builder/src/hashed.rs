//! Files that are hashed while they are used, so that what was used is what was hashed, and nothing is read twice.

use std::io::{self, Read};

use rackstick_image::digest::Sha256;
use sha2::Digest;

/// Hashes and counts what is read through it.
pub struct Hashed<R> {
    inner: R,
    hasher: sha2::Sha256,
    bytes: u64,
}

impl<R> Hashed<R> {
    /// Nothing was read yet.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: sha2::Sha256::new(), bytes: 0 }
    }

    /// How many bytes were read.
    pub fn length(&self) -> u64 {
        self.bytes
    }

    /// SHA-256 of what was read.
    pub fn finish(self) -> Sha256 {
        Sha256(self.hasher.finalize().into())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}
