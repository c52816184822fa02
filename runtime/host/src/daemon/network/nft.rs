//! The messages by which nf_tables is changed, as far as the rack's firewall needs them: one batch that replaces a
//! whole table at once. Follows the kernel's `linux/netfilter/nf_tables.h` and `nfnetlink.h`, whose names the
//! constants keep.

use std::{io, net::Ipv4Addr};

use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::set_socket_send_buffer_size_force;

const NETLINK_NETFILTER: isize = 12;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;

const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_REG_2: u32 = 2;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_CT_STATE: u32 = 0;
const NFT_CT_STATUS: u32 = 2;
const NFT_NAT_DNAT: u32 = 1;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
const NFTA_FIB_F_IIF: u32 = 8;
const RTN_LOCAL: u32 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const IFNAMSIZ: usize = 16;

/// `ct state` bits: established and related.
const CT_ESTABLISHED_RELATED: u32 = 2 | 4;
/// `ct status` bit: the destination was rewritten.
const IPS_DST_NAT: u32 = 1 << 5;

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// ICMP's protocol number.
pub const ICMP: u8 = 1;

/// Why a ruleset was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Netlink itself failed.
    #[error("the firewall could not be set: netlink: {0}")]
    Netlink(#[from] io::Error),
    /// The kernel refused a part; nothing was changed.
    #[error(
        "the firewall could not be set: the kernel refused {what}: {source}; if it is a missing module (nft_*, nf_nat), the host's module list lacks it"
    )]
    Refused {
        /// The part, in words.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel's answer made no sense.
    #[error("the firewall could not be set: the kernel's answer of {0} bytes is no netlink message")]
    Answer(usize),
}

/// A base chain's place in the packet's way.
#[derive(Clone, Copy)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `NF_INET_*`.
    pub number: u32,
    /// Order among chains on the same hook.
    pub priority: i32,
    /// Whether what no rule accepts is dropped.
    pub drop: bool,
}

/// Before routing, where destinations are rewritten.
pub const PREROUTING: Hook = Hook { kind: "nat", number: 0, priority: -100, drop: false };
/// To the rack itself.
pub const INPUT: Hook = Hook { kind: "filter", number: 1, priority: 0, drop: true };
/// Through the rack.
pub const FORWARD: Hook = Hook { kind: "filter", number: 2, priority: 0, drop: true };
/// After routing, where sources are rewritten.
pub const POSTROUTING: Hook = Hook { kind: "nat", number: 4, priority: 100, drop: false };

