//! A packet(7) socket that hears and speaks ARP on one interface.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use super::packet::{Arp, ETHERTYPE, FRAME};

/// The socket.
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens it on the interface with this index.
    pub fn open(link: u32) -> io::Result<Self> {
        // Without a protocol it hears nothing until it is bound.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: ETHERTYPE.to_be(),
            sll_ifindex: link.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `address`, which the kernel only reads.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(fd))
    }

    /// The next frame that was heard, none inside if it is no ARP; none if there is no more.
    pub fn receive(&self) -> io::Result<Option<Option<Arp>>> {
        // What is longer is padding.
        let mut frame = [0; FRAME];
        match recv(&self.0, &mut frame, RecvFlags::empty()) {
            Ok((_, length)) => Ok(Some(Arp::parse(frame.get(..length.min(FRAME)).unwrap_or_default()))),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a packet to everyone.
    pub fn send(&self, packet: &Arp) -> io::Result<()> {
        send(&self.0, &packet.frame(), SendFlags::empty())?;
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
