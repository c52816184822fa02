//! A tap device of the host: packets with a virtio header in front (`linux/if_tun.h`, IFF_VNET_HDR).

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

/// `struct virtio_net_hdr_v1` (5.1.6): in front of each packet, both ways.
pub const HEADER: usize = 12;

const TUNSETIFF: libc::c_ulong = 0x4004_54CA;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54D0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54D8;
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;

/// Why a tap can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// A name no interface can have.
    #[error("`{0}` can't be an interface's name: 1 to 15 bytes, no NUL")]
    Name(String),
    /// A system call failed.
    #[error("cannot {what} tap {name}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The tap.
        name: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Offloads that the guest's driver can receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Packets without their checksum.
    pub checksum: bool,
    /// TCP over IPv4 longer than a packet.
    pub tso4: bool,
    /// TCP over IPv6 longer than a packet.
    pub tso6: bool,
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    /// Reads and writes one packet each; never blocks.
    pub file: File,
    name: String,
}

impl Tap {
    /// Attaches to the tap device `name`, which must exist: one that does not would be made, on no bridge.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let failed = |what, source| TapError::Io { what, name: name.into(), source };
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/']) {
            return Err(TapError::Name(name.into()));
        }
        std::fs::metadata(format!("/sys/class/net/{name}")).map_err(|source| failed("find", source))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|source| failed("open /dev/net/tun for", source))?;
        // SAFETY: `ifreq` is plain data, for which all zeroes are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) } < 0 {
            return Err(failed("attach to", io::Error::last_os_error()));
        }
        let header = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &header) } < 0 {
            return Err(failed("set the header size of", io::Error::last_os_error()));
        }
        let tap = Self { file, name: name.into() };
        tap.set_offloads(Offloads::default())?;
        Ok(tap)
    }

    /// Anything that keeps packets apart, in the place of a tap.
    #[cfg(test)]
    pub fn around(file: File) -> Self {
        Self { file, name: "test".into() }
    }

    /// Tells the kernel what kinds of packets we can take.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), TapError> {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let flags = flag(offloads.checksum, TUN_F_CSUM)
            | flag(offloads.tso4 && offloads.checksum, TUN_F_TSO4)
            | flag(offloads.tso6 && offloads.checksum, TUN_F_TSO6);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) } < 0 {
            let source = io::Error::last_os_error();
            return Err(TapError::Io { what: "set the offloads of", name: self.name.clone(), source });
        }
        Ok(())
    }
}
