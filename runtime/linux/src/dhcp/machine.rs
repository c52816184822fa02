//! The DHCP client's states (RFC 2131 section 4.4, figure 5), without sockets and clocks: time and messages go in,
//! what is to be done comes out.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use dhcproto::v4::MessageType;
use serde::{Deserialize, Serialize};

use super::message::{Kind, Reply, Request};

/// First wait for an answer, doubled with each try (RFC 2131 section 4.1).
const FIRST_WAIT: Duration = Duration::from_secs(4);
/// Longest wait for an answer: a server that comes back late is found within this time. The RFC allows 64 s; after a
/// power cut, racks are up before the router is, and one small packet in 16 s burdens nobody.
const LONGEST_WAIT: Duration = Duration::from_secs(16);
/// How often an offer is asked for before the client begins anew.
const REQUEST_TRIES: u32 = 4;
/// The shortest lease taken at its word: a hostile server can't make the rack ask without pause.
const SHORTEST_LEASE: Duration = Duration::from_secs(60);
/// The longest lease taken at its word; "infinite" becomes this.
const LONGEST_LEASE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Lease time where the server names none.
const USUAL_LEASE: Duration = Duration::from_secs(3600);
/// The shortest wait between two tries to extend a lease (RFC 2131 section 4.4.5).
const SHORTEST_RETRY: Duration = Duration::from_secs(60);

/// The wait after an offer that its own server then refused (RFC 2131 section 3.1, step 5): a server that does so
/// again and again can't make the rack ask without pause.
const REFUSAL_PAUSE: Duration = Duration::from_secs(10);

/// How often it is asked whether a known lease still holds, before it is used without an answer (RFC 2131 section 3.2,
/// step 4).
const REBOOT_TRIES: u32 = 3;

/// An address that may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// Default gateway.
    pub router: Option<Ipv4Addr>,
    /// Resolvers.
    pub resolvers: Vec<Ipv4Addr>,
    /// The server that gave it.
    pub server: Ipv4Addr,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this message, to everyone or to the server named.
    Send(MessageType, Request, Option<Ipv4Addr>),
    /// Use this lease until then.
    Configure(Lease, Instant),
    /// Stop using the address.
    Deconfigure,
}

#[derive(Debug, Clone)]
enum State {
    Selecting,
    Requesting { offer: Reply, tries: u32 },
    Rebooting { held: Held, tries: u32 },
    Bound(Held),
    Renewing(Held),
    Rebinding(Held),
}

/// A lease and its times.
#[derive(Debug, Clone)]
struct Held {
    lease: Lease,
    renew: Instant,
    rebind: Instant,
    expire: Instant,
}

/// The client.
pub struct Client {
    mac: [u8; 6],
    hostname: String,
    random: fn() -> u32,
    state: State,
    xid: u32,
    began: Instant,
    wait: Duration,
    deadline: Instant,
}

impl Client {
    /// A client that has no address yet and whose first deadline is now.
    pub fn new(mac: [u8; 6], hostname: &str, now: Instant, random: fn() -> u32) -> Self {
        let hostname = hostname.chars().take(63).collect();
        let (state, wait) = (State::Selecting, FIRST_WAIT);
        Self { mac, hostname, random, state, xid: random(), began: now, wait, deadline: now }
    }

    /// A lease is known from before: it is asked for first (RFC 2131 section 3.2).
    pub fn resume(&mut self, lease: Lease, expire: Instant, now: Instant) {
        let left = expire.saturating_duration_since(now);
        self.state = State::Bound(Held { lease, renew: now + left / 2, rebind: now + left * 7 / 8, expire });
        self.verify(now);
    }

    /// Asks whether the lease still holds: the network may be another one now. Without a lease, asks for one at once.
    pub fn verify(&mut self, now: Instant) {
        let state = self.state.clone();
        self.forget(now);
        self.deadline = now;
        match state {
            State::Bound(held) | State::Renewing(held) | State::Rebinding(held) | State::Rebooting { held, .. } => {
                self.state = State::Rebooting { held, tries: 0 };
            }
            State::Selecting | State::Requesting { .. } => {}
        }
    }

