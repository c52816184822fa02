//! The boot processor's first registers, with the descriptor and page tables they point to
//! (Intel SDM 3, 3.4.5 segment descriptors, 4.5 four-level paging, 9.9 mode switching).

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::{layout, memory::GuestRam};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The one bit of RFLAGS that is always set.
const RFLAGS: u64 = 2;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const TABLE: u64 = 4096;

/// Where each descriptor stands in the GDT, as Linux and PVH want them.
const CODE_INDEX: u16 = 2;
const DATA_INDEX: u16 = 3;
const TSS_INDEX: u16 = 1;

/// A state in which the boot processor starts.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    registers: kvm_regs,
    code: kvm_segment,
    data: kvm_segment,
    task: kvm_segment,
    long: bool,
}

impl Start {
    /// 32-bit protected mode without paging, `%ebx` = `info`.
    pub fn protected_32(ram: &GuestRam, entry: u64, info: u64) -> Result<Self, BootError> {
        let registers = kvm_regs { rip: entry, rbx: info, rflags: RFLAGS, ..Default::default() };
        Self::with_gdt(ram, registers, false)
    }

    /// Long mode, the first 4 GiB mapped to themselves, `%rsi` = `info`.
    pub fn long_64(ram: &GuestRam, entry: u64, info: u64) -> Result<Self, BootError> {
        let pml4 = layout::BOOT_PAGE_TABLES;
        let pdpt = pml4 + TABLE;
        ram.write_obj((pdpt | PRESENT_WRITABLE).to_le(), GuestAddress(pml4))?;
        for gib in 0..4 {
            let directory = pdpt + TABLE * (1 + gib);
            ram.write_obj((directory | PRESENT_WRITABLE).to_le(), GuestAddress(pdpt + 8 * gib))?;
            for page in 0..512 {
                let target = gib * layout::GIB + page * 2 * layout::MIB;
                ram.write_obj((target | PRESENT_WRITABLE | LARGE_PAGE).to_le(), GuestAddress(directory + 8 * page))?;
            }
        }
        let registers = kvm_regs { rip: entry, rsi: info, rflags: RFLAGS, ..Default::default() };
        Self::with_gdt(ram, registers, true)
    }

    fn with_gdt(ram: &GuestRam, registers: kvm_regs, long: bool) -> Result<Self, BootError> {
        let flat = |index, type_| kvm_segment {
            limit: 0xFFFF_FFFF,
            selector: index * 8,
            type_,
            present: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        // Code: execute, read, accessed; data: read, write, accessed; task: busy.
        let code = kvm_segment { db: (!long).into(), l: long.into(), ..flat(CODE_INDEX, 0xB) };
        let data = kvm_segment { db: 1, ..flat(DATA_INDEX, 0x3) };
        let task = kvm_segment { limit: 0x67, s: 0, g: 0, ..flat(TSS_INDEX, 0xB) };
        for segment in [code, data, task] {
            let at = layout::BOOT_GDT + u64::from(segment.selector);
            ram.write_obj(descriptor(&segment).to_le(), GuestAddress(at))?;
        }
        Ok(Self { registers, code, data, task, long })
    }

    /// Puts `vcpu` into this state.
    pub fn apply(&self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let mut system = vcpu.get_sregs()?;
        system.cs = self.code;
        (system.ds, system.es, system.fs, system.gs, system.ss) =
            (self.data, self.data, self.data, self.data, self.data);
        system.tr = self.task;
        system.gdt.base = layout::BOOT_GDT;
        system.gdt.limit = (DATA_INDEX + 1) * 8 - 1;
        system.idt.base = 0;
        system.idt.limit = 0;
        system.cr0 = CR0_PE | CR0_ET;
        system.cr4 = 0;
        if self.long {
            system.cr0 |= CR0_PG;
            system.cr3 = layout::BOOT_PAGE_TABLES;
            system.cr4 = CR4_PAE;
            system.efer = EFER_LME | EFER_LMA;
        }
        vcpu.set_sregs(&system)?;
        vcpu.set_regs(&self.registers)
    }
}

/// The descriptor of a segment (Intel SDM 3, figure 3-8). Our segments start at 0.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let bits = [
        (segment.type_, 40),
        (segment.s, 44),
        (segment.dpl, 45),
        (segment.present, 47),
        (segment.avl, 52),
        (segment.l, 53),
        (segment.db, 54),
        (segment.g, 55),
    ];
    let flags = bits.iter().fold(0, |value, (bit, at)| value | u64::from(*bit) << at);
    limit & 0xFFFF | (limit >> 16 & 0xF) << 48 | flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let gdt = |index: u16| ram.read_obj::<u64>(GuestAddress(layout::BOOT_GDT + 8 * u64::from(index))).unwrap();
        Start::protected_32(&ram, 0, 0).unwrap();
        assert_eq!((gdt(CODE_INDEX), gdt(DATA_INDEX)), (0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF));
        Start::long_64(&ram, 0, 0).unwrap();
        assert_eq!((gdt(CODE_INDEX), gdt(TSS_INDEX)), (0x00AF_9B00_0000_FFFF, 0x0000_8B00_0000_0067));
    }

    #[test]
    fn the_first_four_gib_map_to_themselves() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Start::long_64(&ram, 0, 0).unwrap();
        let entry = |table: u64, index: u64| ram.read_obj::<u64>(GuestAddress((table & !0xFFF) + 8 * index)).unwrap();
        for address in [0, 0x20_0000, 0x4012_3456, 0xFFFF_FFFF_u64] {
            let pdpt = entry(layout::BOOT_PAGE_TABLES, address >> 39);
            let directory = entry(pdpt, address >> 30 & 511);
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page, address & !0x1F_FFFF | 0x83);
        }
    }
}
