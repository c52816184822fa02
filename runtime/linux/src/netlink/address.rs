//! IPv4 addresses and routes.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use rustix::io::Errno;

use super::{Netlink, NetlinkError};

/// An IPv4 address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length, 0 to 32.
    pub prefix: u8,
}

impl Address {
    /// The subnet's broadcast address; none where there is no room for one.
    fn broadcast(self) -> Option<Ipv4Addr> {
        (self.prefix < 31)
            .then(|| Ipv4Addr::from(u32::from(self.address) | u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)))
    }

    fn message(self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = self.prefix;
        message.header.index = self.link;
        message.header.scope = AddressScope::Universe;
        message.attributes =
            vec![AddressAttribute::Local(self.address.into()), AddressAttribute::Address(self.address.into())];
        message.attributes.extend(self.broadcast().map(AddressAttribute::Broadcast));
        message
    }
}

impl Netlink {
    /// All IPv4 addresses, by link and address.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let answers = self.dump("list the addresses", RouteNetlinkMessage::GetAddress(request))?;
        let mut addresses: Vec<Address> = answers
            .into_iter()
            .filter_map(|answer| {
                let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
                let address = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                    _ => None,
                })?;
                Some(Address { link: message.header.index, address, prefix: message.header.prefix_len })
            })
            .collect();
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// Gives a link an address; it may have it already.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn add_address(&mut self, address: Address) -> Result<(), NetlinkError> {
        let what = format!("give interface {} the address {}/{}", address.link, address.address, address.prefix);
        self.change(&what, RouteNetlinkMessage::NewAddress(address.message()), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address from a link; it may be gone already.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn delete_address(&mut self, address: Address) -> Result<(), NetlinkError> {
        let what = format!("take the address {}/{} from interface {}", address.address, address.prefix, address.link);
        match self.change(&what, RouteNetlinkMessage::DelAddress(address.message()), 0) {
            Err(error) if error.errno() == Some(Errno::ADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    /// Takes all IPv4 addresses from a link.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn flush_addresses(&mut self, link: u32) -> Result<(), NetlinkError> {
        for address in self.addresses()?.into_iter().filter(|address| address.link == link) {
            self.delete_address(address)?;
        }
        Ok(())
    }

    /// Sets the route to `destination`/`prefix` (0.0.0.0/0: the default route) by `gateway`, or straight onto the link
    /// if there is none; replaces the one that is there.
    ///
    /// # Errors
    /// [`NetlinkError`]; ENETUNREACH if no address of the link reaches the gateway.
    pub fn set_route(
        &mut self,
        link: u32,
        destination: Ipv4Addr,
        prefix: u8,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Oif(link));
        if prefix > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(destination)));
        }
        message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::Inet(gateway))));
        let by = gateway.map_or(String::new(), |gateway| format!(" by {gateway}"));
        let what = format!("set the route to {destination}/{prefix}{by} on interface {link}");
        self.change(&what, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Sets the default route.
    ///
    /// # Errors
    /// As [`Netlink::set_route`].
    pub fn set_default_route(&mut self, link: u32, gateway: Ipv4Addr) -> Result<(), NetlinkError> {
        self.set_route(link, Ipv4Addr::UNSPECIFIED, 0, Some(gateway))
    }
}