    /// When [`Client::on_deadline`] is to be called next.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Time has come.
    pub fn on_deadline(&mut self, now: Instant) -> Vec<Action> {
        if now < self.deadline {
            return Vec::new();
        }
        match self.state.clone() {
            State::Selecting => vec![self.discover(now)],
            State::Requesting { tries, .. } if tries >= REQUEST_TRIES => vec![self.begin(now)],
            State::Requesting { offer, tries } => vec![self.request(offer, tries + 1, now)],
            State::Rebooting { held, .. } if now >= held.expire => vec![Action::Deconfigure, self.begin(now)],
            State::Rebooting { held, tries } if tries >= REBOOT_TRIES => {
                self.deadline = held.renew.max(now);
                self.state = State::Bound(held);
                Vec::new()
            }
            State::Rebooting { held, tries } => {
                self.back_off(now);
                let message = Request { requested: Some(held.lease.address), ..self.message(now) };
                self.state = State::Rebooting { held, tries: tries + 1 };
                vec![Action::Send(MessageType::Request, message, None)]
            }
            State::Bound(held) | State::Renewing(held) | State::Rebinding(held) => self.extend(held, now),
        }
    }

    /// An answer has come.
    pub fn on_reply(&mut self, reply: &Reply, now: Instant) -> Vec<Action> {
        if reply.xid != self.xid {
            return Vec::new();
        }
        match (self.state.clone(), reply.kind) {
            (State::Selecting, Kind::Offer) if reply.server.is_some() => {
                self.wait = FIRST_WAIT;
                vec![self.request(reply.clone(), 1, now)]
            }
            (State::Requesting { offer, .. }, Kind::Ack) => self.bind(reply, offer.server, now),
            (State::Requesting { offer, .. }, Kind::Nak) if reply.server == offer.server => {
                self.forget(now);
                self.deadline = now + REFUSAL_PAUSE;
                Vec::new()
            }
            (State::Renewing(held) | State::Rebinding(held) | State::Rebooting { held, .. }, Kind::Ack)
                if held.lease.address == reply.address =>
            {
                self.bind(reply, Some(held.lease.server), now)
            }
            (State::Renewing(_) | State::Rebinding(_) | State::Rebooting { .. }, Kind::Nak) => {
                vec![Action::Deconfigure, self.begin(now)]
            }
            _ => Vec::new(),
        }
    }

    /// Begins anew, without an address.
    fn begin(&mut self, now: Instant) -> Action {
        self.forget(now);
        self.discover(now)
    }

    /// Is as at first; answers to what was asked before are no longer heard.
    fn forget(&mut self, now: Instant) {
        self.state = State::Selecting;
        self.xid = (self.random)();
        self.began = now;
        self.wait = FIRST_WAIT;
    }

    fn discover(&mut self, now: Instant) -> Action {
        self.back_off(now);
        Action::Send(MessageType::Discover, self.message(now), None)
    }

    fn request(&mut self, offer: Reply, tries: u32, now: Instant) -> Action {
        self.back_off(now);
        let message = Request { requested: Some(offer.address), server: offer.server, ..self.message(now) };
        self.state = State::Requesting { offer, tries };
        Action::Send(MessageType::Request, message, None)
    }

