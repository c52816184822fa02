//! A bridge for each network and a tap for each guest's interface. On a rack that runs already, what differs from the
//! recipe is mended, and what is right is not touched: guests use it.

use std::collections::BTreeSet;

use rackstick_image::manifest::{Manifest, Network};
use rackstick_linux::{
    netlink::{Address, Link, Netlink},
    tap,
};
use rustix::io::Errno;

use super::{Error, names};

/// Makes all bridges and taps, joins and switches them on, and gives private bridges the gateway's address.
/// `owner`: the user that may open the taps of the guest with this index.
pub fn bring_up(manifest: &Manifest, owner: impl Fn(usize) -> u32) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let mut taps = BTreeSet::new();
    for name in manifest.networks.keys() {
        bridge(&mut netlink, &names::bridge(name))?;
    }
    for (index, guest) in manifest.guests.iter().enumerate() {
        for interface in &guest.interfaces {
            let name = names::tap(&interface.mac);
            let bridge = netlink.link(&names::bridge(&interface.network))?.index;
            join(&mut netlink, &name, owner(index), bridge)?;
            taps.insert(name);
        }
    }
    for (name, network) in &manifest.networks {
        let bridge = netlink.link(&names::bridge(name))?;
        if let Network::Private { gateway, prefix, .. } = network {
            release_others(&mut netlink, &bridge, &taps)?;
            only_address(&mut netlink, Address { link: bridge.index, address: *gateway, prefix: *prefix })?;
        }
        if !bridge.up {
            netlink.set_up(bridge.index, true)?;
        }
    }
    Ok(())
}

/// Makes the bridge; something else that has its name makes room.
fn bridge(netlink: &mut Netlink, name: &str) -> Result<(), Error> {
    match netlink.create_bridge(name, None) {
        Err(error) if error.errno() == Some(Errno::EXIST) => {
            log::warn!("{name} is no bridge; it is made anew");
            let other = netlink.link(name)?.index;
            netlink.delete_link(other)?;
            netlink.create_bridge(name, None)?;
        }
        other => {
            other?;
        }
    }
    Ok(())
}

/// Makes the tap and has it on the bridge. After a restart of the daemon the guest's monitor has it open.
fn join(netlink: &mut Netlink, name: &str, owner: u32, bridge: u32) -> Result<(), Error> {
    let mut present = netlink.links()?.into_iter().find(|link| link.name == name);
    if let Some(other) = present.take_if(|link| link.kind.as_deref() != Some("tun")) {
        log::warn!("{name} is no tap; it is made anew");
        netlink.delete_link(other.index)?;
    }
    let link = match present {
        Some(link) => link,
        None => {
            drop(tap::create(name, owner)?);
            netlink.link(name)?
        }
    };
    if link.master != Some(bridge) {
        netlink.set_master(link.index, Some(bridge))?;
    }
    if !link.up {
        netlink.set_up(link.index, true)?;
    }
    Ok(())
}

/// Only guests are on a private network.
fn release_others(netlink: &mut Netlink, bridge: &Link, taps: &BTreeSet<String>) -> Result<(), Error> {
    let links = netlink.links()?;
    for link in links.iter().filter(|link| link.master == Some(bridge.index) && !taps.contains(&link.name)) {
        log::warn!("{} does not belong on {}; it is taken from it", link.name, bridge.name);
        netlink.set_master(link.index, None)?;
    }
    Ok(())
}

fn only_address(netlink: &mut Netlink, wanted: Address) -> Result<(), Error> {
    let addresses = netlink.addresses()?;
    for other in addresses.iter().filter(|other| other.link == wanted.link && **other != wanted) {
        log::warn!("the address {}/{} is not the recipe's; it is taken away", other.address, other.prefix);
        netlink.delete_address(*other)?;
    }
    if !addresses.contains(&wanted) {
        netlink.add_address(wanted)?;
    }
    Ok(())
}
