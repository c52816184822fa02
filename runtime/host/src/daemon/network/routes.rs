//! Which way a guest's packets go: its default gateway, its resolvers, and where forwards reach it.

use std::net::Ipv4Addr;

use rackstick_image::manifest::{Address, Guest, Manifest, Network};

/// The private network and address at which forwards reach a guest: those of the interface that has its default
/// gateway, so that answers come back the same way.
pub fn reachable<'a>(manifest: &Manifest, guest: &'a Guest) -> Option<(&'a str, Ipv4Addr)> {
    let interface = guest.interfaces.get(guest.way_out(&manifest.networks)?)?;
    match manifest.networks.get(&interface.network) {
        Some(Network::Private { .. }) => Some((&interface.network, interface.address.known()?)),
        _ => None,
    }
}

/// The router of a network, for those that have an address without DHCP.
pub fn gateway(manifest: &Manifest, network: &str) -> Option<Ipv4Addr> {
    match manifest.networks.get(network)? {
        Network::Private { gateway, .. } => Some(*gateway),
        Network::Uplink { gateway, .. } => *gateway,
    }
}

/// Whom a guest asks for names: the rack on each private network, first where it passes on what it does not know
/// itself; then the resolver of a bridged network. What DHCP names comes later, by the guest's own hand.
pub fn resolvers(manifest: &Manifest, guest: &Guest) -> Vec<Ipv4Addr> {
    let of = |wanted: &dyn Fn(&Network, Address) -> Option<Ipv4Addr>| {
        let ask = |interface: &rackstick_image::manifest::Interface| {
            wanted(manifest.networks.get(&interface.network)?, interface.address)
        };
        guest.interfaces.iter().filter_map(ask).collect::<Vec<_>>()
    };
    let with_nat = of(&|network, _| match network {
        Network::Private { gateway, nat: Some(_), .. } => Some(*gateway),
        _ => None,
    });
    let without_nat = of(&|network, _| match network {
        Network::Private { gateway, nat: None, .. } => Some(*gateway),
        _ => None,
    });
    let bridged = of(&|network, address| match (network, address) {
        (Network::Uplink { resolver, .. }, Address::Static { .. }) => *resolver,
        _ => None,
    });
    [with_nat, without_nat, bridged].concat()
}
