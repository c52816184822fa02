//! The static tables (ACPI 6.3, chapter 5.2): RSDP, XSDT, FADT, MADT, MCFG, and the DSDT's place among them.
//! Hardware-reduced: no SCI, no PM timer, no PM1 registers.

use acpi_tables::{
    Aml,
    fadt::{FADTBuilder, Flags, PmProfile},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    mcfg::MCFG,
    rsdp::Rsdp,
    xsdt::XSDT,
};
use vm_memory::{Bytes, GuestAddress};

use super::{dsdt::dsdt, power::RESET_VALUE};
use crate::{
    layout::{self, MemoryMap},
    memory::GuestRam,
};

/// OEM id of every table.
pub(super) const OEM_ID: [u8; 6] = *b"RACKST";
/// OEM table id of every table.
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"RACKSTCK";
/// OEM revision of every table.
pub(super) const OEM_REVISION: u32 = 1;

/// ACPI 6.3: the minor version in the FADT.
const FADT_MINOR: u8 = 3;
/// IA-PC boot architecture flags (ACPI 6.3, table 5-39): no VGA, no CMOS clock; legacy devices and i8042 bits clear.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;

/// What can go wrong while tables are written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// The tables don't fit their area.
    #[error("the ACPI tables need more than {} bytes; give the guest fewer vCPUs", layout::ACPI_TABLES.end - layout::ACPI_TABLES.start)]
    TooLong,
    /// The area is no RAM.
    #[error("cannot write ACPI tables to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes all tables and returns the address of the RSDP.
pub fn write_tables(ram: &GuestRam, map: &MemoryMap, vcpus: u8) -> Result<u64, AcpiError> {
    let mut area = Area { ram, next: layout::ACPI_TABLES.start + Rsdp::len().next_multiple_of(16) as u64 };
    let dsdt = area.put(&dsdt(map))?;
    let fadt = area.put(&bytes(&fadt(dsdt)))?;
    let madt = area.put(&bytes(&madt(vcpus)))?;
    let mcfg = area.put(&bytes(&mcfg()))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = area.put(&bytes(&xsdt))?;
    let rsdp = layout::ACPI_TABLES.start;
    ram.write_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)), GuestAddress(rsdp))?;
    Ok(rsdp)
}

struct Area<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Area<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, AcpiError> {
        let at = self.next;
        // Nothing needs the alignment, but tables are easier to read in a dump with it.
        self.next = (at + table.len() as u64).next_multiple_of(16);
        if self.next > layout::ACPI_TABLES.end {
            return Err(AcpiError::TooLong);
        }
        self.ram.write_slice(table, GuestAddress(at))?;
        Ok(at)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless)
        // The buttons are devices in the DSDT, not fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.fadt_minor_version = FADT_MINOR;
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let mut madt =
        MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(layout::LAPIC as u32));
    for cpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC.start as u32, 0));
    madt
}

fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    mcfg
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryBackend;

    use super::*;
    use crate::layout::MIB;

    fn written(vcpus: u8) -> (GuestRam, u64) {
        let map = MemoryMap::new(16 * MIB, &[], 40).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let rsdp = write_tables(&ram, &map, vcpus).unwrap();
        (ram, rsdp)
    }

    fn table(ram: &GuestRam, at: u64) -> Vec<u8> {
        let length: u32 = ram.read_obj(GuestAddress(at + 4)).unwrap();
        let mut table = vec![0; length as usize];
        ram.read_slice(&mut table, GuestAddress(at)).unwrap();
        assert_eq!(table.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0, "checksum of table at {at:#x}");
        table
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_sums_to_zero() {
        let (ram, rsdp) = written(3);
        assert_eq!(ram.num_regions(), 1);
        let xsdt: u64 = ram.read_obj(GuestAddress(rsdp + 24)).unwrap();
        let entries = table(&ram, xsdt);
        let mut names = Vec::new();
        for entry in entries[36..].chunks_exact(8) {
            let table = table(&ram, u64::from_le_bytes(entry.try_into().unwrap()));
            names.push(String::from_utf8(table[..4].to_vec()).unwrap());
            if &table[..4] == b"FACP" {
                assert_eq!((table.len(), table[8], table[131]), (276, 6, 3), "FADT 6.3");
                assert_eq!(u32::from_le_bytes(table[112..116].try_into().unwrap()) >> 20 & 1, 1, "hardware-reduced");
            }
        }
        assert_eq!(names, ["FACP", "APIC", "MCFG"]);
    }

    #[test]
    fn all_vcpus_stand_in_the_madt() {
        let (ram, rsdp) = written(254);
        let xsdt: u64 = ram.read_obj(GuestAddress(rsdp + 24)).unwrap();
        let madt: u64 = ram.read_obj(GuestAddress(xsdt + 36 + 8)).unwrap();
        assert_eq!(table(&ram, madt).len(), 44 + 254 * 8 + 12);
    }
}
