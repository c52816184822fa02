//! The kernel's device events (NETLINK_KOBJECT_UEVENT; Linux, lib/kobject_uevent.c), and waiting for a device by
//! condition.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use rustix::{io::Errno, net::sockopt};

use crate::wait;

/// The kernel's own multicast group; group 2 carries what udevd sends on.
const KERNEL_GROUP: u32 = 1;
/// Longest event in bytes: the kernel's buffer has 2048 and the devpath stands before it (UEVENT_BUFFER_SIZE).
const MAX_EVENT: usize = 8192;
/// Receive buffer in bytes: a coldplug of a big machine sends some thousand events in a burst.
const RECEIVE_BUFFER: usize = 4 << 20;

/// One device event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `change`, `bind`, `unbind`, `move`, `online`, `offline`.
    pub action: String,
    /// Path of the device below `/sys`, with its leading slash.
    pub devpath: String,
    /// Subsystem, as `block`, `net`, `tty`.
    pub subsystem: String,
    /// All variables: `DEVNAME`, `DEVTYPE`, `MODALIAS`, `PARTUUID`...
    pub variables: BTreeMap<String, String>,
}

impl Uevent {
    /// What drives the device, if the event says so.
    pub fn modalias(&self) -> Option<&str> {
        self.variables.get("MODALIAS").map(String::as_str)
    }

    /// Name of its node below `/dev`, if it has one.
    pub fn devname(&self) -> Option<&str> {
        self.variables.get("DEVNAME").map(String::as_str)
    }

    /// `add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0...`; anything else is not the kernel's.
    fn parse(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        let mut parts = text.split('\0');
        let (action, devpath) = parts.next()?.split_once('@')?;
        let variables: BTreeMap<String, String> = parts
            .filter_map(|part| part.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Some(Self {
            action: action.to_owned(),
            devpath: devpath.to_owned(),
            subsystem: variables.get("SUBSYSTEM").cloned().unwrap_or_default(),
            variables,
        })
    }
}

/// What [`Uevents::next`] saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// An event.
    Event(Uevent),
    /// Events came faster than they were read, and some are lost: look at `/sys` again.
    Lost,
    /// The deadline came first.
    Deadline,
}

/// Why device events can't be had.
#[derive(Debug, thiserror::Error)]
pub enum UeventError {
    /// The socket.
    #[error("can't listen to the kernel's device events: {0}")]
    Socket(#[source] io::Error),
    /// The condition did not come true.
    #[error("waited {seconds} s for {what}, which did not come; see the kernel's log for its driver")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        seconds: u64,
    },
}

/// A socket on which the kernel's device events arrive, from the moment it is opened.
pub struct Uevents(Socket);

impl Uevents {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`UeventError::Socket`].
    pub fn open() -> Result<Self, UeventError> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT).map_err(UeventError::Socket)?;
        // FORCE needs CAP_NET_ADMIN, which PID 1 has; where it is missing the default size does.
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            log::debug!("the receive buffer for device events stays at its default size");
        }
        socket.bind(&SocketAddr::new(0, KERNEL_GROUP)).map_err(UeventError::Socket)?;
        Ok(Self(socket))
    }

    /// Waits until there is an event to read.
    ///
    /// # Errors
    /// [`UeventError::Socket`].
    pub fn wait(&self) -> Result<(), UeventError> {
        wait::readable(&self.0, None).map(drop).map_err(UeventError::Socket)
    }

    /// The next event, or none by `deadline`; without a deadline it waits for ever.
    ///
    /// # Errors
    /// [`UeventError::Socket`].
    pub fn next(&self, deadline: Option<Instant>) -> Result<Next, UeventError> {
        loop {
            if !wait::readable(&self.0, deadline).map_err(UeventError::Socket)? {
                return Ok(Next::Deadline);
            }
            let mut buffer = Vec::with_capacity(MAX_EVENT);
            match self.0.recv_from(&mut buffer, 0) {
                // Anybody with CAP_NET_ADMIN in this network namespace can send here; only port 0 is the kernel.
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok(_) => {
                    if let Some(event) = Uevent::parse(&buffer) {
                        return Ok(Next::Event(event));
                    }
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::NOBUFS) => return Ok(Next::Lost),
                    Some(Errno::INTR | Errno::AGAIN) => {}
                    _ => return Err(UeventError::Socket(error)),
                },
            }
        }
    }

    /// Waits until `condition` gives a value: asks it at once, and again after each event. `what` is for the error.
    ///
    /// # Errors
    /// [`UeventError::Deadline`] at `deadline`; [`UeventError::Socket`].
    pub fn wait_for<T>(
        &self,
        what: &str,
        deadline: Instant,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T, UeventError> {
        let begun = Instant::now();
        loop {
            if let Some(value) = condition() {
                return Ok(value);
            }
            if self.next(Some(deadline))? == Next::Deadline {
                // It may have come true without an event.
                return condition().ok_or_else(|| UeventError::Deadline {
                    what: what.to_owned(),
                    seconds: begun.elapsed().as_secs(),
                });
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn an_event_of_the_kernel_is_read() {
        let event = Uevent::parse(
            b"add@/devices/pci0000:00/0000:00:03.0/virtio1/ndbus0/region0/pfn0.1/block/pmem0\0ACTION=add\0SUBSYSTEM=block\0DEVNAME=pmem0\0SEQNUM=7\0",
        )
        .unwrap();
        assert_eq!((event.action.as_str(), event.subsystem.as_str()), ("add", "block"));
        assert_eq!(event.devname(), Some("pmem0"));
        assert_eq!(event.modalias(), None);
        assert!(Uevent::parse(b"libudev\0\xfe\xed\xca\xfe").is_none());
        assert!(Uevent::parse(b"").is_none());
    }

    /// Needs root, as all of CI has: the kernel announces a device again when its `uevent` file is written.
    #[test]
    fn a_device_that_is_announced_is_seen() {
        let events = Uevents::open().unwrap();
        fs::write("/sys/class/mem/null/uevent", "change").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match events.next(Some(deadline)).unwrap() {
                Next::Event(event) if event.devname() == Some("null") => break,
                Next::Deadline => panic!("no event for /dev/null"),
                _ => {}
            }
        }
    }

    #[test]
    fn waiting_ends_at_the_deadline_with_what_was_waited_for() {
        let events = Uevents::open().unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = events.wait_for("/dev/pmem9", deadline, || None::<()>).unwrap_err();
        assert!(error.to_string().contains("/dev/pmem9"), "{error}");
    }
}
