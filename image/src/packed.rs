//! A whole disk as one file of blocks that are not zero: what a generation carries, and what a guest's own disk is
//! copied from. A disk's zeroes take no room in it, so that no file system on the way needs to know holes, and a small
//! image can't unpack to a large one.
//!
//! A format of our own, in blocks of 4096 bytes: the disk's blocks that are not all zero, in their order; a table with
//! 16 bytes for each run of them (number of its first block on the disk, count of blocks; 64 bits each, lowest byte
//! first), filled up with zeroes to a whole block; last a block with [`MAGIC`], [`VERSION`] (32 bits and 32 zeroes),
//! and as 64 bits each the disk's size in bytes, the number of runs and the number of blocks in them.

use std::{
    fs::File,
    io::{self, Write},
    mem,
    os::unix::fs::FileExt,
};

use crate::{holes::next_data, volume::SIZE_MAX_MIB};

/// Size of a block in bytes.
pub const BLOCK: usize = 4096;
/// How the last block begins.
pub const MAGIC: [u8; 8] = *b"RACKDISK";
/// The only version there is.
pub const VERSION: u32 = 1;
/// Largest disk in bytes, 8 TiB: as for volumes. A disk's size costs nothing here, but is a file's length on the rack.
pub const SIZE_MAX: u64 = (SIZE_MAX_MIB as u64) << 20;
/// A disk's size is a multiple of that (virtio 1.2, 5.2.5: `capacity`).
pub const SECTOR: u64 = 512;

/// Bytes of a run in the table.
const ENTRY: usize = 16;
/// So much is read and written at once.
const CHUNK: usize = 1 << 20;
const ZEROES: [u8; BLOCK] = [0; BLOCK];

