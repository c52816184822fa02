//! The 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol") for a bzImage: long
//! mode with identity-mapped memory, `%rsi` points to `boot_params`.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Handover, Start};
use crate::{layout, memory::GuestRam};

/// `startup_64` lies this far behind the start of the kernel.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader`: one without an assigned number.
const LOADER_UNDEFINED: u8 = 0xFF;
/// `xloadflags` bit 0: the kernel has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// The first protocol with `xloadflags`: 2.12.
const PROTOCOL: u16 = 0x020C;

/// The end of what the kernel needs while it unpacks itself, and the end of where the initrd may lie.
pub fn limits(load: u64, header: &setup_header) -> (u64, u64) {
    let preferred = header.pref_address.max(load);
    (preferred.saturating_add(header.init_size.into()), u64::from(header.initrd_addr_max) + 1)
}

/// Writes the zero page and page tables for a bzImage loaded at `load`; none if it has no 64-bit entry point.
pub fn prepare(
    ram: &GuestRam,
    handover: Handover<'_>,
    load: u64,
    mut header: setup_header,
) -> Option<Result<Start, BootError>> {
    if header.version < PROTOCOL || header.xloadflags & XLF_KERNEL_64 == 0 {
        return None;
    }
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = layout::CMDLINE as u32;
    header.cmdline_size = handover.cmdline_length as u32;
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: handover.rsdp, ..Default::default() };
    if let Some(initrd) = &handover.initrd {
        // It lies in low RAM, so 32 bits hold both.
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
    }
    for ((range, kind), entry) in handover.memory_map().iter().zip(&mut params.e820_table) {
        *entry = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: *kind as u32 };
        params.e820_entries += 1;
    }
    Some(
        ram.write_obj(params, GuestAddress(layout::ZERO_PAGE))
            .map_err(BootError::from)
            .and_then(|()| Start::long_64(ram, load + ENTRY_64, layout::ZERO_PAGE)),
    )
}
