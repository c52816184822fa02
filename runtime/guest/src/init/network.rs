//! The guest's interfaces, found by MAC address and configured as the host says.

use std::time::Instant;

use rackstick_api::guest::{self, Interface};
use rackstick_linux::netlink::{Address, Mac, Netlink, NetlinkError};

use super::InitError;

/// Switches loopback and all interfaces on, with their addresses and default routes.
pub(super) fn configure(interfaces: &[Interface], deadline: Instant) -> Result<(), InitError> {
    let mut netlink = Netlink::open()?;
    let loopback = netlink.link("lo")?;
    netlink.set_up(loopback.index, true)?;
    for interface in interfaces {
        let mac: Mac =
            interface.mac.parse().map_err(|error| InitError::BadConfig(format!("has a bad interface: {error}")))?;
        let what = format!("find the interface {mac}");
        let found = netlink.wait_for_link(&what, deadline, |links| {
            links.iter().find(|link| link.ethernet && link.mac == Some(mac)).map(|link| link.index)
        });
        let index = match found {
            Ok(index) => index,
            Err(NetlinkError::Deadline { .. }) => return Err(InitError::NoInterface(mac.to_string())),
            Err(error) => return Err(error.into()),
        };
        netlink.set_up(index, true)?;
        if let guest::Address::Static { address, prefix, gateway } = interface.address {
            netlink.add_address(Address { link: index, address, prefix })?;
            if let Some(gateway) = gateway {
                netlink.set_default_route(index, gateway)?;
            }
        }
    }
    Ok(())
}
