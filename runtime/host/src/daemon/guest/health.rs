//! Asks a guest's agent at regular intervals how the guest is, in a thread of its own.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

use rackstick_api::agent::{Request, Response};

use super::agent::{self, plain};

/// Time between two checks.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a check may take. Longer than the agent's own limit, so that its reason is heard.
const PATIENCE: Duration = Duration::from_secs(15);

/// How a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether its agent said so, or could not be asked.
    pub answered: bool,
    /// Whether its check passed.
    pub healthy: bool,
    /// What is wrong; empty if nothing.
    pub detail: String,
    /// What DHCP gave it, by MAC address. It may say anything.
    pub addresses: BTreeMap<String, Ipv4Addr>,
}

impl Health {
    fn bad(answered: bool, detail: String) -> Self {
        Self { answered, healthy: false, detail, addresses: BTreeMap::new() }
    }
}

/// A thread that asks; it ends when this is dropped.
#[derive(Debug)]
pub struct Checks {
    _stop: Sender<()>,
}

impl Checks {
    /// Starts to ask the guest with this context id, beginning now. `report` returns whether anyone still listens.
    pub fn start(name: &str, cid: u32, report: impl Fn(Health) -> bool + Send + 'static) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        thread::Builder::new().name(format!("health {name}")).spawn(move || run(cid, &stopped, report))?;
        Ok(Self { _stop: stop })
    }
}

fn run(cid: u32, stopped: &Receiver<()>, report: impl Fn(Health) -> bool) {
    loop {
        let health = match agent::call(cid, Request::Status, PATIENCE) {
            Ok(Response::Status { healthy, detail, addresses, .. }) => {
                Health { answered: true, healthy, detail: plain(&detail), addresses }
            }
            Ok(Response::Error(why)) => Health::bad(true, plain(&why)),
            Ok(Response::ShuttingDown) => Health::bad(true, "it is shutting down".into()),
            Err(error) => Health::bad(false, error.to_string()),
        };
        if !report(health) || stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}
