//! An uplink: finds the NIC, makes it a port of the uplink's bridge, and gets the bridge an address.

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rackstick_image::manifest::{Manifest, Network, UplinkAddress};
use rackstick_linux::netlink::{Address, Link, Mac, Netlink, NetlinkError};

use super::{Error, News, Resolvers, dhcp, filter_sources, firewall, names};

/// How long to wait for a carrier before the missing cable is reported; it is waited for ever after.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for an address before that is reported; it is asked for ever after.
const RETRY: Duration = Duration::from_secs(5);
/// What an uplink without an address does, before its name.
const WAITING: &str = "waiting for an address on";

/// One uplink and what its thread needs.
pub struct Uplink {
    pub manifest: Arc<Manifest>,
    pub name: String,
    pub interface: Option<String>,
    pub address: UplinkAddress,
    pub resolvers: Resolvers,
}

impl Uplink {
    /// Brings the uplink up and keeps it so, for ever.
    pub fn run(self, report: impl Fn(News)) {
        let problem = |text: Option<String>| report(News::Problem(format!("uplink {}", self.name), text));
        let doing = |what: Option<&str>| {
            let what = what.map(|what| format!("{what} {}", self.name));
            report(News::Activity(format!("uplink {}", self.name), what));
        };
        doing(Some("waiting for a network card for"));
        let (bridge, mac) = loop {
            match self.join() {
                Ok(joined) => break joined,
                Err(error) => problem(Some(error.to_string())),
            }
            // Not a wait for a condition: a kernel that refuses is not asked without pause.
            std::thread::sleep(RETRY);
        };
        problem(None);
        let set = |lease: Option<&Configuration>| {
            let refused = lease.and_then(|lease| self.conflict(lease));
            let lease = lease.filter(|_| refused.is_none());
            match self.configure(bridge, lease) {
                Ok(()) => problem(refused),
                Err(error) => problem(Some(error.to_string())),
            }
            doing(if lease.is_some() { None } else { Some(WAITING) });
            let address = lease.map(|lease| format!("{}/{}", lease.address, lease.prefix));
            report(News::Address(self.name.clone(), address));
        };
        match self.address {
            UplinkAddress::Static { address, prefix, gateway } => {
                set(Some(&Configuration { address, prefix, gateway, resolver: None }));
            }
            UplinkAddress::Dhcp => {
                doing(Some(WAITING));
                let bridge_name = names::bridge(&self.name);
                dhcp::run(&bridge_name, mac.0, &self.manifest.rack, |change| match change {
                    dhcp::Change::Leased(lease) => set(Some(&lease.into())),
                    dhcp::Change::Lost => set(None),
                    dhcp::Change::Failed(error) => {
                        problem(Some(format!("DHCP on {}: {error}; tried again", self.name)));
                    }
                });
            }
        }
    }

    /// Waits for the NIC and makes it a port of the bridge, which takes over its MAC address, as a DHCP server knows it.
    fn join(&self) -> Result<(u32, Mac), Error> {
        let mut changes = Netlink::open()?;
        let mut netlink = Netlink::open()?;
        let bridge = netlink.link(&names::bridge(&self.name))?.index;
        let wanted = self.interface.as_deref().unwrap_or("a network card with a cable");
        let mut failed = None;
        let joined = changes.wait_for_link(&format!("find {wanted}"), Instant::now() + PATIENCE, |links| {
            self.resolvers.locked(|_| match self.pick(&mut netlink, links, bridge) {
                Ok(picked) => picked.map(Ok),
                Err(error) => {
                    failed = Some(error);
                    Some(Err(()))
                }
            })
        });
        match (joined, failed) {
            (_, Some(error)) => Err(error.into()),
            (Ok(Ok(mac)), None) => Ok((bridge, mac)),
            (Err(error), None) => Err(Error::Uplink(format!(
                "uplink {}: no carrier: {error}; plug a cable in, or name the interface in the recipe",
                self.name
            ))),
            (Ok(Err(())), None) => Err(Error::Uplink(format!("uplink {}: no network card was taken", self.name))),
        }
    }

