//! The block device's queue and configuration (5.2.2 to 5.2.5).

use super::{
    disk::{Disk, SECTOR},
    request::execute,
};
use crate::virtio::{Activation, Device, DeviceError, Queues};

const ID: u16 = 2;
const QUEUE_SIZES: &[u16] = &[256];
/// Feature bits (5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
/// Most data buffers of a request: the queue less header and status, as drivers without indirect tables need.
const SEG_MAX: u32 = 254;
/// Configuration up to `blk_size` and its padding (5.2.4).
const CONFIG: usize = 24;

/// The device.
pub struct Blk {
    name: String,
    disk: Disk,
    config: [u8; CONFIG],
    flushes: bool,
    queues: Queues,
}

impl Blk {
    /// Device number `index` on `disk`.
    pub fn new(index: usize, disk: Disk) -> Self {
        let mut config = [0; CONFIG];
        config[..8].copy_from_slice(&disk.sectors.to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        Self { name: format!("disk{index}"), disk, config, flushes: false, queues: Queues::default() }
    }
}

impl Device for Blk {
    fn name(&self) -> &str {
        &self.name
    }
    fn id(&self) -> u16 {
        ID
    }
    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }
    fn features(&self) -> u64 {
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | if self.disk.readonly { F_RO } else { 0 }
    }
    fn config(&self) -> &[u8] {
        &self.config
    }
    fn activate(&mut self, start: Activation) -> Result<(), DeviceError> {
        self.flushes = start.features & F_FLUSH != 0;
        self.queues = start.queues;
        Ok(())
    }
    fn handle_queue(&mut self, index: usize) -> Result<(), DeviceError> {
        let Self { name, disk, flushes, queues, .. } = self;
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|chain| execute(disk, name, !*flushes, chain))?;
        Ok(())
    }
    fn reset(&mut self) {
        self.queues = Queues::default();
    }
}
