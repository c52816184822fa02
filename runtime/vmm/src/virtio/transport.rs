//! Virtio over PCI (4.1): one function whose BAR 0 holds all structures, and the glue between the driver's
//! registers, the device model behind them, and the event loop.

use std::{
    ops::Range,
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{
    Activation, Device, DeviceError, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Queues, VirtQueue,
    common::{Change, Common},
    queue::QueueError,
};
use crate::{
    irq::{IrqError, IrqRouter},
    memory::GuestRam,
    pci::{
        Function,
        config::{ConfigSpace, Identity},
        msix::{self, Msix},
    },
};

/// Size of BAR 0.
pub const BAR_SIZE: u64 = 0x8000;
/// BAR 0: one page for each structure, so that each could be given rights of its own.
mod bar {
    use std::ops::Range;
    pub const COMMON: Range<u64> = 0x0000..0x1000;
    pub const ISR: Range<u64> = 0x1000..0x2000;
    pub const DEVICE: Range<u64> = 0x2000..0x3000;
    pub const NOTIFY: Range<u64> = 0x3000..0x4000;
    pub const MSIX_TABLE: Range<u64> = 0x4000..0x5000;
    pub const MSIX_PENDING: Range<u64> = 0x5000..0x6000;
}
/// Bytes between two queues' notification registers.
const NOTIFY_MULTIPLIER: u64 = 4;

/// PCI vendor id of virtio (4.1.2).
const VENDOR: u16 = 0x1AF4;
/// Added to the virtio device id (4.1.2).
const DEVICE_BASE: u16 = 0x1040;
/// "Non-transitional devices SHOULD have a PCI Revision ID of 1 or higher" (4.1.2.1).
const REVISION: u8 = 1;
/// Subsystem ids of modern devices are 0x40 or higher (4.1.2.1).
const SUBSYSTEM: u16 = 0x40;
/// Class "other": drivers go by vendor and device id.
const CLASS: u32 = 0xFF_0000;

/// Vendor-specific capability (4.1.4).
const CAPABILITY: u8 = 0x09;
/// Types of capability (4.1.4).
mod cfg_type {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI: u8 = 5;
}
/// Bit 1 of the ISR status: the device's configuration changed (4.1.4.5).
const ISR_CONFIG: u8 = 2;

/// The event data by which the loop names the device's backend; below stand the queues.
const BACKEND: u32 = u32::MAX;

/// What can go wrong while a device is put together.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No interrupt lines.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// No eventfd for a queue.
    #[error("cannot create the eventfd of a queue: {0}")]
    EventFd(std::io::Error),
    /// KVM refuses to turn notifications into events.
    #[error("KVM refuses the ioeventfd of queue {queue} at {address:#x}: {source}")]
    IoEvent {
        /// The queue.
        queue: usize,
        /// Guest physical address of its notification register.
        address: u64,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// The capabilities do not fit.
    #[error("the virtio capabilities do not fit into configuration space")]
    Capabilities,
}

/// One virtio device as a PCI function. Shared by the bus (vCPU threads) and its event loop.
pub struct VirtioPci {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    device: Box<dyn Device>,
    config: ConfigSpace,
    msix: Msix,
    msix_capability: usize,
    window: usize,
    common: Common,
    isr: u8,
    kicks: Vec<Arc<EventFd>>,
    /// Where the ioeventfds are registered now.
    notify_at: Option<u64>,
    active: bool,
}

impl VirtioPci {
    /// Puts `device` behind a PCI function whose BAR 0 lies at `address`.
    pub fn new(
        vm: Arc<VmFd>,
        ram: Arc<GuestRam>,
        router: &Arc<IrqRouter>,
        device: Box<dyn Device>,
        address: u64,
    ) -> Result<Arc<Mutex<Self>>, TransportError> {
        let sizes = device.queue_sizes();
        // One vector for each queue and one for configuration changes.
        let msix = Msix::new(router, sizes.len() + 1)?;
        let features = device.features() | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;
        let common = Common::new(features, sizes, msix.vectors());
        let kicks = sizes.iter().map(|_| Ok(Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)));
        let kicks = kicks.collect::<Result<_, _>>().map_err(TransportError::EventFd)?;
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + device.id(),
            revision: REVISION,
            class: CLASS,
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM + device.id(),
        });
        config.add_bar(BAR_SIZE, address);
        let (msix_capability, window) = add_capabilities(&mut config, &msix).ok_or(TransportError::Capabilities)?;
        let mut this = Self {
            vm,
            ram,
            device,
            config,
            msix,
            msix_capability,
            window,
            common,
            isr: 0,
            kicks,
            notify_at: None,
            active: false,
        };
        this.move_notifications()?;
        Ok(Arc::new(Mutex::new(this)))
    }

    /// Has KVM turn writes to the notification registers into events, wherever the BAR now is.
    fn move_notifications(&mut self) -> Result<(), TransportError> {
        let target = self.config.bar().and_then(|range| range.start.checked_add(bar::NOTIFY.start));
        if target == self.notify_at {
            return Ok(());
        }
        let address = |base: u64, queue: usize| base.saturating_add(queue as u64 * NOTIFY_MULTIPLIER);
        if let Some(base) = self.notify_at.take() {
            for (queue, kick) in self.kicks.iter().enumerate() {
                let address = address(base, queue);
                self.vm
                    .unregister_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch)
                    .map_err(|source| TransportError::IoEvent { queue, address, source })?;
            }
        }
        if let Some(base) = target {
            for (queue, kick) in self.kicks.iter().enumerate() {
                let at = address(base, queue);
                if let Err(source) = self.vm.register_ioevent(kick, &IoEventAddress::Mmio(at), NoDatamatch) {
                    for (queue, kick) in self.kicks[..queue].iter().enumerate() {
                        let at = IoEventAddress::Mmio(address(base, queue));
                        self.vm.unregister_ioevent(kick, &at, NoDatamatch).unwrap_or_else(|error| {
                            log::error!("{}: an ioeventfd is left behind: {error}", self.device.name());
                        });
                    }
                    return Err(TransportError::IoEvent { queue, address: at, source });
                }
            }
        }
        self.notify_at = target;
        Ok(())
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::None => {}
            Change::Start => {
                let started = self.start();
                self.check(started);
            }
            Change::Reset => {
                self.device.reset();
                self.active = false;
                self.isr = 0;
                // What the old driver's notifications left behind is not the new one's.
                self.kicks.iter().for_each(|kick| drop(kick.read()));
            }
        }
    }

    fn start(&mut self) -> Result<(), DeviceError> {
        let features = self.common.features();
        let mut queues = Vec::with_capacity(self.kicks.len());
        for (index, setup) in self.common.queues().iter().enumerate() {
            let queue = setup.build(features).map_err(|source| QueueError::Rings { index, source })?;
            let irq = self.msix.line(setup.vector).cloned();
            let kick = self.kicks[index].clone();
            queues.push(queue.map(|queue| VirtQueue::new(index, queue, self.ram.clone(), kick, irq)).transpose()?);
        }
        self.device.activate(Activation { features, queues: Queues::new(queues) })?;
        self.active = true;
        Ok(())
    }

    /// Stops the device if it failed, and tells the driver so (2.1.2).
    fn check(&mut self, result: Result<(), DeviceError>) {
        if let Err(error) = result {
            log::warn!("{}: {error}; the device stops until its driver resets it", self.device.name());
            self.device.reset();
            self.active = false;
            self.common.set_needs_reset();
            self.isr |= ISR_CONFIG;
            if let Some(line) = self.msix.line(self.common.config_vector) {
                line.trigger();
            }
        }
    }

    fn access_bar(&mut self, offset: u64, access: Access<'_>) {
        let within = |range: &Range<u64>| range.contains(&offset).then(|| offset - range.start);
        match access {
            Access::Read(data) => {
                data.fill(0);
                if let Some(at) = within(&bar::COMMON) {
                    self.common.read(at as usize, data);
                } else if within(&bar::ISR) == Some(0) {
                    // Reading clears it (4.1.4.5).
                    if let Some(first) = data.first_mut() {
                        *first = std::mem::take(&mut self.isr);
                    }
                } else if let Some(at) = within(&bar::DEVICE) {
                    let config = self.device.config().get(at as usize..).unwrap_or_default();
                    data.iter_mut().zip(config).for_each(|(to, from)| *to = *from);
                } else if let Some(at) = within(&bar::MSIX_TABLE) {
                    self.msix.read_table(at, data);
                } else if let Some(at) = within(&bar::MSIX_PENDING) {
                    self.msix.read_pending(at, data);
                }
            }
            Access::Write(data) => {
                if let Some(at) = within(&bar::COMMON) {
                    let change = self.common.write(at as usize, data);
                    self.change(change);
                } else if let Some(at) = within(&bar::NOTIFY) {
                    // Only a write KVM could not match comes here, such as one by the window in configuration space.
                    let queue = (at / NOTIFY_MULTIPLIER) as usize;
                    if let Some(kick) = self.kicks.get(queue).filter(|_| at % NOTIFY_MULTIPLIER == 0) {
                        // The only error is a full counter: the notification is pending already.
                        let _ = kick.write(1);
                    }
                } else if let Some(at) = within(&bar::MSIX_TABLE) {
                    self.msix.write_table(at, data);
                }
            }
        }
    }

    /// The range in BAR 0 that the window in configuration space shows now, if it is a valid one (4.1.4.9).
    fn window_target(&self) -> Option<(u64, usize)> {
        let at = |field: usize| self.config.u32_at(self.window + field);
        let (bar, offset, length) = (at(4) & 0xFF, at(8), at(12));
        let valid = bar == 0 && matches!(length, 1 | 2 | 4) && u64::from(offset) + u64::from(length) <= BAR_SIZE;
        valid.then_some((offset.into(), length as usize))
    }

    /// Whether an access to configuration space touches the window's data.
    fn in_window(&self, offset: usize, length: usize) -> bool {
        let data = self.window + WINDOW_DATA;
        offset < data + 4 && offset.saturating_add(length) > data
    }
}

