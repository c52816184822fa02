//! What a rack recipe says, after everything in it was checked.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;

use super::{
    error::{Diagnostic, Placed},
    image::Image,
    vars::Var,
};
use crate::manifest::{Address, Forward, Health, Nic, UplinkAddress};

/// A rack recipe with the image recipes that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rack {
    /// Its name: a host name.
    pub name: String,
    /// The generation's version, ordered as UAPI.10 says.
    pub version: String,
    /// The base that the host is made of, and images that name no other, `debian:trixie`.
    pub base: Placed<String>,
    /// Where packages come from beside a base, by name.
    pub repositories: BTreeMap<String, Repository>,
    /// The rack's domain: dot-separated labels, no dot at the end.
    pub domain: String,
    /// What templates of all images may name as `vars`.
    pub vars: BTreeMap<String, Var>,
    /// Networks by name.
    pub networks: BTreeMap<String, Network>,
    /// Guests by name.
    pub guests: BTreeMap<String, Guest>,
    /// Image recipes by name; guests that name the same file share one.
    pub images: BTreeMap<String, Image>,
    /// What is allowed, but probably not meant.
    pub warnings: Vec<Diagnostic>,
}

impl Rack {
    /// The base of an image that is made of packages.
    pub fn base_of<'a>(&'a self, image: &'a Image) -> &'a Placed<String> {
        image.base.as_ref().unwrap_or(&self.base)
    }
}

/// Where packages come from beside a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The base that it stands beside: images of another don't see it.
    pub base: String,
    /// Whose archive it is; none for Debian's own.
    pub foreign: Option<Foreign>,
    /// The suite; one that ends with `/` is a plain folder.
    pub suite: Placed<String>,
    /// The suite's components, sorted; none of a plain folder.
    pub components: Vec<String>,
    /// Packages that are taken from here whatever the base has, in the recipe's order.
    pub packages: Vec<Placed<String>>,
}

/// Somebody else's archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Its root, without a slash at the end.
    pub url: String,
    /// The file of the keys that sign it, as the recipe names it.
    pub key: Placed<String>,
    /// The same, openable from where the command runs.
    pub file: PathBuf,
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Bridged to the rack's own NIC.
    Uplink {
        /// Which NIC.
        nic: Nic,
        /// How the rack gets its own address.
        address: UplinkAddress,
        /// The network's router, for those that don't ask DHCP.
        gateway: Option<Ipv4Addr>,
        /// The network's resolver, for those that don't ask DHCP.
        resolver: Option<Ipv4Addr>,
    },
    /// A private bridge.
    Private {
        /// Its addresses. The first is the rack's own and the guests' gateway.
        subnet: Ipv4Net,
        /// The uplink network through which guests reach the world, if any.
        nat: Option<String>,
    },
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Name of the image it boots: a key of [`Rack::images`].
    pub image: String,
    /// vCPUs, 1 to [`super::VCPUS_MAX`].
    pub vcpus: u8,
    /// Memory in MiB, [`super::MEMORY_MIN_MIB`] to [`super::MEMORY_MAX_MIB`].
    pub memory_mib: u32,
    /// Its address on each network that it is on.
    pub addresses: BTreeMap<String, Address>,
    /// Ports of the rack that lead to it, in the recipe's order.
    pub forwards: Vec<Forward>,
    /// Its volumes by name.
    pub volumes: BTreeMap<String, Volume>,
    /// To how many MiB its disk is grown, if its image is a whole disk and the recipe says.
    pub disk_mib: Option<u32>,
    /// Its health check.
    pub health: Option<Health>,
    /// Guests that must be healthy before it starts, in the recipe's order.
    pub after: Vec<String>,
}

/// A guest's volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where the guest sees it: an absolute path.
    pub mount: String,
    /// Size in MiB, [`crate::volume::SIZE_MIN_MIB`] to [`crate::volume::SIZE_MAX_MIB`].
    pub size_mib: u32,
}
