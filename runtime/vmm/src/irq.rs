//! Interrupts as eventfds. With the split interrupt chip (KVM_CAP_SPLIT_IRQCHIP) only the local APICs live in the
//! kernel, so every interrupt, be it MSI-X or an I/O APIC pin, is a message that a GSI is routed to.
//!
//! A device writes its line's eventfd and need not know whether the guest masks it: a masked line is not bound to
//! KVM, so the event stays in the eventfd, and KVM delivers it when the line is bound again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{layout::IOAPIC_PINS, sync::lock};

/// An interrupt message: what the local APIC bus carries (Intel SDM 3, "Message Signalled Interrupts").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// What can go wrong with an interrupt line.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// No eventfd.
    #[error("cannot create the eventfd of GSI {gsi}: {source}")]
    EventFd {
        /// The line.
        gsi: u32,
        /// Why not.
        source: std::io::Error,
    },
    /// KVM refuses the line.
    #[error("KVM refuses to connect GSI {gsi}: {source}")]
    Kvm {
        /// The line.
        gsi: u32,
        /// Why.
        source: kvm_ioctls::Error,
    },
}

/// The routes from GSIs to messages. KVM takes the whole table at once, so it stands here.
#[derive(Debug)]
pub struct IrqRouter {
    vm: Arc<VmFd>,
    routes: Mutex<BTreeMap<u32, Msi>>,
    next_gsi: AtomicU32,
}

impl IrqRouter {
    /// A router without routes for `vm`.
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self { vm, routes: Mutex::default(), next_gsi: AtomicU32::new(IOAPIC_PINS) })
    }

    /// A line for a message-signalled interrupt.
    pub fn msi_line(self: &Arc<Self>) -> Result<Arc<IrqLine>, IrqError> {
        self.line(self.next_gsi.fetch_add(1, Ordering::Relaxed))
    }

    /// The line of I/O APIC pin `pin`.
    pub fn pin_line(self: &Arc<Self>, pin: u32) -> Result<Arc<IrqLine>, IrqError> {
        self.line(pin)
    }

    fn line(self: &Arc<Self>, gsi: u32) -> Result<Arc<IrqLine>, IrqError> {
        // Non-blocking: the counter of a line that stays masked must never stop a device.
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| IrqError::EventFd { gsi, source })?;
        Ok(Arc::new(IrqLine { router: self.clone(), gsi, event, bound: Mutex::new(false) }))
    }

    fn route(&self, gsi: u32, msi: Msi) -> Result<(), kvm_ioctls::Error> {
        let mut routes = lock(&self.routes);
        if routes.insert(gsi, msi) == Some(msi) {
            return Ok(());
        }
        let entries: Vec<_> = routes.iter().map(|(gsi, msi)| entry(*gsi, *msi)).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        self.vm.set_gsi_routing(&table)
    }
}

fn entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = msi.address as u32;
    entry.u.msi.address_hi = (msi.address >> 32) as u32;
    entry.u.msi.data = msi.data;
    entry
}

/// One interrupt line: an eventfd that KVM turns into a message while the line is bound.
#[derive(Debug)]
pub struct IrqLine {
    router: Arc<IrqRouter>,
    gsi: u32,
    event: EventFd,
    bound: Mutex<bool>,
}

impl IrqLine {
    /// The eventfd: whoever writes it raises the interrupt, the kernel's vhost included.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Raises the interrupt, now or when it is unmasked.
    pub fn trigger(&self) {
        // The only error is a full counter, and then the interrupt is pending already.
        let _ = self.event.write(1);
    }

    /// Delivers the line's interrupts as `msi` from now on, those pending included. Free if nothing changes.
    pub fn bind(&self, msi: Msi) -> Result<(), IrqError> {
        let failed = |source| IrqError::Kvm { gsi: self.gsi, source };
        let mut bound = lock(&self.bound);
        self.router.route(self.gsi, msi).map_err(failed)?;
        if !*bound {
            self.router.vm.register_irqfd(&self.event, self.gsi).map_err(failed)?;
            *bound = true;
        }
        Ok(())
    }

    /// Masks the line.
    pub fn unbind(&self) -> Result<(), IrqError> {
        let mut bound = lock(&self.bound);
        if *bound {
            let failed = |source| IrqError::Kvm { gsi: self.gsi, source };
            self.router.vm.unregister_irqfd(&self.event, self.gsi).map_err(failed)?;
            *bound = false;
        }
        Ok(())
    }

    /// Whether an interrupt waits for the line to be unmasked.
    pub fn pending(&self) -> bool {
        let bound = lock(&self.bound);
        !*bound && readable(&self.event)
    }
}

fn readable(event: &EventFd) -> bool {
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: the eventfd is open as long as `event` is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1))
}
