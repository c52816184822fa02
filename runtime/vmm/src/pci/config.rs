//! A type 0 configuration space (PCI Local Bus 3.0, 6.1): bytes with a mask of those bits that may be written.

use std::ops::Range;

/// Vendor id.
pub const VENDOR_ID: usize = 0x00;
/// Device id.
pub const DEVICE_ID: usize = 0x02;
/// Command register.
pub const COMMAND: usize = 0x04;
/// Status register.
pub const STATUS: usize = 0x06;
/// Revision id; the class code follows in the three bytes behind.
pub const REVISION_ID: usize = 0x08;
/// Base address register 0.
pub const BAR0: usize = 0x10;
/// Subsystem vendor id.
pub const SUBSYSTEM_VENDOR_ID: usize = 0x2C;
/// Subsystem id.
pub const SUBSYSTEM_ID: usize = 0x2E;
/// Offset of the first capability.
pub const CAPABILITIES_POINTER: usize = 0x34;
/// Interrupt line: scratch space for the guest's software.
pub const INTERRUPT_LINE: usize = 0x3C;

/// Command bit: decode memory.
pub const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// BAR flags: memory, 64 bits wide (PCI Local Bus 3.0, 6.2.5.1). Not prefetchable: reading has side effects.
const BAR_MEMORY_64: u64 = 0b100;
const FIRST_CAPABILITY: u8 = 0x40;
const SIZE: usize = 256;

/// What a function is, in its registers.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class, subclass and programming interface, from high to low byte.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// The 256 bytes of conventional configuration space. The extended space behind is empty and reads as zeroes:
/// no extended capability.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bar_size: u64,
    last_capability: Option<usize>,
    free: usize,
}

impl ConfigSpace {
    /// The space of a function without BAR and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bar_size: 0,
            last_capability: None,
            free: FIRST_CAPABILITY.into(),
        };
        space.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(DEVICE_ID, &identity.device.to_le_bytes());
        space.set(REVISION_ID, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.set(SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        space.set(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xFF]);
        space.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE).to_le_bytes());
        space
    }

    /// Makes BAR 0 (and 1) a 64-bit memory BAR of `size` bytes, a power of two, placed at `address` and enabled.
    /// There is no firmware, so BARs are placed by us.
    pub fn add_bar(&mut self, size: u64, address: u64) {
        debug_assert!(size.is_power_of_two() && size >= 16 && address.is_multiple_of(size));
        self.bar_size = size;
        self.set(BAR0, &(address | BAR_MEMORY_64).to_le_bytes());
        // The bits below the size stay zero whatever is written: that is how software finds the size.
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
        self.set(COMMAND, &COMMAND_MEMORY.to_le_bytes());
    }

    /// Appends a capability: `body` follows the id and next pointer, `writable` masks the body's writable bits.
    /// Returns the offset of the capability's id, or none if the space is full.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<usize> {
        let at = self.free;
        let end = at + 2 + body.len();
        if end > SIZE {
            return None;
        }
        match self.last_capability {
            None => {
                self.set(CAPABILITIES_POINTER, &[at as u8]);
                self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
            }
            Some(last) => self.set(last + 1, &[at as u8]),
        }
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.last_capability = Some(at);
        self.free = end.next_multiple_of(4);
        Some(at)
    }

    /// Reads any range; zeroes behind the space's end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset.checked_add(index).and_then(|at| self.bytes.get(at)).copied().unwrap_or(0);
        }
    }

    /// Writes any range as far as it is writable.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let Some(at) = offset.checked_add(index).filter(|at| *at < SIZE) else { return };
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
    }

    /// The addresses that BAR 0 decodes now, if memory decoding is on.
    pub fn bar(&self) -> Option<Range<u64>> {
        let start = self.u64_at(BAR0) & !0xF;
        let enabled = self.bar_size > 0 && self.u16_at(COMMAND) & COMMAND_MEMORY != 0;
        Some(start..start.checked_add(self.bar_size)?).filter(|_| enabled)
    }

    /// Two bytes as a number. `offset` is one of ours, never the guest's.
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// Four bytes as a number. `offset` is one of ours, never the guest's.
    pub fn u32_at(&self, offset: usize) -> u32 {
        u32::from(self.u16_at(offset)) | u32::from(self.u16_at(offset + 2)) << 16
    }

    fn u64_at(&self, offset: usize) -> u64 {
        u64::from(self.u32_at(offset)) | u64::from(self.u32_at(offset + 4)) << 32
    }

    fn set(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1AF4,
            device: 0x1042,
            revision: 1,
            class: 0x01_8000,
            subsystem_vendor: 0x1AF4,
            subsystem: 2,
        });
        space.add_bar(0x4000, 0x1_4000_0000);
        space
    }

    #[test]
    fn software_finds_the_size_of_a_bar_by_writing_ones() {
        let mut space = space();
        space.write(COMMAND, &[0, 0]);
        assert_eq!(space.bar(), None);
        space.write(BAR0, &[0xFF; 8]);
        assert_eq!(space.u64_at(BAR0), !0x3FFF | 4);
        space.write(BAR0, &0x2_0000_0000_u64.to_le_bytes());
        space.write(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        assert_eq!(space.bar(), Some(0x2_0000_0000..0x2_0000_4000));
    }

    #[test]
    fn a_bar_at_the_very_end_of_the_address_space_decodes_nothing() {
        let mut space = space();
        space.write(BAR0, &[0xFF; 8]);
        assert_eq!(space.bar(), None);
    }

    #[test]
    fn identity_and_capability_list_are_read_only() {
        let mut space = space();
        let at = space.add_capability(0x09, &[1, 2, 3], &[0, 0xF0]).unwrap();
        let before = space.bytes;
        for offset in (0..SIZE).filter(|at| ![COMMAND, COMMAND + 1, INTERRUPT_LINE].contains(at)) {
            if !(BAR0..BAR0 + 8).contains(&offset) && offset != at + 3 {
                space.write(offset, &[0xFF]);
            }
        }
        assert_eq!(space.bytes, before);
        space.write(at + 3, &[0xFF]);
        assert_eq!(space.bytes[at + 3], 0xF2);
    }

    #[test]
    fn a_full_space_takes_no_more_capabilities() {
        let mut space = space();
        while space.add_capability(0x09, &[0; 14], &[]).is_some() {}
        assert_eq!(space.last_capability, Some(0xF0));
    }

    #[test]
    fn any_offset_and_length_is_harmless() {
        let mut space = space();
        for offset in [0, 3, 0xFC, 0xFF, 0x100, 0xFFF, 0x1000, usize::MAX - 1, usize::MAX] {
            for length in 0..=16 {
                space.write(offset, &vec![0xA5; length]);
                space.read(offset, &mut vec![0; length]);
            }
        }
    }
}
