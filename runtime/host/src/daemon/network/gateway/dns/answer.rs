//! What the rack itself answers (RFC 1034, 1035, 2308): names below its domain, and of its networks' addresses. Those
//! are never asked from anybody else.

use std::{collections::BTreeMap, net::Ipv4Addr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, NS, PTR, SOA},
    },
};
use ipnet::{IpNet, Ipv4Net};

use super::super::config::Net;

/// How long an answer may be kept, in seconds: an upgrade of the rack may change it.
const TTL_S: u32 = 60;
/// The largest answer that it takes by UDP, as it says by EDNS (DNS flag day 2020).
const PAYLOAD: u16 = 1232;
/// Bytes of a message's head (RFC 1035 section 4.1.1).
pub const HEAD: usize = 12;

/// What one network's guests see.
pub struct View {
    domain: Option<Name>,
    /// The rack's own name.
    rack: Option<Name>,
    names: BTreeMap<String, Ipv4Addr>,
    addresses: BTreeMap<Ipv4Addr, Name>,
    /// The subnets of all private networks.
    subnets: Vec<Ipv4Net>,
    /// Whom to ask for everything else; none: nobody, the network has no way out.
    pub resolvers: Option<Vec<Ipv4Addr>>,
}

/// What is to be done with a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This is the answer.
    Answer(Vec<u8>),
    /// The uplink's resolvers are to be asked.
    PassOn,
    /// It deserves no answer.
    Silence,
}

impl View {
    /// As the network's configuration says.
    pub fn new(domain: &str, net: &Net) -> Self {
        let name = |text: &str| Name::from_ascii(format!("{text}.")).ok();
        let full = |host: &str| name(&format!("{host}.{domain}"));
        let names = net.hosts.iter().filter_map(|host| Some((key(&full(&host.name)?), host.address))).collect();
        let addresses = net.hosts.iter().filter_map(|host| Some((host.address, full(&host.name)?))).collect();
        let subnets = net.hidden.iter().copied().chain([(net.gateway, net.prefix)]);
        let subnets = subnets.filter_map(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).collect();
        let rack = net.hosts.iter().find(|host| host.address == net.gateway).and_then(|host| full(&host.name));
        let resolvers = net.uplink.is_some().then(|| net.resolvers.clone());
        Self { domain: name(domain), rack, names, addresses, subnets, resolvers }
    }

