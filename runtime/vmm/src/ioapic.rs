//! The I/O APIC (Intel 82093AA), in user space because the interrupt chip is split. Its only connected pin is that
//! of the generic event device; the others exist because the chip has them.

use std::sync::Arc;

use crate::{
    irq::{IrqLine, Msi},
    layout::{IOAPIC_PINS, LAPIC},
};

/// Index register (82093AA, 3.1).
const IOREGSEL: u64 = 0x00;
/// Data window (82093AA, 3.1).
const IOWIN: u64 = 0x10;
const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_REDIRECTION: u8 = 0x10;
/// Version 0x11 (no EOI register), highest redirection entry in bits 16 to 23.
const VERSION: u32 = 0x11 | (IOAPIC_PINS - 1) << 16;

/// Delivery status and remote IRR are read-only (82093AA, 3.2.4).
const READ_ONLY: u64 = 1 << 12 | 1 << 14;
const MASKED: u64 = 1 << 16;

/// The chip's state.
#[derive(Debug)]
pub struct IoApic {
    id: u32,
    select: u8,
    entries: [u64; IOAPIC_PINS as usize],
    lines: Vec<(u32, Arc<IrqLine>)>,
}

impl IoApic {
    /// A chip after reset, all pins masked, with `lines` connected: pin and line.
    pub fn new(lines: Vec<(u32, Arc<IrqLine>)>) -> Self {
        Self { id: 0, select: 0, entries: [MASKED; IOAPIC_PINS as usize], lines }
    }

    /// A read at `offset` from the chip's first register.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => self.select.into(),
            IOWIN => self.register(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// A write at `offset` from the chip's first register. Registers are 32 bits wide; other widths are ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN => self.set_register(value),
            _ => {}
        }
    }

    fn register(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => self.id,
            REG_VERSION => VERSION,
            select => match self.selected_entry(select) {
                Some((pin, shift)) => (self.entries[pin] >> shift) as u32,
                None => 0,
            },
        }
    }

    fn set_register(&mut self, value: u32) {
        if self.select == REG_ID {
            self.id = value & 0x0F00_0000;
            return;
        }
        let Some((pin, shift)) = self.selected_entry(self.select) else { return };
        let entry = &mut self.entries[pin];
        let keep = !(0xFFFF_FFFF << shift) | READ_ONLY;
        *entry = *entry & keep | u64::from(value) << shift & !keep;
        let entry = *entry;
        for (_, line) in self.lines.iter().filter(|(connected, _)| *connected as usize == pin) {
            let done = if entry & MASKED == 0 { line.bind(message(entry)) } else { line.unbind() };
            if let Err(error) = done {
                log::error!("I/O APIC pin {pin}: {error}");
            }
        }
    }

    fn selected_entry(&self, select: u8) -> Option<(usize, u32)> {
        let index = usize::from(select.checked_sub(REG_REDIRECTION)?);
        (index / 2 < self.entries.len()).then_some((index / 2, (index % 2) as u32 * 32))
    }
}

/// The message of a redirection entry: same fields in other places (82093AA, 3.2.4; Intel SDM 3, message format).
fn message(entry: u64) -> Msi {
    let destination = entry >> 56;
    let logical = entry >> 11 & 1;
    let vector_and_delivery = entry & 0x7FF;
    let level = entry >> 15 & 1;
    Msi {
        address: LAPIC | destination << 12 | logical << 2,
        data: (vector_and_delivery | level << 15 | level << 14) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(chip: &mut IoApic, register: u8, value: u32) {
        chip.write(IOREGSEL, &u32::from(register).to_le_bytes());
        chip.write(IOWIN, &value.to_le_bytes());
    }

    fn read(chip: &mut IoApic, register: u8) -> u32 {
        chip.write(IOREGSEL, &u32::from(register).to_le_bytes());
        let mut data = [0; 4];
        chip.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn registers_keep_what_may_be_written() {
        let mut chip = IoApic::new(Vec::new());
        assert_eq!(read(&mut chip, REG_VERSION), 0x17_0011);
        write(&mut chip, 0x1A, 0xFFFF_FFFF);
        write(&mut chip, 0x1B, 0x0200_0000);
        assert_eq!(read(&mut chip, 0x1A), !(READ_ONLY as u32));
        assert_eq!(read(&mut chip, 0x1B), 0x0200_0000);
        write(&mut chip, REG_VERSION, 7);
        assert_eq!(read(&mut chip, REG_VERSION), 0x17_0011);
    }

    #[test]
    fn any_register_width_and_offset_is_harmless() {
        let mut chip = IoApic::new(Vec::new());
        for select in 0..=255 {
            chip.write(IOREGSEL, &[select, 0, 0, 0]);
            for offset in 0..0x40 {
                for width in 0..=8 {
                    chip.write(offset, &vec![0xA5; width]);
                    chip.read(offset, &mut vec![0; width]);
                }
                chip.write(IOREGSEL, &[select, 0, 0, 0]);
            }
        }
    }

    #[test]
    fn an_entry_becomes_its_message() {
        // Vector 0x31, lowest priority, logical, edge, destination 2.
        let msi = message(0x0200_0000_0000_0931);
        assert_eq!(msi, Msi { address: 0xFEE0_2004, data: 0x0131 });
    }
}
