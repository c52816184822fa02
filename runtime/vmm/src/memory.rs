//! The guest's memory: RAM, which devices may touch, and persistent memory, which they must not.
//!
//! RAM is anonymous, so touching it can't fail. A [`PmemRegion`] maps a file, and touching a page of it whose
//! fs-verity check fails raises SIGBUS. Only KVM ever reads that mapping, for the guest, and reports EFAULT instead.
//! Nothing else can: the region is not part of [`GuestRam`], by which all descriptors are resolved, and no other
//! function here gives out its address. That makes a SIGBUS in this process impossible, not just unlikely.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::Arc,
};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::layout::{MemoryMap, PMEM_ALIGN};

/// The guest's RAM: all memory that descriptors may name.
pub type GuestRam = GuestMemoryMmap<()>;

/// Size of the blocks in which corruption is named: fs-verity's.
pub const BLOCK: u64 = 4096;

/// What can go wrong while the guest's memory is made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// RAM can't be reserved.
    #[error("cannot reserve {mib} MiB of guest memory: {source}")]
    Ram {
        /// How much was asked for.
        mib: u64,
        /// Why not.
        source: vm_memory::mmap::FromRangesError,
    },
    /// A layer's file can't be opened or mapped.
    #[error("cannot map layer {label} from {}: {source}", path.display())]
    Map {
        /// The layer's label.
        label: String,
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A layer's file has a size that can't be a layer's.
    #[error("layer {label} ({}) has {size} bytes; a layer has a multiple of {BLOCK}, and at least one block", path.display())]
    Size {
        /// The layer's label.
        label: String,
        /// Its file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// KVM refused a memory slot.
    #[error("KVM refuses memory slot {slot} at {address:#x}: {source}")]
    Slot {
        /// The slot's number.
        slot: u32,
        /// Its guest physical address.
        address: u64,
        /// Why.
        source: kvm_ioctls::Error,
    },
}

/// Reserves RAM as `map` says: anonymous, without reserving swap, so the host pays only for pages that are touched.
pub fn allocate_ram(map: &MemoryMap) -> Result<Arc<GuestRam>, MemoryError> {
    let ranges: Vec<_> = [&map.low_ram, &map.high_ram]
        .into_iter()
        .filter(|range| !range.is_empty())
        .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize))
        .collect();
    // vm-memory maps these MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE.
    let ram = GuestRam::from_ranges(&ranges).map_err(|source| MemoryError::Ram {
        mib: (map.low_ram.end + map.high_ram.end - map.high_ram.start) >> 20,
        source,
    })?;
    Ok(Arc::new(ram))
}

/// A read-only file as persistent memory of the guest.
#[derive(Debug)]
pub struct PmemRegion {
    label: String,
    file: File,
    file_size: u64,
    mapping: NonNull<core::ffi::c_void>,
    size: usize,
}

// SAFETY: the mapping belongs to this struct alone and is never dereferenced by this process.
unsafe impl Send for PmemRegion {}
// SAFETY: as above; no method reads or writes the mapping.
unsafe impl Sync for PmemRegion {}

impl PmemRegion {
    /// Opens `path` and checks that it can be a layer.
    pub fn open(path: &Path, label: &str) -> Result<(File, u64), MemoryError> {
        let failed = |source| MemoryError::Map { label: label.into(), path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        if size == 0 || size % BLOCK != 0 {
            return Err(MemoryError::Size { label: label.into(), path: path.into(), size });
        }
        Ok((file, size))
    }

    /// Maps `file`, whose size is `file_size`, followed by zeroes up to the next [`PMEM_ALIGN`].
    pub fn map(path: &Path, label: &str, file: File, file_size: u64) -> Result<Self, MemoryError> {
        let failed = |source: rustix::io::Errno| MemoryError::Map {
            label: label.into(),
            path: path.into(),
            source: source.into(),
        };
        let align = PMEM_ALIGN as usize;
        let overflow = || failed(rustix::io::Errno::OVERFLOW);
        let size = usize::try_from(file_size).ok().and_then(|size| size.checked_next_multiple_of(align));
        let size = size.ok_or_else(overflow)?;
        let reserved = size.checked_add(align).ok_or_else(overflow)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address the kernel chooses.
        let raw = unsafe { mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::READ, flags) }.map_err(failed)?;
        // The host address gets the guest address's alignment: else KVM can't use large pages.
        let head = raw.addr().next_multiple_of(align) - raw.addr();
        let start = raw.wrapping_byte_add(head);
        if head > 0 {
            // SAFETY: the first `head` bytes of the mapping just made; nobody knows of them.
            unsafe { munmap(raw, head) }.map_err(failed)?;
        }
        // SAFETY: the last `align - head` bytes of the same mapping, behind the `size` bytes kept. `head < align`.
        unsafe { munmap(start.wrapping_byte_add(size), align - head) }.map_err(failed)?;
        // What lies behind the file's end stays anonymous: a file page past the end would be SIGBUS for KVM.
        // SAFETY: replaces the first `file_size <= size` bytes of our own reservation.
        unsafe { mmap(start, file_size as usize, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, &file, 0) }
            .map_err(failed)?;
        let mapping = NonNull::new(start).ok_or_else(overflow)?;
        Ok(Self { label: label.into(), file, file_size, mapping, size })
    }

