//! Compresses files while they are written: extents of 128 KiB, each a zstd frame of its own (RFC 8878), by several
//! threads. What is written depends on nothing but the files and the version of the library.

use std::{
    io::{self, Seek, Write},
    num::NonZero,
    sync::{Condvar, Mutex, PoisonError},
    thread,
};

use super::{
    BLOCK_SIZE, LayoutError, WriteError,
    format::EXTENT_SIZE,
    layout::{Layout, Placed},
    tree::{Kind, Tree},
    write::Output,
};
use crate::source::Source;

/// zstd's level, its default: of Debian's base 9 makes 4 % less in four times the time, 15 makes 9 % less in 37 times.
const LEVEL: i32 = 3;
/// Extents that a thread compresses before it writes: threads take turns at that, and extents take different times. So
/// a thread has twice these bytes in memory, whatever a file's size.
const RUN: u64 = 16 * EXTENT_SIZE as u64;

/// A piece of a file, which one thread reads, compresses and writes.
#[derive(Clone, Copy)]
struct Run<'a> {
    /// The file's place in the layout.
    file: usize,
    source: &'a Source,
    /// Where it begins in the file.
    from: u64,
    length: u64,
    /// Whether it is worth a try.
    indexed: bool,
}

/// A run as it is to be written.
#[derive(Default)]
struct Packed {
    blocks: Vec<u8>,
    /// How many blocks each extent has.
    extents: Vec<u8>,
}

/// What threads share.
struct Shared<'o, I, W> {
    /// Those that nobody has taken.
    runs: I,
    taken: u64,
    /// So many are written.
    written: u64,
    /// The next block.
    block: u64,
    layout: &'o mut Layout,
    out: &'o mut Output<W>,
    failed: Option<WriteError>,
}

/// Writes all files behind the head, which is written already, and notes in the layout where and how. Gives the number
/// of blocks that all have then.
pub(super) fn write_files<W: Write + Seek + Send>(
    tree: &Tree,
    layout: &mut Layout,
    out: &mut Output<W>,
    threads: NonZero<usize>,
) -> Result<u32, WriteError> {
    let files: Vec<(usize, &Source, bool)> = layout
        .placed
        .iter()
        .enumerate()
        .filter_map(|(at, placed)| match &tree.entry(placed.index).node.kind {
            Kind::File(source) if !placed.inline => Some((at, source, placed.indexed)),
            _ => None,
        })
        .collect();
    let runs = files.iter().flat_map(|&(file, source, indexed)| {
        // An empty file is looked at too: it may have changed.
        let pieces = source.size().div_ceil(RUN).max(1);
        (0..pieces).map(move |piece| {
            let from = piece * RUN;
            Run { file, source, from, length: (source.size() - from).min(RUN), indexed }
        })
    });
    let block = layout.head_size / BLOCK_SIZE as u64;
    let shared = Mutex::new(Shared { runs, taken: 0, written: 0, block, layout, out, failed: None });
    let turn = Condvar::new();
    thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(|| work(&shared, &turn));
        }
    });
    let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = shared.failed {
        return Err(error);
    }
    for placed in &mut shared.layout.placed {
        placed.settle();
    }
    u32::try_from(shared.block).map_err(|_| LayoutError::TooLarge { blocks: shared.block }.into())
}

/// Takes one run after the other until there are no more, or one failed.
fn work<'a, W: Write + Seek>(shared: &Mutex<Shared<'_, impl Iterator<Item = Run<'a>>, W>>, turn: &Condvar) {
    let _end = End { shared, turn };
    let mut packer = Packer::new();
    let next = || {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let run = if shared.failed.is_none() { shared.runs.next() } else { None }?;
        shared.taken += 1;
        Some((shared.taken - 1, run))
    };
    while let Some((number, run)) = next() {
        let packed = packer.as_mut().map_err(|error| WriteError::Compress(error.kind().into()));
        let packed = packed.and_then(|packer| packer.pack(&run));
        let lock = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let is_early = |shared: &mut Shared<'_, _, _>| shared.failed.is_none() && shared.written != number;
        let mut shared = turn.wait_while(lock, is_early).unwrap_or_else(PoisonError::into_inner);
        // The first that fails in the order of files is told, whichever thread is faster.
        if shared.failed.is_none() {
            shared.failed = packed.and_then(|packed| shared.put(&run, &packed)).err();
        }
        shared.written += 1;
        turn.notify_all();
    }
}

/// If a thread panics, the others don't wait for its turn.
struct End<'s, 'o, I, W> {
    shared: &'s Mutex<Shared<'o, I, W>>,
    turn: &'s Condvar,
}

impl<I, W> Drop for End<'_, '_, I, W> {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.failed.get_or_insert_with(|| WriteError::Compress(io::Error::other("a thread panicked")));
            self.turn.notify_all();
        }
    }
}

impl<I, W: Write + Seek> Shared<'_, I, W> {
    fn put(&mut self, run: &Run<'_>, packed: &Packed) -> Result<(), WriteError> {
        let placed = &mut self.layout.placed[run.file];
        if run.from == 0 && run.length > 0 {
            placed.block = u32::try_from(self.block).map_err(|_| LayoutError::TooLarge { blocks: self.block })?;
        }
        if run.indexed {
            placed.extents.get_or_insert_default().extend(&packed.extents);
        }
        self.block += (packed.blocks.len() / BLOCK_SIZE) as u64;
        Ok(self.out.put(&packed.blocks)?)
    }
}

/// What one thread compresses with.
struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
    frame: Vec<u8>,
}

impl Packer {
    fn new() -> io::Result<Self> {
        let frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(EXTENT_SIZE));
        Ok(Self { zstd: zstd::bulk::Compressor::new(LEVEL)?, frame })
    }

    fn pack(&mut self, run: &Run<'_>) -> Result<Packed, WriteError> {
        let mut data = vec![0; run.length as usize];
        run.source.read_at(&mut data, run.from)?;
        let mut packed = Packed::default();
        for extent in data.chunks(EXTENT_SIZE) {
            let plain = extent.len().div_ceil(BLOCK_SIZE);
            let blocks = if run.indexed && plain > 1 { self.blocks(extent)? } else { plain };
            let whole = packed.blocks.len() + blocks.min(plain) * BLOCK_SIZE;
            if blocks < plain {
                packed.blocks.resize(whole - self.frame.len(), 0);
                packed.blocks.extend_from_slice(&self.frame);
            } else {
                packed.blocks.extend_from_slice(extent);
                packed.blocks.resize(whole, 0);
            }
            packed.extents.push(blocks.min(plain) as u8); // at most 32
        }
        Ok(packed)
    }

    /// Compresses an extent; gives the number of blocks that it then takes.
    fn blocks(&mut self, extent: &[u8]) -> Result<usize, WriteError> {
        self.frame.clear();
        self.zstd.compress_to_buffer(extent, &mut self.frame).map_err(WriteError::Compress)?;
        Ok(self.frame.len().div_ceil(BLOCK_SIZE))
    }
}

impl Placed {
    /// A file that did not become smaller is one like those of other layers.
    fn settle(&mut self) {
        let blocks: u64 = self.extents.iter().flatten().map(|blocks| u64::from(*blocks)).sum();
        if blocks >= self.size.div_ceil(BLOCK_SIZE as u64) {
            self.extents = None;
        }
    }
}

#[cfg(test)]
mod tests;
