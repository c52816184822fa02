//! How the machine ends: whoever sees the end first says why, and the main thread hears of it.

use std::{io, sync::Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{exit::Exit, sync::lock};

/// Shared by all threads.
#[derive(Debug)]
pub struct Ending {
    exit: Mutex<Option<Exit>>,
    event: EventFd,
}

impl Ending {
    /// Nothing has ended yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { exit: Mutex::new(None), event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// The machine ends, for this reason unless there was one before.
    pub fn report(&self, exit: Exit) {
        lock(&self.exit).get_or_insert(exit);
        // The only error is a full counter: the main thread has been told.
        let _ = self.event.write(1);
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<Exit> {
        lock(&self.exit).clone()
    }

    /// Readable once the machine has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
