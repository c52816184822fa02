//! Virtio 1.2 devices. [`transport`] is what the guest's driver sees as a PCI function; behind it stands a
//! [`Device`], which sees only queues. Section numbers in this folder are those of the virtio 1.2 specification.

pub mod blk;
pub mod buffers;
pub mod common;
pub mod console;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub mod testing;
pub mod transport;
pub mod vsock;

use std::os::fd::RawFd;

pub use queue::{QueueError, VirtQueue};

/// VIRTIO_F_INDIRECT_DESC (6): a descriptor may name a table of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (6): each side says from which index on it wants to be notified.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1 (6): not a legacy device.
pub const F_VERSION_1: u64 = 1 << 32;

/// Why a device stops until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke a rule of the queues.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The host failed the device.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The kernel's vhost failed the device.
    #[error("vhost: {0}")]
    Vhost(#[from] vhost::Error),
}

/// A device model.
///
/// Who calls: the transport, under one lock per device, so never two methods at once. `activate` and `reset` come
/// from vCPU threads, `handle_queue` and `handle_backend` from the device's event loop.
///
/// Order: any number of times `activate`, then any number of `handle_*`, then `reset`. `handle_*` is never called
/// before `activate` or after `reset`. After an error the transport calls `reset`, sets DEVICE_NEEDS_RESET and
/// waits for the driver. Everything the guest wrote is hostile: no method may panic, block without bound or work
/// without bound because of it.
pub trait Device: Send {
    /// Name in messages, as `net0`.
    fn name(&self) -> &str;
    /// Device id (5).
    fn id(&self) -> u16;
    /// Most entries of each queue, powers of two.
    fn queue_sizes(&self) -> &'static [u16];
    /// Feature bits beside those of the transport (2.2). Constant.
    fn features(&self) -> u64;
    /// Device configuration space (2.5), read-only for the driver. Constant.
    fn config(&self) -> &[u8];
    /// The driver is ready (DRIVER_OK): `features` were negotiated, `queues` has an entry for each queue of
    /// [`Device::queue_sizes`], none for those that the driver left disabled. Device and queues are live afterwards.
    fn activate(&mut self, start: Activation) -> Result<(), DeviceError>;
    /// The driver notified queue `index`, or work was left in it.
    fn handle_queue(&mut self, index: usize) -> Result<(), DeviceError>;
    /// A file descriptor whose readiness for reading [`Device::handle_backend`] wants to hear of. Edge-triggered:
    /// the device must read until nothing is left, or look again by itself. Constant.
    fn backend(&self) -> Option<RawFd> {
        None
    }
    /// The backend became readable.
    fn handle_backend(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Whether the kernel serves the queues, so that no event loop of ours must take their notifications away.
    fn in_kernel(&self) -> bool {
        false
    }
    /// Stops: afterwards guest memory is not touched any more. May be called at any time.
    fn reset(&mut self);
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// Negotiated feature bits.
    pub features: u64,
    /// The queues that the driver enabled.
    pub queues: Queues,
}

/// The queues of an active device, by index.
#[derive(Default)]
pub struct Queues(Vec<Option<VirtQueue>>);

impl Queues {
    /// All queues of a device, those left disabled as none.
    pub fn new(queues: Vec<Option<VirtQueue>>) -> Self {
        Self(queues)
    }

    /// Queue `index`, if the driver enabled it.
    pub fn get(&mut self, index: usize) -> Option<&mut VirtQueue> {
        self.0.get_mut(index)?.as_mut()
    }

    /// All queues the driver enabled, with their index.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &VirtQueue)> {
        self.0.iter().enumerate().filter_map(|(index, queue)| Some((index, queue.as_ref()?)))
    }
}
