//! From a recipe to the manifest of one generation.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    networks, order,
    rack::{Guest, Network, Rack},
};
use crate::{
    guid::{self, Guid},
    manifest::{self, Manifest},
};

/// Why a recipe gives no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// An image was not handed in.
    #[error("guest `{guest}` boots image `{image}`, which was not built")]
    NoImage {
        /// The guest.
        guest: String,
        /// Its image.
        image: String,
    },
    /// Guests wait for each other. A recipe that [`super::load`] gave never does.
    #[error("guests wait for each other: {0:?}")]
    Cycle(Vec<String>),
}

/// The manifest of a rack whose images were built, `data_partition` being the partition that holds them.
///
/// # Errors
/// [`GenerationError`].
pub fn manifest(
    rack: &Rack,
    images: BTreeMap<String, manifest::Image>,
    data_partition: Guid,
) -> Result<Manifest, GenerationError> {
    let after: BTreeMap<&str, BTreeSet<&str>> = rack
        .guests
        .iter()
        .map(|(name, guest)| (name.as_str(), guest.after.iter().map(String::as_str).collect()))
        .collect();
    let order = order::start_order(&after)
        .map_err(|cycle| GenerationError::Cycle(cycle.into_iter().map(str::to_owned).collect()))?;
    let mut guests = Vec::with_capacity(order.len());
    for (name, guest) in order.into_iter().filter_map(|name| rack.guests.get_key_value(name)) {
        if !images.contains_key(&guest.image) {
            return Err(GenerationError::NoImage { guest: name.clone(), image: guest.image.clone() });
        }
        guests.push(guest_of(&rack.name, name, guest));
    }
    Ok(Manifest {
        format: manifest::FORMAT,
        rack: rack.name.clone(),
        version: rack.version.clone(),
        domain: rack.domain.clone(),
        data_partition: data_partition.to_string(),
        networks: rack.networks.iter().map(|(name, network)| (name.clone(), network_of(network))).collect(),
        images,
        guests,
    })
}

pub(super) fn network_of(network: &Network) -> manifest::Network {
    match network {
        Network::Uplink { nic, address, gateway, resolver } => manifest::Network::Uplink {
            nic: nic.clone(),
            address: address.clone(),
            gateway: *gateway,
            resolver: *resolver,
        },
        Network::Private { subnet, nat } => manifest::Network::Private {
            gateway: networks::gateway(subnet),
            prefix: subnet.prefix_len(),
            nat: nat.clone(),
        },
    }
}

pub(super) fn guest_of(rack: &str, name: &str, guest: &Guest) -> manifest::Guest {
    let interfaces = guest.addresses.iter().map(|(network, &address)| manifest::Interface {
        network: network.clone(),
        mac: mac(rack, name, network),
        address,
    });
    let volumes = guest.volumes.iter().map(|(name, volume)| manifest::Volume {
        name: name.clone(),
        mount: volume.mount.clone(),
        size_mib: volume.size_mib,
    });
    manifest::Guest {
        name: name.to_owned(),
        image: guest.image.clone(),
        vcpus: guest.vcpus,
        memory_mib: guest.memory_mib,
        interfaces: interfaces.collect(),
        forwards: guest.forwards.clone(),
        volumes: volumes.collect(),
        disk_mib: guest.disk_mib,
        health: guest.health.clone(),
        after: guest.after.clone(),
    }
}

/// The MAC address of a guest on a network, always the same: the first six bytes of a SHA-256 with the "locally
/// administered" bit set and the "group" bit clear (IEEE 802, section 8.4). How it is made stands in `docs/recipes.md`.
pub fn mac(rack: &str, guest: &str, network: &str) -> String {
    let Guid([first, rest @ ..]) = guid::derive(&[b"mac", rack.as_bytes(), guest.as_bytes(), network.as_bytes()]);
    let mut text = format!("{:02x}", first & 0xfc | 0x02);
    for byte in &rest[..5] {
        text.push_str(&format!(":{byte:02x}"));
    }
    text
}
