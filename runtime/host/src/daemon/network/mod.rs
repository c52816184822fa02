//! The rack's networks: a bridge each, a tap for every guest's interface, the rack's address on uplinks, the firewall,
//! and the gateway that answers guests' DHCP and DNS.

mod bridges;
pub mod firewall;
pub mod gateway;
mod linklocal;
pub mod names;
mod nft;
mod nic;
pub mod routes;
#[cfg(test)]
mod testing;
mod uplink;

use std::{
    fs, io,
    sync::{Arc, Mutex},
    thread,
};

use rackstick_image::manifest::{Manifest, Network};
use rackstick_linux::{
    netlink::{NetlinkError, ParseMacError},
    tap::TapError,
};

/// Where leases are remembered for a restarted daemon.
const RECORDS: &str = "/run/rackstick/uplinks";

/// Why a network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Links, addresses, routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Taps.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The firewall.
    #[error(transparent)]
    Firewall(#[from] nft::Error),
    /// A MAC address of the manifest.
    #[error("the manifest is damaged: {0}")]
    Mac(#[from] ParseMacError),
    /// A switch of the kernel.
    #[error("{path} can't be set to {value}: {source}")]
    Switch {
        /// The file.
        path: String,
        /// What was to be written.
        value: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A DHCP client.
    #[error("no DHCP client can be started on {bridge}: {source}; tried again")]
    Dhcp {
        /// The interface.
        bridge: String,
        /// The cause.
        source: io::Error,
    },
    /// Waiting.
    #[error("links can't be waited for: {0}; tried again")]
    Wait(io::Error),
    /// A thread.
    #[error("no thread can be started: {0}")]
    Thread(io::Error),
}

/// What the networks have to say.
#[derive(Debug)]
pub enum News {
    /// What is wrong with a network, or nothing any more.
    Problem(String, Option<String>),
    /// What is waited for, or nothing any more.
    Activity(String, Option<String>),
    /// The rack's address on an uplink, with prefix length, or none any more.
    Address(String, Option<String>),
}

/// Brings up all that needs no outside world: bridges, gateways, taps, the firewall. Guests can start then. What was
/// there before (the daemon was restarted) stays as it is. `owner`: the user that opens a guest's taps.
pub fn bring_up(manifest: &Manifest, owner: impl Fn(usize) -> u32) -> Result<(), Error> {
    // The rack speaks IPv4 only; guests on a bridged network use IPv6 among themselves and with the LAN.
    switch("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
    switch("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
    bridges::bring_up(manifest, owner)?;
    firewall::apply(manifest)?;
    // ARP, too, tells about a network only to those who are on it.
    switch("/proc/sys/net/ipv4/conf/all/arp_ignore", "1")?;
    switch("/proc/sys/net/ipv4/conf/all/arp_announce", "2")?;
    // The kernel takes the stricter of "all" and the interface's own. "all" would be too strict for an uplink: see
    // `filter_sources`.
    switch("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
    switch("/proc/sys/net/ipv4/conf/default/rp_filter", "1")?;
    for (name, network) in &manifest.networks {
        filter_sources(name, matches!(network, Network::Private { .. }))?;
    }
    // Only behind the firewall: without it, private networks would reach each other.
    switch("/proc/sys/net/ipv4/ip_forward", "1")
}

/// Starts what answers the guests of private networks. Needs no NIC.
pub fn start_gateway(
    manifest: &Arc<Manifest>,
    report: impl Fn(News) + Send + 'static,
) -> Result<gateway::Handle, Error> {
    gateway::start(manifest, report).map_err(Error::Thread)
}

/// Starts a thread for each uplink, which finds its NIC and gets the rack an address, and keeps both.
pub fn start_uplinks(
    manifest: &Arc<Manifest>,
    gateway: gateway::Handle,
    report: impl Fn(News) + Send + Clone + 'static,
) -> Result<(), Error> {
    let (taking, records) = (Arc::new(Mutex::new(())), RECORDS.into());
    let shared = uplink::Shared { taking, gateway, records, waits: uplink::Waits::default() };
    start_uplinks_with(manifest, &shared, report)
}

fn start_uplinks_with(
    manifest: &Arc<Manifest>,
    shared: &uplink::Shared,
    report: impl Fn(News) + Send + Clone + 'static,
) -> Result<(), Error> {
    for (name, network) in &manifest.networks {
        let Network::Uplink { nic, address, .. } = network else { continue };
        let uplink = uplink::Uplink {
            manifest: manifest.clone(),
            name: name.clone(),
            nic: nic.clone(),
            address: address.clone(),
            shared: shared.clone(),
        };
        let report = report.clone();
        thread::Builder::new()
            .name(format!("uplink {name}"))
            .spawn(move || uplink.run(report))
            .map_err(Error::Thread)?;
    }
    Ok(())
}

/// Whether packets whose source would not be answered by the same network are dropped (RFC 3704 section 2.2, strict).
/// An uplink without an address has no such source, so that no DHCP server could be heard; until it has one, nothing
/// but the firewall stands against forged sources.
fn filter_sources(network: &str, on: bool) -> Result<(), Error> {
    let path = format!("/proc/sys/net/ipv4/conf/{}/rp_filter", names::bridge(network));
    switch(&path, if on { "1" } else { "0" })
}

fn switch(path: &str, value: &'static str) -> Result<(), Error> {
    match fs::write(path, value) {
        Ok(()) => Ok(()),
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.starts_with("/proc/sys/net/ipv6/") => Ok(()),
        Err(source) => Err(Error::Switch { path: path.to_owned(), value, source }),
    }
}
