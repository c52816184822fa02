//! What an uplink's bridge is given: address, routes.

use std::net::Ipv4Addr;

use rackstick_image::manifest::{Manifest, Network};
use rackstick_linux::{
    dhcp,
    netlink::{Address, Netlink},
};

use super::super::{Error, filter_sources};

/// Where an address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The recipe.
    Recipe,
    /// A DHCP server.
    Lease,
    /// The rack took it itself.
    Claim,
}

/// What an uplink's bridge is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    pub resolvers: Vec<Ipv4Addr>,
    pub source: Source,
}

impl From<dhcp::Lease> for Configuration {
    fn from(lease: dhcp::Lease) -> Self {
        let (gateway, resolvers, source) = (lease.router, lease.resolvers, Source::Lease);
        Self { address: lease.address, prefix: lease.prefix, gateway, resolvers, source }
    }
}

/// Makes the bridge's address and default route exactly these; what is right already is not touched.
pub fn configure(
    netlink: &mut Netlink,
    network: &str,
    bridge: u32,
    wanted: Option<&Configuration>,
) -> Result<(), Error> {
    let keep = wanted.map(|wanted| Address { link: bridge, address: wanted.address, prefix: wanted.prefix });
    let present: Vec<Address> = netlink.addresses()?.into_iter().filter(|address| address.link == bridge).collect();
    for old in present.iter().filter(|old| Some(**old) != keep) {
        netlink.delete_address(*old)?;
    }
    if let (Some(wanted), Some(address)) = (wanted, keep) {
        if !present.contains(&address) {
            netlink.add_address(address)?;
        }
        if let Some(gateway) = wanted.gateway {
            if !same_subnet(wanted.address, gateway, wanted.prefix) {
                netlink.set_route(bridge, gateway, 32, None)?;
            }
            netlink.set_default_route(bridge, gateway)?;
        }
    }
    // Without a lease, answers of DHCP servers come from addresses that no route leads to.
    filter_sources(network, wanted.is_some_and(|wanted| wanted.source != Source::Claim))
}

/// Why an uplink can't have this configuration, if it can't: what is in a private network's subnet belongs to that
/// network, whatever a DHCP server says.
pub fn conflict(manifest: &Manifest, wanted: &Configuration) -> Option<String> {
    manifest.networks.iter().find_map(|(private, network)| {
        let Network::Private { gateway: inside, prefix, .. } = network else { return None };
        let offered = if same_subnet(wanted.address, *inside, wanted.prefix.min(*prefix)) {
            format!("the address {}/{}", wanted.address, wanted.prefix)
        } else {
            let gateway = wanted.gateway.filter(|gateway| same_subnet(*gateway, *inside, *prefix))?;
            format!("the gateway {gateway}")
        };
        Some(format!(
            "{offered} was refused: it overlaps the private network {private}, {inside}/{prefix}; \
             give one of the two another subnet"
        ))
    })
}

fn same_subnet(one: Ipv4Addr, other: Ipv4Addr, prefix: u8) -> bool {
    let shift = 32 - u32::from(prefix.min(32));
    let network = |address: Ipv4Addr| u32::from(address).checked_shr(shift).unwrap_or(0);
    network(one) == network(other)
}

#[cfg(test)]
mod tests {
    use super::{super::super::firewall, *};

    #[test]
    fn neither_address_nor_gateway_of_an_uplink_may_lie_in_a_private_network() {
        let manifest = firewall::tests::manifest();
        let conflict = |address: [u8; 4], prefix, gateway: [u8; 4]| {
            let (address, gateway, resolvers) = (address.into(), Some(gateway.into()), Vec::new());
            conflict(&manifest, &Configuration { address, prefix, gateway, resolvers, source: Source::Lease })
        };
        assert_eq!(conflict([10, 9, 0, 5], 24, [10, 9, 0, 1]), None);
        assert_eq!(conflict([10, 21, 0, 5], 24, [10, 21, 0, 1]), None);
        for (address, prefix) in [([10, 20, 0, 5], 24), ([10, 20, 0, 5], 32), ([10, 9, 0, 5], 8), ([1, 1, 1, 1], 0)] {
            assert!(conflict(address, prefix, [10, 9, 0, 1]).unwrap().contains("the address"), "{address:?}/{prefix}");
        }
        assert!(conflict([10, 9, 0, 5], 24, [10, 30, 0, 9]).unwrap().contains("the gateway 10.30.0.9"));
    }
}
