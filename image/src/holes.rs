//! Holes of sparse files (lseek(2), SEEK_DATA and SEEK_HOLE): what reads as zeroes need not be read.

use std::{fs::File, io};

use rustix::{fs::SeekFrom, io::Errno};

/// A rest of fewer bytes is not asked about: reading it costs less than two system calls.
const LEAST: u64 = 1 << 20;

/// The next stretch of `file` between `at` and `size` that is not a hole, as start and end. Moves the file's offset.
pub(crate) fn next_data(file: &File, at: u64, size: u64) -> io::Result<(u64, u64)> {
    if size - at < LEAST {
        return Ok((at, size));
    }
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => {
            let data = data.min(size);
            Ok((data, rustix::fs::seek(file, SeekFrom::Hole(data)).map_or(size, |end| end.min(size))))
        }
        Err(Errno::NXIO) => Ok((size, size)),
        Err(Errno::INVAL) => Ok((at, size)), // a file system that does not know
        Err(error) => Err(error.into()),
    }
}
