//! The manifest: what one generation consists of. Written by the builder, embedded in the UKI's initrd at
//! [`PATH`] and kept on the data partition; read by the host. Every file it names is named by its fs-verity digest.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::digest::VerityDigest;

/// Where the host's initrd holds the manifest.
pub const PATH: &str = "/rackstick/manifest.json";
/// The only format this version reads.
pub const FORMAT: u32 = 1;

/// One generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The rack's name.
    pub rack: String,
    /// The generation's version.
    pub version: String,
    /// The rack's domain.
    pub domain: String,
    /// Unique GUID of the data partition, lower case with dashes.
    pub data_partition: String,
    /// Networks by name.
    pub networks: BTreeMap<String, Network>,
    /// Images by name.
    pub images: BTreeMap<String, Image>,
    /// Guests, in the order in which they start.
    pub guests: Vec<Guest>,
}

impl Manifest {
    /// The secrets that a guest wants.
    pub fn secrets(&self, guest: &Guest) -> &[Secret] {
        self.images.get(&guest.image).map_or(&[], |image| &image.secrets)
    }
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Network {
    /// Bridged to the rack's own NIC.
    Uplink {
        /// Which NIC.
        nic: Nic,
        /// How the rack gets its own address.
        address: UplinkAddress,
        /// The network's router: of a rack with an address of its own, and of guests with one; DHCP brings its own.
        gateway: Option<Ipv4Addr>,
        /// The network's resolver, as [`Network::Uplink::gateway`].
        resolver: Option<Ipv4Addr>,
    },
    /// A private bridge.
    Private {
        /// The rack's own address on it, the guests' gateway.
        gateway: Ipv4Addr,
        /// Prefix length, 1 to 30.
        prefix: u8,
        /// The uplink network through which guests reach the world, if any.
        nat: Option<String>,
    },
}

/// Which NIC of the rack belongs to an uplink network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nic {
    /// The first with a carrier, in order of bus address.
    Auto,
    /// The one with this MAC address, in lower case with colons.
    Mac(String),
    /// The one with this name; the kernel numbers NICs in the order in which their drivers find them.
    Name(String),
}

/// How the rack gets its own address on an uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum UplinkAddress {
    /// By DHCP.
    Dhcp,
    /// Always this one.
    Static {
        /// The rack's address.
        address: Ipv4Addr,
        /// Prefix length, 1 to 30.
        prefix: u8,
    },
}

/// What a guest boots: layers with our init and agent in them or, with a disk, a system of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Layers, lowest first; none with a disk.
    pub layers: Vec<Blob>,
    /// The unpacked `vmlinux`, or a bzImage that unpacks itself.
    pub kernel: Blob,
    /// The initrd.
    pub initrd: Blob,
    /// Kernel command line.
    pub cmdline: String,
    /// What the image starts, with its arguments: its PID 1, or with `process` a program below ours. Empty with a disk.
    pub init: Vec<String>,
    /// How `init` is started, in an image without an init of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The secrets that it wants; each guest that boots it has values of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// The whole disk of a foreign guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
}

/// A whole disk: each guest that boots it has a copy of its own, which it writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The file that it is copied from, as [`crate::packed`] has it.
    pub blob: Blob,
    /// Size of the disk in bytes, a multiple of 512.
    pub size: u64,
}

/// What a guest is given at deploy time: a file in its memory, whose content is in no image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Its name, unique in its image.
    pub name: String,
    /// Where the guest sees it: an absolute path below `/run`.
    pub path: String,
    /// Number of the user that the file belongs to.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Permission bits, at most 0o777.
    pub mode: u32,
}

/// How the one program of an image is started that has no init of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder that it is started in.
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

/// What the label of a layer ends with whose files are compressed.
pub const COMPRESSED: &str = ", zstd";

/// One file under `layers/` of the data partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Its fs-verity digest, which is also its file name.
    pub digest: VerityDigest,
    /// Size in bytes.
    pub size: u64,
    /// What it is, for people: `base`, `dns, zstd`, `kernel 6.12.57+deb13-cloud-amd64`.
    pub label: String,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its name, also its host name.
    pub name: String,
    /// The image it boots.
    pub image: String,
    /// vCPUs, at least 1.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Interfaces, in order of PCI address.
    pub interfaces: Vec<Interface>,
    /// Ports of the rack that lead to this guest.
    pub forwards: Vec<Forward>,
    /// Its volumes.
    pub volumes: Vec<Volume>,
    /// To how many MiB its disk is grown, if its image is a whole disk and the recipe says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
    /// Its health check.
    pub health: Option<Health>,
    /// Guests that must be healthy before this one starts.
    pub after: Vec<String>,
}

impl Guest {
    /// Which of its interfaces has its default route: if forwards lead to it, one on a private network, for answers to
    /// come back the same way; else one on the LAN that has a router. In both cases a private network with NAT comes
    /// before those that lead nowhere.
    pub fn way_out(&self, networks: &BTreeMap<String, Network>) -> Option<usize> {
        let first = |wanted: &dyn Fn(&Network, Address) -> bool| {
            let fits = |at: &Interface| networks.get(&at.network).is_some_and(|network| wanted(network, at.address));
            self.interfaces.iter().position(fits)
        };
        let with_router = || {
            first(&|network, address| match network {
                Network::Uplink { gateway, .. } => address == Address::Dhcp || gateway.is_some(),
                Network::Private { .. } => false,
            })
        };
        let with_nat = || first(&|network, _| matches!(network, Network::Private { nat: Some(_), .. }));
        let bridged = || first(&|network, _| matches!(network, Network::Uplink { .. }));
        let private = || first(&|network, _| matches!(network, Network::Private { .. }));
        if self.forwards.is_empty() {
            with_router().or_else(with_nat).or_else(bridged).or_else(private)
        } else {
            with_nat().or_else(private).or_else(with_router).or_else(bridged)
        }
    }
}

/// A guest's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// The network it belongs to.
    pub network: String,
    /// MAC address, derived from rack, guest and network.
    pub mac: String,
    /// How it gets its address.
    pub address: Address,
}

/// How a guest's interface gets its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Address {
    /// The guest asks the DHCP server of a bridged network.
    Dhcp,
    /// Always this one.
    Static {
        /// The address.
        address: Ipv4Addr,
        /// Prefix length, 1 to 30.
        prefix: u8,
    },
}

impl Address {
    /// The address, if the recipe names it.
    pub fn known(self) -> Option<Ipv4Addr> {
        match self {
            Address::Dhcp => None,
            Address::Static { address, .. } => Some(address),
        }
    }
}

/// A guest's volume: a file `volumes/<guest>/<name>` on the data partition, with an ext4 file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name, unique in its guest; also the serial number of the guest's disk.
    pub name: String,
    /// Where the guest sees it: an absolute path.
    pub mount: String,
    /// Size in MiB. A volume that exists is grown to it, never shrunk.
    pub size_mib: u32,
}

/// A port of the rack that leads to a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// The uplink network on which the rack listens.
    pub network: String,
    /// Port on the rack.
    pub port: u16,
    /// Port on the guest.
    pub guest_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A health check, run against the guest's own address: by the agent inside the guest, or by the rack where the image
/// is a whole disk, which has no agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Health {
    /// This name must be answered on port 53.
    Dns(String),
    /// A GET must succeed.
    Http {
        /// TCP port.
        port: u16,
        /// Path, with its leading slash.
        path: String,
    },
    /// A connection must be accepted on this port.
    Tcp(u16),
}
