//! Gets the kernel running without firmware: loads it with its initrd and command line and says in which state
//! the boot processor starts.

mod initrd;
mod linux64;
mod pvh;
mod registers;

use std::{
    fs::File,
    io::{self, Seek},
    path::{Path, PathBuf},
};

use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
pub use registers::Start;
use vm_memory::{Bytes, GuestAddress};

use crate::{
    acpi::power::RESET_VALUE,
    layout::{self, MemoryMap},
    memory::GuestRam,
};

/// Why a kernel can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file can't be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel can't be loaded.
    #[error("cannot load kernel {} into {mib} MiB of memory: {source}", path.display())]
    Kernel {
        /// The kernel's file.
        path: PathBuf,
        /// Memory below 4 GiB.
        mib: u64,
        /// What the loader found.
        source: linux_loader::loader::Error,
    },
    /// An ELF kernel without the entry point we need.
    #[error("kernel {} has no PVH entry point; it was built without CONFIG_PVH", .0.display())]
    NoPvh(PathBuf),
    /// A bzImage without the 64-bit entry point.
    #[error("kernel {} has no 64-bit entry point (boot protocol 2.12 with XLF_KERNEL_64)", .0.display())]
    No64BitEntry(PathBuf),
    /// Kernel, initrd and memory don't go together.
    #[error("kernel and initrd need {needed} bytes below {end:#x}; give the guest more memory")]
    NoRoom {
        /// What the initrd needs.
        needed: u64,
        /// End of the memory it can lie in.
        end: u64,
    },
    /// The command line is longer than a kernel reads, or holds a NUL.
    #[error("the command line has {length} bytes, {} are possible, and no NUL", layout::CMDLINE_MAX)]
    Cmdline {
        /// Its length.
        length: usize,
    },
    /// A structure does not fit guest memory.
    #[error("cannot write boot data to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// All the firmware there is: `mov al, 1; mov dx, RESET_PORT; out dx, al; hlt`.
///
/// On hardware-reduced ACPI Linux reboots by EFI, and where there is none it goes straight to real mode and jumps to
/// the BIOS's reset vector, without ever trying the reset register (its arch/x86/kernel/reboot.c).
const RESET_CODE: [u8; 7] = {
    let [low, high] = layout::RESET_PORT.to_le_bytes();
    [0xB0, RESET_VALUE, 0xBA, low, high, 0xEE, 0xF4]
};

/// What is booted.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// The kernel's file.
    pub kernel: &'a Path,
    /// The files of the initrd.
    pub initrd: &'a [PathBuf],
    /// Command line.
    pub cmdline: &'a str,
}

/// Loads `image` into `ram`. `rsdp` is the address of the ACPI tables' root.
pub fn load(ram: &GuestRam, map: &MemoryMap, image: Image<'_>, rsdp: u64) -> Result<Start, BootError> {
    if image.cmdline.len() > layout::CMDLINE_MAX || image.cmdline.contains('\0') {
        return Err(BootError::Cmdline { length: image.cmdline.len() });
    }
    let path = image.kernel;
    let unreadable = |source| BootError::File { path: path.into(), source };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut magic = [0; 4];
    io::Read::read_exact(&mut file, &mut magic).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;

    let bad = |source| BootError::Kernel { path: path.into(), mib: map.low_ram.end / layout::MIB, source };
    let least = Some(GuestAddress(layout::KERNEL_MIN));
    let elf = magic == *b"\x7FELF";
    let kernel = match elf {
        true => Elf::load(ram, None, &mut file, least),
        false => BzImage::load(ram, None, &mut file, least),
    };
    let kernel = kernel.map_err(bad)?;

    ram.write_slice(&RESET_CODE, GuestAddress(layout::RESET_VECTOR))?;
    ram.write_slice(image.cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    ram.write_obj(0_u8, GuestAddress(layout::CMDLINE + image.cmdline.len() as u64))?;
    let handover = |kernel_end, initrd_max| {
        let initrd = initrd::load(ram, image.initrd, kernel_end..map.low_ram.end.min(initrd_max))?;
        Ok::<_, BootError>(Handover { map, initrd, cmdline_length: image.cmdline.len(), rsdp })
    };
    match (elf, kernel.setup_header) {
        (true, _) => match kernel.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(entry) => {
                pvh::prepare(ram, handover(kernel.kernel_end, u64::MAX)?, entry.0)
            }
            _ => Err(BootError::NoPvh(path.into())),
        },
        (false, Some(header)) => {
            let (end, initrd_max) = linux64::limits(kernel.kernel_load.0, &header);
            linux64::prepare(ram, handover(end, initrd_max)?, kernel.kernel_load.0, header)
                .ok_or_else(|| BootError::No64BitEntry(path.into()))?
        }
        // The loader always returns the header of a bzImage.
        (false, None) => Err(BootError::No64BitEntry(path.into())),
    }
}

/// What a kernel is told, by either protocol.
struct Handover<'a> {
    map: &'a MemoryMap,
    initrd: Option<std::ops::Range<u64>>,
    cmdline_length: usize,
    rsdp: u64,
}

/// What a range of memory is, with the number both protocols have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum MemoryKind {
    Ram = 1,
    Reserved = 2,
}

impl Handover<'_> {
    /// The memory map (ACPI 6.3, chapter 15): RAM, and what is reserved by us. Persistent memory is not in it: its
    /// driver announces it.
    fn memory_map(&self) -> Vec<(std::ops::Range<u64>, MemoryKind)> {
        let low_end = self.map.low_ram.end;
        let mut ranges = vec![
            (0..layout::LOW_MEMORY_END.min(low_end), MemoryKind::Ram),
            (layout::BIOS_AREA, MemoryKind::Reserved),
            (layout::KERNEL_MIN..low_end, MemoryKind::Ram),
            (layout::ECAM, MemoryKind::Reserved),
            (self.map.high_ram.clone(), MemoryKind::Ram),
        ];
        ranges.retain(|(range, _)| !range.is_empty());
        ranges
    }
}
