//! The DSDT (ACPI 6.3, 5.2.11.1): the PCI root bridge with its windows, the ECAM's reservation, the generic event
//! device with the power button, and the S5 state.

use acpi_tables::{
    Aml,
    aml::{
        AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify,
        Package, Path, ResourceTemplate,
    },
    sdt::Sdt,
};

use super::{
    power::S5_TYPE,
    tables::{OEM_ID, OEM_REVISION, OEM_TABLE_ID},
};
use crate::layout::{self, MemoryMap};

/// The notification "S0 power button pressed" (ACPI 6.3, table 5-165).
const BUTTON_PRESSED: u8 = 0x80;
/// Bytes of a table's header.
const HEADER: u32 = 36;
/// Tables of revision 2 and up have 64-bit integers.
const REVISION: u8 = 2;

/// The whole table.
pub fn dsdt(map: &MemoryMap) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", HEADER, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut aml = Vec::new();
    pci_root(map, &mut aml);
    ecam_reservation(&mut aml);
    power_button(&mut aml);
    sleep_state(&mut aml);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// PCI Firmware 3.2, 4.1.3 (host bridge) and ACPI 6.3, 6.2.2 (_CRS).
fn pci_root(map: &MemoryMap, aml: &mut Vec<u8>) {
    let window_32 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::PCI_WINDOW_32.start as u32,
        (layout::PCI_WINDOW_32.end - 1) as u32,
        None,
    );
    let window_64 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        map.pci_window_64.start,
        map.pci_window_64.end - 1,
        None,
    );
    Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &0_u8),
            &Name::new(Path::new("_BBN"), &0_u8),
            &Name::new(Path::new("_UID"), &0_u8),
            // Devices see the guest's caches: all DMA is done by this host's processors.
            &Name::new(Path::new("_CCA"), &1_u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0_u16, 0_u16),
                    &IO::new(*layout::PCI_CONFIG.start(), *layout::PCI_CONFIG.start(), 1, 8),
                    &window_32,
                    &window_64,
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// PCI Firmware 3.2, 4.1.2: the ECAM must be reserved by a motherboard resource.
fn ecam_reservation(aml: &mut Vec<u8>) {
    let size = (layout::ECAM.end - layout::ECAM.start) as u32;
    Device::new(
        Path::new("_SB_.MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &0_u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, layout::ECAM.start as u32, size)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// ACPI 6.3, 5.6.9 (interrupt-signalled events) and 4.8.2.2.1.2 (control method power button).
fn power_button(aml: &mut Vec<u8>) {
    Device::new(
        Path::new("_SB_.PWRB"),
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")), &Name::new(Path::new("_UID"), &0_u8)],
    )
    .to_aml_bytes(aml);
    // The line has one meaning, so the method need not ask any register what happened.
    let button = Path::new("\\_SB_.PWRB");
    let pressed = Notify::new(&button, &BUTTON_PRESSED);
    Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &0_u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Interrupt::new(true, true, false, false, layout::POWER_BUTTON_GSI)]),
            ),
            &Method::new(Path::new("_EVT"), 1, true, vec![&pressed]),
        ],
    )
    .to_aml_bytes(aml);
}

/// ACPI 6.3, 7.4.2.6 (_S5): the value for SLP_TYP.
fn sleep_state(aml: &mut Vec<u8>) {
    Name::new(Path::new("_S5_"), &Package::new(vec![&S5_TYPE, &S5_TYPE, &0_u8, &0_u8])).to_aml_bytes(aml);
}
