//! An uplink: finds the NIC, makes it a port of the uplink's bridge, and gets the bridge an address: the recipe's, or
//! DHCP's, or, where no server answers, one of its own (RFC 3927) until one does. NIC and cable may come and go.

mod address;
mod record;

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rackstick_image::manifest::{Manifest, Network, Nic, UplinkAddress};
use rackstick_linux::{
    dhcp,
    netlink::{Link, LinkChanges, Mac, Netlink},
    wait,
};

use self::address::{Configuration, Source};
use super::{Error, News, gateway, linklocal, names, nic};

/// How long to wait for a card or its carrier before that is reported; it is waited for ever after.
const PATIENCE: Duration = Duration::from_secs(20);
/// The wait before something that the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// One uplink and what its thread needs.
pub struct Uplink {
    pub manifest: Arc<Manifest>,
    pub name: String,
    pub nic: Nic,
    pub address: UplinkAddress,
    pub shared: Shared,
}

/// What all uplinks share.
#[derive(Clone)]
pub struct Shared {
    /// Keeps two from taking the same NIC.
    pub taking: Arc<Mutex<()>>,
    /// Passes guests' queries on to the uplinks' resolvers.
    pub gateway: gateway::Handle,
    /// Where leases are remembered for a restarted daemon.
    pub records: PathBuf,
    /// [`Waits::default`]; tests have less time.
    pub waits: Waits,
}

/// How long is waited for what may come late.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// How long a card may take to show its carrier after it was switched on.
    pub settle: Duration,
    /// How long DHCP may stay without an answer before the rack takes an address of its own.
    pub link_local: Duration,
}

impl Default for Waits {
    /// Gigabit negotiation takes three seconds, and DHCP tries three times.
    fn default() -> Self {
        Self { settle: Duration::from_secs(5), link_local: Duration::from_secs(20) }
    }
}

/// The NIC that is the bridge's port.
struct Port {
    index: u32,
    name: String,
    mac: Mac,
    /// Since when the cable is out.
    unplugged: Option<Instant>,
    /// Whether the bridge sends through it. Until then what is sent is lost, and DHCP asks again only after seconds.
    forwards: bool,
}

impl Uplink {
    /// Brings the uplink up and keeps it so, for ever.
    pub fn run(self, report: impl Fn(News)) {
        let report = Reporter::new(&self.name, report);
        loop {
            let Err(error) = Running::begin(&self, &report).and_then(|mut running| running.keep());
            report.trouble(Some(error.to_string()));
            // Not a wait for a condition: a kernel that refuses is not asked without pause.
            std::thread::sleep(RETRY);
        }
    }
}

/// Tells the main loop what has changed, and nothing twice.
struct Reporter<'a> {
    name: &'a str,
    report: Box<dyn Fn(News) + 'a>,
}

impl<'a> Reporter<'a> {
    fn new(name: &'a str, report: impl Fn(News) + 'a) -> Self {
        Self { name, report: Box::new(report) }
    }

    fn trouble(&self, what: Option<String>) {
        let what = what.map(|what| format!("uplink {}: {what}", self.name));
        (self.report)(News::Problem(format!("uplink {}", self.name), what));
    }

    fn doing(&self, what: Option<&str>) {
        let what = what.map(|what| format!("{what} {}", self.name));
        (self.report)(News::Activity(format!("uplink {}", self.name), what));
    }

    fn address(&self, address: Option<String>) {
        (self.report)(News::Address(self.name.to_owned(), address));
    }
}

/// An uplink with what it has at the moment.
struct Running<'a> {
    uplink: &'a Uplink,
    report: &'a Reporter<'a>,
    netlink: Netlink,
    changes: LinkChanges,
    bridge: u32,
    /// Since when there is no NIC, and what its name was if there was one.
    missing: (Instant, Option<String>),
    /// The cards that could be taken.
    seen: String,
    /// All wired cards, for who looks for another one.
    others: String,
    port: Option<Port>,
    dhcp: Option<dhcp::Session>,
    claim: Option<linklocal::Session>,
    /// When DHCP began to be without an answer; none while there is a lease.
    unanswered: Option<Instant>,
    /// The address that the bridge is to have.
    wanted: Option<Configuration>,
    /// Why it does not have it, and when that is tried again.
    failed: Option<(String, Instant)>,
    /// Why the lease is not used.
    refused: Option<String>,
    /// What DHCP could not do.
    dhcp_failed: Option<String>,
    /// Which trouble was told last, and which activity.
    told: Option<Option<String>>,
    told_doing: Option<Option<&'static str>>,
}

