//! The rack's firewall: which packets pass to and through it, port forwards, and NAT; one nftables table, computed
//! from the manifest and replaced whole when the uplink's resolver changes.
//!
//! Private networks are isolated: nothing passes between them, and from outside only what a forward leads in.

use std::{collections::BTreeMap, net::Ipv4Addr};

use rackstick_image::manifest::{Manifest, Network, Protocol};

use super::{
    names,
    nft::{self, FORWARD, Hook, INPUT, POSTROUTING, PREROUTING, Rule, Table},
};

/// The table's name.
const TABLE: &str = "rackstick";
/// Where DHCP clients listen.
const DHCP_CLIENT_PORT: u16 = 68;
const DNS_PORT: u16 = 53;

/// Puts the manifest's ruleset in place. `resolvers`: for each uplink network, the resolver that its DHCP server
/// named; the gateways of private networks behind it pass their guests' queries on to it.
pub fn apply(manifest: &Manifest, resolvers: &BTreeMap<String, Ipv4Addr>) -> Result<(), nft::Error> {
    let mut table = Table::new(TABLE);
    for (name, hook) in
        [("prerouting", PREROUTING), ("input", INPUT), ("forward", FORWARD), ("postrouting", POSTROUTING)]
            as [(&str, Hook); 4]
    {
        table.chain(name, hook);
    }
    // First of all: a DHCP server whose subnet is also a private network's must be heard to be refused with a reason.
    let dhcp = Rule::default().ipv4().protocol(nft::UDP).to_port(DHCP_CLIENT_PORT);
    table.rule("input", "DHCP", dhcp.accept());
    no_spoofing(&mut table, manifest);
    input(&mut table);
    table.rule("forward", "established connections", Rule::default().established().accept());
    for (name, network) in &manifest.networks {
        if let Network::Private { gateway, prefix, nat } = network {
            private(&mut table, name, *gateway, *prefix, nat.as_deref(), resolvers);
        }
    }
    forwards(&mut table, manifest);
    table.commit()
}

/// What comes from outside does not come from a private network, whatever its source says. Before all that accepts:
/// a forward would otherwise let it speak to one guest in another's name.
fn no_spoofing(table: &mut Table, manifest: &Manifest) {
    for (uplink, network) in &manifest.networks {
        let Network::Uplink { .. } = network else { continue };
        let outside = names::bridge(uplink);
        for (name, network) in &manifest.networks {
            let Network::Private { gateway, prefix, .. } = network else { continue };
            for chain in ["input", "forward"] {
                let forged = Rule::default().from_interface(&outside).ipv4().from_subnet(*gateway, *prefix);
                table.rule(chain, &format!("{name}'s addresses on {uplink}"), forged.drop());
            }
        }
    }
}

/// Nothing listens on the rack; it answers pings and its own DHCP and connections.
fn input(table: &mut Table) {
    table.rule("input", "established connections", Rule::default().established().accept());
    table.rule("input", "loopback", Rule::default().from_interface("lo").accept());
    table.rule("input", "ping", Rule::default().ipv4().protocol(nft::ICMP).accept());
}

fn private(
    table: &mut Table,
    name: &str,
    gateway: Ipv4Addr,
    prefix: u8,
    nat: Option<&str>,
    resolvers: &BTreeMap<String, Ipv4Addr>,
) {
    let Some(uplink) = nat else { return };
    let (inside, outside) = (names::bridge(name), names::bridge(uplink));
    let out = Rule::default().from_interface(&inside).to_interface(&outside).ipv4().from_subnet(gateway, prefix);
    table.rule("forward", &format!("{name} out by {uplink}"), out.accept());
    let source = Rule::default().to_interface(&outside).ipv4().from_subnet(gateway, prefix);
    table.rule("postrouting", &format!("NAT of {name}"), source.masquerade());
    if let Some(&resolver) = resolvers.get(uplink) {
        for protocol in [nft::UDP, nft::TCP] {
            let query = Rule::default().from_interface(&inside).ipv4().to_address(gateway).protocol(protocol);
            let rule = query.to_port(DNS_PORT).forward_to(resolver, DNS_PORT);
            table.rule("prerouting", &format!("{name}'s DNS"), rule);
        }
    }
}

fn forwards(table: &mut Table, manifest: &Manifest) {
    for guest in &manifest.guests {
        let Some((network, address)) = reachable(manifest, guest) else { continue };
        let inside = names::bridge(network);
        for forward in &guest.forwards {
            let outside = names::bridge(&forward.network);
            let protocol = match forward.protocol {
                Protocol::Tcp => nft::TCP,
                Protocol::Udp => nft::UDP,
            };
            let what = format!("{}'s port {}", guest.name, forward.port);
            let arriving = Rule::default().from_interface(&outside).ipv4().to_this_host().protocol(protocol);
            table.rule("prerouting", &what, arriving.to_port(forward.port).forward_to(address, forward.guest_port));
            let through = Rule::default()
                .from_interface(&outside)
                .to_interface(&inside)
                .ipv4()
                .to_address(address)
                .protocol(protocol)
                .to_port(forward.guest_port)
                .was_forwarded();
            table.rule("forward", &what, through.accept());
        }
    }
}

/// The private network and address at which forwards reach a guest: those of the interface that has its default
/// gateway, so that answers come back the same way.
pub fn reachable<'a>(manifest: &Manifest, guest: &'a rackstick_image::manifest::Guest) -> Option<(&'a str, Ipv4Addr)> {
    let index = default_interface(manifest, guest)?;
    let interface = guest.interfaces.get(index)?;
    Some((&interface.network, interface.address?))
}

/// Which of a guest's interfaces has its default gateway: the first on a private network with NAT, else the first
/// on a private network.
pub fn default_interface(manifest: &Manifest, guest: &rackstick_image::manifest::Guest) -> Option<usize> {
    let private = |with_nat: bool| {
        guest.interfaces.iter().position(|interface| {
            interface.address.is_some()
                && matches!(manifest.networks.get(&interface.network),
                    Some(Network::Private { nat, .. }) if nat.is_some() || !with_nat)
        })
    };
    private(true).or_else(|| private(false))
}

#[cfg(test)]
pub mod tests;
