//! One live virtqueue (2.7, split): takes chains from the driver, gives them back, notifies. On top of
//! `virtio_queue`, which walks the rings; here are the limits and the order that devices rely on.

use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::Buffers;
use crate::{irq::IrqLine, memory::GuestRam};

/// Most buffers in one chain. An indirect table could name 65,535 of them, and each costs us memory and time;
/// Linux never uses more than the queue's size, 256 at most here.
pub const MAX_CHAIN: usize = 1024;

/// How a driver broke the rules of a queue, which then can't go on.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings don't lie in RAM, or each not in one piece of it.
    #[error("queue {index}: {ring} at {address:#x} is not in guest memory")]
    Ring {
        /// The queue.
        index: usize,
        /// Which of its parts.
        ring: &'static str,
        /// Its guest physical address.
        address: u64,
    },
    /// A chain with too many buffers.
    #[error("queue {index}: chain {head} has more than {MAX_CHAIN} buffers")]
    TooLong {
        /// The queue.
        index: usize,
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer for the device to read behind one to write (2.7.4.2).
    #[error("queue {index}: chain {head} has a readable buffer behind a writable one")]
    Order {
        /// The queue.
        index: usize,
        /// The chain's first descriptor.
        head: u16,
    },
    /// The rings are inconsistent.
    #[error("queue {index}: {source}")]
    Rings {
        /// The queue.
        index: usize,
        /// What `virtio_queue` found.
        source: virtio_queue::Error,
    },
}

/// A chain of buffers from the driver. It must be given back by [`VirtQueue::add_used`].
///
/// A buffer outside RAM fails its chain alone, not the queue: Linux lawfully names persistent memory where a process
/// without privileges sends or writes from a file mapped there (MSG_ZEROCOPY, O_DIRECT). Such a chain comes without
/// any buffers, so that no device can take a part of it for the whole.
#[derive(Debug, Default)]
pub struct Chain<'m> {
    /// Its first descriptor, by which it is given back.
    pub head: u16,
    /// What the device may read.
    pub readable: Buffers<'m>,
    /// What the device may write.
    pub writable: Buffers<'m>,
    /// Only of a chain with a buffer outside RAM: the last byte it has for the device to write, if that one is in
    /// RAM. There some devices say that a request failed.
    pub refusal: Option<Buffers<'m>>,
}

/// A queue in use.
#[derive(Debug)]
pub struct VirtQueue {
    index: usize,
    queue: Queue,
    ram: Arc<GuestRam>,
    kick: Arc<EventFd>,
    irq: Option<Arc<IrqLine>>,
}

impl VirtQueue {
    /// Takes `queue`, as the driver set it up, into use. `kick` is the eventfd the driver's notifications arrive
    /// on, `irq` the vector it chose for the queue.
    pub fn new(
        index: usize,
        queue: Queue,
        ram: Arc<GuestRam>,
        kick: Arc<EventFd>,
        irq: Option<Arc<IrqLine>>,
    ) -> Result<Self, QueueError> {
        let this = Self { index, queue, ram, kick, irq };
        let size = u64::from(this.queue.size());
        // Each part in one piece of RAM: vhost gets only the host address of its start (2.7, sizes of the parts
        // with the event index behind the rings).
        for (ring, address, length) in [
            ("descriptor table", this.queue.desc_table(), 16 * size),
            ("available ring", this.queue.avail_ring(), 6 + 2 * size),
            ("used ring", this.queue.used_ring(), 6 + 8 * size),
        ] {
            let slice = GuestMemoryBackend::get_slice(&*this.ram, GuestAddress(address), length as usize);
            if slice.is_err() {
                return Err(QueueError::Ring { index, ring, address });
            }
        }
        Ok(this)
    }

