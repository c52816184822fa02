//! A bridge for each network and a tap for each guest's interface.

use rackstick_image::manifest::{Manifest, Network};
use rackstick_linux::{
    netlink::{Address, Netlink},
    tap,
};

use super::{Error, names};

/// Makes all bridges and taps, joins and switches them on, and gives private bridges the gateway's address.
/// `owner`: the user that may open the taps of the guest with this index.
pub fn bring_up(manifest: &Manifest, owner: impl Fn(usize) -> u32) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    for (name, network) in &manifest.networks {
        let bridge = netlink.create_bridge(&names::bridge(name), None)?;
        if let Network::Private { gateway, prefix, .. } = network {
            netlink.add_address(Address { link: bridge, address: *gateway, prefix: *prefix })?;
        }
        netlink.set_up(bridge, true)?;
    }
    for (index, guest) in manifest.guests.iter().enumerate() {
        for interface in &guest.interfaces {
            let bridge = netlink.link(&names::bridge(&interface.network))?.index;
            let name = names::tap(&interface.mac);
            // After a restart of the daemon the guest's monitor has the tap open; it is as it should be then.
            let link = match netlink.link(&name) {
                Ok(link) => link,
                Err(_) => {
                    drop(tap::create(&name, owner(index))?);
                    netlink.link(&name)?
                }
            };
            if link.master != Some(bridge) {
                netlink.set_master(link.index, Some(bridge))?;
            }
            netlink.set_up(link.index, true)?;
        }
    }
    Ok(())
}
