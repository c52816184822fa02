//! An image while it is being written, for those who read it meanwhile: it is written front to back, so what has been
//! written can be hashed, mapped and synced long before all of it is there.

use std::{
    fs::File,
    io,
    sync::{Condvar, Mutex, PoisonError, mpsc},
    thread,
};

use super::Extents;
use crate::digest::{Sha256, Stretch, StretchHasher, Stretches};

/// How many stretches are read before they are hashed.
const AHEAD: usize = 4;

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

    /// Waits until bytes before `end` don't change any more. How far that holds by now; an error if it will never do,
    /// since writing failed.
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
        let (send, read) = mpsc::sync_channel(AHEAD);
        let (give_back, spare) = mpsc::channel();
        thread::scope(|scope| {
            // Only one thread can hash it, and that takes longest: so it does nothing else.
            scope.spawn(move || {
                let result = self.read(|stretch| match send.send(Ok(stretch)) {
                    Ok(()) => Ok(spare.try_recv().unwrap_or_default()),
                    Err(_) => Err(io::Error::other("nobody hashes it any more")),
                });
                // If nobody does, why that is was told there.
                _ = result.map_err(|error| send.send(Err(error)));
            });
            let mut hasher = StretchHasher::default();
            for stretch in read {
                // The reader may have read all of it.
                _ = give_back.send(hasher.update(stretch?));
            }
            Ok(hasher.finish())
        })
    }

    /// Reads all of it. `each` is given a stretch and gives memory for the next one.
    fn read(&self, mut each: impl FnMut(Stretch) -> io::Result<Vec<u8>>) -> io::Result<()> {
        let (mut stretches, mut spare, mut settled) = (Stretches::of(&self.file), Vec::new(), 0);
        while settled < self.extents.disk {
            settled = self.wait_for(settled + 1)?;
            while let Some(stretch) = stretches.next(settled, std::mem::take(&mut spare))? {
                spare = each(stretch)?;
            }
        }
        Ok(())
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
