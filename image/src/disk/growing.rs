//! An image while it is being written, for those who read it meanwhile: it is written front to back, so what has been written can be hashed,
//! mapped and synced long before all of it is there.

use std::{
    fs::File,
    io,
    sync::{Condvar, Mutex, PoisonError},
};

use super::Extents;
use crate::digest::{FileHasher, Sha256};

/// An image that is being written.
#[derive(Debug)]
pub struct Growing {
    /// It. Beyond what [`Growing::wait_for`] waited for it may change at any moment.
    pub file: File,
    /// Where things lie.
    pub extents: Extents,
    settled: Mutex<Settled>,
    moved: Condvar,
}

#[derive(Debug, Clone, Copy)]
enum Settled {
    /// Bytes before this one don't change any more.
    Before(u64),
    /// It will never be whole.
    Failed,
}

impl Growing {
    pub(super) fn new(file: File, extents: Extents) -> Self {
        Self { file, extents, settled: Mutex::new(Settled::Before(0)), moved: Condvar::new() }
    }

    /// Waits until bytes before `end` don't change any more. How far that holds by now; an error if it will never do, since writing failed.
    pub fn wait_for(&self, end: u64) -> io::Result<u64> {
        let waiting = |settled: &mut Settled| matches!(settled, Settled::Before(at) if *at < end);
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        match *self.moved.wait_while(settled, waiting).unwrap_or_else(PoisonError::into_inner) {
            Settled::Before(at) => Ok(at),
            Settled::Failed => Err(io::Error::other("it was not written to its end")),
        }
    }

    /// Waits, as [`Growing::wait_for`], until the tables of both file systems are there, which say what is used.
    pub fn wait_for_tables(&self) -> io::Result<()> {
        self.wait_for(self.extents.data.0 + 1).map(drop)
    }

    /// The SHA-256 of all of it, soon after it is there. Moves the file's offset.
    pub fn sha256(&self) -> io::Result<Sha256> {
        let mut hasher = FileHasher::default();
        let mut at = 0;
        while at < self.extents.disk {
            let end = self.wait_for(at + 1)?;
            hasher.update(&self.file, end)?;
            at = end;
        }
        Ok(hasher.finish())
    }

    /// Bytes before `end` don't change any more.
    pub(super) fn settle(&self, end: u64) {
        self.set(Settled::Before(end));
    }

    fn set(&self, settled: Settled) {
        *self.settled.lock().unwrap_or_else(PoisonError::into_inner) = settled;
        self.moved.notify_all();
    }
}

/// Who writes it. Once this is dropped, also by a panic, nobody waits any more.
pub(super) struct Writer<'a>(pub &'a Growing);

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !matches!(self.0.wait_for(0), Ok(end) if end == self.0.extents.disk) {
            self.0.set(Settled::Failed);
        }
    }
}
