//! Links: network interfaces, physical and virtual.

use std::{fmt, str::FromStr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        BridgePortState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute, LinkFlags,
        LinkInfo, LinkLayerType, LinkMessage,
    },
};
use rustix::io::Errno;

use super::{Netlink, NetlinkError};

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no MAC address: six pairs of hexadecimal digits with colons are needed, as 52:54:00:12:34:56")]
pub struct ParseMacError(String);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;
    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let bad = || ParseMacError(text.chars().take(80).collect());
        let mut parts = text.split(':');
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

/// A link as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Name, as `eth0`.
    pub name: String,
    /// MAC address; none for links without Ethernet.
    pub mac: Option<Mac>,
    /// Whether it is Ethernet and no loopback.
    pub ethernet: bool,
    /// What the kernel made it as: `bridge`, `tun`, `veth`...; none for a device with a driver of its own.
    pub kind: Option<String>,
    /// Whether it is switched on.
    pub up: bool,
    /// Whether there is a carrier: only known while it is up.
    pub carrier: bool,
    /// Index of the bridge it belongs to.
    pub master: Option<u32>,
    /// Whether that bridge sends through it: a moment after it became its port, or had its carrier again.
    pub forwards: bool,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Link {
    fn from_message(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mac: None,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            kind: None,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            master: None,
            forwards: false,
            mtu: 0,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(address) => link.mac = address.try_into().ok().map(Mac),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                                link.forwards = port.contains(&InfoBridgePort::State(BridgePortState::Forwarding));
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

fn message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

impl Netlink {
    /// All links, by index.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump("list the network interfaces", RouteNetlinkMessage::GetLink(message(0)))?;
        let mut links: Vec<Link> = answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The link called `name`.
    ///
    /// # Errors
    /// [`NetlinkError::NoLink`] if there is none.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        self.links()?.into_iter().find(|link| link.name == name).ok_or_else(|| NetlinkError::NoLink(name.to_owned()))
    }

    /// Switches a link on or off.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let mut message = message(index);
        message.header.change_mask = LinkFlags::Up;
        if up {
            message.header.flags = LinkFlags::Up;
        }
        let what = format!("switch interface {index} {}", if up { "on" } else { "off" });
        self.change(&what, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Makes a bridge (without spanning tree, so ports forward at once) with MAC address `mac`, or takes the one of
    /// that name that is there already; gives its index. It is down until switched on.
    ///
    /// # Errors
    /// [`NetlinkError`]; EEXIST if the name belongs to a link that is no bridge.
    pub fn create_bridge(&mut self, name: &str, mac: Option<Mac>) -> Result<u32, NetlinkError> {
        let what = format!("create bridge {name}");
        let mut message = message(0);
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::ForwardDelay(0)])),
            ]),
        ];
        message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        let made = self.change(&what, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
        let existed = match made {
            Ok(()) => false,
            Err(error) if error.errno() == Some(Errno::EXIST) => true,
            Err(error) => return Err(error),
        };
        let link = self.link(name)?;
        if link.kind.as_deref() != Some("bridge") {
            return Err(NetlinkError::Refused { what, source: Errno::EXIST.into() });
        }
        if let Some(mac) = mac.filter(|mac| existed && link.mac != Some(*mac)) {
            self.set_mac(link.index, mac)?;
        }
        Ok(link.index)
    }

    /// Takes away a link that was made: a bridge, a tap.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.change(&format!("delete interface {index}"), RouteNetlinkMessage::DelLink(message(index)), 0)
    }

    /// Makes the link a port of the bridge `master`; none: of no bridge.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> Result<(), NetlinkError> {
        let mut message = message(index);
        message.attributes.push(LinkAttribute::Controller(master.unwrap_or(0)));
        let what = match master {
            Some(master) => format!("make interface {index} a port of bridge {master}"),
            None => format!("take interface {index} from its bridge"),
        };
        self.change(&what, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives the link another MAC address; some drivers want it down for that.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = message(index);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        self.change(&format!("set the address of interface {index} to {mac}"), RouteNetlinkMessage::SetLink(message), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_six_pairs_are_a_mac_address() {
        assert_eq!("52:54:00:Ab:cd:EF".parse::<Mac>().unwrap().to_string(), "52:54:00:ab:cd:ef");
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56", "5:54:00:12:34:56", "+5:54:00:12:34:56"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
