//! The states of a claim (RFC 3927 section 2), without sockets and clocks: time and packets go in, what is to be done
//! comes out.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use rackstick_linux::netlink::Mac;

use super::packet::Arp;

// RFC 3927 section 9.
const PROBE_WAIT: Duration = Duration::from_secs(1);
const PROBE_NUM: u32 = 3;
const PROBE_MIN: Duration = Duration::from_secs(1);
const PROBE_MAX: Duration = Duration::from_secs(2);
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);
const ANNOUNCE_NUM: u32 = 2;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
/// A network on which every address is taken is a fault or an attack: from here on tries are rare.
const MAX_CONFLICTS: u32 = 10;
const RATE_LIMIT_INTERVAL: Duration = Duration::from_secs(60);
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// 169.254.1.0 to 169.254.254.255: the first and last 256 are reserved (section 2.1).
const FIRST: u32 = 0xa9fe_0100;
const COUNT: u32 = 254 * 256;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this packet.
    Send(Arp),
    /// Use this address.
    Use(Ipv4Addr),
    /// Use it no more.
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Probing { sent: u32 },
    Announcing { sent: u32 },
    Holding,
}

/// A claim to an address, another one whenever somebody else has it.
pub struct Claim {
    mac: Mac,
    random: fn() -> u32,
    address: Ipv4Addr,
    state: State,
    conflicts: u32,
    defended: Option<Instant>,
    deadline: Option<Instant>,
}

impl Claim {
    /// A claim that is to be probed. Its first address follows from the MAC address, so that it is the same at every
    /// boot (section 2.1).
    pub fn new(mac: Mac, now: Instant, random: fn() -> u32) -> Self {
        let seed = mac.0.iter().fold(0_u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        let mut claim = Self {
            mac,
            random,
            address: address(seed),
            state: State::Probing { sent: 0 },
            conflicts: 0,
            defended: None,
            deadline: None,
        };
        claim.deadline = Some(now + claim.between(Duration::ZERO, PROBE_WAIT));
        claim
    }

    /// When [`Claim::on_deadline`] is to be called next.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Time has come.
    pub fn on_deadline(&mut self, now: Instant) -> Vec<Action> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match self.state {
            State::Probing { sent } if sent < PROBE_NUM => {
                self.state = State::Probing { sent: sent + 1 };
                let wait = if sent + 1 == PROBE_NUM { ANNOUNCE_WAIT } else { self.between(PROBE_MIN, PROBE_MAX) };
                self.deadline = Some(now + wait);
                vec![Action::Send(Arp::probe(self.mac, self.address))]
            }
            State::Probing { .. } => {
                self.conflicts = 0;
                vec![Action::Use(self.address), self.announce(0, now)]
            }
            State::Announcing { sent } => vec![self.announce(sent, now)],
            State::Holding => {
                self.deadline = None;
                Vec::new()
            }
        }
    }

    /// A packet was heard.
    pub fn on_packet(&mut self, packet: &Arp, now: Instant) -> Vec<Action> {
        if packet.mac == self.mac {
            return Vec::new();
        }
        let has = packet.sender == self.address;
        match self.state {
            State::Probing { .. } if has || (packet.is_probe() && packet.target == self.address) => {
                self.begin_anew(now);
                Vec::new()
            }
            State::Announcing { .. } | State::Holding if has => {
                // Section 2.5: once it is defended; if the other goes on, connections are lost rather than both lost.
                if self.defended.is_some_and(|last| now.saturating_duration_since(last) < DEFEND_INTERVAL) {
                    self.begin_anew(now);
                    return vec![Action::Leave];
                }
                self.defended = Some(now);
                vec![Action::Send(Arp::announcement(self.mac, self.address))]
            }
            _ => Vec::new(),
        }
    }

    fn announce(&mut self, sent: u32, now: Instant) -> Action {
        let sent = sent + 1;
        (self.state, self.deadline) = if sent >= ANNOUNCE_NUM {
            (State::Holding, None)
        } else {
            (State::Announcing { sent }, Some(now + ANNOUNCE_INTERVAL))
        };
        Action::Send(Arp::announcement(self.mac, self.address))
    }

