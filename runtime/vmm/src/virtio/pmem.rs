//! Persistent memory device (5.19). The memory itself is a KVM slot; the device tells where it lies and answers
//! flushes, of which a read-only file needs none.

use std::ops::Range;

use super::{Activation, Device, DeviceError, Queues};

const ID: u16 = 27;
const QUEUE_SIZES: &[u16] = &[64];
/// VIRTIO_PMEM_REQ_TYPE_FLUSH (5.19.6).
const REQUEST_FLUSH: u32 = 0;
/// Results of a request (5.19.6).
const OK: u32 = 0;
const FAILED: u32 = 1;

/// The device.
pub struct Pmem {
    name: String,
    config: [u8; 16],
    queues: Queues,
}

impl Pmem {
    /// Device number `index`, whose memory lies at `range` of the guest physical address space.
    pub fn new(index: usize, range: &Range<u64>) -> Self {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&range.start.to_le_bytes());
        config[8..].copy_from_slice(&(range.end - range.start).to_le_bytes());
        Self { name: format!("pmem{index}"), config, queues: Queues::default() }
    }
}

impl Device for Pmem {
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
        0
    }
    fn config(&self) -> &[u8] {
        &self.config
    }
    fn activate(&mut self, start: Activation) -> Result<(), DeviceError> {
        self.queues = start.queues;
        Ok(())
    }
    fn handle_queue(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(queue) = self.queues.get(index) else { return Ok(()) };
        queue.serve(|chain| {
            let request = chain.readable.read_array().map(u32::from_le_bytes);
            let result = if request == Some(REQUEST_FLUSH) { OK } else { FAILED };
            chain.writable.copy_from(&result.to_le_bytes()) as u32
        })?;
        Ok(())
    }
    fn reset(&mut self) {
        self.queues = Queues::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Driver, Part};

    #[test]
    fn flushes_succeed_and_nothing_else_does() {
        let mut driver = Driver::new(0);
        let mut pmem = Pmem::new(0, &(0x1_0000_0000..0x1_0020_0000));
        driver.start(&mut pmem, 0);
        for (request, result) in [(&[0; 4][..], OK), (&[1, 0, 0, 0], FAILED), (&[0; 2], FAILED), (&[], FAILED)] {
            let answer = *driver.submit(&[Part::Out(request), Part::In(4)]).last().unwrap();
            pmem.handle_queue(0).unwrap();
            assert_eq!(driver.finished(), Some(4));
            assert_eq!(driver.bytes(answer, 4), result.to_le_bytes());
        }
    }
}
