//! The DHCP server of one private network (RFC 2131): each guest's MAC address has the recipe's address, for ever.
//! Others get none: the recipe names everybody who can be on the network.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
};

use dhcproto::{
    Encodable,
    v4::{self, CLIENT_PORT, DhcpOption, MessageType, Opcode, OptionCode},
};

use super::config::{Lease, Net};

/// How long a lease is said to hold, in seconds: a day. The address stays the guest's all the same.
const LEASE_S: u32 = 24 * 3600;
/// No DHCP message is longer.
const LARGEST: usize = 1500;
/// The smallest request: the fixed part and the magic cookie.
const SMALLEST: usize = 240;
const BOOTREQUEST: u8 = 1;

/// Answers until the socket fails.
pub fn serve(socket: &UdpSocket, net: &Net, domain: &str) -> io::Result<()> {
    let mut buffer = [0; LARGEST];
    loop {
        let length = match socket.recv_from(&mut buffer) {
            Ok((length, _)) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let Some(request) = Request::parse(buffer.get(..length).unwrap_or_default()) else { continue };
        if let Some((to, answer)) = answer(&request, net, domain) {
            // A client that has no answer asks again.
            let _ = socket.send_to(&answer, SocketAddrV4::new(to, CLIENT_PORT));
        }
    }
}

/// What a client says, as far as the server needs it. Read by dhcproto's borrowed view: its owned decoder can panic on
/// hostile options.
struct Request {
    kind: MessageType,
    xid: u32,
    broadcast: bool,
    mac: [u8; 6],
    ciaddr: Ipv4Addr,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl Request {
    /// Reads a datagram; none if it is no question of an Ethernet client that is on the network itself.
    fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() < SMALLEST
            || datagram.get(..3)? != [BOOTREQUEST, 1, 6]
            || datagram.get(236..240)? != v4::MAGIC
        {
            return None;
        }
        let message = v4::borrowed::Message::new(datagram).ok()?;
        if !message.giaddr().is_unspecified() {
            return None;
        }
        let (mut kind, mut requested, mut server) = (None, None, None);
        for option in message.opts() {
            let data = option.data();
            let address = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
            match option.code() {
                OptionCode::MessageType => kind = data.first().map(|kind| MessageType::from(*kind)),
                OptionCode::RequestedIpAddress => requested = address(),
                OptionCode::ServerIdentifier => server = address(),
                _ => {}
            }
        }
        Some(Self {
            kind: kind?,
            xid: message.xid(),
            broadcast: message.flags().broadcast(),
            mac: datagram.get(28..34)?.try_into().ok()?,
            ciaddr: message.ciaddr(),
            requested,
            server,
        })
    }
}

/// The answer and where it goes; none where the server keeps silent.
fn answer(request: &Request, net: &Net, domain: &str) -> Option<(Ipv4Addr, Vec<u8>)> {
    let mac: Vec<String> = request.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let mac = mac.join(":");
    let lease = net.leases.iter().find(|lease| lease.mac == mac)?;
    let kind = match request.kind {
        MessageType::Discover => MessageType::Offer,
        MessageType::Inform => MessageType::Ack,
        MessageType::Request => {
            if request.server.is_some_and(|server| server != net.gateway) {
                return None;
            }
            let asked = request.requested.unwrap_or(request.ciaddr);
            if asked == lease.address { MessageType::Ack } else { MessageType::Nak }
        }
        _ => return None,
    };
    let message = message(request, net, domain, lease, kind);
    // A client without an address hears broadcasts only; one that says it has its own is told there.
    let own = request.ciaddr == lease.address && kind != MessageType::Nak && !request.broadcast;
    let to = if own { lease.address } else { Ipv4Addr::BROADCAST };
    Some((to, message.to_vec().ok()?))
}

fn message(request: &Request, net: &Net, domain: &str, lease: &Lease, kind: MessageType) -> v4::Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = v4::Message::new_with_id(request.xid, none, none, none, none, &request.mac);
    message.set_opcode(Opcode::BootReply);
    if request.broadcast {
        message.set_flags(v4::Flags::default().set_broadcast());
    }
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(net.gateway));
    if kind == MessageType::Nak {
        return message;
    }
    let mask = u32::MAX.checked_shl(32 - u32::from(net.prefix.min(32))).unwrap_or(0);
    options.insert(DhcpOption::SubnetMask(mask.into()));
    options.insert(DhcpOption::BroadcastAddr((u32::from(net.gateway) | !mask).into()));
    if lease.default_route {
        options.insert(DhcpOption::Router(vec![net.gateway]));
    }
    options.insert(DhcpOption::DomainNameServer(vec![net.gateway]));
    options.insert(DhcpOption::DomainName(domain.to_owned()));
    options.insert(DhcpOption::Hostname(lease.name.clone()));
    if request.kind == MessageType::Inform {
        message.set_ciaddr(request.ciaddr);
        return message;
    }
    options.insert(DhcpOption::AddressLeaseTime(LEASE_S));
    options.insert(DhcpOption::Renewal(LEASE_S / 2));
    options.insert(DhcpOption::Rebinding(LEASE_S / 8 * 7));
    message.set_yiaddr(lease.address);
    message
}
