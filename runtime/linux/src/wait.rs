//! Waiting for a file descriptor until a deadline.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// Waits until `fd` can be read; false if `deadline` comes first. No deadline: waits for ever.
///
/// # Errors
/// What the kernel says.
pub fn readable(fd: impl AsFd, deadline: Option<Instant>) -> io::Result<bool> {
    any_readable(&[fd.as_fd()], deadline)
}

/// Waits until one of `fds` can be read; false if `deadline` comes first. No deadline: waits for ever.
///
/// # Errors
/// What the kernel says.
pub fn any_readable(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
