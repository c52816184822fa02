//! The PVH entry (Xen: docs/misc/pvh.pandoc; start_info.h): 32-bit protected mode without paging, `%ebx` points to
//! `hvm_start_info`.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{BootError, Handover, Start};
use crate::{layout, memory::GuestRam};

/// The version with a memory map.
const VERSION: u32 = 1;

#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Info(hvm_start_info);
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Module(hvm_modlist_entry);
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Range(hvm_memmap_table_entry);

// SAFETY: integers only, sizes checked in linux-loader: no padding, any bytes are a value.
unsafe impl ByteValued for Info {}
// SAFETY: as above.
unsafe impl ByteValued for Module {}
// SAFETY: as above.
unsafe impl ByteValued for Range {}

/// Writes the start info for a kernel with PVH entry point `entry`.
pub fn prepare(ram: &GuestRam, handover: Handover<'_>, entry: u64) -> Result<Start, BootError> {
    let modules = layout::PVH_START_INFO + size_of::<Info>() as u64;
    let memory_map = modules + size_of::<Module>() as u64;
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: handover.rsdp,
        memmap_paddr: memory_map,
        ..Default::default()
    };
    if let Some(initrd) = &handover.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = modules;
        let module = hvm_modlist_entry { paddr: initrd.start, size: initrd.end - initrd.start, ..Default::default() };
        ram.write_obj(Module(module), GuestAddress(modules))?;
    }
    let mut at = memory_map;
    for (range, kind) in handover.memory_map() {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: kind as u32,
            reserved: 0,
        };
        ram.write_obj(Range(entry), GuestAddress(at))?;
        at += size_of::<Range>() as u64;
        info.memmap_entries += 1;
    }
    ram.write_obj(Info(info), GuestAddress(layout::PVH_START_INFO))?;
    Start::protected_32(ram, entry, layout::PVH_START_INFO)
}