/// Netlink attributes, one after another.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(mut self, kind: u16, payload: &[u8]) -> Self {
        // At most one rule's expressions, a few hundred bytes: names are cut to IFNAMSIZ and nothing else varies.
        let length = (4 + payload.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn text(self, kind: u16, text: &str) -> Self {
        self.bytes(kind, &[text.as_bytes(), b"\0"].concat())
    }

    fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// One rule: expressions that must all hold, then what happens.
#[derive(Default)]
pub struct Rule(Attributes);

// A rule reads as nft(8) writes it: from_interface, to_port. It is built by value.
#[allow(clippy::wrong_self_convention)]
impl Rule {
    fn expression(self, name: &str, data: Attributes) -> Self {
        Self(self.0.nest(1, Attributes::default().text(1, name).nest(2, data)))
    }

    fn equals(self, value: &[u8]) -> Self {
        let data = Attributes::default().bytes(1, value);
        self.expression("cmp", Attributes::default().number(1, NFT_REG_1).number(2, NFT_CMP_EQ).nest(3, data))
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", Attributes::default().number(1, NFT_REG_1).number(2, key))
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        let data = Attributes::default().number(1, NFT_REG_1).number(2, base).number(3, offset).number(4, length);
        self.expression("payload", data)
    }

    fn mask(self, mask: &[u8]) -> Self {
        let length = mask.len() as u32;
        let zeroes = vec![0; mask.len()];
        let data = Attributes::default()
            .number(1, NFT_REG_1)
            .number(2, NFT_REG_1)
            .number(3, length)
            .nest(4, Attributes::default().bytes(1, mask))
            .nest(5, Attributes::default().bytes(1, &zeroes));
        self.expression("bitwise", data)
    }

    fn load(self, register: u32, value: &[u8]) -> Self {
        let data = Attributes::default().bytes(1, value);
        self.expression("immediate", Attributes::default().number(1, register).nest(2, data))
    }

    fn verdict(self, code: u32) -> Self {
        let data = Attributes::default().nest(2, Attributes::default().number(1, code));
        self.expression("immediate", Attributes::default().number(1, NFT_REG_VERDICT).nest(2, data))
    }

    /// Came in by this interface.
    pub fn from_interface(self, name: &str) -> Self {
        self.meta(NFT_META_IIFNAME).equals(&interface(name))
    }

    /// Will leave by this interface.
    pub fn to_interface(self, name: &str) -> Self {
        self.meta(NFT_META_OIFNAME).equals(&interface(name))
    }

    /// Is an IPv4 packet; must come before what looks into one.
    pub fn ipv4(self) -> Self {
        self.meta(NFT_META_NFPROTO).equals(&[NFPROTO_IPV4])
    }

    /// Is of this transport protocol.
    pub fn protocol(self, number: u8) -> Self {
        self.meta(NFT_META_L4PROTO).equals(&[number])
    }

    /// Goes to this TCP or UDP port.
    pub fn to_port(self, port: u16) -> Self {
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2).equals(&port.to_be_bytes())
    }

    /// Goes to this address.
    pub fn to_address(self, address: Ipv4Addr) -> Self {
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, 16, 4).equals(&address.octets())
    }

    /// Comes from this subnet.
    pub fn from_subnet(self, address: Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        let network = u32::from(address) & mask;
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, 12, 4).mask(&mask.to_be_bytes()).equals(&network.to_be_bytes())
    }

    /// Goes to one of the rack's own addresses on the network that it comes from.
    pub fn to_this_interface(self) -> Self {
        let data = Attributes::default()
            .number(1, NFT_REG_1)
            .number(2, NFT_FIB_RESULT_ADDRTYPE)
            .number(3, NFTA_FIB_F_DADDR | NFTA_FIB_F_IIF);
        self.expression("fib", data).equals(&RTN_LOCAL.to_ne_bytes())
    }

    fn conntrack(self, key: u32, bits: u32) -> Self {
        let loaded = self.expression("ct", Attributes::default().number(1, NFT_REG_1).number(2, key));
        let not_equal = Attributes::default()
            .number(1, NFT_REG_1)
            .number(2, NFT_CMP_NEQ)
            .nest(3, Attributes::default().bytes(1, &0_u32.to_ne_bytes()));
        loaded.mask(&bits.to_ne_bytes()).expression("cmp", not_equal)
    }

    /// Belongs to a connection that was accepted before.
    pub fn established(self) -> Self {
        self.conntrack(NFT_CT_STATE, CT_ESTABLISHED_RELATED)
    }

    /// Belongs to a connection whose destination a rule of ours rewrote.
    pub fn was_forwarded(self) -> Self {
        self.conntrack(NFT_CT_STATUS, IPS_DST_NAT)
    }

    /// Lets the packet pass.
    pub fn accept(self) -> Self {
        self.verdict(NF_ACCEPT)
    }

    /// Throws the packet away.
    pub fn drop(self) -> Self {
        self.verdict(NF_DROP)
    }

    /// Rewrites the destination, here and in answers.
    pub fn forward_to(self, address: Ipv4Addr, port: u16) -> Self {
        let loaded = self.load(NFT_REG_1, &address.octets()).load(NFT_REG_2, &port.to_be_bytes());
        let data = Attributes::default()
            .number(1, NFT_NAT_DNAT)
            .number(2, u32::from(NFPROTO_IPV4))
            .number(3, NFT_REG_1)
            .number(5, NFT_REG_2);
        loaded.expression("nat", data)
    }

    /// Rewrites the source to the outgoing interface's address.
    pub fn masquerade(self) -> Self {
        self.expression("masq", Attributes::default())
    }
}

fn interface(name: &str) -> [u8; IFNAMSIZ] {
    let mut padded = [0; IFNAMSIZ];
    // The last byte stays zero: such a name can't exist, so the rule just never matches.
    for (to, from) in padded.iter_mut().take(IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from;
    }
    padded
}

/// A table that is put in place of its former self in one step.
pub struct Table {
    name: &'static str,
    buffer: Vec<u8>,
    /// What each message is, by its sequence number.
    parts: Vec<String>,
}

impl Table {
    /// An empty table of the inet family.
    pub fn new(name: &'static str) -> Self {
        let mut table = Self { name, buffer: Vec::new(), parts: Vec::new() };
        table.message("the batch", NFNL_MSG_BATCH_BEGIN, 0, Attributes::default());
        // Deleting a table that is not there is an error, so it is made first.
        for kind in [NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWTABLE] {
            table.object(&format!("table {name}"), kind, Attributes::default().text(1, name));
        }
        table
    }