impl<'a> Running<'a> {
    fn begin(uplink: &'a Uplink, report: &'a Reporter<'a>) -> Result<Self, Error> {
        let changes = LinkChanges::open()?;
        let mut netlink = Netlink::open()?;
        let bridge = netlink.link(&names::bridge(&uplink.name))?.index;
        let now = Instant::now();
        Ok(Self {
            uplink,
            report,
            netlink,
            changes,
            bridge,
            missing: (now, None),
            seen: String::new(),
            others: String::new(),
            port: None,
            dhcp: None,
            claim: None,
            unanswered: None,
            wanted: None,
            failed: None,
            refused: None,
            dhcp_failed: None,
            told: None,
            told_doing: None,
        })
    }

    fn keep(&mut self) -> Result<std::convert::Infallible, Error> {
        loop {
            let now = Instant::now();
            let wake_for_links = self.look(now)?;
            self.talk(now);
            if self.failed.as_ref().is_some_and(|(_, at)| now >= *at) {
                self.apply();
            }
            let trouble = self.trouble(now);
            if self.told.as_ref() != Some(&trouble) {
                self.report.trouble(trouble.clone());
                self.told = Some(trouble);
            }
            let doing = match (&self.port, &self.wanted) {
                (None, _) => Some("waiting for a network card for"),
                (_, None) => Some("waiting for an address on"),
                (_, Some(_)) => None,
            };
            if self.told_doing != Some(doing) {
                self.report.doing(doing);
                self.told_doing = Some(doing);
            }
            let deadlines = [
                wake_for_links,
                self.dhcp.as_ref().map(dhcp::Session::deadline),
                self.claim.as_ref().and_then(linklocal::Session::deadline),
                self.failed.as_ref().map(|(_, at)| *at),
                self.unanswered
                    .filter(|_| self.claim.is_none())
                    .map(|since| since + self.uplink.shared.waits.link_local),
            ];
            // What has passed was seen to just now, unless the cable is out: the kernel tells when it is back.
            let next = deadlines.into_iter().flatten().filter(|deadline| *deadline > now || self.is_connected()).min();
            let mut awaited: Vec<BorrowedFd<'_>> = vec![self.changes.as_fd()];
            // While the cable is out nobody reads what guests on the bridge send there: it would be awaited in vain,
            // and without pause.
            if self.is_connected() {
                awaited.extend(self.dhcp.as_ref().map(AsFd::as_fd));
                awaited.extend(self.claim.as_ref().map(AsFd::as_fd));
            }
            wait::any_readable(&awaited, next).map_err(Error::Wait)?;
            self.changes.forget()?;
        }
    }

    fn is_connected(&self) -> bool {
        self.port.as_ref().is_some_and(|port| port.unplugged.is_none() && port.forwards)
    }

    /// Looks at the cards: whether the uplink's is still there and has its cable, else which is to be taken. Gives the
    /// moment at which that is to be looked at again even if no link changes.
    fn look(&mut self, now: Instant) -> Result<Option<Instant>, Error> {
        let links = self.netlink.links()?;
        if let Some(port) = &mut self.port {
            match links.iter().find(|link| link.index == port.index && link.master == Some(self.bridge)) {
                None => {
                    log::warn!("uplink {}: {} ({}) is gone", self.uplink.name, port.name, port.mac);
                    self.leave(now);
                }
                Some(link) => {
                    if !link.up {
                        self.netlink.set_up(link.index, true)?;
                    }
                    // The kernel tells when that changes.
                    port.forwards = link.forwards;
                    match (link.carrier, port.unplugged) {
                        (false, None) => port.unplugged = Some(now),
                        (true, Some(_)) => {
                            port.unplugged = None;
                            self.plugged_in(now);
                        }
                        _ => {}
                    }
                }
            }
        }
        let since = match &self.port {
            Some(Port { unplugged: None, .. }) => return Ok(None),
            Some(Port { unplugged: Some(since), .. }) => *since,
            None => self.missing.0,
        };
        let settled = now >= since + self.uplink.shared.waits.settle;
        self.take(&links, settled, now)?;
        let next = [since + self.uplink.shared.waits.settle, since + PATIENCE].into_iter().find(|at| now < *at);
        // After a card was taken, its carrier is looked at once more: it may have come meanwhile.
        Ok(next)
    }

