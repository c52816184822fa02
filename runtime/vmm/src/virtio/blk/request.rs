//! One request to a block device (5.2.6): a header to read, data, a status byte to write.

use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

use super::disk::{Disk, SECTOR};
use crate::virtio::{
    buffers::{Buffers, le32, le64},
    queue::Chain,
};

/// Request types (5.2.6).
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
/// Flag of a range to be zeroed: it need not stay allocated (5.2.6).
const UNMAP: u32 = 1;
/// Length of the identity string (5.2.6).
pub const ID_LENGTH: usize = 20;
/// Length of one range to be discarded or zeroed, `struct virtio_blk_discard_write_zeroes` (5.2.6).
const RANGE: usize = 16;
/// Most ranges of a request: it does bounded work.
pub const RANGES_MAX: u32 = 32;
/// Most sectors of a range, 1 GiB: the kernel frees so much in one call without a pause that a guest could notice.
pub const RANGE_SECTORS_MAX: u32 = 1 << 21;
const HEADER: usize = 16;

/// Request status (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Carries out the request in `chain` and returns the number of bytes written to it, the status included.
/// `write_through`: the driver does not flush, so each write must be durable before it is answered (5.2.6.2).
pub fn execute(disk: &Disk, id: &str, write_through: bool, mut chain: Chain<'_>) -> u32 {
    // A request without room for its status is none; there is nobody to tell.
    // One with a buffer outside RAM has no header either, and so fails.
    let Some(status) = chain.writable.split_last().or(chain.refusal) else { return 0 };
    let header = chain.readable.split_front(HEADER).read_array::<HEADER>();
    let (result, written) = match header {
        None => (Status::IoError, 0),
        Some(header) => match le32(&header, 0) {
            TYPE_IN => read(disk, le64(&header, 8), &chain.writable),
            TYPE_OUT => (write(disk, le64(&header, 8), &chain.readable, write_through), 0),
            TYPE_FLUSH => (done("flush", disk.file.sync_data()), 0),
            TYPE_GET_ID => {
                let mut bytes = [0; ID_LENGTH];
                bytes.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
                (Status::Ok, chain.writable.copy_from(&bytes))
            }
            kind @ (TYPE_DISCARD | TYPE_WRITE_ZEROES) => (zero(disk, kind, chain.readable, write_through), 0),
            _ => (Status::Unsupported, 0),
        },
    };
    status.copy_from(&[result as u8]);
    written as u32 + 1
}

fn read(disk: &Disk, sector: u64, data: &Buffers<'_>) -> (Status, usize) {
    let Some(offset) = offset(disk, sector, data) else { return (Status::IoError, 0) };
    match done("read", data.read_from_at(&disk.file, offset)) {
        Status::Ok => (Status::Ok, data.len()),
        failed => (failed, 0),
    }
}

fn write(disk: &Disk, sector: u64, data: &Buffers<'_>, write_through: bool) -> Status {
    let Some(offset) = offset(disk, sector, data).filter(|_| !disk.readonly) else { return Status::IoError };
    let mut result = data.write_to_at(&disk.file, offset);
    if write_through {
        result = result.and_then(|()| disk.file.sync_data());
    }
    done("write", result)
}

/// Makes ranges read as zeroes from now on. Their blocks are given back to the file system below, unless the driver
/// says that it will need them. All ranges are looked at before any is touched.
fn zero(disk: &Disk, kind: u32, mut data: Buffers<'_>, write_through: bool) -> Status {
    let length = data.len();
    if disk.readonly || length == 0 || !length.is_multiple_of(RANGE) || length / RANGE > RANGES_MAX as usize {
        return Status::IoError;
    }
    let mut ranges = Vec::with_capacity(length / RANGE);
    while let Some(range) = data.split_front(RANGE).read_array::<RANGE>() {
        let (sector, sectors, flags) = (le64(&range, 0), le32(&range, 8), le32(&range, 12));
        let how = match (kind, flags) {
            (TYPE_DISCARD, 0) | (TYPE_WRITE_ZEROES, UNMAP) => FallocateFlags::PUNCH_HOLE,
            (TYPE_WRITE_ZEROES, 0) => FallocateFlags::ZERO_RANGE,
            _ => return Status::Unsupported,
        };
        let end = sector.checked_add(sectors.into());
        if sectors == 0 || sectors > RANGE_SECTORS_MAX || end.is_none_or(|end| end > disk.sectors) {
            return Status::IoError;
        }
        ranges.push((how | FallocateFlags::KEEP_SIZE, sector * SECTOR, u64::from(sectors) * SECTOR));
    }
    let apply = |&(how, offset, length): &(FallocateFlags, u64, u64)| fallocate(&disk.file, how, offset, length);
    match ranges.iter().try_for_each(apply) {
        Err(Errno::OPNOTSUPP) => Status::Unsupported,
        Ok(()) if write_through => done("zeroing", disk.file.sync_data()),
        result => done("zeroing", result.map_err(Into::into)),
    }
}

/// The request's place in the file, if it is whole sectors within the disk.
fn offset(disk: &Disk, sector: u64, data: &Buffers<'_>) -> Option<u64> {
    let length = data.len() as u64;
    let end = sector.checked_add(length / SECTOR)?;
    (length.is_multiple_of(SECTOR) && end <= disk.sectors).then_some(sector * SECTOR)
}

fn done(what: &str, result: std::io::Result<()>) -> Status {
    match result {
        Ok(()) => Status::Ok,
        Err(error) => {
            log::error!("disk {what}: {error}");
            Status::IoError
        }
    }
}
