//! What a vCPU reaches outside of memory: I/O ports and memory-mapped registers, and what becomes of it when it
//! touches a layer's block that can't be read.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use crate::{
    acpi::power, ending::Ending, exit::Exit, ioapic::IoApic, layout, memory::PmemRegion, pci::bus::PciBus, sync::lock,
};

/// What a read from nowhere returns.
const NOTHING: u8 = 0xFF;

/// Everything behind the vCPUs' exits. Its methods are called from vCPU threads, with any address and any length.
pub struct Platform {
    /// PCI.
    pub pci: PciBus,
    /// The interrupt controller outside the processors.
    pub ioapic: Mutex<IoApic>,
    /// Persistent memory and where it lies.
    pub pmem: Vec<(Range<u64>, Arc<PmemRegion>)>,
    /// Where the end is reported.
    pub ending: Arc<Ending>,
}

/// Whether the vCPU goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Run,
    /// The machine has ended; the reason is reported.
    Stop,
}

impl Platform {
    /// IN from `port`.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        match port {
            _ if layout::PCI_CONFIG.contains(&port) => self.pci.read_port(port - layout::PCI_CONFIG.start(), data),
            layout::SLEEP_CONTROL_PORT | layout::SLEEP_STATUS_PORT | layout::RESET_PORT => data.fill(0),
            _ => data.fill(NOTHING),
        }
    }

    /// OUT to `port`.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Next {
        if layout::PCI_CONFIG.contains(&port) {
            self.pci.write_port(port - layout::PCI_CONFIG.start(), data);
        } else if let Some(exit) = data.first().and_then(|value| power::write(port, *value)) {
            return self.end(exit);
        }
        Next::Run
    }

    /// A load from `address`, where there is no RAM.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> Next {
        if layout::ECAM.contains(&address) {
            self.pci.read_ecam(address - layout::ECAM.start, data);
        } else if layout::IOAPIC.contains(&address) {
            lock(&self.ioapic).read(address - layout::IOAPIC.start, data);
        } else if let Some((range, _)) = self.pmem.iter().find(|(range, _)| range.contains(&address)) {
            // There is memory here, but KVM could not read it while it emulated an instruction.
            let end = address.saturating_add(data.len() as u64).min(range.end);
            return self.memory_fault(Some(address..end));
        } else if !self.pci.read_bar(address, data) {
            data.fill(NOTHING);
        }
        Next::Run
    }

    /// A store to `address`, where there is no RAM. Stores to persistent memory come here too, since it is
    /// read-only, and are dropped.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if layout::ECAM.contains(&address) {
            self.pci.write_ecam(address - layout::ECAM.start, data);
        } else if layout::IOAPIC.contains(&address) {
            lock(&self.ioapic).write(address - layout::IOAPIC.start, data);
        } else {
            self.pci.write_bar(address, data);
        }
    }

    /// KVM could not read guest memory, at `address` if it said where. RAM can't fail, so it is a layer: the block
    /// is found by reading the file.
    pub fn memory_fault(&self, address: Option<Range<u64>>) -> Next {
        let everywhere = 0..u64::MAX;
        for wanted in address.clone().into_iter().chain([everywhere]) {
            for (range, region) in &self.pmem {
                let within = wanted.start.max(range.start)..wanted.end.min(range.end);
                if !within.is_empty()
                    && let Some(block) = region.unreadable_block(within.start - range.start..within.end - range.start)
                {
                    return self.end(Exit::CorruptLayer { label: region.label().into(), block });
                }
            }
        }
        let place = address.map(|range| format!(" at {:#x}", range.start)).unwrap_or_default();
        self.end(Exit::Error {
            message: format!(
                "KVM can't reach guest memory{place}, yet every layer can be read; the host may be out of memory"
            ),
        })
    }

    /// The machine ends for this reason.
    pub fn end(&self, exit: Exit) -> Next {
        self.ending.report(exit);
        Next::Stop
    }
}