/// Why a disk can't be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// Reading a disk, or writing.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Reading a packed disk.
    #[error("it can't be read at byte {at}: {source}")]
    Read {
        /// Where.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// No disk has that size.
    #[error("a disk of {0} bytes can't be: its size is a multiple of {SECTOR}, from {SECTOR} to {SIZE_MAX}")]
    Size(u64),
    /// The file is none of ours, or damaged.
    #[error("it is no packed disk: {0}")]
    Damaged(&'static str),
}

/// Whether a disk can have that many bytes.
pub fn is_size(size: u64) -> bool {
    size > 0 && size <= SIZE_MAX && size.is_multiple_of(SECTOR)
}

/// Packs a disk that is given from its begin to its end.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    size: u64,
    /// The block that is being filled, and how far it is.
    block: Box<[u8; BLOCK]>,
    filled: usize,
    /// Its number on the disk.
    number: u64,
    runs: Vec<(u64, u64)>,
    stored: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a disk of `size` bytes.
    ///
    /// # Errors
    /// [`PackedError::Size`].
    pub fn new(out: W, size: u64) -> Result<Self, PackedError> {
        if !is_size(size) {
            return Err(PackedError::Size(size));
        }
        Ok(Self { out, size, block: Box::new(ZEROES), filled: 0, number: 0, runs: Vec::new(), stored: 0 })
    }

    /// How many bytes of the disk were given.
    pub fn position(&self) -> u64 {
        self.number * BLOCK as u64 + self.filled as u64
    }

    /// How many bytes of it are not left out.
    pub fn stored(&self) -> u64 {
        self.stored * BLOCK as u64
    }

    /// The disk's next bytes.
    ///
    /// # Errors
    /// Those of the file, and [`PackedError::Size`] if there are more than the disk has.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), PackedError> {
        self.fits(bytes.len() as u64)?;
        while !bytes.is_empty() {
            let (here, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.block[self.filled..self.filled + here.len()].copy_from_slice(here);
            self.filled += here.len();
            bytes = rest;
            if self.filled == BLOCK {
                self.end_block()?;
            }
        }
        Ok(())
    }

    /// The disk's next bytes are zeroes.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn skip(&mut self, count: u64) -> Result<(), PackedError> {
        self.fits(count)?;
        let begun = if self.filled == 0 { 0 } else { count.min((BLOCK - self.filled) as u64) };
        self.write(&ZEROES[..begun as usize])?;
        let rest = count - begun;
        self.number += rest / BLOCK as u64;
        self.write(&ZEROES[..(rest % BLOCK as u64) as usize])
    }

    /// All of a raw disk's file, from its begin on. Moves the file's offset; its holes are not read.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn file(&mut self, disk: &File) -> Result<(), PackedError> {
        let mut buffer = vec![0; CHUNK];
        while self.position() < self.size {
            let (data, hole) = next_data(disk, self.position(), self.size)?;
            self.skip(data - self.position())?;
            while self.position() < hole {
                let part = &mut buffer[..(hole - self.position()).min(CHUNK as u64) as usize];
                disk.read_exact_at(part, self.position())?;
                self.write(part)?;
            }
        }
        Ok(())
    }

    /// Writes what follows the blocks. What was not given of the disk is zero.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(mut self) -> Result<W, PackedError> {
        if self.filled > 0 {
            self.filled = BLOCK;
            self.end_block()?;
        }
        let runs = mem::take(&mut self.runs);
        for (first, count) in &runs {
            self.out.write_all(&first.to_le_bytes())?;
            self.out.write_all(&count.to_le_bytes())?;
        }
        self.out.write_all(&ZEROES[..(runs.len() * ENTRY).next_multiple_of(BLOCK) - runs.len() * ENTRY])?;
        let mut last = ZEROES;
        last[..8].copy_from_slice(&MAGIC);
        last[8..12].copy_from_slice(&VERSION.to_le_bytes());
        for (at, value) in [(16, self.size), (24, runs.len() as u64), (32, self.stored)] {
            last[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        self.out.write_all(&last)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn fits(&self, count: u64) -> Result<(), PackedError> {
        // Neither can overflow: the position is at most the size, and that is far below 2^63.
        if count <= self.size - self.position() { Ok(()) } else { Err(PackedError::Size(self.size)) }
    }

    fn end_block(&mut self) -> Result<(), PackedError> {
        if *self.block != ZEROES {
            match self.runs.last_mut() {
                Some((first, count)) if *first + *count == self.number => *count += 1,
                _ => self.runs.push((self.number, 1)),
            }
            self.out.write_all(&*self.block)?;
            self.stored += 1;
            *self.block = ZEROES;
        }
        self.number += 1;
        self.filled = 0;
        Ok(())
    }
}

/// Size in bytes of the disk in a packed file.
///
/// # Errors
/// [`PackedError`].
pub fn size(packed: &File) -> Result<u64, PackedError> {
    Ok(Footer::read(packed)?.size)
}

/// Writes the disk into `out`, which is empty, and gives it its size. Blocks of zeroes become holes.
///
/// # Errors
/// [`PackedError`]; then `out` is not the disk.
pub fn unpack(packed: &File, out: &File) -> Result<(), PackedError> {
    let footer = Footer::read(packed)?;
    out.set_len(footer.size)?;
    let mut table = vec![0; BLOCK];
    let mut buffer = vec![0; CHUNK];
    let (mut from, mut end) = (0_u64, 0_u64);
    for number in 0..footer.runs {
        let within = (number as usize * ENTRY) % BLOCK;
        if within == 0 {
            read(packed, &mut table, footer.table() + number * ENTRY as u64)?;
        }
        let (first, count) = (word(&table, within), word(&table, within + 8));
        let next = first.checked_add(count).filter(|next| first >= end && *next <= footer.size.div_ceil(BLOCK as u64));
        end = next.ok_or(PackedError::Damaged("a run of blocks lies beside the disk"))?;
        if count > footer.stored - from {
            return Err(PackedError::Damaged("its runs have more blocks than it says"));
        }
        let stop = from + count;
        let mut at = first * BLOCK as u64;
        while from < stop {
            let here = ((stop - from) * BLOCK as u64).min(CHUNK as u64);
            let part = &mut buffer[..here as usize];
            read(packed, part, from * BLOCK as u64)?;
            // The disk may end within its last block.
            let part = &part[..here.min(footer.size - at) as usize];
            out.write_all_at(part, at)?;
            from += here / BLOCK as u64;
            at += here;
        }
    }
    if from == footer.stored { Ok(()) } else { Err(PackedError::Damaged("its runs have fewer blocks than it says")) }
}

fn read(packed: &File, part: &mut [u8], at: u64) -> Result<(), PackedError> {
    packed.read_exact_at(part, at).map_err(|source| PackedError::Read { at, source })
}

/// What the last block says.
struct Footer {
    size: u64,
    runs: u64,
    stored: u64,
}

impl Footer {
    fn read(packed: &File) -> Result<Self, PackedError> {
        let length = packed.metadata()?.len();
        let start = length.checked_sub(BLOCK as u64).ok_or(PackedError::Damaged("it is too short"))?;
        let mut last = ZEROES;
        read(packed, &mut last, start)?;
        if last[..8] != MAGIC {
            return Err(PackedError::Damaged("its last block is not the one of such a file"));
        }
        if last[8..12] != VERSION.to_le_bytes() {
            return Err(PackedError::Damaged("it is of another version"));
        }
        let (size, runs, stored) = (word(&last, 16), word(&last, 24), word(&last, 32));
        if !is_size(size) {
            return Err(PackedError::Size(size));
        }
        // Below 2^31, as the disk's size is; then nothing here can overflow.
        if runs > stored || stored > size.div_ceil(BLOCK as u64) {
            return Err(PackedError::Damaged("it has more blocks than the disk"));
        }
        let footer = Self { size, runs, stored };
        let table = (runs * ENTRY as u64).next_multiple_of(BLOCK as u64);
        if footer.table() + table != start {
            return Err(PackedError::Damaged("its length is not what it says"));
        }
        Ok(footer)
    }

    /// Where the table begins.
    fn table(&self) -> u64 {
        self.stored * BLOCK as u64
    }
}

/// 64 bits, lowest byte first. `at` lies within the block.
fn word(block: &[u8], at: usize) -> u64 {
    block.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// What a disk of this size with these bytes at these places is, packed.
    fn pack(size: u64, pieces: &[(u64, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), size).unwrap();
        for (at, bytes) in pieces {
            writer.skip(at - writer.position()).unwrap();
            writer.write(bytes).unwrap();
        }
        writer.finish().unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn a_disk_comes_out_as_it_went_in_and_its_zeroes_are_holes() {
        let long = vec![7; 3 * CHUNK + 5];
        let pieces: [(u64, &[u8]); 4] =
            [(3, b"abc"), (4095, b"across"), (5 * MIB + 1, &long), (64 * MIB - 512, b"end")];
        let packed = pack(64 * MIB, &pieces);
        assert!(
            packed.len() as u64 > 3 * MIB && (packed.len() as u64) < 3 * MIB + 8 * BLOCK as u64,
            "{}",
            packed.len()
        );
        assert_eq!(packed.len() % BLOCK, 0);
        let out = tempfile::tempfile().unwrap();
        unpack(&file(&packed), &out).unwrap();
        let mut expected = vec![0; 64 << 20];
        for (at, bytes) in pieces {
            expected[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }
        let mut found = vec![0; 64 << 20];
        out.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
        let metadata = out.metadata().unwrap();
        assert_eq!(metadata.len(), 64 * MIB);
        assert!(metadata.blocks() * 512 < 4 * MIB, "{} blocks", metadata.blocks());
    }

    #[test]
    fn zeroes_that_are_written_and_zeroes_that_are_skipped_give_the_same_file() {
        let mut written = Writer::new(Vec::new(), 3 * MIB + 512).unwrap();
        written.write(&vec![0; 5000]).unwrap();
        written.write(b"x").unwrap();
        written.write(&vec![0; 3 * (1 << 20) + 512 - 5001]).unwrap();
        assert_eq!(written.finish().unwrap(), pack(3 * MIB + 512, &[(5000, b"x")]));
    }

    #[test]
    fn a_disk_of_any_size_costs_only_what_is_on_it() {
        for size in [512, 4096, 4608, SIZE_MAX] {
            let packed = pack(size, &[(size - 512, &[9; 512])]);
            assert_eq!(packed.len(), 3 * BLOCK, "{size}");
            let out = tempfile::tempfile().unwrap();
            unpack(&file(&packed), &out).unwrap();
            assert_eq!((out.metadata().unwrap().len(), super::size(&file(&packed)).unwrap()), (size, size));
            let mut end = [0; 512];
            out.read_exact_at(&mut end, size - 512).unwrap();
            assert_eq!(end, [9; 512]);
        }
        for size in [0, 1, 513, SIZE_MAX + 512, u64::MAX] {
            assert!(matches!(Writer::new(Vec::new(), size), Err(PackedError::Size(found)) if found == size));
        }
    }

    #[test]
    fn more_than_the_disk_has_is_refused() {
        let mut writer = Writer::new(Vec::new(), 1024).unwrap();
        writer.skip(1000).unwrap();
        assert!(matches!(writer.write(&[1; 25]), Err(PackedError::Size(1024))));
        assert!(matches!(writer.skip(u64::MAX), Err(PackedError::Size(1024))));
        writer.write(&[1; 24]).unwrap();
        assert_eq!(writer.stored(), 0, "the block is not full yet");
        writer.finish().unwrap();
    }

    #[test]
    fn a_file_with_many_runs_has_a_table_of_many_blocks() {
        let pieces: Vec<(u64, &[u8])> = (0..1000).map(|number| (number * 8192, &b"x"[..])).collect();
        let packed = pack(16 * MIB, &pieces);
        assert_eq!(packed.len(), (1000 + 4 + 1) * BLOCK);
        let out = tempfile::tempfile().unwrap();
        unpack(&file(&packed), &out).unwrap();
        let mut last = [0; 2];
        out.read_exact_at(&mut last, 999 * 8192).unwrap();
        assert_eq!(last, *b"x\0");
    }

    #[test]
    fn a_damaged_file_is_an_error_and_writes_nothing_beside_the_disk() {
        let good = pack(MIB, &[(0, b"a"), (8192, b"b")]);
        let (table, footer) = (2 * BLOCK, 3 * BLOCK);
        let mut bad: Vec<Vec<u8>> = (0..good.len()).step_by(1000).map(|cut| good[..cut].to_vec()).collect();
        for at in [table, table + 8, table + 16, footer, footer + 8, footer + 16, footer + 24, footer + 32] {
            for value in [3_u64, 255, 1 << 40, u64::MAX] {
                let mut changed = good.clone();
                changed[at..at + 8].copy_from_slice(&value.to_le_bytes());
                bad.push(changed);
            }
        }
        for bytes in bad {
            let out = tempfile::tempfile().unwrap();
            let unpacked = unpack(&file(&bytes), &out);
            let length = out.metadata().unwrap().len();
            // What is only another disk is no fault that can be seen here: fs-verity sees it.
            match unpacked {
                Ok(()) => assert_eq!(length, super::size(&file(&bytes)).unwrap()),
                Err(_) => assert!(length <= SIZE_MAX),
            }
        }
        assert!(matches!(unpack(&file(&good[..BLOCK]), &tempfile::tempfile().unwrap()), Err(PackedError::Damaged(_))));
    }
}
