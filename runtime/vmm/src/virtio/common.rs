//! The common configuration structure (4.1.4.3): features, status and queue set-up as the driver sees them.
//! Registers only; what follows from a write is [`super::transport`]'s business.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::{F_EVENT_IDX, F_VERSION_1};

/// Size of the structure in bytes, up to `queue_device`.
pub const SIZE: usize = 0x38;
/// No vector (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xFFFF;

/// Those device status bits that mean something to the device (2.1).
pub mod status {
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is done.
    pub const FEATURES_OK: u8 = 8;
    /// The device can't go on.
    pub const NEEDS_RESET: u8 = 64;
}

/// Registers by offset (4.1.4.3).
mod register {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0C;
    pub const CONFIG_MSIX_VECTOR: usize = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const DEVICE_STATUS: usize = 0x14;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_MSIX_VECTOR: usize = 0x1A;
    pub const QUEUE_ENABLE: usize = 0x1C;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1E;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DESC_HIGH: usize = 0x24;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DRIVER_HIGH: usize = 0x2C;
    pub const QUEUE_DEVICE: usize = 0x30;
    pub const QUEUE_DEVICE_HIGH: usize = 0x34;
}

/// One queue as the driver sets it up.
#[derive(Debug, Clone, Copy)]
pub struct QueueSetup {
    max_size: u16,
    size: u16,
    enabled: bool,
    /// The MSI-X vector for it, or [`NO_VECTOR`].
    pub vector: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        let (descriptors, driver, device) = (0, 0, 0);
        Self { max_size, size: max_size, enabled: false, vector: NO_VECTOR, descriptors, driver, device }
    }

    /// The queue ready for use, if the driver enabled it. Misaligned rings (2.7) are an error.
    pub fn build(&self, features: u64) -> Result<Option<Queue>, virtio_queue::Error> {
        if !self.enabled {
            return Ok(None);
        }
        let mut queue = Queue::new(self.max_size)?;
        queue.try_set_size(self.size)?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver))?;
        queue.try_set_used_ring_address(GuestAddress(self.device))?;
        queue.set_event_idx(features & F_EVENT_IDX != 0);
        queue.set_ready(true);
        Ok(Some(queue))
    }
}

/// What a write means beyond the register's new value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// The driver is ready: start the device.
    Start,
    /// The driver wrote 0 to the status: stop the device.
    Reset,
}

/// The structure's state.
#[derive(Debug)]
pub struct Common {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    /// The MSI-X vector for configuration changes, or [`NO_VECTOR`].
    pub config_vector: u16,
    vectors: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

impl Common {
    /// A device after reset that offers `features` and `vectors` MSI-X vectors.
    pub fn new(features: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        Self {
            offered: features,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            config_vector: NO_VECTOR,
            vectors,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|size| QueueSetup::new(*size)).collect(),
        }
    }

