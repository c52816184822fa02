//! An address without a DHCP server: 169.254/16, claimed by ARP (RFC 3927). [`machine`] decides, [`packet`] reads and
//! writes, [`socket`] sends and hears.

mod machine;
mod packet;
mod socket;

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use machine::{Action, Claim};
use rackstick_linux::netlink::Mac;
use socket::Socket;

/// Prefix length of the link-local subnet.
pub const PREFIX: u8 = 16;
/// Packets heard before others get their turn.
const MOST_AT_ONCE: usize = 64;

/// What happened to the address.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Nobody else has it.
    Claimed(Ipv4Addr),
    /// Somebody else has it; another one is looked for.
    Lost,
}

/// The rack's claim to an address on one interface.
pub struct Session {
    claim: Claim,
    socket: Socket,
}

impl Session {
    /// Begins to look for a free address.
    pub fn open(link: u32, mac: Mac) -> io::Result<Self> {
        let socket = Socket::open(link)?;
        Ok(Self { claim: Claim::new(mac, Instant::now(), rackstick_linux::dhcp::random), socket })
    }

    /// When [`Session::proceed`] is to be called next, unless there is something to read before.
    pub fn deadline(&self) -> Option<Instant> {
        self.claim.deadline()
    }

    /// Does what is to be done now, and says what has changed.
    pub fn proceed(&mut self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        for _ in 0..MOST_AT_ONCE {
            let Some(heard) = self.socket.receive()? else { break };
            let actions = heard.map(|packet| self.claim.on_packet(&packet, Instant::now()));
            self.act(actions.unwrap_or_default(), &mut changes)?;
        }
        let actions = self.claim.on_deadline(Instant::now());
        self.act(actions, &mut changes)?;
        Ok(changes)
    }

    fn act(&mut self, actions: Vec<Action>, changes: &mut Vec<Change>) -> io::Result<()> {
        for action in actions {
            match action {
                Action::Send(packet) => self.socket.send(&packet)?,
                Action::Use(address) => changes.push(Change::Claimed(address)),
                Action::Leave => changes.push(Change::Lost),
            }
        }
        Ok(())
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
