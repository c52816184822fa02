//! What a guest is told about itself at boot: the file [`PATH`] in a small cpio behind its initrd.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

/// Where the guest's init finds its configuration.
pub const PATH: &str = "/rackstick/guest.json";

/// The folder with the values of its secrets, each a file with the secret's name.
pub const SECRETS: &str = "/rackstick/secrets";

/// How the line begins with which a guest's init tells its console why the guest can't start, behind the kernel's own
/// words.
pub const CANT_START: &str = "the guest can't start: ";

/// How the line begins with which a guest's init tells its console how the command ended that an image without an init
/// of its own runs.
pub const COMMAND_ENDED: &str = "rackstick-guest: the command ended: ";

/// One guest's own configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Host name, without the domain.
    pub hostname: String,
    /// The rack's domain, as `lab.internal`.
    pub domain: String,
    /// How many layers make the root; layer 0 is the lowest. They are the virtio-pmem devices in order of PCI address.
    pub layers: u32,
    /// The guest's volumes.
    pub volumes: Vec<Volume>,
    /// Where its secrets go, whose values stand in [`SECRETS`].
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// The guest's network interfaces.
    pub interfaces: Vec<Interface>,
    /// Resolvers for `/etc/resolv.conf`.
    pub nameservers: Vec<Ipv4Addr>,
    /// What is started once the root is mounted, with its arguments: the image's own PID 1, or with `process` a program
    /// below ours.
    pub init: Vec<String>,
    /// How `init` is started, in an image without an init of its own.
    pub process: Option<Process>,
    /// How the agent finds out whether the guest does its work; none: healthy once init runs.
    pub health: Option<Health>,
}

/// How the one program of an image is started that has no init of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder that it is started in, made if it is not there.
    pub workdir: String,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its further groups.
    pub groups: Vec<u32>,
    /// The number of the signal that asks it to end, 1 to 64.
    pub stop_signal: u8,
}

/// One volume: a block device with an ext4 file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name, which is the block device's serial number.
    pub name: String,
    /// Where it is mounted: an absolute path.
    pub mount: String,
}

/// One secret: a file in the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// Where the guest sees it: an absolute path below `/run`.
    pub path: String,
    /// The user that it belongs to.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// One network interface, found by its MAC address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// MAC address, as `52:54:00:12:34:56`.
    pub mac: String,
    /// How it gets its IPv4 address.
    pub address: Address,
}

/// How an interface gets its IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Address {
    /// From the network's DHCP server, by the agent; with its resolvers.
    Dhcp {
        /// Whether the server's router becomes the default gateway.
        default_route: bool,
    },
    /// Always this one, from the start.
    Static {
        /// The address.
        address: Ipv4Addr,
        /// Prefix length of the subnet, 0 to 32.
        prefix: u8,
        /// Default gateway, if this interface has one.
        gateway: Option<Ipv4Addr>,
    },
}

impl Address {
    /// The address, if it is known from the start.
    pub fn known(&self) -> Option<Ipv4Addr> {
        match self {
            Address::Dhcp { .. } => None,
            Address::Static { address, .. } => Some(*address),
        }
    }
}

/// A health check, run by the agent inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Health {
    /// `address` must answer an A query for `name` with NOERROR and at least one record.
    Dns {
        /// The name asked for.
        name: String,
        /// The server asked: the guest's own address, or its loopback where that is not known beforehand.
        address: Ipv4Addr,
        /// UDP port, usually 53.
        port: u16,
    },
    /// A GET of `path` must be answered with a status from 200 to 399.
    Http {
        /// The server asked: the guest's own address.
        address: Ipv4Addr,
        /// TCP port.
        port: u16,
        /// Path, with its leading slash.
        path: String,
    },
    /// A TCP connection to `port` must be accepted.
    Tcp {
        /// The server asked: the guest's own address.
        address: Ipv4Addr,
        /// TCP port.
        port: u16,
    },
}