    /// Waits for an answer: twice as long as before, and up to a second more or less, so that racks that came up
    /// together don't ask together.
    fn back_off(&mut self, now: Instant) {
        let jitter = Duration::from_millis(u64::from((self.random)() % 2000));
        self.deadline = now + self.wait + jitter - Duration::from_secs(1);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    fn bind(&mut self, reply: &Reply, server: Option<Ipv4Addr>, now: Instant) -> Vec<Action> {
        let Some(server) = reply.server.or(server) else { return Vec::new() };
        let seconds = |given: Option<u32>| given.map(|seconds| Duration::from_secs(seconds.into()));
        let length = seconds(reply.lease_s).unwrap_or(USUAL_LEASE).clamp(SHORTEST_LEASE, LONGEST_LEASE);
        let rebind = seconds(reply.rebinding_s).filter(|&at| at < length).unwrap_or(length * 7 / 8);
        let renew = seconds(reply.renewal_s).filter(|&at| at < rebind).unwrap_or(length / 2).min(rebind);
        let lease = Lease {
            address: reply.address,
            prefix: reply.prefix,
            router: reply.router,
            resolvers: reply.resolvers.clone(),
            server,
        };
        self.deadline = now + renew;
        self.state =
            State::Bound(Held { lease: lease.clone(), renew: now + renew, rebind: now + rebind, expire: now + length });
        vec![Action::Configure(lease, now + length)]
    }

    /// Asks for more time: first its own server, then every server, then gives the address up.
    fn extend(&mut self, held: Held, now: Instant) -> Vec<Action> {
        if now >= held.expire {
            return vec![Action::Deconfigure, self.begin(now)];
        }
        if now < held.renew {
            self.deadline = held.renew;
            return Vec::new();
        }
        if matches!(self.state, State::Bound(_)) {
            self.xid = (self.random)();
            self.began = now;
        }
        let message = Request { ciaddr: Some(held.lease.address), ..self.message(now) };
        let (next, server) =
            if now < held.rebind { (held.rebind, Some(held.lease.server)) } else { (held.expire, None) };
        // Half of what is left, at least a minute, never past the next stage (RFC 2131 section 4.4.5).
        self.deadline = (now + (next.saturating_duration_since(now) / 2).max(SHORTEST_RETRY)).min(next);
        self.state = if server.is_some() { State::Renewing(held) } else { State::Rebinding(held) };
        vec![Action::Send(MessageType::Request, message, server)]
    }

    fn message(&self, now: Instant) -> Request {
        let secs = now.saturating_duration_since(self.began).as_secs().try_into().unwrap_or(u16::MAX);
        Request { xid: self.xid, secs, mac: self.mac, hostname: self.hostname.clone(), ..Request::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 20);
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);

    fn reply(kind: Kind, xid: u32, lease_s: u32) -> Reply {
        Reply {
            kind,
            xid,
            server: Some(SERVER),
            address: ADDRESS,
            prefix: 24,
            router: Some(SERVER),
            resolvers: vec![SERVER],
            lease_s: Some(lease_s),
            renewal_s: None,
            rebinding_s: None,
        }
    }

    /// A client that holds a lease of this many seconds.
    fn bound(now: Instant, lease_s: u32) -> Client {
        let mut client = Client::new([2; 6], "lab", now, || 1000);
        assert!(matches!(client.on_deadline(now)[..], [Action::Send(MessageType::Discover, ..)]));
        let asked = client.on_reply(&reply(Kind::Offer, 1000, lease_s), now);
        let [Action::Send(MessageType::Request, request, None)] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!((request.requested, request.server), (Some(ADDRESS), Some(SERVER)));
        let done = client.on_reply(&reply(Kind::Ack, 1000, lease_s), now);
        assert!(matches!(&done[..], [Action::Configure(lease, _)] if lease.address == ADDRESS));
        client
    }

    #[test]
    fn a_lease_is_renewed_at_half_time_and_rebound_at_seven_eighths_and_given_up_at_its_end() {
        let start = Instant::now();
        let mut client = bound(start, 8000);
        assert_eq!(client.deadline(), start + Duration::from_secs(4000));
        let renewal = client.on_deadline(client.deadline());
        assert!(
            matches!(&renewal[..], [Action::Send(MessageType::Request, request, Some(SERVER))]
                if request.ciaddr == Some(ADDRESS) && request.server.is_none()),
            "{renewal:?}"
        );
        let mut rebound = false;
        while client.deadline() < start + Duration::from_secs(8000) {
            let now = client.deadline();
            let actions = client.on_deadline(now);
            let to_all = matches!(&actions[..], [Action::Send(_, _, None)]);
            assert_eq!(to_all, now >= start + Duration::from_secs(7000), "{actions:?}");
            rebound |= to_all;
        }
        assert!(rebound);
        let end = client.on_deadline(client.deadline());
        assert!(matches!(&end[..], [Action::Deconfigure, Action::Send(MessageType::Discover, ..)]), "{end:?}");
    }

    #[test]
    fn a_renewal_that_is_answered_starts_the_lease_anew() {
        let start = Instant::now();
        let mut client = bound(start, 8000);
        let now = client.deadline();
        client.on_deadline(now);
        assert!(matches!(client.on_reply(&reply(Kind::Ack, 1000, 8000), now)[..], [Action::Configure(..)]));
        assert_eq!(client.deadline(), now + Duration::from_secs(4000));
    }

    #[test]
    fn a_refused_address_is_given_up_at_once() {
        let start = Instant::now();
        let mut client = bound(start, 8000);
        let now = client.deadline();
        client.on_deadline(now);
        let actions = client.on_reply(&reply(Kind::Nak, 1000, 0), now);
        assert!(matches!(&actions[..], [Action::Deconfigure, Action::Send(MessageType::Discover, ..)]), "{actions:?}");
    }

    #[test]
    fn after_the_cable_was_out_the_lease_is_asked_for_again_and_kept_without_an_answer() {
        let start = Instant::now();
        let mut client = bound(start, 8000);
        client.verify(start);
        for _ in 0..REBOOT_TRIES {
            let asked = client.on_deadline(client.deadline());
            assert!(
                matches!(&asked[..], [Action::Send(MessageType::Request, request, None)]
                    if request.requested == Some(ADDRESS) && request.server.is_none() && request.ciaddr.is_none()),
                "{asked:?}"
            );
        }
        assert_eq!(client.on_deadline(client.deadline()), []);
        assert_eq!(client.deadline(), start + Duration::from_secs(4000));

        // Another network's server refuses it; the same one's extends it.
        client.verify(start);
        client.on_deadline(client.deadline());
        let actions = client.on_reply(&reply(Kind::Ack, 1000, 8000), start);
        assert!(matches!(actions[..], [Action::Configure(..)]), "{actions:?}");
        client.verify(start);
        client.on_deadline(client.deadline());
        let actions = client.on_reply(&reply(Kind::Nak, 1000, 0), start);
        assert!(matches!(&actions[..], [Action::Deconfigure, Action::Send(MessageType::Discover, ..)]), "{actions:?}");
    }

    #[test]
    fn a_lease_from_before_is_given_up_when_it_ends_unanswered() {
        let start = Instant::now();
        let mut client = Client::new([2; 6], "lab", start, || 1000);
        let lease = Lease { address: ADDRESS, prefix: 24, router: None, resolvers: vec![], server: SERVER };
        client.resume(lease, start + Duration::from_secs(5), start);
        let mut now = start;
        let end = loop {
            let actions = client.on_deadline(now);
            if actions.contains(&Action::Deconfigure) {
                break actions;
            }
            assert!(now < start + Duration::from_secs(120));
            now = client.deadline().max(now);
        };
        assert!(matches!(&end[..], [_, Action::Send(MessageType::Discover, ..)]), "{end:?}");
    }

    #[test]
    fn an_offer_that_is_refused_again_is_not_asked_for_without_pause() {
        static NUMBER: AtomicU32 = AtomicU32::new(1000);
        let mut now = Instant::now();
        let mut client = Client::new([2; 6], "lab", now, || NUMBER.fetch_add(1, Ordering::Relaxed));
        for _ in 0..3 {
            let asked = client.on_deadline(now);
            let [Action::Send(MessageType::Discover, discover, None)] = &asked[..] else { panic!("{asked:?}") };
            let xid = discover.xid;
            assert_eq!(client.on_reply(&reply(Kind::Offer, xid, 60), now).len(), 1);
            assert_eq!(client.on_reply(&reply(Kind::Nak, xid, 60), now), []);
            assert_eq!(client.deadline(), now + REFUSAL_PAUSE);
            assert_eq!(client.on_reply(&reply(Kind::Offer, xid, 60), now), [], "the old number is not heard any more");
            assert_eq!(client.on_deadline(now), []);
            now = client.deadline();
        }
    }

    #[test]
    fn answers_to_others_and_out_of_turn_change_nothing() {
        let start = Instant::now();
        let mut client = Client::new([2; 6], "lab", start, || 1000);
        client.on_deadline(start);
        assert_eq!(client.on_reply(&reply(Kind::Offer, 7, 60), start), []);
        assert_eq!(client.on_reply(&reply(Kind::Ack, 1000, 60), start), []);
        assert_eq!(client.on_reply(&reply(Kind::Nak, 1000, 60), start), []);
    }

    #[test]
    fn tries_get_rarer_but_never_end() {
        let mut now = Instant::now();
        let mut client = Client::new([2; 6], "lab", now, || 1000);
        for _ in 0..20 {
            assert!(matches!(client.on_deadline(now)[..], [Action::Send(MessageType::Discover, ..)]));
            let wait = client.deadline() - now;
            assert!(wait >= FIRST_WAIT - Duration::from_secs(1) && wait <= LONGEST_WAIT + Duration::from_secs(1));
            now = client.deadline();
        }
    }

    #[test]
    fn a_server_can_not_make_the_client_ask_without_pause() {
        let start = Instant::now();
        assert!(bound(start, 0).deadline() >= start + Duration::from_secs(30));
        assert!(bound(start, u32::MAX).deadline() <= start + LONGEST_LEASE);
    }
}
