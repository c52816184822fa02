//! Asks at regular intervals how a guest is, in a thread of its own: its agent or, where it has none, its service
//! itself.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

use rackstick_api::{
    agent::{Request, Response},
    guest,
};
use rackstick_linux::health;

use super::agent::{self, plain};

/// Time between two checks.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a check may take. Longer than the agent's own limit, so that its reason is heard.
const PATIENCE: Duration = Duration::from_secs(15);

/// How a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether its agent said so, or could not be asked. Without an agent always.
    pub answered: bool,
    /// Whether its check passed.
    pub healthy: bool,
    /// What is wrong; empty if nothing.
    pub detail: String,
    /// What DHCP gave it, by MAC address. It may say anything.
    pub addresses: BTreeMap<String, Ipv4Addr>,
}

impl Health {
    /// Of a guest without an agent, by what the check against its service gave.
    fn seen(failure: Option<health::Unhealthy>) -> Self {
        let detail = failure.as_ref().map(|failure| plain(&failure.to_string()));
        Self {
            answered: true,
            healthy: failure.is_none(),
            detail: detail.unwrap_or_default(),
            addresses: BTreeMap::new(),
        }
    }

    fn bad(answered: bool, detail: String) -> Self {
        Self { answered, healthy: false, detail, addresses: BTreeMap::new() }
    }
}

/// Who is asked.
#[derive(Debug)]
pub enum Asked {
    /// The agent of the guest with this context id.
    Agent(u32),
    /// The guest's service, from outside. Without a check a guest that runs is well: nothing else is known of it.
    Service(Option<guest::Health>),
}

impl Asked {
    fn ask(&self) -> Health {
        let cid = match self {
            Self::Agent(cid) => *cid,
            Self::Service(check) => return Health::seen(check.as_ref().and_then(|check| health::check(check).err())),
        };
        match agent::call(cid, Request::Status, PATIENCE) {
            Ok(Response::Status { healthy, detail, addresses, .. }) => {
                Health { answered: true, healthy, detail: plain(&detail), addresses }
            }
            Ok(Response::Error(why)) => Health::bad(true, plain(&why)),
            Ok(Response::ShuttingDown) => Health::bad(true, "it is shutting down".into()),
            Err(error) => Health::bad(false, error.to_string()),
        }
    }
}

/// A thread that asks; it ends when this is dropped.
#[derive(Debug)]
pub struct Checks {
    _stop: Sender<()>,
}

impl Checks {
    /// Starts to ask, beginning now. `report` returns whether anyone still listens.
    pub fn start(name: &str, asked: Asked, report: impl Fn(Health) -> bool + Send + 'static) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        thread::Builder::new().name(format!("health {name}")).spawn(move || run(&asked, &stopped, report))?;
        Ok(Self { _stop: stop })
    }
}

fn run(asked: &Asked, stopped: &Receiver<()>, report: impl Fn(Health) -> bool) {
    loop {
        if !report(asked.ask()) || stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}