enum Access<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

/// Offset of `pci_cfg_data` in its capability (4.1.4.9).
const WINDOW_DATA: usize = 16;

/// Adds MSI-X and the virtio capabilities; returns the offsets of MSI-X and of the window.
fn add_capabilities(config: &mut ConfigSpace, msix: &Msix) -> Option<(usize, usize)> {
    let (body, writable) = msix.capability(bar::MSIX_TABLE.start as u32, bar::MSIX_PENDING.start as u32);
    let msix_capability = config.add_capability(msix::CAPABILITY, &body, &writable)?;
    // struct virtio_pci_cap (4.1.4) behind id and next pointer: length, type, BAR, id, padding, offset, size.
    let body = |kind: u8, range: Range<u64>, more: &[u8]| {
        let mut body = vec![16 + more.len() as u8, kind, 0, 0, 0, 0];
        body.extend((range.start as u32).to_le_bytes());
        body.extend(((range.end - range.start) as u32).to_le_bytes());
        body.extend(more);
        body
    };
    config.add_capability(CAPABILITY, &body(cfg_type::COMMON, bar::COMMON, &[]), &[])?;
    config.add_capability(CAPABILITY, &body(cfg_type::ISR, bar::ISR, &[]), &[])?;
    config.add_capability(CAPABILITY, &body(cfg_type::DEVICE, bar::DEVICE, &[]), &[])?;
    let multiplier = (NOTIFY_MULTIPLIER as u32).to_le_bytes();
    config.add_capability(CAPABILITY, &body(cfg_type::NOTIFY, bar::NOTIFY, &multiplier), &[])?;
    // The window: BAR, offset and length are the driver's to write, and so is the data behind.
    let mut writable = [0xFF; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let window = config.add_capability(CAPABILITY, &body(cfg_type::PCI, 0..0, &[0; 4]), &writable)?;
    Some((msix_capability, window))
}

impl Function for VirtioPci {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
        if offset == self.window + WINDOW_DATA
            && let Some((at, length)) = self.window_target()
        {
            let length = length.min(data.len());
            self.access_bar(at, Access::Read(&mut data[..length]));
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.msix.set_control(self.config.u16_at(self.msix_capability + 2));
        if let Err(error) = self.move_notifications() {
            // The guest put the BAR where KVM can't follow, as onto another device's registers. Notifications
            // then arrive as plain writes.
            log::warn!("{}: {error}", self.device.name());
        }
        if self.in_window(offset, data.len())
            && let Some((at, length)) = self.window_target()
        {
            let bytes = self.config.u32_at(self.window + WINDOW_DATA).to_le_bytes();
            self.access_bar(at, Access::Write(&bytes[..length]));
        }
    }

    fn bar(&self) -> Option<Range<u64>> {
        self.config.bar()
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        self.access_bar(offset, Access::Read(data));
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        self.access_bar(offset, Access::Write(data));
    }
}

impl MutEventSubscriber for VirtioPci {
    fn init(&mut self, ops: &mut EventOps) {
        if !self.device.in_kernel() {
            for (index, kick) in self.kicks.iter().enumerate() {
                if let Err(error) = ops.add(Events::with_data(kick.as_ref(), index as u32, EventSet::IN)) {
                    log::error!("{}: cannot wait for queue {index}: {error}", self.device.name());
                }
            }
        }
        if let Some(fd) = self.device.backend() {
            let events = Events::with_data_raw(fd, BACKEND, EventSet::IN | EventSet::EDGE_TRIGGERED);
            if let Err(error) = ops.add(events) {
                // Standard input that is no terminal, pipe or socket, as /dev/null, never has anything to say.
                log::debug!("{}: cannot wait for input: {error}", self.device.name());
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let index = events.data();
        if index != BACKEND {
            debug_assert_eq!(self.kicks[index as usize].as_raw_fd(), events.fd());
            // The only error is an empty counter, after a reset took the event away.
            let _ = self.kicks[index as usize].read();
        }
        if self.active {
            let done = match index {
                BACKEND => self.device.handle_backend(),
                index => self.device.handle_queue(index as usize),
            };
            self.check(done);
        }
    }
}
