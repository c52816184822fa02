//! The buffers of one descriptor chain (2.7.4), resolved to slices of guest RAM, and the system calls that move
//! data between them and files without copying.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use vm_memory::VolatileSlice;

/// Slices of guest memory that together are one buffer.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    length: usize,
}

impl<'m> Buffers<'m> {
    /// Appends a slice.
    pub(super) fn push(&mut self, slice: VolatileSlice<'m>) {
        // No overflow: a chain has at most 2^32 bytes, which `virtio_queue` enforces.
        self.length += slice.len();
        self.slices.push(slice);
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is not one byte.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Takes `length` bytes off the front, or all there are.
    pub fn split_front(&mut self, length: usize) -> Buffers<'m> {
        let mut front = Buffers::default();
        let mut rest = Buffers::default();
        for slice in self.slices.drain(..) {
            let take = slice.len().min(length - front.length);
            // `split_at` fails only beyond the slice's length.
            if let Ok((head, tail)) = slice.split_at(take) {
                if !head.is_empty() {
                    front.push(head);
                }
                if !tail.is_empty() {
                    rest.push(tail);
                }
            }
        }
        *self = rest;
        front
    }

    /// Takes the last byte off, if there is one.
    pub fn split_last(&mut self) -> Option<Buffers<'m>> {
        let mut rest = std::mem::take(self);
        let front = rest.split_front(rest.length.checked_sub(1)?);
        *self = front;
        Some(rest)
    }

    /// Copies to `data` what fits; returns how much that was.
    pub fn copy_to(&self, data: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.copy_to(&mut data[done..]);
        }
        done
    }

    /// Copies from `data` what fits; returns how much that was.
    pub fn copy_from(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let take = slice.len().min(data.len() - done);
            slice.copy_from(&data[done..done + take]);
            done += take;
        }
        done
    }

    /// The whole buffer as a fixed number of bytes; none if it is shorter.
    pub fn read_array<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.copy_to(&mut bytes) == N).then_some(bytes)
    }

    /// Fills the buffer from `file` at `offset`, wholly or not at all as far as the caller may assume.
    pub fn read_from_at(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        let fd = file.as_fd().as_raw_fd();
        self.whole(offset, |vectors, offset| {
            // SAFETY: the vectors name guest memory, which `self` keeps borrowed; the kernel may write it at any
            // time as the guest may, and no Rust reference to it exists.
            unsafe { libc::preadv(fd, vectors.as_ptr(), vectors.len() as libc::c_int, offset) }
        })
    }

    /// Writes the buffer to `file` at `offset`.
    pub fn write_to_at(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        let fd = file.as_fd().as_raw_fd();
        self.whole(offset, |vectors, offset| {
            // SAFETY: as in `read_from_at`; the kernel only reads.
            unsafe { libc::pwritev(fd, vectors.as_ptr(), vectors.len() as libc::c_int, offset) }
        })
    }

    /// Writes the buffer to `file` by one system call, as a packet; returns how much was taken.
    pub fn write_packet(&self, file: impl AsFd) -> io::Result<usize> {
        let vectors = self.vectors(0);
        // SAFETY: as in `write_to_at`.
        let done = unsafe { libc::writev(file.as_fd().as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Repeats `call` until the whole buffer went through: the kernel may do less than asked.
    fn whole(&self, offset: u64, call: impl Fn(&[libc::iovec], libc::off_t) -> isize) -> io::Result<()> {
        let mut done = 0;
        while done < self.length {
            let vectors = self.vectors(done);
            let at = offset.checked_add(done as u64).and_then(|at| libc::off_t::try_from(at).ok());
            let at = at.ok_or(io::ErrorKind::InvalidInput)?;
            match usize::try_from(call(&vectors, at)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => done += more,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// At most IOV_MAX vectors (what a system call takes) of what lies behind the first `skip` bytes.
    fn vectors(&self, skip: usize) -> Vec<libc::iovec> {
        let mut left = skip;
        let mut vectors = Vec::with_capacity(self.slices.len().min(libc::UIO_MAXIOV as usize));
        for slice in &self.slices {
            let drop = left.min(slice.len());
            left -= drop;
            if drop < slice.len() && vectors.len() < libc::UIO_MAXIOV as usize {
                let start = slice.ptr_guard_mut().as_ptr().wrapping_add(drop);
                vectors.push(libc::iovec { iov_base: start.cast(), iov_len: slice.len() - drop });
            }
        }
        vectors
    }
}

/// Reads a little-endian number out of `bytes` at `at`; the caller's layout constants are within the array.
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].iter().take(4).rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// As [`le32`], for 64 bits.
pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    fn buffers<'m>(parts: &'m mut [Vec<u8>]) -> Buffers<'m> {
        let mut buffers = Buffers::default();
        parts.iter_mut().for_each(|part| buffers.push(VolatileSlice::from(part.as_mut_slice())));
        buffers
    }

    #[test]
    fn a_split_loses_nothing() {
        for at in 0..12 {
            let mut parts = vec![vec![1, 2, 3], vec![4], vec![5, 6, 7, 8, 9]];
            let mut rest = buffers(&mut parts);
            let front = rest.split_front(at);
            assert_eq!((front.len(), rest.len()), (at.min(9), 9 - at.min(9)));
            let mut both = [0; 9];
            front.copy_to(&mut both);
            rest.copy_to(&mut both[front.len()..]);
            assert_eq!(both, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        }
    }

    #[test]
    fn the_last_byte_is_the_last_byte() {
        let mut parts = vec![vec![1, 2], vec![3]];
        let mut rest = buffers(&mut parts);
        assert_eq!(rest.split_last().unwrap().read_array(), Some([3]));
        assert_eq!(rest.split_last().unwrap().read_array(), Some([2]));
        assert_eq!(rest.split_last().unwrap().read_array(), Some([1]));
        assert!(rest.split_last().is_none());
    }

    #[test]
    fn files_are_read_and_written_whole_even_beyond_one_calls_vectors() {
        let mut file = tempfile::tempfile().unwrap();
        let mut parts: Vec<_> = (0..2000).map(|index| vec![index as u8; 3]).collect();
        buffers(&mut parts).write_to_at(&file, 5).unwrap();
        let mut written = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut written).unwrap();
        assert_eq!(written[5..], parts.concat());
        let mut back = vec![vec![0; 7]; 2000 * 3 / 7];
        buffers(&mut back).read_from_at(&file, 5).unwrap();
        assert_eq!(back.concat(), parts.concat()[..back.concat().len()]);
        file.write_all(b"x").unwrap();
        let mut beyond = vec![vec![0; 10]];
        let error = buffers(&mut beyond).read_from_at(&file, 6000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
