//! Puts a virtual machine together from its configuration and runs it.

use std::{
    ops::Range,
    sync::{Arc, Barrier, Mutex},
    thread,
};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::{
    acpi::{self, AcpiError},
    boot::{self, BootError, Image},
    config::{Config, Console as ConsoleConfig},
    cpuid::{Cpuid, CpuidError},
    ending::Ending,
    event_loop::{self, LoopError, Signals},
    exit::Exit,
    ioapic::IoApic,
    irq::{IrqError, IrqRouter},
    layout::{self, MIB, MemoryMap, TooBig},
    memory::{self, GuestRam, MemoryError, PmemRegion},
    pci::bus::{self, PciBus},
    platform::Platform,
    sandbox::{self, SandboxError},
    vcpu::{Vcpu, VcpuError},
    virtio::{
        Device, DeviceError,
        blk::{Blk, Disk, DiskError, ID_LENGTH},
        console::{Console, Output},
        net::{BadMac, Mac, Net, Tap, TapError},
        pmem::Pmem,
        rng::Rng,
        transport::{BAR_SIZE, TransportError, VirtioPci},
        vsock::Vsock,
    },
};

/// The only version of KVM's API there ever was.
const KVM_API: i32 = 12;
/// APIC id 255 is the broadcast address, so the MADT's 8-bit ids serve 255 vCPUs.
const MAX_VCPUS: u8 = 255;
/// The least that holds the boot structures and a tiny kernel.
const MIN_MEMORY_MIB: u32 = 2;
/// Context ids below belong to the host (virtio 1.2, 5.10.4).
const MIN_CID: u32 = 3;