    /// Takes the card that the rule says, if it is another than now. Switches candidates on: a carrier only shows then.
    fn take(&mut self, links: &[Link], settled: bool, now: Instant) -> Result<(), Error> {
        let taking = self.uplink.shared.taking.clone();
        let _alone = taking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cards = nic::candidates(&self.uplink.nic, links);
        cards.retain(|card| card.link.master.is_none_or(|master| master == self.bridge));
        for card in cards.iter().filter(|card| !card.link.up) {
            self.netlink.set_up(card.link.index, true)?;
        }
        let names = |cards: &[nic::Card]| cards.iter().map(nic::Card::shown).collect::<Vec<_>>().join(", ");
        self.seen = names(&cards);
        self.others = names(&nic::candidates(&Nic::Auto, links));
        let present = |card: &&nic::Card| card.link.master == Some(self.bridge);
        let chosen = match &self.port {
            // Its cable is out; another one's may be in.
            Some(_) if !settled => None,
            Some(_) => nic::choose(&self.uplink.nic, &cards, settled),
            // A port of this bridge already: the daemon was restarted.
            None => cards.iter().find(present).or_else(|| nic::choose(&self.uplink.nic, &cards, settled)),
        };
        let Some(card) = chosen else { return Ok(()) };
        if self.port.as_ref().is_some_and(|port| port.index == card.link.index) {
            return Ok(());
        }
        let Some(mac) = card.link.mac else { return Ok(()) };
        if let Some(port) = &self.port {
            log::warn!("uplink {}: {} has no carrier; {} has", self.uplink.name, port.name, card.link.name);
            self.leave(now);
        }
        self.release_others(links, card.link.index)?;
        let bridge = links.iter().find(|link| link.index == self.bridge);
        // A DHCP server knows the card's address.
        if bridge.is_none_or(|bridge| bridge.mac != Some(mac)) {
            self.netlink.set_mac(self.bridge, mac)?;
        }
        if card.link.master.is_none() {
            self.netlink.set_master(card.link.index, Some(self.bridge))?;
        }
        log::info!("uplink {}: {} is its network card, of {}", self.uplink.name, card.shown(), self.seen);
        let unplugged = (!card.link.carrier).then_some(now);
        let (index, name, forwards) = (card.link.index, card.link.name.clone(), card.link.forwards);
        self.port = Some(Port { index, name, mac, unplugged, forwards });
        self.start(mac, now)
    }

    /// Ports that are neither the card nor a guest's don't belong on the bridge.
    fn release_others(&mut self, links: &[Link], card: u32) -> Result<(), Error> {
        let foreign = links.iter().filter(|link| link.master == Some(self.bridge) && link.index != card);
        for link in foreign.filter(|link| link.kind.as_deref() != Some("tun")) {
            log::warn!("uplink {}: {} is taken from its bridge", self.uplink.name, link.name);
            self.netlink.set_master(link.index, None)?;
        }
        Ok(())
    }

    /// The card is gone, or its cable is out and another one makes up for it: so are the addresses that it had.
    fn leave(&mut self, now: Instant) {
        if let Some(port) = self.port.take() {
            self.missing = (now, Some(format!("{} ({})", port.name, port.mac)));
        }
        (self.dhcp, self.claim, self.unanswered) = (None, None, None);
        (self.refused, self.dhcp_failed) = (None, None);
        self.set(None);
    }

    fn has_lease(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| wanted.source == Source::Lease)
    }
}

