//! The gateway of private networks: DHCP with the recipe's addresses, and DNS for guests' names, everything else being
//! asked from the uplink's resolver. Guests' packets are hostile, so they are read by a process of its own, without
//! rights and without a file system (`rackstick-host gateway`); this daemon starts it again when it ends.

mod config;
mod dhcp;
mod dns;
pub mod process;
mod supervisor;

use std::{
    io,
    net::Ipv4Addr,
    sync::{Arc, mpsc::Sender, mpsc::channel},
    thread,
};

use rackstick_image::manifest::Manifest;

use super::News;
use config::Config;

/// What the supervisor is told.
#[derive(Debug)]
pub enum Order {
    /// Guests behind this uplink ask these resolvers from now on.
    PassOn(String, Vec<Ipv4Addr>),
    /// The process ended.
    Ended(u32, String),
}

/// The gateway, from the uplinks' side.
#[derive(Debug, Clone)]
pub struct Handle(Sender<Order>);

impl Handle {
    /// A handle whose orders arrive at the other end of this channel.
    pub fn new(orders: Sender<Order>) -> Self {
        Self(orders)
    }

    /// Has the queries of guests behind this uplink passed on to these resolvers.
    pub fn pass_on(&self, uplink: &str, resolvers: Vec<Ipv4Addr>) {
        // The supervisor is gone only when the daemon ends.
        let _ = self.0.send(Order::PassOn(uplink.to_owned(), resolvers));
    }
}

/// Starts the gateway and keeps it alive, for ever.
pub fn start(manifest: &Arc<Manifest>, report: impl Fn(News) + Send + 'static) -> io::Result<Handle> {
    let (send, orders) = channel();
    let config = Config::of(manifest);
    let own = send.clone();
    thread::Builder::new()
        .name("gateway".into())
        .spawn(move || supervisor::Supervisor::new(config, own).run(&orders, report))?;
    Ok(Handle::new(send))
}