/// Why a machine can't be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// KVM itself can't be used.
    #[error("cannot {what}: {source}; is virtualization switched on in the firmware, and /dev/kvm ours to open?")]
    NoKvm {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: kvm_ioctls::Error,
    },
    /// KVM is not one we know.
    #[error("this host's KVM {0}; use a newer kernel")]
    OldKvm(String),
    /// KVM refuses part of the machine.
    #[error("KVM can't {what}: {source}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: kvm_ioctls::Error,
    },
    /// A MAC address is none.
    #[error("configuration: net {index}: {source}")]
    Mac {
        /// Which interface.
        index: usize,
        /// What is wrong with it.
        source: BadMac,
    },
    /// The console's file can't be written.
    #[error("cannot open console file {}: {source}", path.display())]
    Console {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The vsock device can't be made.
    #[error("cannot set up vsock with context id {cid}: {source}; is vhost_vsock loaded and the id free?")]
    Vsock {
        /// Its context id.
        cid: u32,
        /// Why not.
        source: DeviceError,
    },
    /// A thread can't be started.
    #[error("cannot start the thread of vCPU {id}: {source}")]
    Thread {
        /// The vCPU.
        id: u8,
        /// Why not.
        source: std::io::Error,
    },
    /// See there.
    #[error(transparent)]
    TooBig(#[from] TooBig),
    /// See there.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// See there.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// See there.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// See there.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// See there.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// See there.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// See there.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// See there.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// See there.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// See there.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// See there.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Makes the machine that `config` describes, runs it to its end and says why it ended.
///
/// The process must end afterwards: other vCPUs and device threads run on until it does.
pub fn run(config: &Config) -> Exit {
    match try_run(config) {
        Ok(exit) => exit,
        Err(error) => Exit::Error { message: error.to_string() },
    }
}

fn try_run(config: &Config) -> Result<Exit, MachineError> {
    check(config)?;
    // First of all, so that every thread inherits it.
    let signals = Signals::block()?;
    let layers: Vec<_> =
        config.pmem.iter().map(|layer| PmemRegion::open(&layer.path, &layer.label)).collect::<Result<_, _>>()?;

    let kvm = Kvm::new().map_err(|source| MachineError::NoKvm { what: "open /dev/kvm", source })?;
    if kvm.get_api_version() != KVM_API {
        return Err(MachineError::OldKvm(format!("has API version {}", kvm.get_api_version())));
    }
    let cpuid = Cpuid::new(&kvm, config.vcpus)?;
    let sizes: Vec<_> = layers.iter().map(|(_, size)| *size).collect();
    let map = MemoryMap::new(u64::from(config.memory_mib) * MIB, &sizes, cpuid.physical_bits())?;
    let vm = create_vm(&kvm, config.vcpus)?;

    let ram = memory::allocate_ram(&map)?;
    let mut pmem = Vec::with_capacity(layers.len());
    for ((layer, (file, size)), range) in config.pmem.iter().zip(layers).zip(&map.pmem) {
        pmem.push((range.clone(), Arc::new(PmemRegion::map(&layer.path, &layer.label, file, size)?)));
    }
    let slots: Vec<_> = pmem.iter().map(|(range, region)| (range.start, region.clone())).collect();
    memory::register(&vm, &ram, &slots)?;

    let rsdp = acpi::write_tables(&ram, &map, config.vcpus)?;
    let image = Image { kernel: &config.kernel, initrd: &config.initrd, cmdline: &config.cmdline };
    let start = boot::load(&ram, &map, image, rsdp)?;

    let ending = Ending::new().map_err(|source| LoopError::System { what: "create an eventfd", source })?;
    let ending = Arc::new(ending);
    let router = IrqRouter::new(vm.clone());
    let button = router.pin_line(layout::POWER_BUTTON_GSI)?;
    let ioapic = Mutex::new(IoApic::new(vec![(layout::POWER_BUTTON_GSI, button.clone())]));

    let devices = devices(config, &map, &ram)?;
    let mut pci = PciBus::new();
    let mut shared: Vec<Arc<Mutex<dyn event_manager::MutEventSubscriber + Send>>> = Vec::new();
    for (device, address) in devices.into_iter().zip(bars(&map.pci_window_64)) {
        let name = device.device.name().to_owned();
        let function = VirtioPci::new(vm.clone(), ram.clone(), &router, device.device, address)?;
        if !pci.add(function.clone()) {
            return Err(MachineError::Config(format!("more than {} devices", bus::SLOTS - 1)));
        }
        match device.own_thread {
            true => event_loop::spawn(&name, function, ending.clone())?,
            false => shared.push(function),
        }
    }

    let platform = Arc::new(Platform { pci, ioapic, pmem, ending: ending.clone() });
    let vcpus =
        (0..config.vcpus).map(|id| Vcpu::new(&vm, id, &cpuid, &start)).collect::<Result<Vec<_>, VcpuError>>()?;
    // The filter allows no new threads, and no vCPU may run without it.
    let confined = Arc::new(Barrier::new(vcpus.len() + 1));
    for (id, vcpu) in (0..).zip(vcpus) {
        let (platform, confined) = (platform.clone(), confined.clone());
        let run = move || {
            confined.wait();
            vcpu.run(&platform);
        };
        let spawned = thread::Builder::new().name(format!("vcpu{id}")).spawn(run);
        spawned.map_err(|source| MachineError::Thread { id, source })?;
    }
    sandbox::confine()?;
    confined.wait();
    Ok(event_loop::run(shared, button, signals, ending)?)
}

/// What can be said against a configuration without touching anything.
fn check(config: &Config) -> Result<(), MachineError> {
    let bad = |message: String| Err(MachineError::Config(message));
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return bad(format!("{} vCPUs; 1 to {MAX_VCPUS} are possible", config.vcpus));
    }
    if config.memory_mib < MIN_MEMORY_MIB {
        return bad(format!("{} MiB of memory; the least is {MIN_MEMORY_MIB}", config.memory_mib));
    }
    if let Some(vsock) = config.vsock.filter(|vsock| vsock.cid < MIN_CID || vsock.cid == u32::MAX) {
        return bad(format!("vsock context id {} belongs to the host; the least is {MIN_CID}", vsock.cid));
    }
    if let Some(disk) = config.disks.iter().find(|disk| disk.serial.len() > ID_LENGTH) {
        return bad(format!("disk serial number `{}`; it has at most {ID_LENGTH} bytes", disk.serial));
    }
    let devices = 2 + config.pmem.len() + config.disks.len() + config.nets.len() + usize::from(config.vsock.is_some());
    if devices >= bus::SLOTS {
        return bad(format!("{devices} devices; at most {} fit on the bus", bus::SLOTS - 1));
    }
    Ok(())
}

fn create_vm(kvm: &Kvm, vcpus: u8) -> Result<Arc<VmFd>, MachineError> {
    if !kvm.check_extension(Cap::SplitIrqchip) {
        return Err(MachineError::OldKvm("has no split interrupt chip".into()));
    }
    let most = kvm.get_max_vcpus();
    if usize::from(vcpus) > most {
        return Err(MachineError::Config(format!("{vcpus} vCPUs; this host's KVM has at most {most}")));
    }
    let vm = kvm.create_vm().map_err(|source| MachineError::NoKvm { what: "create a virtual machine", source })?;
    let failed = |what| move |source| MachineError::Kvm { what, source };
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(failed("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(failed("place its task state"))?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = layout::IOAPIC_PINS.into();
    vm.enable_cap(&split).map_err(failed("split the interrupt chip"))?;
    Ok(Arc::new(vm))
}

struct Planned {
    device: Box<dyn Device>,
    /// Whether it may wait for the host, so that others must not be served by the same thread.
    own_thread: bool,
}

/// All devices in the order of their slots.
fn devices(config: &Config, map: &MemoryMap, ram: &Arc<GuestRam>) -> Result<Vec<Planned>, MachineError> {
    let mut devices = Vec::new();
    let mut add = |device: Box<dyn Device>, own_thread| devices.push(Planned { device, own_thread });
    let (output, stdin) = match &config.console {
        ConsoleConfig::Stdio => (Output::Stdout, true),
        ConsoleConfig::File { path, limit_kib } => {
            let failed = |source| MachineError::Console { path: path.clone(), source };
            (Output::file(path, *limit_kib).map_err(failed)?, false)
        }
    };
    add(Box::new(Console::new(output, stdin)), false);
    add(Box::<Rng>::default(), false);
    for (index, disk) in config.disks.iter().enumerate() {
        add(Box::new(Blk::new(index, &disk.serial, Disk::open(&disk.path, disk.readonly)?)), true);
    }
    for (index, net) in config.nets.iter().enumerate() {
        let mac = net.mac.parse::<Mac>().map_err(|source| MachineError::Mac { index, source })?;
        add(Box::new(Net::new(index, Tap::open(&net.tap)?, mac)), true);
    }
    for (index, range) in map.pmem.iter().enumerate() {
        add(Box::new(Pmem::new(index, range)), false);
    }
    if let Some(vsock) = config.vsock {
        let failed = |source| MachineError::Vsock { cid: vsock.cid, source };
        add(Box::new(Vsock::new(vsock.cid, ram.clone()).map_err(failed)?), false);
    }
    Ok(devices)
}

/// Where BARs lie, one behind the other in the window.
fn bars(window: &Range<u64>) -> impl Iterator<Item = u64> {
    window.clone().step_by(BAR_SIZE as usize)
}