    /// Section 2.2.1: another address, and rarely once many were taken.
    fn begin_anew(&mut self, now: Instant) {
        self.conflicts = self.conflicts.saturating_add(1);
        self.address = address((self.random)());
        self.state = State::Probing { sent: 0 };
        self.defended = None;
        let wait = self.between(Duration::ZERO, PROBE_WAIT);
        self.deadline = Some(now + if self.conflicts >= MAX_CONFLICTS { RATE_LIMIT_INTERVAL } else { wait });
    }

    fn between(&self, least: Duration, most: Duration) -> Duration {
        let span = u32::try_from((most - least).as_millis()).unwrap_or(u32::MAX);
        least + Duration::from_millis(u64::from((self.random)() % (span + 1)))
    }
}

fn address(seed: u32) -> Ipv4Addr {
    (FIRST + seed % COUNT).into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const OWN: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);

    fn random() -> u32 {
        static NUMBER: AtomicU32 = AtomicU32::new(77);
        NUMBER.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs the claim until it holds an address; what it sent, and when it got it.
    fn hold(claim: &mut Claim) -> (Vec<Arp>, Instant, Instant) {
        let (mut sent, mut used, mut now) = (Vec::new(), None, claim.deadline().unwrap());
        while let Some(deadline) = claim.deadline() {
            now = deadline;
            for action in claim.on_deadline(now) {
                match action {
                    Action::Send(packet) => sent.push(packet),
                    Action::Use(_) => used = Some(now),
                    Action::Leave => panic!(),
                }
            }
        }
        (sent, used.unwrap(), now)
    }

    #[test]
    fn an_address_is_probed_three_times_and_announced_twice_within_seconds() {
        let start = Instant::now();
        let mut claim = Claim::new(OWN, start, random);
        let (sent, used, _) = hold(&mut claim);
        assert_eq!(sent.iter().map(Arp::is_probe).collect::<Vec<_>>(), [true, true, true, false, false]);
        assert!(sent.iter().all(|packet| packet.target == claim.address && claim.address.is_link_local()));
        assert!((Duration::from_secs(4)..=Duration::from_secs(7)).contains(&(used - start)), "{:?}", used - start);
        assert_eq!(Claim::new(OWN, start, random).address, claim.address, "the same at the next boot");
    }

    #[test]
    fn an_address_that_another_has_or_probes_is_not_taken() {
        let start = Instant::now();
        for heard in [Arp::announcement, Arp::probe] {
            let mut claim = Claim::new(OWN, start, random);
            let first = claim.address;
            claim.on_deadline(claim.deadline().unwrap());
            assert_eq!(claim.on_packet(&heard(OWN, first), start), [], "its own echo");
            assert_eq!(claim.address, first);
            claim.on_packet(&heard(OTHER, first), start);
            assert_ne!(claim.address, first);
            assert!(claim.address.is_link_local() && ![0, 255].contains(&claim.address.octets()[2]));
        }
    }

    #[test]
    fn an_address_is_defended_once_and_then_given_up() {
        let mut claim = Claim::new(OWN, Instant::now(), random);
        let (.., now) = hold(&mut claim);
        let theirs = Arp::announcement(OTHER, claim.address);
        assert_eq!(claim.on_packet(&theirs, now), [Action::Send(Arp::announcement(OWN, claim.address))]);
        let later = now + DEFEND_INTERVAL;
        assert_eq!(claim.on_packet(&theirs, later).len(), 1, "long ago is forgiven");
        assert_eq!(claim.on_packet(&theirs, later + Duration::from_secs(1)), [Action::Leave]);
        assert_ne!(claim.address, theirs.sender);
    }

    #[test]
    fn a_network_that_takes_every_address_is_not_probed_without_pause() {
        let now = Instant::now();
        let mut claim = Claim::new(OWN, now, random);
        for _ in 0..MAX_CONFLICTS {
            let taken = claim.address;
            claim.on_packet(&Arp::announcement(OTHER, taken), now);
        }
        assert_eq!(claim.deadline(), Some(now + RATE_LIMIT_INTERVAL));
    }
}
