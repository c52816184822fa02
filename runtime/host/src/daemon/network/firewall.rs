//! The rack's firewall: which packets pass to and through it, port forwards, and NAT; one nftables table, computed
//! from the manifest and replaced whole. Connections that were accepted live on.
//!
//! Private networks are isolated: nothing passes between them, also not by way of the rack's own addresses on them; and
//! from outside only what a forward leads in.

use std::net::Ipv4Addr;

use rackstick_image::manifest::{Manifest, Network, Protocol, UplinkAddress};

use super::{
    names,
    nft::{self, FORWARD, Hook, INPUT, POSTROUTING, PREROUTING, Rule, Table},
    routes,
};

/// The table's name.
const TABLE: &str = "rackstick";
/// Where DHCP clients and servers listen.
const DHCP_CLIENT_PORT: u16 = 68;
const DHCP_SERVER_PORT: u16 = 67;
const DNS_PORT: u16 = 53;

/// Puts the manifest's ruleset in place.
pub fn apply(manifest: &Manifest) -> Result<(), nft::Error> {
    let mut table = Table::new(TABLE);
    for (name, hook) in
        [("prerouting", PREROUTING), ("input", INPUT), ("forward", FORWARD), ("postrouting", POSTROUTING)]
            as [(&str, Hook); 4]
    {
        table.chain(name, hook);
    }
    // First of all: a DHCP server whose subnet is also a private network's must be heard to be refused with a reason.
    for (name, network) in &manifest.networks {
        if let Network::Uplink { address: UplinkAddress::Dhcp, .. } = network {
            let answer = Rule::default().from_interface(&names::bridge(name)).ipv4().protocol(nft::UDP);
            table.rule("input", &format!("DHCP on {name}"), answer.to_port(DHCP_CLIENT_PORT).accept());
        }
    }
    no_spoofing(&mut table, manifest);
    input(&mut table);
    table.rule("forward", "established connections", Rule::default().established().accept());
    for (name, network) in &manifest.networks {
        if let Network::Private { gateway, prefix, nat } = network {
            services(&mut table, name, *gateway);
            if let Some(uplink) = nat {
                way_out(&mut table, name, uplink, *gateway, *prefix);
            }
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

/// The rack answers pings where they come from, and its own connections.
fn input(table: &mut Table) {
    table.rule("input", "established connections", Rule::default().established().accept());
    table.rule("input", "loopback", Rule::default().from_interface("lo").accept());
    table.rule("input", "ping", Rule::default().ipv4().protocol(nft::ICMP).to_this_interface().accept());
}

/// The gateway answers the DHCP and DNS of its own network.
fn services(table: &mut Table, name: &str, gateway: Ipv4Addr) {
    let from = || Rule::default().from_interface(&names::bridge(name)).ipv4();
    table.rule("input", &format!("{name}'s DHCP"), from().protocol(nft::UDP).to_port(DHCP_SERVER_PORT).accept());
    for protocol in [nft::UDP, nft::TCP] {
        let query = from().to_address(gateway).protocol(protocol).to_port(DNS_PORT);
        table.rule("input", &format!("{name}'s DNS"), query.accept());
    }
}

fn way_out(table: &mut Table, name: &str, uplink: &str, gateway: Ipv4Addr, prefix: u8) {
    let (inside, outside) = (names::bridge(name), names::bridge(uplink));
    let out = Rule::default().from_interface(&inside).to_interface(&outside).ipv4().from_subnet(gateway, prefix);
    table.rule("forward", &format!("{name} out by {uplink}"), out.accept());
    let source = Rule::default().to_interface(&outside).ipv4().from_subnet(gateway, prefix);
    table.rule("postrouting", &format!("NAT of {name}"), source.masquerade());
}

fn forwards(table: &mut Table, manifest: &Manifest) {
    for guest in &manifest.guests {
        let Some((network, address)) = routes::reachable(manifest, guest) else { continue };
        let inside = names::bridge(network);
        for forward in &guest.forwards {
            let outside = names::bridge(&forward.network);
            let protocol = match forward.protocol {
                Protocol::Tcp => nft::TCP,
                Protocol::Udp => nft::UDP,
            };
            let what = format!("{}'s port {}", guest.name, forward.port);
            let arriving = Rule::default().from_interface(&outside).ipv4().to_this_interface().protocol(protocol);
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

#[cfg(test)]
pub mod tests;