    /// Adds a base chain.
    pub fn chain(&mut self, name: &str, hook: Hook) {
        let place = Attributes::default().number(1, hook.number).bytes(2, &hook.priority.to_be_bytes());
        let data = Attributes::default()
            .text(1, self.name)
            .text(3, name)
            .nest(4, place)
            .number(5, if hook.drop { NF_DROP } else { NF_ACCEPT })
            .text(7, hook.kind);
        self.object(&format!("chain {name}"), NFT_MSG_NEWCHAIN, data);
    }

    /// Appends a rule to a chain; `what` names it in errors.
    pub fn rule(&mut self, chain: &str, what: &str, rule: Rule) {
        let data = Attributes::default().text(1, self.name).text(2, chain).nest(4, rule.0);
        self.object(&format!("chain {chain}'s rule for {what}"), NFT_MSG_NEWRULE, data);
    }

    fn object(&mut self, what: &str, kind: u16, data: Attributes) {
        self.message(what, NFNL_SUBSYS_NFTABLES << 8 | kind, NLM_F_CREATE | NLM_F_APPEND, data);
    }

    fn message(&mut self, what: &str, kind: u16, flags: u16, data: Attributes) {
        let sequence = self.parts.len() as u32;
        let batch_mark = kind == NFNL_MSG_BATCH_BEGIN || kind == NFNL_MSG_BATCH_END;
        self.parts.push(what.to_owned());
        let length = (16 + 4 + data.0.len()) as u32;
        self.buffer.extend(length.to_ne_bytes());
        self.buffer.extend(kind.to_ne_bytes());
        self.buffer.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.buffer.extend(sequence.to_ne_bytes());
        self.buffer.extend(0_u32.to_ne_bytes());
        // nfgenmsg: family, version, and for a batch the subsystem.
        self.buffer.extend([if batch_mark { NFPROTO_UNSPEC } else { NFPROTO_INET }, 0]);
        self.buffer.extend(if batch_mark { NFNL_SUBSYS_NFTABLES.to_be_bytes() } else { [0, 0] });
        self.buffer.extend(data.0);
    }

    /// Asks for an answer to the last message: the kernel names every failed message anyway, and one answer fits
    /// any receive buffer however long the ruleset is.
    fn acknowledge_last(&mut self, start: usize) {
        if let Some(flags) = self.buffer.get_mut(start + 6..start + 8) {
            let asked = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&asked.to_ne_bytes());
        }
    }

    /// Puts the table in place: whole, or not at all.
    pub fn commit(mut self) -> Result<(), Error> {
        let last = self.buffer.len();
        // A second declaration of the table changes nothing; it is there to be acknowledged.
        self.object("the end", NFT_MSG_NEWTABLE, Attributes::default().text(1, self.name));
        self.acknowledge_last(last);
        let awaited = self.parts.len() as u32 - 1;
        self.message("the batch", NFNL_MSG_BATCH_END, 0, Attributes::default());

        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.set_cap_ack(true)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel takes a batch in one datagram only, and its usual limit is reached by 150 forwards. It doubles
        // what it is told, which leaves room for its own bookkeeping.
        set_socket_send_buffer_size_force(&socket, self.buffer.len()).map_err(io::Error::from)?;
        let sent = socket.send(&self.buffer, 0)?;
        if sent != self.buffer.len() {
            return Err(io::Error::other(format!("only {sent} of {} bytes were sent", self.buffer.len())).into());
        }
        loop {
            let (datagram, _) = socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = Answer::parse(rest).ok_or(Error::Answer(datagram.len()))?;
                if answer.error != 0 {
                    let what = self.parts.get(answer.sequence as usize).cloned().unwrap_or_default();
                    return Err(Error::Refused { what, source: io::Error::from_raw_os_error(-answer.error) });
                }
                if answer.sequence == awaited {
                    return Ok(());
                }
                rest = rest.get(answer.length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

struct Answer {
    length: usize,
    sequence: u32,
    error: i32,
}

impl Answer {
    /// The first message of a datagram; none if it is not an answer.
    fn parse(datagram: &[u8]) -> Option<Self> {
        let word = |at: usize| datagram.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let length = word(0)? as usize;
        let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
        if kind != NLMSG_ERROR || length < 20 || length > datagram.len() {
            return None;
        }
        Some(Self { length, sequence: word(8)?, error: word(16)?.cast_signed() })
    }
}
