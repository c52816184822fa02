//! The network device's queues (5.1.6): packets between the driver and the tap.

use std::{
    io::{ErrorKind, Read},
    os::fd::{AsRawFd, RawFd},
};

use super::{
    mac::Mac,
    tap::{HEADER, Offloads, Tap, TapError},
};
use crate::virtio::{Activation, Device, DeviceError, QueueError, Queues, VirtQueue};

const ID: u16 = 1;
const QUEUE_SIZES: &[u16] = &[256, 256];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Feature bits (5.1.3).
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;

/// The longest packet with its header: 64 KiB of IP, Ethernet and VLAN headers before it.
const MAX_PACKET: usize = HEADER + 18 + 65_535;
/// Offset of `num_buffers` in the header (5.1.6).
const NUM_BUFFERS: usize = 10;

/// The device.
pub struct Net {
    name: String,
    tap: Tap,
    config: [u8; 6],
    merge: bool,
    /// A packet read from the tap for which the driver had no buffer yet; empty if there is none.
    waiting: Vec<u8>,
    buffer: Box<[u8; MAX_PACKET]>,
    queues: Queues,
}

impl Net {
    /// Device number `index` on `tap`, whose driver uses the address `mac`.
    pub fn new(index: usize, tap: Tap, mac: Mac) -> Self {
        Self {
            name: format!("net{index}"),
            tap,
            config: mac.0,
            merge: false,
            waiting: Vec::new(),
            buffer: Box::new([0; MAX_PACKET]),
            queues: Queues::default(),
        }
    }

    fn transmit(&mut self) -> Result<(), QueueError> {
        let Self { tap, queues, .. } = self;
        let Some(queue) = queues.get(TRANSMIT) else { return Ok(()) };
        queue.serve(|chain| {
            // A packet the tap does not take is lost, as on any network: it is down, full, or the packet malformed.
            if (HEADER..=MAX_PACKET).contains(&chain.readable.len())
                && let Err(error) = chain.readable.write_packet(&tap.file)
            {
                log::debug!("packet lost: {error}");
            }
            0
        })
    }

