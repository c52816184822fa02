//! MSI-X (PCI Local Bus 3.0, 6.8.2): the table of messages, the pending bits, and the control register.
//! Each vector is an [`IrqLine`]: bound to its message while it may fire, unbound while it is masked.

use std::sync::Arc;

use crate::irq::{IrqError, IrqLine, IrqRouter, Msi};

/// Capability id of MSI-X.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry: address, upper address, data, vector control.
pub const ENTRY_SIZE: usize = 16;
/// Most vectors that fit the table's page in the BAR.
pub const MAX_VECTORS: usize = 64;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control: the mask bit.
const MASKED: u32 = 1;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Address low, address high, data, control, as the table holds them.
    words: [u32; 4],
}

/// The vectors of one function.
#[derive(Debug)]
pub struct Msix {
    control: u16,
    entries: Vec<Entry>,
    lines: Vec<Arc<IrqLine>>,
}

impl Msix {
    /// `vectors` masked vectors, at most [`MAX_VECTORS`].
    pub fn new(router: &Arc<IrqRouter>, vectors: usize) -> Result<Self, IrqError> {
        debug_assert!((1..=MAX_VECTORS).contains(&vectors));
        let lines = (0..vectors).map(|_| router.msi_line()).collect::<Result<_, _>>()?;
        Ok(Self { control: 0, entries: vec![Entry { words: [0, 0, 0, MASKED] }; vectors], lines })
    }

    /// The capability's body (6.8.2.3 to 6.8.2.5) with the table at `table` and the pending bits at `pending` in
    /// BAR 0, and the mask of its writable bits.
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.entries.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        (body, (ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// The line of `vector`, if there is such a vector.
    pub fn line(&self, vector: u16) -> Option<&Arc<IrqLine>> {
        self.lines.get(usize::from(vector))
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.lines.len() as u16
    }

    /// Follows the message control register.
    pub fn set_control(&mut self, control: u16) {
        if control != self.control {
            self.control = control;
            for vector in 0..self.lines.len() {
                self.apply(vector);
            }
        }
    }

    /// Reads the table at `offset`: any offset, any length.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let (index, in_entry) = ((at / ENTRY_SIZE as u64) as usize, (at % ENTRY_SIZE as u64) as usize);
            *byte = self.entries.get(index).map_or(0, |entry| entry.words[in_entry / 4].to_le_bytes()[in_entry % 4]);
        }
    }

    /// Writes the table at `offset`. Software must write whole words or double words (6.8.2); others are ignored.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let (vector, word) = ((offset / ENTRY_SIZE as u64) as usize, (offset % ENTRY_SIZE as u64) as usize / 4);
        let Some(entry) = self.entries.get_mut(vector) else { return };
        for (word, value) in entry.words[word..].iter_mut().zip(data.chunks_exact(4)) {
            *word = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        }
        entry.words[3] &= MASKED;
        self.apply(vector);
    }

    /// Reads the pending bits at `offset`: any offset, any length.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let lines = self.lines.iter().skip((at as usize).saturating_mul(8)).take(8);
            *byte = lines.enumerate().fold(0, |bits, (bit, line)| bits | u8::from(line.pending()) << bit);
        }
    }

    fn apply(&mut self, vector: usize) {
        let (entry, line) = (self.entries[vector], &self.lines[vector]);
        let may_fire = self.control & ENABLE != 0 && self.control & FUNCTION_MASK == 0 && entry.words[3] & MASKED == 0;
        let done = if may_fire {
            let address = u64::from(entry.words[0]) | u64::from(entry.words[1]) << 32;
            line.bind(Msi { address, data: entry.words[2] })
        } else {
            line.unbind()
        };
        // A message KVM refuses is a message no local APIC would take: the guest loses its own interrupt.
        if let Err(error) = done {
            log::warn!("MSI-X vector {vector}: {error}");
        }
    }
}
