//! A stream to a guest over vsock, with a deadline for everything: a guest may not answer, or drop by drop.

use std::{
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, addr::SocketAddrArg, addr::SocketAddrLen, addr::SocketAddrOpaque,
        sockopt,
    },
};

/// `struct sockaddr_vm`: a guest's context id and a port on it.
pub struct Address {
    /// The guest's context id.
    pub cid: u32,
    /// The port.
    pub port: u32,
}

// SAFETY: what `f` gets is a whole sockaddr_vm that outlives the call.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        // SAFETY: all zeroes is a valid sockaddr_vm.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = self.cid;
        address.svm_port = self.port;
        f(std::ptr::from_ref(&address).cast(), size_of::<libc::sockaddr_vm>() as SocketAddrLen)
    }
}

/// A connection.
pub struct Stream {
    /// Reading and writing on a connected stream socket is the same for each family; this type brings the timeouts.
    stream: UnixStream,
    deadline: Instant,
}

impl Stream {
    /// Connects. Connecting, reading and writing together take at most `patience`.
    pub fn connect(address: &Address, patience: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + patience;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, address) {
            Ok(()) => {}
            Err(Errno::INPROGRESS) => {
                let left = Timespec::try_from(patience).map_err(io::Error::other)?;
                if poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&left))? == 0 {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                sockopt::socket_error(&socket)??;
            }
            Err(error) => return Err(error.into()),
        }
        rustix::io::ioctl_fionbio(&socket, false)?;
        Ok(Self { stream: UnixStream::from(socket), deadline })
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
