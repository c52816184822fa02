//! A DHCPv4 client: for the rack's own address on an uplink, and for a guest's on a bridged network. Follows RFC 2131;
//! [`machine`] decides, [`message`] reads and writes, this part sends and hears.

mod machine;
mod message;
mod socket;

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use dhcproto::v4::{CLIENT_PORT, SERVER_PORT};
use machine::{Action, Client};

pub use machine::Lease;
pub use socket::open as socket;

use crate::{netlink::Mac, wait};

/// No DHCP message is longer: what is, is cut and then fails to parse.
const LARGEST: usize = 1500;
/// Messages heard before others get their turn: whoever floods the port must not keep the client from its deadlines.
const MOST_AT_ONCE: usize = 64;

/// What happened to the lease.
#[derive(Debug)]
pub enum Change {
    /// This lease holds now, for the first time or still, until then.
    Leased(Lease, Instant),
    /// The lease is gone.
    Lost,
    /// The network can't be spoken to; tried again.
    Failed(io::Error),
}

/// A client on one interface.
pub struct Session {
    client: Client,
    socket: UdpSocket,
    mac: Mac,
}

impl Session {
    /// Starts a client on an interface. A lease that is `known` from before, and until when it holds, is asked for
    /// again first.
    ///
    /// # Errors
    /// What the kernel says about the socket.
    pub fn open(interface: &str, mac: Mac, hostname: &str, known: Option<(Lease, Instant)>) -> io::Result<Self> {
        let socket = socket::open(interface, CLIENT_PORT)?;
        socket.set_nonblocking(true)?;
        let mut client = Client::new(mac.0, hostname, Instant::now(), random);
        if let Some((lease, expires)) = known {
            client.resume(lease, expires, Instant::now());
        }
        Ok(Self { client, socket, mac })
    }

    /// When [`Session::proceed`] is to be called next, unless there is something to read before.
    pub fn deadline(&self) -> Instant {
        self.client.deadline()
    }

    /// The cable was out: asks whether the lease still holds here.
    pub fn verify(&mut self) {
        self.client.verify(Instant::now());
    }

    /// Does what is to be done now, and says what has changed.
    pub fn proceed(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut buffer = [0; LARGEST];
        for _ in 0..MOST_AT_ONCE {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, _)) => {
                    if let Some(reply) = message::Reply::parse(buffer.get(..length).unwrap_or_default(), self.mac.0) {
                        let actions = self.client.on_reply(&reply, Instant::now());
                        self.act(actions, &mut changes);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    changes.push(Change::Failed(error));
                    break;
                }
            }
        }
        let actions = self.client.on_deadline(Instant::now());
        self.act(actions, &mut changes);
        changes
    }

    fn act(&self, actions: Vec<Action>, changes: &mut Vec<Change>) {
        for action in actions {
            match action {
                Action::Send(kind, request, server) => {
                    let to = SocketAddrV4::new(server.unwrap_or(Ipv4Addr::BROADCAST), SERVER_PORT);
                    let sent = request.encode(kind).map_err(io::Error::other).and_then(|message| {
                        // Sent again at the next deadline, which is set already.
                        self.socket.send_to(&message, to)
                    });
                    if let Err(error) = sent {
                        changes.push(Change::Failed(error));
                    }
                }
                Action::Configure(lease, expires) => changes.push(Change::Leased(lease, expires)),
                Action::Deconfigure => changes.push(Change::Lost),
            }
        }
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Runs a client on an interface, for ever. `changed` is called for every lease won, extended and lost.
///
/// # Errors
/// What the kernel says about the socket.
pub fn run(interface: &str, mac: Mac, hostname: &str, mut changed: impl FnMut(Change)) -> io::Result<()> {
    let mut session = Session::open(interface, mac, hostname, None)?;
    loop {
        session.proceed().into_iter().for_each(&mut changed);
        wait::readable(&session, Some(session.deadline()))?;
    }
}

/// A number that others on the network can't guess.
pub fn random() -> u32 {
    let mut bytes = [0; 4];
    // Fails only before the kernel's random pool is ready; then the time is the best there is.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(4) => u32::from_ne_bytes(bytes),
        _ => rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_nsec as u32,
    }
}