    /// Negotiated feature bits.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// All queues.
    pub fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }

    /// Whether the driver is ready.
    pub fn is_started(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    /// The device can't go on (2.1.2).
    pub fn set_needs_reset(&mut self) {
        self.status |= status::NEEDS_RESET;
    }

    /// Reads any range; zeroes behind the structure's end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let image = self.image();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset.checked_add(index).and_then(|at| image.get(at)).copied().unwrap_or(0);
        }
    }

    fn image(&self) -> [u8; SIZE] {
        let feature = |features: u64, select| if select < 2 { (features >> (32 * select)) as u32 } else { 0 };
        let mut image = [0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(register::DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(register::DEVICE_FEATURE, &feature(self.offered, self.device_feature_select).to_le_bytes());
        put(register::DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(register::DRIVER_FEATURE, &feature(self.accepted, self.driver_feature_select).to_le_bytes());
        put(register::CONFIG_MSIX_VECTOR, &self.config_vector.to_le_bytes());
        put(register::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        // `config_generation` stays 0: device configuration never changes.
        put(register::DEVICE_STATUS, &[self.status]);
        put(register::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0 (4.1.4.3.1).
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(register::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(register::QUEUE_MSIX_VECTOR, &queue.vector.to_le_bytes());
            put(register::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(register::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(register::QUEUE_DESC, &queue.descriptors.to_le_bytes());
            put(register::QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(register::QUEUE_DEVICE, &queue.device.to_le_bytes());
        }
        image
    }

    /// Writes one register by its own width; 64-bit ones also by halves, as drivers must (4.1.3.1).
    /// Any other write is ignored.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Change {
        let value = data.iter().take(8).rev().fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
        match (offset, data.len()) {
            (register::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value as u32,
            (register::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value as u32,
            (register::DRIVER_FEATURE, 4) => self.accept(value as u32),
            (register::CONFIG_MSIX_VECTOR, 2) => self.config_vector = self.vector(value as u16),
            (register::DEVICE_STATUS, 1) => return self.set_status(value as u8),
            (register::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            _ => self.write_queue(offset, data.len(), value),
        }
        Change::None
    }

    fn write_queue(&mut self, offset: usize, width: usize, value: u64) {
        let vector = self.vector(value as u16);
        // A queue's set-up is fixed once it is enabled (4.1.4.3.2), and all of it once the driver is ready.
        let started = self.is_started();
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.enabled || started {
            return;
        }
        let low = |old: u64| old & !0xFFFF_FFFF | value;
        let high = |old: u64| old & 0xFFFF_FFFF | value << 32;
        match (offset, width) {
            (register::QUEUE_SIZE, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            (register::QUEUE_MSIX_VECTOR, 2) => queue.vector = vector,
            (register::QUEUE_ENABLE, 2) => queue.enabled = value == 1,
            (register::QUEUE_DESC, 8) => queue.descriptors = value,
            (register::QUEUE_DESC, 4) => queue.descriptors = low(queue.descriptors),
            (register::QUEUE_DESC_HIGH, 4) => queue.descriptors = high(queue.descriptors),
            (register::QUEUE_DRIVER, 8) => queue.driver = value,
            (register::QUEUE_DRIVER, 4) => queue.driver = low(queue.driver),
            (register::QUEUE_DRIVER_HIGH, 4) => queue.driver = high(queue.driver),
            (register::QUEUE_DEVICE, 8) => queue.device = value,
            (register::QUEUE_DEVICE, 4) => queue.device = low(queue.device),
            (register::QUEUE_DEVICE_HIGH, 4) => queue.device = high(queue.device),
            _ => {}
        }
    }

    /// A vector that does not exist reads back as none (4.1.5.1.2).
    fn vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    fn accept(&mut self, bits: u32) {
        if self.status & status::FEATURES_OK == 0 && self.driver_feature_select < 2 {
            let shift = 32 * self.driver_feature_select;
            self.accepted = self.accepted & !(0xFFFF_FFFF << shift) | u64::from(bits) << shift;
        }
    }

    fn set_status(&mut self, value: u8) -> Change {
        if value == 0 {
            let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max_size).collect();
            *self = Self::new(self.offered, &sizes, self.vectors);
            return Change::Reset;
        }
        let before = self.status;
        // NEEDS_RESET is ours; the driver clears nothing but by reset (2.1.1).
        let mut now = before | value & !status::NEEDS_RESET;
        let acceptable = self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0;
        if before & status::FEATURES_OK == 0 && !acceptable {
            // The driver reads back that its choice was refused (3.1.1, step 6).
            now &= !status::FEATURES_OK;
        }
        if now & status::FEATURES_OK == 0 {
            now &= !status::DRIVER_OK;
        }
        self.status = now;
        match before & status::DRIVER_OK == 0 && now & status::DRIVER_OK != 0 {
            true => Change::Start,
            false => Change::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: u64 = F_VERSION_1 | F_EVENT_IDX | 5;

    fn common() -> Common {
        Common::new(OFFERED, &[256, 64], 3)
    }

    fn accept(common: &mut Common, features: u64) {
        for select in 0..2_u32 {
            common.write(register::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            common.write(register::DRIVER_FEATURE, &((features >> (32 * select)) as u32).to_le_bytes());
        }
    }

    fn read<const N: usize>(common: &Common, offset: usize) -> [u8; N] {
        let mut data = [0; N];
        common.read(offset, &mut data);
        data
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        for (features, accepted) in [(OFFERED, true), (F_VERSION_1, true), (5, false), (OFFERED | 2, false)] {
            let mut common = common();
            accept(&mut common, features);
            common.write(register::DEVICE_STATUS, &[3 | status::FEATURES_OK]);
            let [read] = read(&common, register::DEVICE_STATUS);
            assert_eq!(read & status::FEATURES_OK != 0, accepted, "{features:#x}");
            let change = common.write(register::DEVICE_STATUS, &[read | status::DRIVER_OK]);
            assert_eq!(change, if accepted { Change::Start } else { Change::None });
        }
    }

    #[test]
    fn features_and_queues_are_fixed_once_agreed() {
        let mut common = common();
        accept(&mut common, F_VERSION_1);
        common.write(register::DEVICE_STATUS, &[status::FEATURES_OK]);
        accept(&mut common, OFFERED);
        assert_eq!(common.features(), F_VERSION_1);
        common.write(register::QUEUE_DESC, &0x1000_u64.to_le_bytes());
        common.write(register::QUEUE_ENABLE, &1_u16.to_le_bytes());
        common.write(register::QUEUE_DESC, &0x2000_u64.to_le_bytes());
        common.write(register::QUEUE_ENABLE, &0_u16.to_le_bytes());
        assert_eq!(read(&common, register::QUEUE_DESC), 0x1000_u64.to_le_bytes());
        assert_eq!(read(&common, register::QUEUE_ENABLE), [1, 0]);
        assert_eq!(common.write(register::DEVICE_STATUS, &[0]), Change::Reset);
        assert_eq!((common.features(), read(&common, register::QUEUE_ENABLE)), (0, [0, 0]));
    }

    #[test]
    fn sizes_and_vectors_that_do_not_exist_are_not_taken() {
        let mut common = common();
        for (size, taken) in [(128, 128), (0, 128), (3, 128), (512, 128), (1, 1)] {
            common.write(register::QUEUE_SIZE, &u16::to_le_bytes(size));
            assert_eq!(read(&common, register::QUEUE_SIZE), u16::to_le_bytes(taken));
        }
        for (vector, taken) in [(2, 2), (3, NO_VECTOR), (0, 0), (NO_VECTOR, NO_VECTOR)] {
            common.write(register::QUEUE_MSIX_VECTOR, &u16::to_le_bytes(vector));
            assert_eq!(read(&common, register::QUEUE_MSIX_VECTOR), u16::to_le_bytes(taken));
        }
        common.write(register::QUEUE_SELECT, &2_u16.to_le_bytes());
        assert_eq!(read(&common, register::QUEUE_SIZE), [0, 0]);
    }

    #[test]
    fn misaligned_rings_are_refused() {
        let mut common = common();
        common.write(register::QUEUE_DESC, &0x1008_u64.to_le_bytes());
        common.write(register::QUEUE_ENABLE, &1_u16.to_le_bytes());
        assert!(common.queues()[0].build(F_VERSION_1).is_err());
        assert!(common.queues()[1].build(F_VERSION_1).unwrap().is_none());
    }

    #[test]
    fn any_offset_and_length_is_harmless() {
        let mut common = common();
        for offset in (0..SIZE + 16).chain([usize::MAX]) {
            for length in 0..=9 {
                common.write(offset, &vec![0xA5; length]);
                common.read(offset, &mut vec![0; length]);
            }
        }
    }
}
