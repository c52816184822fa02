//! The DHCPv4 client that gets the rack its address on an uplink. Follows RFC 2131; [`machine`] decides,
//! [`message`] reads and writes, this part waits and sends.

mod machine;
mod message;
mod socket;

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use dhcproto::v4::{CLIENT_PORT, SERVER_PORT};

pub use machine::Lease;
use machine::{Action, Client};

/// How long to wait after the socket failed: an interface that is gone makes every call fail at once.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// No DHCP message is longer: what is, is cut and then fails to parse.
const LARGEST: usize = 1500;

/// What happened to the lease.
#[derive(Debug)]
pub enum Change {
    /// The rack holds this lease now, for the first time or still.
    Leased(Lease),
    /// The lease is gone.
    Lost,
    /// The network can't be spoken to; tried again.
    Failed(io::Error),
}

/// Runs the client on an interface, for ever. `changed` is called for every lease won, extended and lost.
pub fn run(interface: &str, mac: [u8; 6], hostname: &str, mut changed: impl FnMut(Change)) -> ! {
    let mut client = Client::new(mac, hostname, Instant::now(), random);
    loop {
        if let Err(error) = talk(interface, mac, &mut client, &mut changed) {
            changed(Change::Failed(error));
            // Not a wait for a condition: it keeps a dead interface from being asked without pause.
            std::thread::sleep(FAILURE_PAUSE);
        }
    }
}

fn talk(interface: &str, mac: [u8; 6], client: &mut Client, changed: &mut impl FnMut(Change)) -> io::Result<()> {
    let socket = socket::open(interface, CLIENT_PORT)?;
    let mut buffer = [0; LARGEST];
    loop {
        let patience = client.deadline().saturating_duration_since(Instant::now());
        let mut actions = Vec::new();
        if patience.is_zero() {
            actions = client.on_deadline(Instant::now());
        } else {
            socket.set_read_timeout(Some(patience))?;
            match socket.recv_from(&mut buffer) {
                Ok((length, _)) => {
                    if let Some(reply) = message::Reply::parse(buffer.get(..length).unwrap_or_default(), mac) {
                        actions = client.on_reply(&reply, Instant::now());
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        for action in actions {
            match action {
                Action::Send(kind, request, server) => {
                    let message = request.encode(kind).map_err(io::Error::other)?;
                    let to = SocketAddrV4::new(server.unwrap_or(Ipv4Addr::BROADCAST), SERVER_PORT);
                    socket.send_to(&message, to)?;
                }
                Action::Configure(lease) => changed(Change::Leased(lease)),
                Action::Deconfigure => changed(Change::Lost),
            }
        }
    }
}

/// A number that others on the network can't guess.
fn random() -> u32 {
    let mut bytes = [0; 4];
    // Fails only before the kernel's random pool is ready; then the time is the best there is.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(4) => u32::from_ne_bytes(bytes),
        _ => rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_nsec as u32,
    }
}
