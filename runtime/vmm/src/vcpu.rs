//! One vCPU: its first state, and the loop around KVM_RUN.

use std::sync::Arc;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use crate::{
    boot::Start,
    cpuid::{Cpuid, CpuidError},
    exit::Exit,
    memory::BLOCK,
    platform::{Next, Platform},
};

/// IA32_MISC_ENABLE and its bit for fast string operations (Intel SDM 4).
const MSR_MISC_ENABLE: u32 = 0x1A0;
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE: MTRRs on, memory write-back (Intel SDM 3, 12.11.2.1).
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;
/// Local vector table entry of LINT1, and delivery as NMI (Intel SDM 3, 11.5.1). LINT0 stays masked: there is no PIC.
const APIC_LVT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 4 << 8;

/// Why a vCPU can't be made.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refuses.
    #[error("KVM can't {what} of vCPU {id}: {source}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// The vCPU.
        id: u8,
        /// Why not.
        source: kvm_ioctls::Error,
    },
    /// No CPUID.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
}

/// One vCPU.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
}

impl Vcpu {
    /// Makes vCPU `id`. The first one starts as `start` says, the others wait for the first one's INIT and SIPI,
    /// which KVM's local APICs understand.
    pub fn new(vm: &VmFd, id: u8, cpuid: &Cpuid, start: &Start) -> Result<Self, VcpuError> {
        let failed = |what| move |source| VcpuError::Kvm { what, id, source };
        let fd = vm.create_vcpu(id.into()).map_err(failed("make the state"))?;
        fd.set_cpuid2(&cpuid.for_vcpu(id)?).map_err(failed("set the CPUID"))?;
        let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let msrs = [msr(MSR_MISC_ENABLE, FAST_STRINGS), msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK)];
        let msrs = Msrs::from_entries(&msrs).map_err(|_| VcpuError::Kvm {
            what: "list the registers",
            id,
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        fd.set_msrs(&msrs).map_err(failed("set the model-specific registers"))?;
        let mut lapic = fd.get_lapic().map_err(failed("read the local APIC"))?;
        set_lvt(&mut lapic, APIC_LVT1, APIC_MODE_NMI);
        fd.set_lapic(&lapic).map_err(failed("set the local APIC"))?;
        if id == 0 {
            start.apply(&fd).map_err(failed("set the registers"))?;
        }
        Ok(Self { id, fd })
    }

    /// Runs until the machine ends.
    pub fn run(mut self, platform: &Arc<Platform>) {
        while self.step(platform) == Next::Run {}
    }

    fn step(&mut self, platform: &Platform) -> Next {
        let id = self.id;
        let message = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                platform.read_port(port, data);
                return Next::Run;
            }
            Ok(VcpuExit::IoOut(port, data)) => return platform.write_port(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => return platform.read_memory(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => {
                platform.write_memory(address, data);
                return Next::Run;
            }
            // Level-triggered I/O APIC interrupts end with this; we have none, but the guest may program one.
            Ok(VcpuExit::IoapicEoi(_) | VcpuExit::Intr) => return Next::Run,
            Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
                return platform.memory_fault(Some(gpa..gpa.saturating_add(size.max(BLOCK))));
            }
            Ok(VcpuExit::Shutdown) => format!("vCPU {id} shut down: a triple fault"),
            Ok(VcpuExit::FailEntry(reason, _)) => format!("vCPU {id} has a state no processor takes: {reason:#x}"),
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(VcpuExit::SystemEvent(event, _)) => format!("vCPU {id} raised system event {event}"),
            Ok(other) => format!("vCPU {id} left the guest for an unknown reason: {other:?}"),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => return Next::Run,
                libc::EFAULT => return platform.memory_fault(None),
                _ => return platform.end(Exit::Error { message: format!("KVM can't run vCPU {id}: {error}") }),
            },
        };
        platform.end(Exit::GuestFault { message })
    }

    fn internal_error(&mut self) -> String {
        let id = self.id;
        // SAFETY: KVM fills this member of the union for the exit KVM_EXIT_INTERNAL_ERROR, which it just was.
        let error = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let at = self.fd.get_regs().map(|registers| format!(" at {:#x}", registers.rip)).unwrap_or_default();
        match error {
            KVM_INTERNAL_ERROR_EMULATION => {
                format!("vCPU {id} executed an instruction{at} that KVM can't emulate where it stands")
            }
            _ => format!("KVM failed inside while it ran vCPU {id}{at}: suberror {error}"),
        }
    }
}

fn set_lvt(lapic: &mut kvm_lapic_state, register: usize, value: u32) {
    for (to, from) in lapic.regs[register..register + 4].iter_mut().zip(value.to_le_bytes()) {
        *to = from as libc::c_char;
    }
}
