//! What CPUID tells the guest: what KVM supports, the topology of our vCPUs (one socket, one thread a core), and
//! the TSC deadline timer, which KVM can do but does not list while the local APIC is in the kernel.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// Leaf 1 ECX.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Level types of leaf 0xB (Intel SDM 2A, CPUID).
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Why there is no CPUID for the guest.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM does not say what it supports.
    #[error("KVM does not tell which CPUID it supports: {0}")]
    Supported(kvm_ioctls::Error),
    /// Without it a guest has no timer: there is no PIT.
    #[error("this host's KVM has no TSC deadline timer, the only timer a guest gets; use a newer kernel")]
    NoTscDeadline,
    /// KVM listed more than it may.
    #[error("KVM lists too many CPUID leaves")]
    TooMany,
}

/// The CPUID leaves common to all vCPUs.
#[derive(Debug, Clone)]
pub struct Cpuid {
    entries: Vec<kvm_cpuid_entry2>,
}

impl Cpuid {
    /// What this host's KVM supports, for a machine of `vcpus` vCPUs.
    pub fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, CpuidError> {
        if !kvm.check_extension(Cap::TscDeadlineTimer) {
            return Err(CpuidError::NoTscDeadline);
        }
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuidError::Supported)?;
        Ok(Self::from_supported(supported.as_slice(), vcpus))
    }

    fn from_supported(supported: &[kvm_cpuid_entry2], vcpus: u8) -> Self {
        let mut entries = supported.to_vec();
        let cpus = u32::from(vcpus);
        // APIC ids are vCPU numbers, so this many of their bits tell cores apart.
        let core_bits = cpus.next_power_of_two().trailing_zeros();
        for entry in &mut entries {
            match entry.function {
                0x1 => {
                    entry.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
                    entry.ebx = entry.ebx & 0x0000_FFFF | cpus << 16;
                    entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
                }
                // Deterministic cache parameters, Intel's and AMD's leaf: level 3 is shared by all, others by none.
                0x4 | 0x8000_001D => {
                    let level = entry.eax >> 5 & 7;
                    let sharing = if level >= 3 { cpus - 1 } else { 0 };
                    entry.eax = entry.eax & 0x3FFF | sharing << 14;
                    if entry.function == 0x4 && entry.eax & 0x1F != 0 {
                        entry.eax |= (cpus - 1).min(0x3F) << 26;
                    }
                }
                0x8000_0008 => entry.ecx = entry.ecx & !0xF0FF | core_bits << 12 | (cpus - 1),
                // AMD: one thread a core, one node.
                0x8000_001E => (entry.ebx, entry.ecx) = (0, 0),
                _ => {}
            }
        }
        for leaf in [0xB, 0x1F] {
            if entries.iter().any(|entry| entry.function == leaf) {
                entries.retain(|entry| entry.function != leaf);
                entries.extend(topology(leaf, cpus, core_bits));
            }
        }
        Self { entries }
    }

    /// Width of a physical address in bits (leaf 0x8000_0008); 36 if the processor doesn't say.
    pub fn physical_bits(&self) -> u8 {
        let leaf = self.entries.iter().find(|entry| entry.function == 0x8000_0008);
        leaf.map_or(36, |entry| entry.eax as u8)
    }

    /// The leaves as vCPU `id` sees them.
    pub fn for_vcpu(&self, id: u8) -> Result<CpuId, CpuidError> {
        let mut entries = self.entries.clone();
        let apic_id = u32::from(id);
        for entry in &mut entries {
            match entry.function {
                0x1 => entry.ebx = entry.ebx & 0x00FF_FFFF | apic_id << 24,
                0xB | 0x1F => entry.edx = apic_id,
                0x8000_001E => (entry.eax, entry.ebx) = (apic_id, apic_id),
                _ => {}
            }
        }
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany)
    }
}

/// Extended topology (Intel SDM 2A, CPUID leaf 0xB): threads, cores, end of the list.
fn topology(leaf: u32, cpus: u32, core_bits: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_THREAD), level(1, core_bits, cpus, LEVEL_CORE), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ..Default::default() }
    }

    #[test]
    fn every_vcpu_sees_its_own_id_and_the_timer() {
        let cpuid = Cpuid::from_supported(&[leaf(1), leaf(0xB), leaf(0x8000_0008), leaf(0x8000_001E)], 3);
        for id in 0..3_u8 {
            let cpuid = cpuid.for_vcpu(id).unwrap();
            let find = |function| cpuid.as_slice().iter().find(|entry| entry.function == function).unwrap();
            assert_eq!((find(1).ebx >> 24, find(1).ebx >> 16 & 0xFF), (u32::from(id), 3));
            assert_eq!(find(1).ecx & TSC_DEADLINE, TSC_DEADLINE);
            assert_eq!(find(0xB).edx, u32::from(id));
            assert_eq!((find(0x8000_0008).ecx, find(0x8000_001E).eax), (2 << 12 | 2, u32::from(id)));
            let cores = cpuid.as_slice().iter().find(|entry| entry.function == 0xB && entry.index == 1).unwrap();
            assert_eq!((cores.eax, cores.ebx), (2, 3));
        }
    }
}
