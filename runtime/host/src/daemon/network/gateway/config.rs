//! What the gateway's process is told: one line of JSON at its start, and a new one whenever a resolver changes.

use std::net::Ipv4Addr;

use rackstick_image::manifest::{Address, Guest, Manifest, Network};
use serde::{Deserialize, Serialize};

use super::super::names;

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The rack's domain, without a dot at its end.
    pub domain: String,
    /// The private networks.
    pub networks: Vec<Net>,
}

/// One private network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// The rack's address on it.
    pub gateway: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// The uplink through which its guests reach the world, if they do.
    pub uplink: Option<String>,
    /// That uplink's resolvers, as far as they are known.
    pub resolvers: Vec<Ipv4Addr>,
    /// Names below the domain that are known here, and only here.
    pub hosts: Vec<Host>,
    /// Who gets which address.
    pub leases: Vec<Lease>,
    /// Subnets of other private networks, of which nobody here learns anything.
    pub hidden: Vec<(Ipv4Addr, u8)>,
}

/// A name of one label below the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A guest's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Its MAC address, in lower case with colons.
    pub mac: String,
    /// Its host name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether the gateway is its way out.
    pub default_route: bool,
}

impl Config {
    /// As the manifest says; no resolver is known yet.
    pub fn of(manifest: &Manifest) -> Self {
        let privates = manifest.networks.iter().filter_map(|(name, network)| match network {
            Network::Private { gateway, prefix, nat } => Some((name, *gateway, *prefix, nat.clone())),
            Network::Uplink { .. } => None,
        });
        let networks = privates.clone().map(|(name, gateway, prefix, uplink)| Net {
            name: name.clone(),
            bridge: names::bridge(name),
            gateway,
            prefix,
            resolvers: Vec::new(),
            hosts: hosts(manifest, name, gateway, uplink.as_deref()),
            leases: leases(manifest, name),
            hidden: privates.clone().filter(|other| other.0 != name).map(|other| (other.1, other.2)).collect(),
            uplink,
        });
        Self { domain: manifest.domain.clone(), networks: networks.collect() }
    }

    /// Guests behind this uplink ask these resolvers from now on. Says whether anything changed.
    pub fn pass_on(&mut self, uplink: &str, resolvers: &[Ipv4Addr]) -> bool {
        let mut changed = false;
        for net in self.networks.iter_mut().filter(|net| net.uplink.as_deref() == Some(uplink)) {
            changed |= net.resolvers != resolvers;
            net.resolvers = resolvers.to_vec();
        }
        changed
    }
}

/// The rack, the network's guests, and the guests on the LAN that its guests can reach.
fn hosts(manifest: &Manifest, network: &str, gateway: Ipv4Addr, uplink: Option<&str>) -> Vec<Host> {
    let address = |guest: &Guest, network: &str| {
        let interface = guest.interfaces.iter().find(|interface| interface.network == network)?;
        interface.address.known()
    };
    let guests = manifest.guests.iter().filter_map(|guest| {
        let address = address(guest, network).or_else(|| uplink.and_then(|uplink| address(guest, uplink)))?;
        Some(Host { name: guest.name.clone(), address })
    });
    let mut hosts: Vec<Host> = guests.collect();
    // A guest may have the rack's name; who asks for it means the guest.
    if hosts.iter().all(|host| host.name != manifest.rack) {
        hosts.push(Host { name: manifest.rack.clone(), address: gateway });
    }
    hosts
}

fn leases(manifest: &Manifest, network: &str) -> Vec<Lease> {
    let mut leases = Vec::new();
    for guest in &manifest.guests {
        let default = guest.way_out(&manifest.networks);
        for (index, interface) in guest.interfaces.iter().enumerate() {
            if let (true, Address::Static { address, .. }) = (interface.network == network, interface.address) {
                let (mac, name) = (interface.mac.clone(), guest.name.clone());
                leases.push(Lease { mac, name, address, default_route: default == Some(index) });
            }
        }
    }
    leases
}

#[cfg(test)]
mod tests {
    use super::{super::super::firewall, *};

    #[test]
    fn a_network_knows_its_own_guests_and_nothing_of_another() {
        let mut config = Config::of(&firewall::tests::manifest());
        let [lab, servers] = &config.networks[..] else { panic!("{config:?}") };
        let names = |net: &Net| net.hosts.iter().map(|host| host.name.clone()).collect::<Vec<_>>();
        // The rack of this manifest is called `test`; a guest is called as the network `lab`.
        assert_eq!(
            (names(lab), names(servers)),
            (vec!["lab".into(), "test".into()], vec!["web".into(), "test".into()])
        );
        assert_eq!(lab.hidden, [([10, 20, 0, 1].into(), 24)]);
        assert_eq!((&lab.uplink, servers.uplink.as_deref()), (&None, Some("lan")));
        assert!(servers.leases[0].default_route);
        assert!(config.pass_on("lan", &[[10, 9, 0, 7].into()]));
        assert!(!config.pass_on("lan", &[[10, 9, 0, 7].into()]));
        assert!(config.networks[0].resolvers.is_empty(), "without NAT nothing is passed on");
    }
}
