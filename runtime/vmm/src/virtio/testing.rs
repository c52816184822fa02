//! The driver's side of one queue, for tests: rings and buffers in guest memory, filled as a driver would, or as
//! an attacker would.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, Device, F_VERSION_1, Queues, VirtQueue};
use crate::memory::GuestRam;

/// Entries of the queue.
pub const SIZE: u16 = 16;
/// Bytes of guest memory.
pub const RAM: u64 = 1 << 20;
/// Where the parts of queue 0 lie; those of the next queue lie [`STRIDE`] behind.
pub const DESCRIPTORS: u64 = 0x1000;
pub const AVAILABLE: u64 = 0x2000;
pub const USED: u64 = 0x3000;
pub const STRIDE: u64 = 0x4000;
/// Where an indirect table may be put.
pub const INDIRECT: u64 = 0x1_8000;
/// Where buffers are allocated.
const BUFFERS: u64 = 0x2_0000;

/// Descriptor flags (2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const TABLE: u16 = 4;

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// For the device to read.
    Out(&'a [u8]),
    /// For the device to write, of this length.
    In(u32),
    /// For the device to read, at an address of the driver's choice.
    OutAt(u64, u32),
    /// For the device to write, at an address of the driver's choice.
    InAt(u64, u32),
}

/// The driver.
pub struct Driver {
    pub ram: Arc<GuestRam>,
    base: u64,
    index: usize,
    next_descriptor: u16,
    next_buffer: u64,
    available: u16,
    used: u16,
}

impl Driver {
    /// A driver of queue `index` in fresh memory.
    pub fn new(index: usize) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        Self::in_memory(Arc::new(ram), index)
    }

    /// A driver of queue `index` in memory that it shares.
    pub fn in_memory(ram: Arc<GuestRam>, index: usize) -> Self {
        let next_buffer = BUFFERS + index as u64 * 0x4_0000;
        Self { ram, base: STRIDE * index as u64, index, next_descriptor: 0, next_buffer, available: 0, used: 0 }
    }

    /// The device's end of the queue.
    pub fn queue(&self) -> VirtQueue {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.base + DESCRIPTORS)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.base + AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.base + USED)).unwrap();
        queue.set_ready(true);
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        VirtQueue::new(self.index, queue, self.ram.clone(), kick, None).unwrap()
    }

    /// Starts `device` with this queue alone and `features`.
    pub fn start(&self, device: &mut dyn Device, features: u64) {
        let mut queues: Vec<_> = (0..self.index).map(|_| None).collect();
        queues.push(Some(self.queue()));
        device.activate(Activation { features: features | F_VERSION_1, queues: Queues::new(queues) }).unwrap();
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn descriptor_at(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let words =
            (u128::from(next) << 112) | u128::from(flags) << 96 | u128::from(length) << 64 | u128::from(address);
        self.ram.write_obj(words, at).unwrap();
    }

    /// Writes descriptor `index` of the queue.
    pub fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.descriptor_at(self.base + DESCRIPTORS, index, address, length, flags, next);
    }

    /// Makes the chain that starts at `head` available.
    pub fn offer(&mut self, head: u16) {
        let ring = self.base + AVAILABLE;
        self.ram.write_obj(head, GuestAddress(ring + 4 + 2 * u64::from(self.available % SIZE))).unwrap();
        self.available = self.available.wrapping_add(1);
        self.ram.write_obj(self.available, GuestAddress(ring + 2)).unwrap();
    }

    /// Makes a chain of `parts` available; returns its buffers' addresses.
    pub fn submit(&mut self, parts: &[Part<'_>]) -> Vec<u64> {
        let head = self.next_descriptor % SIZE;
        let mut addresses = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let (address, length, flags) = match *part {
                Part::Out(bytes) => {
                    self.ram.write_slice(bytes, GuestAddress(self.next_buffer)).unwrap();
                    (self.next_buffer, bytes.len() as u32, 0)
                }
                Part::In(length) => (self.next_buffer, length, WRITE),
                Part::OutAt(address, length) => (address, length, 0),
                Part::InAt(address, length) => (address, length, WRITE),
            };
            let index = self.next_descriptor % SIZE;
            let more = if number + 1 < parts.len() { NEXT } else { 0 };
            self.descriptor(index, address, length, flags | more, (index + 1) % SIZE);
            addresses.push(address);
            self.next_descriptor += 1;
            self.next_buffer += u64::from(length).next_multiple_of(16).max(16);
        }
        self.offer(head);
        addresses
    }

    /// The number of bytes written to the next chain that came back.
    pub fn finished(&mut self) -> Option<u32> {
        let ring = self.base + USED;
        let index: u16 = self.ram.read_obj(GuestAddress(ring + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let length = self.ram.read_obj(GuestAddress(ring + 4 + 8 * u64::from(self.used % SIZE) + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        Some(length)
    }

    /// What lies in guest memory.
    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// Random numbers that are the same in each run (xorshift64).
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
