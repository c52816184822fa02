//! The block device's queue and configuration (5.2.2 to 5.2.5).

use super::{
    disk::{Disk, SECTOR},
    request::{RANGE_SECTORS_MAX, RANGES_MAX, execute},
};
use crate::virtio::{Activation, Device, DeviceError, Queues};

const ID: u16 = 2;
const QUEUE_SIZES: &[u16] = &[256];
/// Feature bits (5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
/// Without it a file system that makes its tables anew fills a sparse file with zeroes.
const F_WRITE_ZEROES: u64 = 1 << 14;
/// Most data buffers of a request: the queue less header and status, as drivers without indirect tables need.
const SEG_MAX: u32 = 254;
/// Sectors that a discard should be aligned to: 4096 bytes, below which a file has no holes.
const DISCARD_ALIGNMENT: u32 = 8;
/// Configuration up to `write_zeroes_may_unmap` and its padding (5.2.4).
const CONFIG: usize = 60;

/// The device.
pub struct Blk {
    name: String,
    serial: String,
    disk: Disk,
    config: [u8; CONFIG],
    flushes: bool,
    queues: Queues,
}

impl Blk {
    /// Device number `index` on `disk`; `serial` is how the guest knows it, of which 20 bytes count.
    pub fn new(index: usize, serial: &str, disk: Disk) -> Self {
        let mut config = [0; CONFIG];
        config[..8].copy_from_slice(&disk.sectors.to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        for limits in [36, 48] {
            config[limits..limits + 4].copy_from_slice(&RANGE_SECTORS_MAX.to_le_bytes());
            config[limits + 4..limits + 8].copy_from_slice(&RANGES_MAX.to_le_bytes());
        }
        config[44..48].copy_from_slice(&DISCARD_ALIGNMENT.to_le_bytes());
        config[56] = 1;
        Self {
            name: format!("disk{index}"),
            serial: serial.to_owned(),
            disk,
            config,
            flushes: false,
            queues: Queues::default(),
        }
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
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | if self.disk.readonly { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
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
        let Self { serial, disk, flushes, queues, .. } = self;
        let Some(queue) = queues.get(index) else { return Ok(()) };
        queue.serve(|chain| execute(disk, serial, !*flushes, chain))?;
        Ok(())
    }
    fn reset(&mut self) {
        self.queues = Queues::default();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::MetadataExt};

    use super::*;
    use crate::virtio::{
        blk::DiskError,
        testing::{Driver, Part},
    };

    const OK: u8 = 0;
    const IO_ERROR: u8 = 1;
    const UNSUPPORTED: u8 = 2;

    struct Rig {
        driver: Driver,
        blk: Blk,
        file: tempfile::NamedTempFile,
    }

    fn rig(readonly: bool) -> Rig {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        (0..8).for_each(|sector: u8| file.write_all(&[sector; SECTOR as usize]).unwrap());
        let blk = Blk::new(3, "zones", Disk::open(file.path(), readonly).unwrap());
        Rig { driver: Driver::new(0), blk, file }
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
    }

    impl Rig {
        /// Status, bytes written, and what the device wrote in front of the status.
        fn request(&mut self, header: &[u8], parts: &[Part<'_>]) -> (u8, u32, Vec<u8>) {
            let all: Vec<_> =
                std::iter::once(Part::Out(header)).chain(parts.iter().copied()).chain([Part::In(1)]).collect();
            let addresses = self.driver.submit(&all);
            self.blk.handle_queue(0).unwrap();
            let written = self.driver.finished().unwrap();
            let status = self.driver.bytes(*addresses.last().unwrap(), 1)[0];
            let data = match parts.first() {
                Some(Part::In(length)) => self.driver.bytes(addresses[1], *length as usize),
                _ => Vec::new(),
            };
            (status, written, data)
        }
    }

    #[test]
    fn what_is_written_is_read_and_lies_in_the_file() {
        let mut rig = rig(false);
        rig.driver.start(&mut rig.blk, F_FLUSH);
        let text = [b'x'; 2 * SECTOR as usize];
        assert_eq!(rig.request(&header(1, 5), &[Part::Out(&text[..100]), Part::Out(&text[100..])]).0, OK);
        assert_eq!(rig.request(&header(4, 0), &[]), (OK, 1, Vec::new()));
        let (status, written, data) = rig.request(&header(0, 4), &[Part::In(3 * SECTOR as u32)]);
        assert_eq!((status, written), (OK, 3 * SECTOR as u32 + 1));
        assert_eq!(data, [&[4; SECTOR as usize][..], &text].concat());
        assert_eq!(fs::read(rig.file.path()).unwrap()[5 * SECTOR as usize..][..text.len()], text);
    }

    #[test]
    fn requests_that_make_no_sense_are_refused_and_change_nothing() {
        let mut rig = rig(false);
        rig.driver.start(&mut rig.blk, F_FLUSH);
        let before = fs::read(rig.file.path()).unwrap();
        let sector = [0xEE; SECTOR as usize];
        for (header, data, status) in [
            (header(1, 8), Part::Out(&sector), IO_ERROR),
            (header(1, u64::MAX), Part::Out(&sector), IO_ERROR),
            (header(1, u64::MAX / SECTOR), Part::Out(&sector), IO_ERROR),
            (header(1, 0), Part::Out(&sector[..511]), IO_ERROR),
            (header(0, 8), Part::In(512), IO_ERROR),
            (header(0, 7), Part::In(1024), IO_ERROR),
            (header(0, 0), Part::In(100), IO_ERROR),
            (header(99, 0), Part::Out(&sector), UNSUPPORTED),
            (header(0, 0)[..12].to_vec(), Part::In(512), IO_ERROR),
        ] {
            assert_eq!(rig.request(&header, &[data]).0, status, "{header:?}");
        }
        assert_eq!(fs::read(rig.file.path()).unwrap(), before);
    }

    #[test]
    fn a_request_with_bytes_outside_of_memory_fails_and_the_next_one_does_not() {
        const LAYER: u64 = 0x1_0000_0000;
        let mut rig = rig(false);
        rig.driver.start(&mut rig.blk, F_FLUSH);
        let before = fs::read(rig.file.path()).unwrap();
        let sector = [0xEE; SECTOR as usize];
        let outside = [Part::Out(&sector[..]), Part::OutAt(LAYER, SECTOR as u32)];
        assert_eq!(rig.request(&header(1, 0), &outside), (IO_ERROR, 1, Vec::new()));
        assert_eq!(rig.request(&header(0, 0), &[Part::InAt(LAYER, SECTOR as u32)]).0, IO_ERROR);
        // No place for the status either.
        rig.driver.submit(&[Part::Out(&header(1, 0)), Part::Out(&sector), Part::InAt(LAYER, 1)]);
        rig.blk.handle_queue(0).unwrap();
        assert_eq!(rig.driver.finished(), Some(0));
        assert_eq!(fs::read(rig.file.path()).unwrap(), before);
        assert_eq!(rig.request(&header(1, 0), &[Part::Out(&sector)]).0, OK);
    }

    #[test]
    fn a_request_without_room_for_its_status_is_given_back() {
        let mut rig = rig(false);
        rig.driver.start(&mut rig.blk, 0);
        rig.driver.submit(&[Part::Out(&header(0, 0))]);
        rig.driver.submit(&[Part::Out(&header(0, 0)), Part::In(0)]);
        rig.blk.handle_queue(0).unwrap();
        assert_eq!([rig.driver.finished(), rig.driver.finished()], [Some(0), Some(0)]);
    }

    #[test]
    fn a_read_only_disk_is_not_written() {
        let mut rig = rig(true);
        rig.driver.start(&mut rig.blk, F_RO);
        assert_eq!(rig.request(&header(1, 0), &[Part::Out(&[1; SECTOR as usize])]).0, IO_ERROR);
        assert_eq!(rig.request(&header(0, 0), &[Part::In(512)]).0, OK);
        assert_eq!(rig.blk.features() & F_RO, F_RO);
    }

    #[test]
    fn a_guest_knows_the_disk_by_its_serial_number() {
        let mut rig = rig(false);
        rig.driver.start(&mut rig.blk, 0);
        let (status, written, data) = rig.request(&header(8, 0), &[Part::In(20)]);
        assert_eq!((status, written, &data[..6]), (OK, 21, &b"zones\0"[..]));
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    }

    #[test]
    fn what_is_discarded_or_zeroed_reads_as_zeroes_and_is_given_back_unless_it_is_needed() {
        for (kind, flags, given_back) in [(11, 0, true), (13, 1, true), (13, 0, false)] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&vec![7; 1 << 20]).unwrap();
            file.as_file().sync_all().unwrap();
            let blk = Blk::new(3, "zones", Disk::open(file.path(), false).unwrap());
            let mut rig = Rig { driver: Driver::new(0), blk, file };
            rig.driver.start(&mut rig.blk, F_FLUSH | F_DISCARD | F_WRITE_ZEROES);
            let used = |rig: &Rig| rig.file.as_file().metadata().unwrap().blocks();
            let before = used(&rig);
            let ranges = [range(8, 16, flags), range(1024, 1024, flags)].concat();
            assert_eq!(rig.request(&header(kind, 0), &[Part::Out(&ranges)]).0, OK);
            let freed = before - used(&rig);
            assert_eq!(freed >= 1024, given_back, "{kind}: {freed} of {before} blocks freed");
            let bytes = fs::read(rig.file.path()).unwrap();
            let zero = |at: usize| (8 * 512..24 * 512).contains(&at) || at >= 1024 * 512;
            let right = bytes.iter().enumerate().all(|(at, byte)| *byte == if zero(at) { 0 } else { 7 });
            assert!(bytes.len() == 1 << 20 && right, "{kind}");
        }
    }

    #[test]
    fn a_range_beyond_the_disk_or_too_much_at_once_is_refused_whole() {
        let mut rig = rig(false);
        rig.driver.start(&mut rig.blk, F_FLUSH | F_DISCARD);
        let before = fs::read(rig.file.path()).unwrap();
        let many = range(0, 1, 0).repeat(RANGES_MAX as usize + 1);
        for (ranges, status) in [
            (range(0, 9, 0), IO_ERROR),
            (range(8, 1, 0), IO_ERROR),
            (range(u64::MAX, 1, 0), IO_ERROR),
            (range(0, 0, 0), IO_ERROR),
            (range(0, u32::MAX, 0), IO_ERROR),
            (range(0, 1, 1), UNSUPPORTED),
            ([range(0, 4, 0), range(9, 1, 0)].concat(), IO_ERROR),
            (range(0, 1, 0)[..15].to_vec(), IO_ERROR),
            (Vec::new(), IO_ERROR),
            (many, IO_ERROR),
        ] {
            assert_eq!(rig.request(&header(11, 0), &[Part::Out(&ranges)]).0, status, "{ranges:?}");
        }
        assert_eq!(rig.request(&header(13, 0), &[Part::Out(&range(0, 9, 1))]).0, IO_ERROR);
        assert_eq!(rig.request(&header(13, 0), &[Part::Out(&range(0, 1, 2))]).0, UNSUPPORTED);
        let mut readonly = self::rig(true);
        readonly.driver.start(&mut readonly.blk, F_RO);
        assert_eq!(readonly.blk.features() & F_DISCARD, 0);
        assert_eq!(readonly.request(&header(11, 0), &[Part::Out(&range(0, 8, 0))]).0, IO_ERROR);
        for rig in [&rig, &readonly] {
            assert_eq!(fs::read(rig.file.path()).unwrap(), before);
        }
    }

    #[test]
    fn a_disk_is_whole_sectors_and_has_one_writer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Disk::open(file.path(), true), Err(DiskError::Size { size: 0, .. })));
        file.as_file().set_len(1025).unwrap();
        assert!(matches!(Disk::open(file.path(), true), Err(DiskError::Size { size: 1025, .. })));
        file.as_file().set_len(1024).unwrap();
        let readers = (Disk::open(file.path(), true).unwrap(), Disk::open(file.path(), true).unwrap());
        assert!(matches!(Disk::open(file.path(), false), Err(DiskError::InUse { .. })));
        drop(readers);
        let _writer = Disk::open(file.path(), false).unwrap();
        assert!(matches!(Disk::open(file.path(), true), Err(DiskError::InUse { .. })));
    }
}
