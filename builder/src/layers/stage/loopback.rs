//! The loopback device, which is all that a stage has of a network. Some scripts end where no device is up: bookworm's
//! postfix does. Follows netlink(7) and rtnetlink(7).

use std::io;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `RTM_NEWLINK`, of a device that is there.
const CHANGE: u16 = 16;
/// `NLM_F_REQUEST` and `NLM_F_ACK`.
const ASKED: u16 = 1 | 4;
/// The loopback device is the first of each network namespace.
const INDEX: i32 = 1;
/// `IFF_UP`.
const UP: u32 = 1;
/// Bytes of `struct nlmsghdr`.
const HEADER_SIZE: usize = 16;

/// Switches it on.
pub fn switch_on() -> io::Result<()> {
    // The protocol is `NETLINK_ROUTE`, 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // `struct ifinfomsg`: of any family and kind, which device, its flags, and those that change.
    let device = [[0; 4], INDEX.to_ne_bytes(), UP.to_ne_bytes(), UP.to_ne_bytes()].concat();
    let length = (HEADER_SIZE + device.len()) as u32;
    let kind = [CHANGE.to_ne_bytes(), ASKED.to_ne_bytes()].concat();
    let message = [&length.to_ne_bytes(), kind.as_slice(), &[0; 8], &device].concat();
    rustix::io::write(&socket, &message)?;
    // Behind its header an answer has the error's number, negative, or 0.
    let mut answer = [0; 128];
    let read = rustix::io::read(&socket, &mut answer)?;
    let number = answer.get(..read).and_then(|answer| answer.get(HEADER_SIZE..)?.first_chunk());
    match number.map(|number| i32::from_ne_bytes(*number)) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
