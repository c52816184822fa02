//! Tap devices (Linux, Documentation/networking/tuntap.rst; drivers/net/tun.c).

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsFd,
};

use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode};

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<i32>(b'T', 204);

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Longest interface name in bytes, without the NUL (IFNAMSIZ - 1).
pub const MAX_NAME: usize = 15;

/// `struct ifreq` as TUNSETIFF uses it: 40 bytes.
#[repr(C)]
struct IfReq {
    name: [u8; MAX_NAME + 1],
    flags: u16,
    rest: [u8; 22],
}

/// Why a tap device can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name.
    #[error("`{0}` is no name for an interface: 1 to {MAX_NAME} bytes, no blanks, `/`, `:` or `%`")]
    Name(String),
    /// The kernel.
    #[error("can't {what} tap device {name}: {source}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The device.
        name: String,
        /// What the kernel says. EBUSY: another process has it open.
        source: io::Error,
    },
}

/// Creates the tap device `name` so that it stays when nobody has it open, with a virtio-net header before each frame
/// and no other; user `owner` may open it. If it exists it is opened and given to `owner`. Close the result before a
/// monitor opens it.
///
/// # Errors
/// [`TapError`].
pub fn create(name: &str, owner: u32) -> Result<File, TapError> {
    let refused = |what, source: io::Error| TapError::Refused { what, name: name.to_owned(), source };
    let tap = open(name)?;
    // SAFETY: both take an integer by value.
    unsafe { ioctl(tap.as_fd(), IntegerSetter::<TUNSETOWNER>::new_usize(owner as usize)) }
        .map_err(|error| refused("give away", error.into()))?;
    // SAFETY: as above.
    unsafe { ioctl(tap.as_fd(), IntegerSetter::<TUNSETPERSIST>::new_usize(1)) }
        .map_err(|error| refused("keep", error.into()))?;
    Ok(tap)
}

/// Opens the tap device `name` with the same flags as [`create`]; makes one that vanishes with the file if there is
/// none.
///
/// # Errors
/// [`TapError`].
pub fn open(name: &str) -> Result<File, TapError> {
    let bytes = name.as_bytes();
    // `%` would make the kernel choose a number; the others are what dev_valid_name() forbids.
    let fits = (1..=MAX_NAME).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(byte))
        && name != "."
        && name != "..";
    if !fits {
        return Err(TapError::Name(name.to_owned()));
    }
    let refused = |what, source: io::Error| TapError::Refused { what, name: name.to_owned(), source };
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| refused("open /dev/net/tun (kernel module tun) for", error))?;
    let mut request = IfReq { name: [0; MAX_NAME + 1], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    request.name[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, which IfReq is in size and layout.
    unsafe { ioctl(tap.as_fd(), Updater::<TUNSETIFF, IfReq>::new(&mut request)) }
        .map_err(|error| refused("create", error.into()))?;
    Ok(tap)
}