    /// The layer's label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The first block within `range` (bytes from the region's start) that can't be read.
    ///
    /// Reads the file by system calls, for which a bad block is an error and not a signal.
    pub fn unreadable_block(&self, range: Range<u64>) -> Option<u64> {
        let end = range.end.min(self.file_size);
        let mut buffer = vec![0; 1 << 20];
        let mut at = range.start - range.start % BLOCK;
        while at < end {
            let length = (end - at).min(buffer.len() as u64) as usize;
            if self.file.read_exact_at(&mut buffer[..length], at).is_err() {
                let chunk = (at..at + length as u64).step_by(BLOCK as usize);
                for block in chunk {
                    if self.file.read_exact_at(&mut buffer[..BLOCK as usize], block).is_err() {
                        return Some(block / BLOCK);
                    }
                }
            }
            at += length as u64;
        }
        None
    }
}

impl Drop for PmemRegion {
    fn drop(&mut self) {
        // SAFETY: our own mapping; KVM's slot for it lives as long as the process.
        let unmapped = unsafe { munmap(self.mapping.as_ptr(), self.size) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Gives RAM and persistent memory to the virtual machine, each region as one slot.
pub fn register(vm: &VmFd, ram: &GuestRam, pmem: &[(u64, Arc<PmemRegion>)]) -> Result<(), MemoryError> {
    let ram = ram.iter().map(|region| (region.start_addr().0, region.len(), region.as_ptr() as u64, 0));
    let pmem = pmem
        .iter()
        .map(|(at, region)| (*at, region.size as u64, region.mapping.as_ptr().addr() as u64, KVM_MEM_READONLY));
    for (slot, (address, size, host, flags)) in (0..).zip(ram.chain(pmem)) {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: address,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: the mappings live as long as the process: `Machine` keeps RAM and regions until it exits.
        unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot { slot, address, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_layer_is_whole_blocks() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(PmemRegion::open(file.path(), "empty"), Err(MemoryError::Size { size: 0, .. })));
        file.write_all(&[1; 4097]).unwrap();
        assert!(matches!(PmemRegion::open(file.path(), "odd"), Err(MemoryError::Size { size: 4097, .. })));
    }

    #[test]
    fn a_region_is_aligned_and_a_readable_file_has_no_unreadable_block() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 3 << 20]).unwrap();
        let (opened, size) = PmemRegion::open(file.path(), "layer").unwrap();
        let region = PmemRegion::map(file.path(), "layer", opened, size).unwrap();
        assert_eq!(region.mapping.as_ptr().addr() as u64 % PMEM_ALIGN, 0);
        assert_eq!(region.size, 4 << 20);
        assert_eq!(region.unreadable_block(0..u64::MAX), None);
        // A file that got shorter stands for one whose end can't be read.
        file.as_file().set_len(5 * 4096).unwrap();
        assert_eq!(region.unreadable_block(0..u64::MAX), Some(5));
        assert_eq!(region.unreadable_block(7 * 4096 + 17..8 * 4096), Some(7));
        assert_eq!(region.unreadable_block(0..4096), None);
    }
}