impl Running<'_> {
    /// A card was taken: gets it its address.
    fn start(&mut self, mac: Mac, now: Instant) -> Result<(), Error> {
        match &self.uplink.address {
            UplinkAddress::Static { address, prefix } => {
                let Some(Network::Uplink { gateway, resolver, .. }) =
                    self.uplink.manifest.networks.get(&self.uplink.name)
                else {
                    return Ok(());
                };
                let (gateway, resolvers) = (*gateway, resolver.iter().copied().collect());
                let (address, prefix, source) = (*address, *prefix, Source::Recipe);
                self.set(Some(Configuration { address, prefix, gateway, resolvers, source }));
            }
            UplinkAddress::Dhcp => {
                let known = record::load(&self.uplink.shared.records, &self.uplink.name, mac);
                // A lease that still holds is used while it is asked for again.
                match &known {
                    Some((lease, _)) => self.lease(lease.clone()),
                    None => self.set(None),
                }
                let bridge = names::bridge(&self.uplink.name);
                let session = dhcp::Session::open(&bridge, mac, &self.uplink.manifest.rack, known);
                self.dhcp = Some(session.map_err(|source| Error::Dhcp { bridge, source })?);
                self.unanswered = (!self.has_lease()).then_some(now);
            }
        }
        Ok(())
    }

    /// The cable is in again, perhaps of another network: the lease is asked for again, a claim begins anew.
    fn plugged_in(&mut self, now: Instant) {
        log::info!("uplink {}: the cable is in", self.uplink.name);
        if let Some(session) = &mut self.dhcp {
            session.verify();
        }
        self.claim = None;
        if self.unanswered.is_some() {
            self.set(None);
            self.unanswered = Some(now);
        }
    }

    /// Lets DHCP and the claim do what they have to.
    fn talk(&mut self, now: Instant) {
        if !self.is_connected() {
            return;
        }
        let changes = self.dhcp.as_mut().map(dhcp::Session::proceed).unwrap_or_default();
        for change in changes {
            match change {
                dhcp::Change::Leased(lease, expires) => {
                    self.dhcp_failed = None;
                    self.remember(&lease, expires);
                    self.lease(lease);
                    if self.has_lease() {
                        (self.claim, self.unanswered) = (None, None);
                    } else {
                        self.unanswered.get_or_insert(now);
                    }
                }
                dhcp::Change::Lost => {
                    record::forget(&self.uplink.shared.records, &self.uplink.name);
                    self.refused = None;
                    self.unanswered.get_or_insert(now);
                    if self.has_lease() {
                        self.set(None);
                    }
                }
                dhcp::Change::Failed(error) => self.dhcp_failed = Some(error.to_string()),
            }
        }
        if let Err(error) = self.claim_address(now) {
            self.claim = None;
            self.unanswered = Some(now);
            log::warn!("uplink {}: no address can be claimed: {error}; tried again", self.uplink.name);
        }
    }

    /// Claims an address of the rack's own once DHCP was without an answer for long.
    fn claim_address(&mut self, now: Instant) -> std::io::Result<()> {
        let late = self.unanswered.is_some_and(|since| now >= since + self.uplink.shared.waits.link_local);
        if late
            && self.claim.is_none()
            && let Some(port) = &self.port
        {
            log::info!("uplink {}: no DHCP server answers; an address is claimed", self.uplink.name);
            self.claim = Some(linklocal::Session::open(self.bridge, port.mac)?);
        }
        let Some(claim) = &mut self.claim else { return Ok(()) };
        for change in claim.proceed()? {
            match change {
                linklocal::Change::Claimed(address) => {
                    let (prefix, source) = (linklocal::PREFIX, Source::Claim);
                    let none = Configuration { address, prefix, gateway: None, resolvers: Vec::new(), source };
                    self.set(Some(none));
                }
                linklocal::Change::Lost => self.set(None),
            }
        }
        Ok(())
    }

    fn remember(&self, lease: &dhcp::Lease, expires: Instant) {
        let Some(port) = &self.port else { return };
        if let Err(error) = record::save(&self.uplink.shared.records, &self.uplink.name, port.mac, lease, expires) {
            log::warn!("uplink {}: its lease can't be remembered: {error}", self.uplink.name);
        }
    }

    /// Uses a lease, unless it is in the way of a private network.
    fn lease(&mut self, lease: dhcp::Lease) {
        let wanted = Configuration::from(lease);
        self.refused = address::conflict(&self.uplink.manifest, &wanted);
        if self.refused.is_none() {
            self.set(Some(wanted));
        } else if self.has_lease() {
            self.set(None);
        }
    }

    fn set(&mut self, wanted: Option<Configuration>) {
        self.wanted = wanted;
        self.apply();
    }

    /// Makes the bridge's address, routes and resolver what they are to be.
    fn apply(&mut self) {
        let wanted = self.wanted.as_ref();
        let done = address::configure(&mut self.netlink, &self.uplink.name, self.bridge, wanted);
        self.failed = done.err().map(|error| (error.to_string(), Instant::now() + RETRY));
        let resolvers = wanted.map(|wanted| wanted.resolvers.clone()).unwrap_or_default();
        self.uplink.shared.gateway.pass_on(&self.uplink.name, resolvers);
        self.report.address(wanted.map(|wanted| format!("{}/{}", wanted.address, wanted.prefix)));
    }

    /// What is wrong at the moment, and what to do.
    fn trouble(&self, now: Instant) -> Option<String> {
        let (since, gone) = &self.missing;
        let Some(port) = &self.port else {
            let wanted = nic::shown(&self.uplink.nic);
            return match gone {
                Some(gone) => Some(format!("{gone} is gone; waiting for it or {wanted}")),
                None if now < *since + PATIENCE => None,
                None if !self.seen.is_empty() => Some(format!("no carrier on {}; plug a cable in", self.seen)),
                None if self.others.is_empty() => {
                    Some(format!("{wanted} is not there; plug it in, or see whether the rack has a driver for it"))
                }
                None => Some(format!(
                    "{wanted} is not there, but {}: if one of them is meant, let the recipe name it by its MAC address",
                    self.others
                )),
            };
        };
        if port.unplugged.is_some_and(|since| now >= since + self.uplink.shared.waits.settle) {
            return Some(format!("{} ({}) has no carrier; plug its cable in", port.name, port.mac));
        }
        if let Some((why, _)) = &self.failed {
            return Some(why.clone());
        }
        if let Some(why) = &self.refused {
            return Some(why.clone());
        }
        if let Some(Configuration { address, source: Source::Claim, .. }) = &self.wanted {
            return Some(format!("no DHCP server answers; the rack calls itself {address} and keeps asking"));
        }
        self.dhcp_failed.as_ref().filter(|_| !self.has_lease()).map(|why| format!("DHCP: {why}; tried again"))
    }
}

#[cfg(test)]
mod tests;
