//! Entropy device (5.4): fills buffers with the kernel's random bytes.

use rustix::rand::{GetRandomFlags, getrandom};

use super::{Activation, Device, DeviceError, Queues, queue::Chain};

const ID: u16 = 4;
const QUEUE_SIZES: &[u16] = &[64];
/// Most bytes given for one buffer: the driver may offer gigabytes, and all of them cost us time.
const MAX_BYTES: usize = 4096;

/// The device.
#[derive(Default)]
pub struct Rng {
    queues: Queues,
}

impl Device for Rng {
    fn name(&self) -> &str {
        "rng"
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
        &[]
    }
    fn activate(&mut self, start: Activation) -> Result<(), DeviceError> {
        self.queues = start.queues;
        Ok(())
    }
    fn handle_queue(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(queue) = self.queues.get(index) else { return Ok(()) };
        let mut failed = None;
        queue.serve(|chain| {
            fill(&chain).unwrap_or_else(|error| {
                failed = Some(error);
                0
            })
        })?;
        match failed {
            None => Ok(()),
            Some(source) => Err(DeviceError::Host { what: "getrandom", source: source.into() }),
        }
    }
    fn reset(&mut self) {
        self.queues = Queues::default();
    }
}

fn fill(chain: &Chain<'_>) -> rustix::io::Result<u32> {
    let mut bytes = [0; MAX_BYTES];
    let bytes = &mut bytes[..chain.writable.len().min(MAX_BYTES)];
    let mut done = 0;
    while done < bytes.len() {
        done += getrandom(&mut bytes[done..], GetRandomFlags::empty())?;
    }
    Ok(chain.writable.copy_from(bytes) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Driver, Part, RAM};

    #[test]
    fn buffers_are_filled_up_to_a_limit() {
        let mut driver = Driver::new(0);
        let mut rng = Rng::default();
        driver.start(&mut rng, 0);
        let small = driver.submit(&[Part::In(64)])[0];
        driver.submit(&[Part::In(100_000)]);
        driver.submit(&[Part::Out(b"nothing to write")]);
        rng.handle_queue(0).unwrap();
        assert_eq!([driver.finished(), driver.finished(), driver.finished()], [Some(64), Some(4096), Some(0)]);
        assert_ne!(driver.bytes(small, 64), [0; 64]);
    }

    #[test]
    fn a_buffer_outside_of_memory_is_given_back_empty() {
        let mut driver = Driver::new(0);
        let mut rng = Rng::default();
        driver.start(&mut rng, 0);
        driver.submit(&[Part::In(64), Part::InAt(RAM, 64)]);
        driver.submit(&[Part::In(64)]);
        rng.handle_queue(0).unwrap();
        assert_eq!([driver.finished(), driver.finished()], [Some(0), Some(64)]);
    }
}