    /// The rings' addresses and size.
    pub fn rings(&self) -> &Queue {
        &self.queue
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The eventfd on which the driver's notifications arrive.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The interrupt line the driver chose, if any.
    pub fn irq(&self) -> Option<&IrqLine> {
        self.irq.as_deref()
    }

    /// Guest memory, for [`VirtQueue::pop`].
    pub fn ram(&self) -> Arc<GuestRam> {
        self.ram.clone()
    }

    /// The next chain that the driver made available.
    pub fn pop<'m>(&mut self, ram: &'m GuestRam) -> Result<Option<Chain<'m>>, QueueError> {
        let index = self.index;
        let mut available = self.queue.iter(ram).map_err(|source| QueueError::Rings { index, source })?;
        let Some(descriptors) = available.next() else { return Ok(None) };
        let head = descriptors.head_index();
        let mut chain = Chain { head, ..Chain::default() };
        let mut outside = false;
        let mut last_writable = None;
        for (count, descriptor) in descriptors.enumerate() {
            if count == MAX_CHAIN {
                return Err(QueueError::TooLong { index, head });
            }
            let (address, length) = (descriptor.addr(), descriptor.len());
            let (buffers, access) = match descriptor.is_write_only() {
                true => (&mut chain.writable, Permissions::Write),
                false if last_writable.is_some() => return Err(QueueError::Order { index, head }),
                false => (&mut chain.readable, Permissions::Read),
            };
            if let (true, Some(before_last)) = (descriptor.is_write_only(), length.checked_sub(1)) {
                last_writable = Some(address.checked_add(before_last.into()));
            }
            if resolve(ram, address, length, access, buffers).is_err() {
                outside = true;
                log::debug!("queue {index}: chain {head} has {length} bytes at {:#x}, not in guest memory", address.0);
            }
        }
        if outside {
            let mut refusal = Buffers::default();
            let resolved = last_writable
                .flatten()
                .is_some_and(|address| resolve(ram, address, 1, Permissions::Write, &mut refusal).is_ok());
            chain = Chain { head, refusal: resolved.then_some(refusal), ..Chain::default() };
        }
        Ok(Some(chain))
    }

    /// Puts the chain taken last back, as if it had never been taken.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives the chain that starts at `head` back with `written` bytes in it. The driver is not yet notified.
    pub fn add_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let index = self.index;
        self.queue.add_used(&*self.ram, head, written).map_err(|source| QueueError::Rings { index, source })
    }

    /// Raises the queue's interrupt if the driver wants to hear of what was given back (2.7.7.2).
    pub fn notify(&mut self) -> Result<(), QueueError> {
        let index = self.index;
        let wanted = self.queue.needs_notification(&*self.ram).map_err(|source| QueueError::Rings { index, source })?;
        if let (true, Some(irq)) = (wanted, &self.irq) {
            irq.trigger();
        }
        Ok(())
    }

    /// Asks the driver to notify us of further chains; true if there are some already, so that no notification
    /// will come for them (2.7.10).
    pub fn want_kick(&mut self) -> Result<bool, QueueError> {
        let index = self.index;
        self.queue.enable_notification(&*self.ram).map_err(|source| QueueError::Rings { index, source })
    }

    /// Has the event loop come back to this queue after the others had their turn.
    pub fn kick_self(&self) {
        // The only error is a full counter: the event loop is on its way.
        let _ = self.kick.write(1);
    }

    /// Lets `handle` work off all chains, each of which it answers with the number of bytes written.
    ///
    /// One call takes at most as many chains as the queue has entries: a driver that fills it as fast as we empty
    /// it can't keep the event loop from other devices.
    pub fn serve(&mut self, mut handle: impl FnMut(Chain<'_>) -> u32) -> Result<(), QueueError> {
        let ram = self.ram();
        let mut left = self.queue.size();
        loop {
            while let Some(chain) = self.pop(&ram)? {
                let head = chain.head;
                let written = handle(chain);
                self.add_used(head, written)?;
                left -= 1;
                if left == 0 {
                    self.kick_self();
                    return self.notify();
                }
            }
            if !self.want_kick()? {
                return self.notify();
            }
        }
    }
}