    /// What is to be done with this query.
    pub fn judge(&self, query: &[u8]) -> Verdict {
        let Ok(message) = Message::from_vec(query) else { return malformed(query) };
        if message.metadata.message_type == MessageType::Response {
            return Verdict::Silence;
        }
        let refuse = |code| self.reply(&message, code, false, vec![], vec![]);
        if message.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [question] = &message.queries[..] else { return refuse(ResponseCode::FormErr) };
        if message.version() > 0 {
            return refuse(ResponseCode::BADVERS);
        }
        if question.query_class() != DNSClass::IN
            || matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR)
        {
            return refuse(ResponseCode::Refused);
        }
        if self.domain.as_ref().is_some_and(|domain| domain.zone_of(question.name())) {
            return self.forward(&message, question);
        }
        match question.name().parse_arpa_name() {
            Ok(IpNet::V4(net)) => {
                let known = (net.prefix_len() == 32).then(|| self.addresses.get(&net.addr())).flatten();
                if known.is_some() || self.subnets.iter().any(|subnet| subnet.contains(&net)) {
                    return self.reverse(&message, question, net, known);
                }
            }
            Ok(IpNet::V6(_)) | Err(_) => {}
        }
        if self.resolvers.is_some() { Verdict::PassOn } else { refuse(ResponseCode::Refused) }
    }

    /// The answer when nobody could be asked.
    pub fn failure(&self, query: &[u8]) -> Verdict {
        match Message::from_vec(query) {
            Ok(message) => self.reply(&message, ResponseCode::ServFail, false, vec![], vec![]),
            Err(_) => malformed(query),
        }
    }

    /// A name below the domain.
    fn forward(&self, message: &Message, question: &Query) -> Verdict {
        let wants = |kind| [kind, RecordType::ANY].contains(&question.query_type());
        if let Some(address) = self.names.get(&key(question.name())) {
            let record = || Record::from_rdata(question.name().clone(), TTL_S, RData::A(A(*address)));
            let answers = wants(RecordType::A).then(record);
            return self.own(message, ResponseCode::NoError, answers.into_iter().collect());
        }
        let (Some(domain), true) = (&self.domain, self.domain.as_ref() == Some(question.name())) else {
            return self.own(message, ResponseCode::NXDomain, vec![]);
        };
        let mut answers = Vec::new();
        if wants(RecordType::SOA) {
            answers.extend(self.authority());
        }
        if let Some(rack) = self.rack.clone().filter(|_| wants(RecordType::NS)) {
            answers.push(Record::from_rdata(domain.clone(), TTL_S, RData::NS(NS(rack))));
        }
        self.own(message, ResponseCode::NoError, answers)
    }

    /// An address, or a whole subnet, of one of the rack's networks.
    fn reverse(&self, message: &Message, question: &Query, net: Ipv4Net, known: Option<&Name>) -> Verdict {
        let Some(name) = known else {
            let code = if net.prefix_len() == 32 { ResponseCode::NXDomain } else { ResponseCode::NoError };
            return self.own(message, code, vec![]);
        };
        let record = || Record::from_rdata(question.name().clone(), TTL_S, RData::PTR(PTR(name.clone())));
        let wanted = [RecordType::PTR, RecordType::ANY].contains(&question.query_type());
        self.own(message, ResponseCode::NoError, wanted.then(record).into_iter().collect())
    }

    /// An answer of which the rack is the authority; one without records says how long that holds.
    fn own(&self, message: &Message, code: ResponseCode, answers: Vec<Record>) -> Verdict {
        let authorities = if answers.is_empty() { self.authority().into_iter().collect() } else { vec![] };
        self.reply(message, code, true, answers, authorities)
    }

    fn authority(&self) -> Option<Record> {
        let (domain, rack) = (self.domain.clone()?, self.rack.clone()?);
        let contact = domain.prepend_label("hostmaster").ok()?;
        // Nobody copies the zone, so serial and intervals mean nothing; the last number is how long "no" holds.
        let soa = SOA::new(rack, contact, 1, 3600, 600, 86_400, TTL_S);
        Some(Record::from_rdata(domain, TTL_S, RData::SOA(soa)))
    }

    fn reply(
        &self,
        query: &Message,
        code: ResponseCode,
        authoritative: bool,
        answers: Vec<Record>,
        authorities: Vec<Record>,
    ) -> Verdict {
        let mut message = Message::response(query.metadata.id, query.metadata.op_code);
        message.metadata.response_code = code;
        message.metadata.authoritative = authoritative;
        message.metadata.recursion_desired = query.metadata.recursion_desired;
        message.metadata.recursion_available = self.resolvers.is_some();
        message.add_queries(query.queries.first().cloned());
        (message.answers, message.authorities) = (answers, authorities);
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD);
            edns.set_rcode_high(code.high());
            message.set_edns(edns);
        }
        // What can't be written can't be answered.
        message.to_vec().map_or(Verdict::Silence, Verdict::Answer)
    }
}

/// What does not parse is told so if its head is there and is a question.
fn malformed(query: &[u8]) -> Verdict {
    let Some([first, second, flags, _, rest @ ..]) = query.get(..HEAD) else { return Verdict::Silence };
    if flags & 0x80 != 0 || rest.len() != HEAD - 4 {
        return Verdict::Silence;
    }
    // The same number and opcode, and "format error".
    let mut answer = vec![*first, *second, 0x80 | (flags & 0x79), 1];
    answer.resize(HEAD, 0);
    Verdict::Answer(answer)
}

fn key(name: &Name) -> String {
    name.to_ascii().to_ascii_lowercase()
}
