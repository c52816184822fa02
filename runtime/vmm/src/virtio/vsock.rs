//! Socket device (5.10), whose queues the kernel serves (`/dev/vhost-vsock`): notifications and interrupts are
//! eventfds between KVM and vhost and never pass through this process.

use std::sync::Arc;

use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData, vhost_kern::vsock::Vsock as Kernel, vsock::VhostVsock,
};
use virtio_queue::QueueT;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Activation, Device, DeviceError, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Queues};
use crate::memory::GuestRam;

const ID: u16 = 19;
/// Receive, transmit, event. The kernel serves the first two; the last would carry news only a migration makes.
const QUEUE_SIZES: &[u16] = &[128, 128, 8];
const KERNEL_QUEUES: usize = 2;

/// The device.
pub struct Vsock {
    kernel: Kernel<Arc<GuestRam>>,
    config: [u8; 8],
    /// Features that both sides below the driver know.
    features: u64,
    /// Takes the interrupts of a queue without a vector.
    nowhere: EventFd,
    running: bool,
    /// Keeps the event queue's state; the kernel has its own of the others.
    queues: Queues,
}

impl Vsock {
    /// The device of context id `cid`, which no other machine on this host may have.
    pub fn new(cid: u32, ram: Arc<GuestRam>) -> Result<Self, DeviceError> {
        let kernel = Kernel::new(ram.clone())?;
        kernel.set_owner()?;
        let features = kernel.get_features()? & (F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX);
        kernel.set_guest_cid(cid.into())?;
        let regions: Vec<_> = ram
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                ..Default::default()
            })
            .collect();
        kernel.set_mem_table(&regions)?;
        let nowhere = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|source| DeviceError::Host { what: "creating an eventfd", source })?;
        let config = u64::from(cid).to_le_bytes();
        Ok(Self { kernel, config, features, nowhere, running: false, queues: Queues::default() })
    }
}

impl Device for Vsock {
    fn name(&self) -> &str {
        "vsock"
    }
    fn id(&self) -> u16 {
        ID
    }
    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }
    fn features(&self) -> u64 {
        0
    }
    fn config(&self) -> &[u8] {
        &self.config
    }
    fn in_kernel(&self) -> bool {
        true
    }
    fn activate(&mut self, start: Activation) -> Result<(), DeviceError> {
        self.kernel.set_features(start.features & self.features)?;
        for (index, queue) in start.queues.iter().filter(|(index, _)| *index < KERNEL_QUEUES) {
            let rings = queue.rings();
            // `VirtQueue` has checked that each part lies in one piece of RAM; vhost itself would not.
            self.kernel.set_vring_num(index, rings.size())?;
            self.kernel.set_vring_base(index, 0)?;
            self.kernel.set_vring_addr(
                index,
                &VringConfigData {
                    queue_max_size: rings.max_size(),
                    queue_size: rings.size(),
                    flags: 0,
                    desc_table_addr: rings.desc_table(),
                    used_ring_addr: rings.used_ring(),
                    avail_ring_addr: rings.avail_ring(),
                    log_addr: None,
                },
            )?;
            self.kernel.set_vring_call(index, queue.irq().map_or(&self.nowhere, |irq| irq.event()))?;
            self.kernel.set_vring_kick(index, queue.kick())?;
        }
        // The kernel starts with both queues or not at all.
        if start.queues.iter().filter(|(index, _)| *index < KERNEL_QUEUES).count() == KERNEL_QUEUES {
            self.kernel.start()?;
            self.running = true;
        }
        self.queues = start.queues;
        Ok(())
    }
    fn handle_queue(&mut self, _index: usize) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&mut self) {
        if std::mem::take(&mut self.running)
            && let Err(error) = self.kernel.stop()
        {
            log::error!("vsock: cannot stop vhost: {error}");
        }
        self.queues = Queues::default();
    }
}
