//! What the runtime asks of the kernel, on the host as in a guest: modules, devices, mounts, networks, power; and of
//! guests' services.
//!
//! - [`modules`], [`coldplug`], [`uevent`]: load drivers, by name, by device, as devices come.
//! - [`mount`]: mounts, and leaving the initramfs.
//! - [`ext4`]: what a mounted file system is asked.
//! - [`netlink`], [`tap`]: links, addresses, routes, tap devices; [`dhcp`]: an address from the network.
//! - [`kmsg`], [`buttons`], [`power`]: the kernel's log, who wants its end, and the end.
//! - [`efi`]: what the boot loader left.
//! - [`health`]: whether a service answers.
//!
//! Everything here is synchronous and takes deadlines where it waits.

pub mod buttons;
pub mod coldplug;
pub mod dhcp;
pub mod efi;
pub mod ext4;
pub mod health;
pub mod kmsg;
pub mod modules;
pub mod mount;
pub mod netlink;
pub mod power;
pub mod tap;
pub mod uevent;
pub mod wait;
