//! The guest's physical address map and its I/O ports: every fixed address stands here and nowhere else.
//! RAM lies around the hole below 4 GiB; persistent memory and the PCI BARs follow above all RAM.

use std::ops::{Range, RangeInclusive};

/// One MiB, in bytes.
pub const MIB: u64 = 1 << 20;
/// One GiB, in bytes.
pub const GIB: u64 = 1 << 30;

/// The boot GDT: four descriptors.
pub const BOOT_GDT: u64 = 0x1000;
/// `hvm_start_info`, followed by the module list and the memory map; at most one page.
pub const PVH_START_INFO: u64 = 0x2000;
/// Linux's `boot_params`, the "zero page".
pub const ZERO_PAGE: u64 = 0x3000;
/// Page tables for the 64-bit entry: PML4, PDPT and four page directories that map the first 4 GiB.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// The kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x20000;
/// Longest command line in bytes without its NUL: `COMMAND_LINE_SIZE` of Linux on x86 less one.
pub const CMDLINE_MAX: usize = 2047;
/// End of conventional memory; what follows up to 1 MiB is the legacy VGA and BIOS area.
pub const LOW_MEMORY_END: u64 = 0xA_0000;
/// The BIOS area: RAM that the guest is told to leave alone.
pub const BIOS_AREA: Range<u64> = 0xE_0000..0x10_0000;
/// The ACPI tables, where a kernel also scans for the RSDP (ACPI 6.3, 5.2.5.1).
pub const ACPI_TABLES: Range<u64> = 0xE_0000..0xF_F000;
/// Where a processor in real mode starts over: `FFFF:0000`.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Kernels are loaded here or above.
pub const KERNEL_MIN: u64 = MIB;

/// RAM below 4 GiB ends here at the latest: 3.25 GiB.
pub const LOW_RAM_MAX: u64 = 0xD000_0000;
/// RAM that does not fit below the hole goes on here.
pub const HIGH_RAM: u64 = 4 * GIB;
/// Window for 32-bit BARs. Our devices have none; a kernel wants a window below 4 GiB all the same.
pub const PCI_WINDOW_32: Range<u64> = 0xD000_0000..0xE000_0000;
/// Enhanced configuration access, below 4 GiB because Linux refuses an MCFG above it on machines without DMI.
/// One bus: 32 devices of 8 functions of 4 KiB.
pub const ECAM: Range<u64> = 0xE000_0000..0xE010_0000;
/// I/O APIC registers.
pub const IOAPIC: Range<u64> = 0xFEC0_0000..0xFEC0_1000;
/// Local APIC registers, emulated in the kernel.
pub const LAPIC: u64 = 0xFEE0_0000;
/// One page that KVM needs on Intel processors without unrestricted guest mode.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages that KVM needs on Intel processors.
pub const KVM_TSS: u64 = 0xFFFB_D000;

/// Alignment of persistent memory regions: the large page size, so that both page tables can use large pages.
pub const PMEM_ALIGN: u64 = 2 * MIB;
/// Size of the window for 64-bit BARs, above RAM and persistent memory.
pub const PCI_WINDOW_64_SIZE: u64 = GIB;

/// PCI configuration mechanism 1: four ports of address, four of data (PCI Local Bus 3.0, 3.2.2.3.2).
pub const PCI_CONFIG: RangeInclusive<u16> = 0xCF8..=0xCFF;
/// ACPI sleep control register (ACPI 6.3, 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register (ACPI 6.3, 4.8.3.7).
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register (ACPI 6.3, 4.8.3.6).
pub const RESET_PORT: u16 = 0x602;

/// Pins of the I/O APIC, which are GSIs 0 to 23; message-signalled interrupts use the GSIs above.
pub const IOAPIC_PINS: u32 = 24;
/// GSI of the generic event device: the power button.
pub const POWER_BUTTON_GSI: u32 = 5;

/// Where everything whose place depends on the machine's size lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMap {
    /// RAM below the hole; starts at 0.
    pub low_ram: Range<u64>,
    /// RAM above 4 GiB; empty if all fits below.
    pub high_ram: Range<u64>,
    /// Persistent memory regions in the order given, each a multiple of [`PMEM_ALIGN`].
    pub pmem: Vec<Range<u64>>,
    /// Window for 64-bit BARs.
    pub pci_window_64: Range<u64>,
}

/// The machine does not fit into the processor's physical address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("memory and layers do not fit into {bits} bits of physical address space; give the guest less memory")]
pub struct TooBig {
    /// Width of a physical address.
    pub bits: u8,
}

impl MemoryMap {
    /// Lays out `ram` bytes of memory and persistent memory files of the sizes given, in bytes,
    /// on a processor whose physical addresses have `bits` bits.
    pub fn new(ram: u64, pmem_files: &[u64], bits: u8) -> Result<Self, TooBig> {
        let too_big = TooBig { bits };
        let limit = 1_u64.checked_shl(bits.into()).unwrap_or(u64::MAX);
        let low = ram.min(LOW_RAM_MAX);
        let high_end = HIGH_RAM.checked_add(ram - low).ok_or(too_big)?;
        // A whole GiB apart, so that nothing ever shares a 1 GiB page table entry with RAM.
        let mut next = high_end.checked_next_multiple_of(GIB).ok_or(too_big)?;
        let mut pmem = Vec::with_capacity(pmem_files.len());
        for size in pmem_files {
            let end = size.checked_next_multiple_of(PMEM_ALIGN).and_then(|size| next.checked_add(size));
            let end = end.ok_or(too_big)?;
            pmem.push(next..end);
            next = end;
        }
        let start = next.checked_next_multiple_of(GIB).ok_or(too_big)?;
        let end = start.checked_add(PCI_WINDOW_64_SIZE).filter(|end| *end <= limit).ok_or(too_big)?;
        Ok(Self { low_ram: 0..low, high_ram: HIGH_RAM..high_end, pmem, pci_window_64: start..end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole() {
        let map = MemoryMap::new(256 * MIB, &[], 40).unwrap();
        assert_eq!(map.low_ram, 0..256 * MIB);
        assert!(map.high_ram.is_empty());
        let map = MemoryMap::new(8 * GIB, &[], 40).unwrap();
        assert_eq!(map.low_ram.end, LOW_RAM_MAX);
        assert_eq!(map.high_ram.end - map.high_ram.start + LOW_RAM_MAX, 8 * GIB);
    }

    #[test]
    fn persistent_memory_is_aligned_and_nothing_overlaps() {
        let map = MemoryMap::new(5 * GIB, &[4096, 2 * MIB, 2 * MIB + 4096], 40).unwrap();
        let mut end = map.high_ram.end;
        for region in &map.pmem {
            assert!(region.start >= end && region.start % PMEM_ALIGN == 0 && region.end % PMEM_ALIGN == 0);
            end = region.end;
        }
        assert_eq!(map.pmem[2].end - map.pmem[2].start, 4 * MIB);
        assert!(map.pci_window_64.start >= end);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(MemoryMap::new(63 * GIB, &[], 36), Err(TooBig { bits: 36 }));
        assert!(MemoryMap::new(GIB, &[u64::MAX - 5], 52).is_err());
    }
}