    fn receive(&mut self) -> Result<(), DeviceError> {
        let Self { tap, merge, waiting, buffer, queues, .. } = self;
        let Some(queue) = queues.get(RECEIVE) else { return Ok(()) };
        // At most as many packets in one call as the queue has entries, then the transmit queue has its turn.
        for _ in 0..queue.size() {
            if waiting.is_empty() {
                match (&tap.file).read(buffer.as_mut_slice()) {
                    Ok(length) => waiting.extend_from_slice(&buffer[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(queue.notify()?),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(source) => return Err(DeviceError::Host { what: "reading the tap", source }),
                }
            }
            if !deliver(queue, waiting, *merge)? {
                return Ok(queue.notify()?);
            }
            waiting.clear();
        }
        queue.kick_self();
        Ok(queue.notify()?)
    }
}

/// Puts `packet` into the next buffers of `queue`; false if the driver must add buffers first, and will notify us.
fn deliver(queue: &mut VirtQueue, packet: &mut [u8], merge: bool) -> Result<bool, QueueError> {
    let ram = queue.ram();
    let mut chains = Vec::new();
    let mut room = 0;
    // A driver on another vCPU may add chains without room as fast as they are taken: the queue's size is the limit.
    let mut left = queue.size();
    while left > 0 && room < packet.len() && (merge || room == 0) {
        let Some(chain) = queue.pop(&ram)? else { break };
        left -= 1;
        // One that holds nothing goes back at once, unless some before it may yet be put back.
        if chain.writable.is_empty() && chains.is_empty() {
            queue.add_used(chain.head, 0)?;
            continue;
        }
        room += chain.writable.len();
        chains.push(chain);
    }
    let enough = room >= packet.len();
    let full = left == 0;
    if !enough && (chains.is_empty() || merge && !full) {
        // Asked while all known chains are taken: the driver tells us of the next one.
        let more = queue.want_kick()?;
        chains.iter().for_each(|_| queue.undo_pop());
        if more {
            queue.kick_self();
        }
        return Ok(false);
    }
    if !enough {
        // Too long for the buffers there can be (5.1.6.3.1 asks for longer ones): lost.
        chains.iter().try_for_each(|chain| queue.add_used(chain.head, 0))?;
        return Ok(true);
    }
    // The driver takes as many chains as the header counts, one behind the other: those without room go before.
    let (chains, without_room): (Vec<_>, Vec<_>) = chains.into_iter().partition(|chain| !chain.writable.is_empty());
    without_room.iter().try_for_each(|chain| queue.add_used(chain.head, 0))?;
    if let Some(count) = packet.get_mut(NUM_BUFFERS..HEADER) {
        count.copy_from_slice(&(chains.len() as u16).to_le_bytes());
    }
    let mut rest = &*packet;
    for chain in chains {
        let taken = chain.writable.copy_from(rest);
        rest = &rest[taken..];
        queue.add_used(chain.head, taken as u32)?;
    }
    Ok(true)
}

impl Device for Net {
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
        F_MAC | F_MRG_RXBUF | F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6
    }
    fn config(&self) -> &[u8] {
        &self.config
    }
    fn activate(&mut self, start: Activation) -> Result<(), DeviceError> {
        let has = |feature| start.features & feature != 0;
        self.merge = has(F_MRG_RXBUF);
        let offloads = Offloads { checksum: has(F_GUEST_CSUM), tso4: has(F_GUEST_TSO4), tso6: has(F_GUEST_TSO6) };
        self.tap.set_offloads(offloads).map_err(|error| match error {
            TapError::Io { what, source, .. } => DeviceError::Host { what, source },
            TapError::Name(_) => DeviceError::Host { what: "set offloads", source: ErrorKind::InvalidInput.into() },
        })?;
        self.queues = start.queues;
        Ok(())
    }
    fn handle_queue(&mut self, index: usize) -> Result<(), DeviceError> {
        match index {
            TRANSMIT => Ok(self.transmit()?),
            _ => self.receive(),
        }
    }
    fn backend(&self) -> Option<RawFd> {
        Some(self.tap.file.as_raw_fd())
    }
    fn handle_backend(&mut self) -> Result<(), DeviceError> {
        self.receive()
    }
    fn reset(&mut self) {
        self.queues = Queues::default();
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Driver, Part, RAM, SIZE};

    fn packet(length: usize) -> Vec<u8> {
        (0..length).map(|index| index as u8 | 1).collect()
    }

    #[test]
    fn a_packet_is_spread_over_merged_buffers_and_says_over_how_many() {
        let mut driver = Driver::new(RECEIVE);
        let mut queue = driver.queue();
        let buffers: Vec<_> = (0..4).map(|_| driver.submit(&[Part::In(100)])[0]).collect();
        let mut sent = packet(250);
        assert!(deliver(&mut queue, &mut sent, true).unwrap());
        let lengths = [driver.finished(), driver.finished(), driver.finished(), driver.finished()];
        assert_eq!(lengths, [Some(100), Some(100), Some(50), None]);
        let received: Vec<u8> = buffers.iter().flat_map(|at| driver.bytes(*at, 100)).take(250).collect();
        assert_eq!(received[NUM_BUFFERS..HEADER], [3, 0]);
        assert_eq!(received[HEADER..], packet(250)[HEADER..]);
    }

    #[test]
    fn a_packet_waits_until_there_are_buffers_for_all_of_it() {
        let mut driver = Driver::new(RECEIVE);
        let mut queue = driver.queue();
        let mut sent = packet(150);
        assert!(!deliver(&mut queue, &mut sent, true).unwrap());
        driver.submit(&[Part::In(100)]);
        assert!(!deliver(&mut queue, &mut sent, true).unwrap());
        assert_eq!(driver.finished(), None);
        driver.submit(&[Part::In(100)]);
        assert!(deliver(&mut queue, &mut sent, true).unwrap());
        assert_eq!([driver.finished(), driver.finished()], [Some(100), Some(50)]);
    }

    #[test]
    fn a_received_packet_goes_around_chains_that_can_hold_nothing() {
        for merge in [false, true] {
            let mut driver = Driver::new(RECEIVE);
            let mut queue = driver.queue();
            driver.submit(&[Part::InAt(RAM, 200)]);
            driver.submit(&[Part::Out(b"no room")]);
            assert!(!deliver(&mut queue, &mut packet(150), merge).unwrap());
            assert_eq!([driver.finished(), driver.finished(), driver.finished()], [Some(0), Some(0), None]);
            let buffer = driver.submit(&[Part::In(150)])[0];
            assert!(deliver(&mut queue, &mut packet(150), merge).unwrap());
            assert_eq!(driver.finished(), Some(150));
            assert_eq!(driver.bytes(buffer, 150)[HEADER..], packet(150)[HEADER..]);
        }
        let mut driver = Driver::new(RECEIVE);
        let mut queue = driver.queue();
        let first = driver.submit(&[Part::In(100)])[0];
        driver.submit(&[Part::InAt(RAM, 100)]);
        assert!(!deliver(&mut queue, &mut packet(150), true).unwrap());
        assert_eq!(driver.finished(), None);
        driver.submit(&[Part::In(100)]);
        assert!(deliver(&mut queue, &mut packet(150), true).unwrap());
        assert_eq!([driver.finished(), driver.finished(), driver.finished()], [Some(0), Some(100), Some(50)]);
        assert_eq!(driver.bytes(first + NUM_BUFFERS as u64, 2), [2, 0], "the driver takes that many");
    }

    #[test]
    fn a_queue_full_of_chains_without_room_loses_the_packet() {
        let mut driver = Driver::new(RECEIVE);
        let mut queue = driver.queue();
        driver.submit(&[Part::In(1)]);
        (1..SIZE).for_each(|_| drop(driver.submit(&[Part::InAt(RAM, 1)])));
        assert!(deliver(&mut queue, &mut packet(100), true).unwrap(), "no queue can hold it, so it is lost");
        assert_eq!((0..SIZE).filter(|_| driver.finished() == Some(0)).count(), usize::from(SIZE));
    }

    #[test]
    fn a_packet_with_bytes_outside_of_memory_is_lost_and_the_next_one_is_not() {
        let (host, wire) = std::os::unix::net::UnixDatagram::pair().unwrap();
        wire.set_nonblocking(true).unwrap();
        let tap = Tap::around(std::os::fd::OwnedFd::from(host).into());
        let mut net = Net::new(0, tap, Mac([2; 6]));
        let mut driver = Driver::new(TRANSMIT);
        net.queues = Queues::new(vec![None, Some(driver.queue())]);
        driver.submit(&[Part::Out(&[0; HEADER]), Part::Out(&[1; 60]), Part::OutAt(0x1_0000_0000, 4096)]);
        driver.submit(&[Part::Out(&[0; HEADER]), Part::Out(&[2; 60])]);
        net.handle_queue(TRANSMIT).unwrap();
        assert_eq!([driver.finished(), driver.finished(), driver.finished()], [Some(0), Some(0), None]);
        let mut sent = [0; 200];
        assert_eq!(wire.recv(&mut sent).unwrap(), HEADER + 60);
        assert_eq!(sent[HEADER..HEADER + 60], [2; 60]);
        assert_eq!(wire.recv(&mut sent).unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_packet_no_buffer_can_hold_is_lost_and_the_next_one_is_not() {
        let mut driver = Driver::new(RECEIVE);
        let mut queue = driver.queue();
        driver.submit(&[Part::In(100)]);
        driver.submit(&[Part::In(100)]);
        assert!(deliver(&mut queue, &mut packet(101), false).unwrap());
        assert!(deliver(&mut queue, &mut packet(100), false).unwrap());
        assert_eq!([driver.finished(), driver.finished()], [Some(0), Some(100)]);
        // A whole queue of buffers that are too small.
        (0..SIZE).for_each(|_| drop(driver.submit(&[Part::In(1)])));
        assert!(deliver(&mut queue, &mut packet(1000), true).unwrap());
        assert_eq!((0..SIZE).filter(|_| driver.finished() == Some(0)).count(), usize::from(SIZE));
    }
}
