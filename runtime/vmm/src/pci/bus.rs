//! Root bus 0: finds the function that an access to configuration space or to a BAR is for.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use super::{
    Function,
    config::{ConfigSpace, Identity},
};
use crate::sync::lock;

/// Slots on the bus (PCI Local Bus 3.0, 3.2.2.3.2); slot 0 is the host bridge.
pub const SLOTS: usize = 32;
/// What a read from nowhere returns.
const NOTHING: u8 = 0xFF;
/// Enable bit of mechanism 1's address register.
const ADDRESS_ENABLE: u32 = 1 << 31;

type Slot = Arc<Mutex<dyn Function>>;

/// The bus. Its methods are called from vCPU threads.
pub struct PciBus {
    slots: Vec<Slot>,
    /// What each slot's BAR decodes, kept apart: to find the function of an address must not wait for another
    /// function that is busy.
    bars: RwLock<Vec<Option<Range<u64>>>>,
    address: Mutex<u32>,
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

impl PciBus {
    /// A bus with the host bridge alone.
    pub fn new() -> Self {
        let mut bus = Self { slots: Vec::new(), bars: RwLock::default(), address: Mutex::new(0) };
        bus.add(Arc::new(Mutex::new(HostBridge::new())));
        bus
    }

    /// Puts `function` into the next slot; false if all [`SLOTS`] are taken.
    pub fn add(&mut self, function: Slot) -> bool {
        if self.slots.len() == SLOTS {
            return false;
        }
        let bar = lock(&function).bar();
        self.slots.push(function);
        self.bars.get_mut().unwrap_or_else(PoisonError::into_inner).push(bar);
        true
    }

    /// A read of `port` relative to 0xCF8.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        let address = *lock(&self.address);
        match port {
            0 if data.len() == 4 => data.copy_from_slice(&address.to_le_bytes()),
            4..=7 if address & ADDRESS_ENABLE != 0 => {
                let (device, offset) = mechanism_1(address, port - 4);
                self.read_config(device, offset, data);
            }
            _ => data.fill(NOTHING),
        }
    }

    /// A write to `port` relative to 0xCF8.
    pub fn write_port(&self, port: u16, data: &[u8]) {
        let mut address = lock(&self.address);
        match port {
            0 => {
                // Only a 32-bit write is one to the address register (3.2.2.3.2).
                if let Ok(value) = data.try_into() {
                    *address = u32::from_le_bytes(value);
                }
            }
            4..=7 if *address & ADDRESS_ENABLE != 0 => {
                let (device, offset) = mechanism_1(*address, port - 4);
                drop(address);
                self.write_config(device, offset, data);
            }
            _ => {}
        }
    }

    /// A read at `offset` from the ECAM's start.
    pub fn read_ecam(&self, offset: u64, data: &mut [u8]) {
        self.read_config((offset >> 12) as u32, (offset & 0xFFF) as usize, data);
    }

    /// A write at `offset` from the ECAM's start.
    pub fn write_ecam(&self, offset: u64, data: &[u8]) {
        self.write_config((offset >> 12) as u32, (offset & 0xFFF) as usize, data);
    }

    /// A read at `address` if a BAR decodes it; false if none does.
    pub fn read_bar(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((slot, offset)) = self.decode(address) else { return false };
        lock(slot).read_bar(offset, data);
        true
    }

    /// A write at `address` if a BAR decodes it; false if none does.
    pub fn write_bar(&self, address: u64, data: &[u8]) -> bool {
        let Some((slot, offset)) = self.decode(address) else { return false };
        lock(slot).write_bar(offset, data);
        true
    }

    fn decode(&self, address: u64) -> Option<(&Slot, u64)> {
        let bars = self.bars.read().unwrap_or_else(PoisonError::into_inner);
        let contains = |bar: &Option<Range<u64>>| bar.as_ref().is_some_and(|bar| bar.contains(&address));
        let index = bars.iter().position(contains)?;
        let start = bars[index].as_ref()?.start;
        Some((self.slots.get(index)?, address - start))
    }

    /// `function` is bus, device and function number in one, as both mechanisms form it.
    fn slot(&self, function: u32) -> Option<(usize, &Slot)> {
        let (device, function_number) = ((function >> 3) as usize, function & 7);
        // A bus number above 0 makes `device` too large.
        self.slots.get(device).filter(|_| function_number == 0).map(|slot| (device, slot))
    }

    fn read_config(&self, function: u32, offset: usize, data: &mut [u8]) {
        match self.slot(function) {
            Some((_, slot)) => lock(slot).read_config(offset, data),
            None => data.fill(NOTHING),
        }
    }

    fn write_config(&self, function: u32, offset: usize, data: &[u8]) {
        if let Some((index, slot)) = self.slot(function) {
            let mut function = lock(slot);
            function.write_config(offset, data);
            let bar = function.bar();
            // Still under the function's lock: two writes to one function must not swap here.
            let mut bars = self.bars.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = bars.get_mut(index) {
                *known = bar;
            }
        }
    }
}

fn mechanism_1(address: u32, byte: u16) -> (u32, usize) {
    (address >> 8 & 0xFFFF, (address & 0xFC) as usize + usize::from(byte))
}

/// Host bridge: a kernel takes mechanism 1 for absent if no such device answers at 00:00.0.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // The ids Cloud Hypervisor took for the same purpose: known to no driver, recognised by people.
        Self(ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x0D57,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
        }))
    }
}

impl Function for HostBridge {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }
    fn bar(&self) -> Option<Range<u64>> {
        None
    }
    fn read_bar(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(NOTHING);
    }
    fn write_bar(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_mechanisms_reach_the_host_bridge_and_nothing_else() {
        let bus = PciBus::new();
        for function in 0..0x1_0000_u32 {
            bus.write_port(0, &(ADDRESS_ENABLE | function << 8).to_le_bytes());
            let (mut port, mut ecam) = ([0; 4], [0; 4]);
            bus.read_port(4, &mut port);
            bus.read_ecam(u64::from(function) << 12, &mut ecam);
            let expected = if function == 0 { 0x0D57_8086_u32.to_le_bytes() } else { [0xFF; 4] };
            assert_eq!((port, ecam), (expected, expected), "{function:#x}");
        }
    }

    #[test]
    fn any_access_is_harmless() {
        let bus = PciBus::new();
        for address in [0, ADDRESS_ENABLE, u32::MAX, 0x8000_00FC] {
            for length in 0..=8 {
                bus.write_port(0, &address.to_le_bytes());
                for port in 0..=8 {
                    bus.read_port(port, &mut vec![0; length]);
                    bus.write_port(port, &vec![0xFF; length]);
                }
            }
        }
        assert!(!bus.read_bar(0, &mut [0; 4]) && !bus.write_bar(u64::MAX, &[0; 8]));
    }
}
