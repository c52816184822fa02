//! DHCP messages as the client writes and reads them (RFC 2131 section 2, options of RFC 2132).
//!
//! Answers are read by dhcproto's borrowed view, option by option: its owned decoder looks into every option a
//! server may send and panics on some hostile ones.

use std::net::Ipv4Addr;

use dhcproto::{
    Encodable,
    v4::{self, DhcpOption, MessageType, OptionCode},
};

/// The smallest answer: the fixed part and the magic cookie.
const SMALLEST: usize = 240;
const BOOTREPLY: u8 = 2;

/// What a request says beside its type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The transaction.
    pub xid: u32,
    /// Seconds since the client began to ask.
    pub secs: u16,
    /// The client's hardware address.
    pub mac: [u8; 6],
    /// The client's name, for the server's own records.
    pub hostname: String,
    /// The client's address, where it has one: it answers ARP there, so the server may answer by unicast.
    pub ciaddr: Option<Ipv4Addr>,
    /// The address asked for.
    pub requested: Option<Ipv4Addr>,
    /// The server whose offer is taken.
    pub server: Option<Ipv4Addr>,
}

impl Request {
    /// The bytes of a message of this type.
    pub fn encode(&self, kind: MessageType) -> Result<Vec<u8>, v4::EncodeError> {
        let mut message = v4::Message::default();
        message.set_xid(self.xid).set_secs(self.secs).set_chaddr(&self.mac);
        match self.ciaddr {
            Some(address) => message.set_ciaddr(address),
            // Without an address, only a broadcast can reach this client's socket.
            None => message.set_flags(v4::Flags::default().set_broadcast()),
        };
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::AddressLeaseTime,
            OptionCode::Renewal,
            OptionCode::Rebinding,
        ]));
        if !self.hostname.is_empty() {
            options.insert(DhcpOption::Hostname(self.hostname.clone()));
        }
        if let Some(address) = self.requested {
            options.insert(DhcpOption::RequestedIpAddress(address));
        }
        if let Some(address) = self.server {
            options.insert(DhcpOption::ServerIdentifier(address));
        }
        message.to_vec()
    }
}

/// What kind of answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An offer.
    Offer,
    /// The lease is granted or extended.
    Ack,
    /// The address can't be had.
    Nak,
}

/// An answer, as far as the client needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What kind of answer it is.
    pub kind: Kind,
    /// The transaction it belongs to.
    pub xid: u32,
    /// The server.
    pub server: Option<Ipv4Addr>,
    /// The address offered or leased.
    pub address: Ipv4Addr,
    /// Prefix length; 32 where the server named no mask.
    pub prefix: u8,
    /// Default gateway.
    pub router: Option<Ipv4Addr>,
    /// Resolvers.
    pub resolvers: Vec<Ipv4Addr>,
    /// Seconds for which the lease holds.
    pub lease_s: Option<u32>,
    /// Seconds until renewal, if the server says.
    pub renewal_s: Option<u32>,
    /// Seconds until rebinding, if the server says.
    pub rebinding_s: Option<u32>,
}

impl Reply {
    /// Reads a datagram; none if it is not an answer to the client with this hardware address.
    pub fn parse(datagram: &[u8], mac: [u8; 6]) -> Option<Self> {
        if datagram.len() < SMALLEST || datagram.first() != Some(&BOOTREPLY) {
            return None;
        }
        if datagram.get(28..34)? != mac || datagram.get(236..240)? != v4::MAGIC {
            return None;
        }
        let message = v4::borrowed::Message::new(datagram).ok()?;
        let mut reply = Reply {
            kind: Kind::Nak,
            xid: message.xid(),
            server: None,
            address: message.yiaddr(),
            prefix: 32,
            router: None,
            resolvers: Vec::new(),
            lease_s: None,
            renewal_s: None,
            rebinding_s: None,
        };
        let mut kind = None;
        for option in message.opts() {
            let data = option.data();
            match option.code() {
                OptionCode::MessageType => {
                    kind = match data {
                        [2] => Some(Kind::Offer),
                        [5] => Some(Kind::Ack),
                        [6] => Some(Kind::Nak),
                        _ => None,
                    }
                }
                OptionCode::ServerIdentifier => reply.server = addresses(data).next(),
                OptionCode::SubnetMask => reply.prefix = prefix(addresses(data).next()?)?,
                OptionCode::Router => reply.router = addresses(data).next(),
                OptionCode::DomainNameServer => reply.resolvers = addresses(data).take(3).collect(),
                OptionCode::AddressLeaseTime => reply.lease_s = number(data),
                OptionCode::Renewal => reply.renewal_s = number(data),
                OptionCode::Rebinding => reply.rebinding_s = number(data),
                _ => {}
            }
        }
        reply.kind = kind?;
        let usable = !(reply.address.is_unspecified()
            || reply.address.is_loopback()
            || reply.address.is_multicast()
            || reply.address.is_broadcast());
        (reply.kind == Kind::Nak || usable).then_some(reply)
    }
}

