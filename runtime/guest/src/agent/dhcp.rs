//! Addresses on bridged networks: the guest asks the network's DHCP server itself, as every machine there does. Here
//! and not by the image's own client, so that it works in any image, and with the client that the rack itself uses.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rackstick_api::guest::{Address, GuestConfig};
use rackstick_linux::{
    dhcp::{self, Change, Lease},
    netlink::{self, Mac, Netlink, NetlinkError},
};

use crate::init::{InitError, identity};

/// The wait before a client that could not be started is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The resolvers that servers named, by interface.
type Resolvers = Arc<Mutex<BTreeMap<Mac, Vec<Ipv4Addr>>>>;

/// Starts a client for each interface that needs one.
pub(super) fn start(config: &GuestConfig) {
    let resolvers = Resolvers::default();
    for interface in &config.interfaces {
        let Address::Dhcp { default_route } = interface.address else { continue };
        let Ok(mac) = interface.mac.parse::<Mac>() else { continue };
        let client = Client { mac, default_route, config: config.clone(), resolvers: resolvers.clone() };
        if let Err(error) = thread::Builder::new().name("dhcp".into()).spawn(move || client.run()) {
            log::error!("interface {mac} gets no address: no thread can be started: {error}");
        }
    }
}

/// The addresses that interfaces have now, of those that ask for one, by MAC address.
pub(super) fn addresses(config: &GuestConfig) -> Result<BTreeMap<String, Ipv4Addr>, NetlinkError> {
    let asking = config.interfaces.iter().filter(|interface| matches!(interface.address, Address::Dhcp { .. }));
    let asking: Vec<Mac> = asking.filter_map(|interface| interface.mac.parse().ok()).collect();
    if asking.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut netlink = Netlink::open()?;
    let (links, addresses) = (netlink.links()?, netlink.addresses()?);
    let mac = |link| links.iter().find(|found| found.index == link).and_then(|found| found.mac);
    let named = addresses.into_iter().filter_map(|address| Some((mac(address.link)?, address.address)));
    Ok(named.filter(|(mac, _)| asking.contains(mac)).map(|(mac, address)| (mac.to_string(), address)).collect())
}

struct Client {
    mac: Mac,
    default_route: bool,
    config: GuestConfig,
    resolvers: Resolvers,
}

impl Client {
    fn run(self) {
        loop {
            match self.name() {
                Ok(name) => {
                    let ended = dhcp::run(&name, self.mac, &self.config.hostname, |change| self.changed(change));
                    if let Err(error) = ended {
                        log::warn!("DHCP on {name}: {error}; tried again");
                    }
                }
                Err(error) => log::warn!("DHCP on {}: {error}; tried again", self.mac),
            }
            // Not a wait for a condition: what fails is not tried without pause.
            thread::sleep(RETRY);
        }
    }

    fn name(&self) -> Result<String, NetlinkError> {
        let link = Netlink::open()?.links()?.into_iter().find(|link| link.ethernet && link.mac == Some(self.mac));
        link.map(|link| link.name).ok_or_else(|| NetlinkError::NoLink(self.mac.to_string()))
    }

    fn changed(&self, change: Change) {
        let done = match change {
            Change::Leased(lease, _) => self.configure(Some(&lease)),
            Change::Lost => self.configure(None),
            Change::Failed(error) => {
                log::warn!("DHCP on {}: {error}; tried again", self.mac);
                Ok(())
            }
        };
        if let Err(error) = done {
            log::error!("DHCP on {}: {error}", self.mac);
        }
    }

    /// Makes the interface's address, the default route and the resolvers the lease's.
    fn configure(&self, lease: Option<&Lease>) -> Result<(), InitError> {
        let mut netlink = Netlink::open()?;
        let link = netlink.link(&self.name()?)?.index;
        let wanted = lease.map(|lease| netlink::Address { link, address: lease.address, prefix: lease.prefix });
        let present: Vec<_> = netlink.addresses()?.into_iter().filter(|address| address.link == link).collect();
        for old in present.iter().filter(|old| Some(**old) != wanted) {
            netlink.delete_address(*old)?;
        }
        if let Some(wanted) = wanted.filter(|wanted| !present.contains(wanted)) {
            log::info!("{} has the address {}/{} by DHCP", self.mac, wanted.address, wanted.prefix);
            netlink.add_address(wanted)?;
        }
        if let Some(lease) = lease
            && let Some(router) = lease.router.filter(|_| self.default_route)
        {
            let shift = 32 - u32::from(lease.prefix.min(32));
            let subnet = |address: Ipv4Addr| u32::from(address).checked_shr(shift).unwrap_or(0);
            if subnet(router) != subnet(lease.address) {
                netlink.set_route(link, router, 32, None)?;
            }
            netlink.set_default_route(link, router)?;
        }
        let mut resolvers = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
        let named = lease.map(|lease| lease.resolvers.clone()).unwrap_or_default();
        if resolvers.insert(self.mac, named.clone()) != Some(named) {
            let all: Vec<Ipv4Addr> = resolvers.values().flatten().copied().collect();
            identity::write_resolvers(Path::new("/"), &self.config, &all)?;
        }
        Ok(())
    }
}