/// Adds the `length` bytes of guest memory at `address` to `buffers`; after an error they hold a part of them.
fn resolve<'m>(
    ram: &'m GuestRam,
    address: GuestAddress,
    length: u32,
    access: Permissions,
    buffers: &mut Buffers<'m>,
) -> Result<(), GuestMemoryError> {
    for slice in GuestMemory::get_slices(ram, address, length as usize, access)? {
        buffers.push(slice?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::virtio::testing::{
        AVAILABLE, DESCRIPTORS, Driver, INDIRECT, NEXT, Part, RAM, Random, SIZE, TABLE, USED, WRITE,
    };

    /// The lengths of the readable and writable buffers of the only chain offered.
    fn lengths(driver: &mut Driver) -> Result<(usize, usize), QueueError> {
        driver.offer(0);
        let ram = driver.ram.clone();
        let chain = driver.queue().pop(&ram)?.unwrap();
        Ok((chain.readable.len(), chain.writable.len()))
    }

    #[test]
    fn rings_outside_of_memory_are_refused() {
        for (descriptors, available, used) in
            [(RAM - 16, AVAILABLE, USED), (DESCRIPTORS, RAM, USED), (DESCRIPTORS, AVAILABLE, RAM - 4)]
        {
            let mut queue = Queue::new(SIZE).unwrap();
            queue.try_set_desc_table_address(GuestAddress(descriptors)).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(available)).unwrap();
            queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
            queue.set_ready(true);
            let kick = Arc::new(EventFd::new(0).unwrap());
            let queue = VirtQueue::new(0, queue, Driver::new(0).ram, kick, None);
            assert!(matches!(queue, Err(QueueError::Ring { .. })));
        }
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let mut driver = Driver::new(0);
        driver.descriptor(0, 0x2_0000, 1, NEXT, 1);
        driver.descriptor(1, 0x2_0000, 1, NEXT, 0);
        assert_eq!(lengths(&mut driver).unwrap(), (SIZE.into(), 0));
    }

    #[test]
    fn an_indirect_table_in_an_indirect_table_ends_the_chain() {
        let mut driver = Driver::new(0);
        driver.descriptor(0, INDIRECT, 32, TABLE, 0);
        driver.descriptor_at(INDIRECT, 0, 0x2_0000, 5, NEXT, 1);
        driver.descriptor_at(INDIRECT, 1, INDIRECT, 32, TABLE, 0);
        assert_eq!(lengths(&mut driver).unwrap(), (5, 0));
    }

    #[test]
    fn an_indirect_table_of_thousands_of_buffers_is_refused() {
        let mut driver = Driver::new(0);
        let count = MAX_CHAIN as u16 + 1;
        driver.descriptor(0, INDIRECT, 16 * u32::from(count), TABLE, 0);
        (0..count).for_each(|index| driver.descriptor_at(INDIRECT, index, 0, 1, NEXT, index + 1));
        assert!(matches!(lengths(&mut driver), Err(QueueError::TooLong { head: 0, .. })));
    }

    #[test]
    fn a_buffer_outside_of_memory_fails_its_chain_and_no_other() {
        for (address, length) in [(RAM, 1), (RAM - 1, 2), (u64::MAX, 1), (u64::MAX - 7, 16), (0, u32::MAX - 64)] {
            for (flags, position) in [(0, 0), (0, 1), (WRITE, 2), (WRITE, 3)] {
                let mut driver = Driver::new(0);
                let ram = driver.ram.clone();
                let mut queue = driver.queue();
                for (index, flags) in [(0, NEXT), (1, NEXT), (2, NEXT | WRITE), (3, WRITE)] {
                    driver.descriptor(index, 0x2_0000 + 16 * u64::from(index), 16, flags, index + 1);
                }
                let next = if position < 3 { NEXT } else { 0 };
                driver.descriptor(position, address, length, flags | next, position + 1);
                driver.descriptor(4, 0x2_0000, 5, 0, 0);
                driver.offer(0);
                driver.offer(4);
                let failed = queue.pop(&ram).unwrap().unwrap();
                assert!(failed.readable.is_empty() && failed.writable.is_empty(), "{address:#x} {length} {position}");
                assert_eq!(failed.refusal.is_some(), position < 3, "{address:#x} {length} {position}");
                let whole = queue.pop(&ram).unwrap().unwrap();
                assert_eq!((whole.readable.len(), whole.refusal.is_some()), (5, false));
            }
        }
    }

    #[test]
    fn buffers_out_of_order_are_refused_wherever_they_lie() {
        for address in [0x2_0000, RAM] {
            let mut driver = Driver::new(0);
            driver.descriptor(0, address, 1, WRITE | NEXT, 1);
            driver.descriptor(1, 0x2_0000, 1, 0, 0);
            assert!(matches!(lengths(&mut driver), Err(QueueError::Order { .. })));
        }
    }

    #[test]
    fn heads_and_indices_that_do_not_exist_stop_the_queue() {
        let mut driver = Driver::new(0);
        driver.offer(SIZE);
        assert!(matches!(driver.queue().serve(|_| 0), Err(QueueError::Rings { .. })));
        let driver = Driver::new(0);
        driver.ram.write_obj(SIZE + 1, GuestAddress(AVAILABLE + 2)).unwrap();
        assert!(matches!(driver.queue().serve(|_| 0), Err(QueueError::Rings { .. })));
    }

    #[test]
    fn one_call_serves_at_most_one_queue_full() {
        let mut driver = Driver::new(0);
        let mut queue = driver.queue();
        driver.submit(&[Part::Out(b"x")]);
        let mut served = 0;
        // A driver on another vCPU offers a new chain whenever one is taken.
        queue
            .serve(|_| {
                served += 1;
                driver.submit(&[Part::Out(b"x")]);
                0
            })
            .unwrap();
        assert_eq!(served, SIZE);
        assert_eq!(queue.kick().read().unwrap(), 1, "the event loop must come back");
    }

    #[test]
    fn random_rings_never_panic_and_always_end() {
        let mut random = Random(0x5EED_0001);
        for _ in 0..3000 {
            let driver = Driver::new(0);
            for index in 0..SIZE {
                let near = random.below(RAM + 64);
                let address = if random.below(4) == 0 { u64::MAX - random.below(64) } else { near };
                let length = if random.below(4) == 0 { random.below(1 << 32) } else { random.below(128) } as u32;
                driver.descriptor(index, address, length, random.below(8) as u16, random.below(20) as u16);
            }
            for slot in 0..u64::from(SIZE) {
                let head = random.below(u64::from(SIZE) + 1) as u16;
                driver.ram.write_obj(head, GuestAddress(AVAILABLE + 4 + 2 * slot)).unwrap();
            }
            driver.ram.write_obj(random.below(20) as u16, GuestAddress(AVAILABLE + 2)).unwrap();
            // Errors are fine; panics and endless loops are not.
            let _ = driver.queue().serve(|mut chain| {
                let mut bytes = [0; 64];
                chain.readable.split_front(random.below(100) as usize).copy_to(&mut bytes);
                chain.writable.split_last();
                chain.writable.copy_from(&bytes) as u32
            });
        }
    }
}
