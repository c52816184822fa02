//! The UDP socket of a DHCP client: bound to one interface that need not have an address yet.

use std::{io, net::UdpSocket, os::fd::AsRawFd};

use rustix::net::{AddressFamily, SocketAddrV4, SocketFlags, SocketType, sockopt};

/// Opens a socket that sends and receives by this interface only, on this port, also broadcasts.
///
/// # Errors
/// What the kernel says.
pub fn open(interface: &str, port: u16) -> io::Result<UdpSocket> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_broadcast(&socket, true)?;
    let name = interface.as_bytes();
    let length = libc::socklen_t::try_from(name.len()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length describe `name`, which the kernel only reads.
    let bound = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_ptr().cast(), length)
    };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::bind(&socket, &SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, port))?;
    Ok(socket.into())
}