    /// Takes the NIC if it is there: the one named, else the first with a carrier. Switches candidates on: a carrier
    /// only shows then.
    fn pick(&self, netlink: &mut Netlink, links: &[Link], bridge: u32) -> Result<Option<Mac>, NetlinkError> {
        let candidates = links.iter().filter(|link| match &self.interface {
            Some(name) => link.name == *name,
            None => link.ethernet && link.kind.is_none() && !wireless(&link.name),
        });
        let mut free: Vec<&Link> = candidates.filter(|link| link.master.is_none_or(|m| m == bridge)).collect();
        // A port of this bridge already: the daemon was restarted.
        free.sort_by_key(|link| link.master.is_none());
        for link in &free {
            if !link.up {
                netlink.set_up(link.index, true)?;
            }
        }
        let ready = |link: &&&Link| self.interface.is_some() || link.carrier || link.master == Some(bridge);
        let Some((nic, mac)) = free.iter().find(ready).and_then(|nic| Some((nic, nic.mac?))) else { return Ok(None) };
        netlink.set_mac(bridge, mac)?;
        if nic.master.is_none() {
            netlink.set_master(nic.index, Some(bridge))?;
            log::info!("uplink {}: {} ({mac})", self.name, nic.name);
        }
        Ok(Some(mac))
    }

    /// Makes the bridge's address, default route and resolver exactly these.
    fn configure(&self, bridge: u32, wanted: Option<&Configuration>) -> Result<(), Error> {
        let mut netlink = Netlink::open()?;
        let keep = wanted.map(|wanted| Address { link: bridge, address: wanted.address, prefix: wanted.prefix });
        for old in netlink.addresses()? {
            if old.link == bridge && Some(old) != keep {
                netlink.delete_address(old)?;
            }
        }
        if let (Some(wanted), Some(address)) = (wanted, keep) {
            netlink.add_address(address)?;
            if let Some(gateway) = wanted.gateway {
                if !wanted.reaches(gateway) {
                    netlink.set_route(bridge, gateway, 32, None)?;
                }
                netlink.set_default_route(bridge, gateway)?;
            }
        }
        filter_sources(&self.name, wanted.is_some())?;
        self.pass_queries_to(wanted.and_then(|wanted| wanted.resolver))
    }

    /// Has the gateways behind this uplink pass queries on to this resolver.
    fn pass_queries_to(&self, resolver: Option<Ipv4Addr>) -> Result<(), Error> {
        self.resolvers.locked(|resolvers| {
            let mut wanted = resolvers.clone();
            match resolver {
                Some(resolver) => wanted.insert(self.name.clone(), resolver),
                None => wanted.remove(&self.name),
            };
            if wanted != *resolvers {
                firewall::apply(&self.manifest, &wanted)?;
                // Only now: what the kernel refused is tried again with the next renewal.
                *resolvers = wanted;
            }
            Ok(())
        })
    }

    /// Why the uplink can't have this configuration, if it can't: what is in a private network's subnet belongs to
    /// that network, whatever a DHCP server says.
    fn conflict(&self, wanted: &Configuration) -> Option<String> {
        self.manifest.networks.iter().find_map(|(private, network)| {
            let Network::Private { gateway: inside, prefix, .. } = network else { return None };
            let offered = if same_subnet(wanted.address, *inside, wanted.prefix.min(*prefix)) {
                format!("the address {}/{}", wanted.address, wanted.prefix)
            } else {
                let gateway = wanted.gateway.filter(|gateway| same_subnet(*gateway, *inside, *prefix))?;
                format!("the gateway {gateway}")
            };
            Some(format!(
                "uplink {}: {offered} was refused: it overlaps the private network {private}, {inside}/{prefix}; \
                 give one of the two another subnet",
                self.name
            ))
        })
    }
}

/// What an uplink's bridge is given.
struct Configuration {
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
    resolver: Option<Ipv4Addr>,
}

impl Configuration {
    /// Whether this address is in the subnet.
    fn reaches(&self, other: Ipv4Addr) -> bool {
        same_subnet(self.address, other, self.prefix)
    }
}

fn same_subnet(one: Ipv4Addr, other: Ipv4Addr, prefix: u8) -> bool {
    let shift = 32 - u32::from(prefix.min(32));
    let network = |address: Ipv4Addr| u32::from(address).checked_shr(shift).unwrap_or(0);
    network(one) == network(other)
}

impl From<dhcp::Lease> for Configuration {
    fn from(lease: dhcp::Lease) -> Self {
        let resolver = lease.resolvers.first().copied();
        Self { address: lease.address, prefix: lease.prefix, gateway: lease.router, resolver }
    }
}

/// A wireless card can't be a port of a bridge.
fn wireless(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("phy80211").exists()
        || fs::exists(format!("/sys/class/net/{name}/wireless")).unwrap_or(false)
}

#[cfg(test)]
mod tests;