fn addresses(data: &[u8]) -> impl Iterator<Item = Ipv4Addr> {
    data.chunks_exact(4).filter_map(|octets| <[u8; 4]>::try_from(octets).ok()).map(Ipv4Addr::from)
}

fn number(data: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(data.try_into().ok()?))
}

/// The prefix length of a mask; none if its ones are not together at the front.
fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    let ones = bits.leading_ones();
    (bits.count_ones() == ones).then_some(u8::try_from(ones).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn answer(options: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; 236];
        datagram[0] = BOOTREPLY;
        datagram[2] = 6;
        datagram[16..20].copy_from_slice(&[192, 168, 7, 20]);
        datagram[28..34].copy_from_slice(&MAC);
        datagram.extend(v4::MAGIC);
        datagram.extend(options);
        datagram
    }

    #[test]
    fn an_answer_is_read_and_one_for_another_client_is_not() {
        let datagram = answer(&[
            53, 1, 5, 54, 4, 192, 168, 7, 1, 1, 4, 255, 255, 254, 0, 3, 4, 192, 168, 7, 1, 6, 8, 9, 9, 9, 9, 1, 1, 1,
            1, 51, 4, 0, 0, 14, 16, 255,
        ]);
        let reply = Reply::parse(&datagram, MAC).unwrap();
        assert_eq!((reply.kind, reply.prefix, reply.lease_s), (Kind::Ack, 23, Some(3600)));
        assert_eq!(reply.address, Ipv4Addr::new(192, 168, 7, 20));
        assert_eq!(reply.resolvers, [Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)]);
        assert_eq!(Reply::parse(&datagram, [0; 6]), None);
    }

    #[test]
    fn no_datagram_makes_the_client_panic() {
        // Client FQDN and lease query status that are too short, a mask with a hole, options that run off the end.
        for options in [
            &[53, 1, 5, 81, 1, 0, 255][..],
            &[53, 1, 5, 151, 0, 255],
            &[53, 1, 5, 1, 4, 255, 0, 255, 0],
            &[53, 1, 5, 6, 200, 1],
        ] {
            let _ = Reply::parse(&answer(options), MAC);
        }
        let whole = answer(&[53, 1, 5, 54, 4, 192, 168, 7, 1, 255]);
        for length in 0..whole.len() {
            let _ = Reply::parse(&whole[..length], MAC);
        }
        let mut long_address = whole.clone();
        long_address[2] = 255;
        let _ = Reply::parse(&long_address, MAC);
        assert_eq!(Reply::parse(&answer(&[53, 1, 5, 1, 4, 255, 0, 255, 0]), MAC), None, "a mask with a hole");
    }

    #[test]
    fn a_request_carries_what_the_server_needs() {
        let request = Request {
            xid: 7,
            mac: MAC,
            hostname: "lab".into(),
            requested: Some(Ipv4Addr::new(192, 168, 7, 20)),
            server: Some(Ipv4Addr::new(192, 168, 7, 1)),
            ..Request::default()
        };
        let bytes = request.encode(MessageType::Request).unwrap();
        let read = v4::borrowed::Message::new(&bytes).unwrap();
        assert_eq!((read.xid(), read.flags().broadcast()), (7, true));
        let option = |code| read.opts().find(|option| option.code() == code).map(|option| option.data().to_vec());
        assert_eq!(option(OptionCode::MessageType), Some(vec![3]));
        assert_eq!(option(OptionCode::RequestedIpAddress), Some(vec![192, 168, 7, 20]));
        assert_eq!(option(OptionCode::Hostname), Some(b"lab".to_vec()));
    }
}
