//! Links, addresses and routes by rtnetlink(7), synchronously: one request, one answer.

mod address;
mod link;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;

pub use address::Address;
pub use link::{Link, Mac, ParseMacError};

use crate::wait;

/// How long the kernel may take to answer. It answers at once; this only keeps a fault from becoming a hang.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Largest datagram the kernel sends in a dump, in bytes (NLMSG_GOODSIZE is capped at 32 KiB).
const MAX_DATAGRAM: usize = 64 << 10;
/// Multicast group of link changes (RTNLGRP_LINK).
const GROUP_LINK: u32 = 1;

/// Why the network can't be set up as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket.
    #[error("can't {what}: the rtnetlink socket failed: {source}")]
    Socket {
        /// What was asked.
        what: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel said no.
    #[error("can't {what}: {source}")]
    Refused {
        /// What was asked.
        what: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The answer is none.
    #[error("can't {what}: the kernel's answer can't be read: {detail}")]
    Damaged {
        /// What was asked.
        what: String,
        /// Why.
        detail: String,
    },
    /// The deadline came first.
    #[error("can't {what}: it did not happen within {seconds} s")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        seconds: u64,
    },
    /// No such link.
    #[error("there is no network interface {0}")]
    NoLink(String),
}

impl NetlinkError {
    /// The kernel's error number, if the kernel refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }
}

/// A connection to the kernel's network configuration, in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: socket(0)?, sequence: 0 })
    }

    /// Sends `message` and waits until the kernel has done it.
    fn change(&mut self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.exchange(what, message, flags | NLM_F_ACK).map(drop)
    }

    /// Sends `message` and collects all that the kernel answers.
    fn dump(&mut self, what: &str, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        // A dump that was interrupted by a change may lack something: the kernel says so, and we ask again.
        loop {
            match self.exchange(what, message.clone(), NLM_F_DUMP) {
                Err(NetlinkError::Refused { source, .. }) if Errno::from_io_error(&source) == Some(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn exchange(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let failed = |source: io::Error| NetlinkError::Socket { what: what.to_owned(), source };
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(failed)?;

        let deadline = Instant::now() + ANSWER_WITHIN;
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            if !wait::readable(&self.socket, Some(deadline)).map_err(failed)? {
                return Err(NetlinkError::Deadline { what: what.to_owned(), seconds: ANSWER_WITHIN.as_secs() });
            }
            let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
            self.socket.recv(&mut datagram, 0).map_err(failed)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| NetlinkError::Damaged { what: what.to_owned(), detail: error.to_string() })?;
                // Each message is padded to 4 bytes; a length of 0 would never end.
                let length = (answer.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) if interrupted => {
                        return Err(NetlinkError::Refused { what: what.to_owned(), source: Errno::INTR.into() });
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(_) => {
                            return Err(NetlinkError::Refused { what: what.to_owned(), source: error.to_io() });
                        }
                    },
                    NetlinkPayload::Overrun(_) => return Err(failed(Errno::NOBUFS.into())),
                    _ => {}
                }
            }
        }
    }

    /// Waits until `condition`, asked with all links at once and after each change of any link, gives a value.
    /// `what` is for the error: `get a carrier on eth0`.
    ///
    /// # Errors
    /// [`NetlinkError::Deadline`] at `deadline`, and those of [`Netlink::links`].
    pub fn wait_for_link<T>(
        &mut self,
        what: &str,
        deadline: Instant,
        mut condition: impl FnMut(&[Link]) -> Option<T>,
    ) -> Result<T, NetlinkError> {
        let failed = |source: io::Error| NetlinkError::Socket { what: what.to_owned(), source };
        let begun = Instant::now();
        let changes = LinkChanges::open()?;
        loop {
            if let Some(value) = condition(&self.links()?) {
                return Ok(value);
            }
            if !wait::readable(&changes, Some(deadline)).map_err(failed)? {
                return Err(NetlinkError::Deadline { what: what.to_owned(), seconds: begun.elapsed().as_secs() });
            }
            changes.forget()?;
        }
    }
}

/// Tells that a link has come, changed or gone: it can be read then.
pub struct LinkChanges(Socket);

impl LinkChanges {
    /// Begins to listen, in the network namespace of the thread.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Socket { what: "listen to links".to_owned(), source };
        let socket = socket(GROUP_LINK)?;
        socket.set_non_blocking(true).map_err(failed)?;
        Ok(Self(socket))
    }

    /// Takes what was told so far: whoever was told looks at the links themselves next.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn forget(&self) -> Result<(), NetlinkError> {
        loop {
            let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
            match self.0.recv(&mut datagram, 0) {
                Ok(_) => {}
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => return Ok(()),
                    // Some were lost; the links are looked at anyway.
                    Some(Errno::NOBUFS | Errno::INTR) => {}
                    _ => return Err(NetlinkError::Socket { what: "listen to links".to_owned(), source: error }),
                },
            }
        }
    }
}

impl AsFd for LinkChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The kernel changed something while it dumped (linux/netlink.h).
const NLM_F_DUMP_INTR: u16 = 0x10;

fn socket(groups: u32) -> Result<Socket, NetlinkError> {
    let failed = |source| NetlinkError::Socket { what: "open rtnetlink".to_owned(), source };
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
    socket.bind(&SocketAddr::new(0, groups)).map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    Ok(socket)
}
