//! Guests: what each is to do, what it does, and what follows when that changes.

mod agent;
pub mod cgroup;
mod config;
mod disk;
mod end;
pub mod folder;
mod health;
mod policy;
mod preparation;
pub mod process;
mod record;
mod start;
mod status;
mod stop;
pub mod volumes;
mod vsock;

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::mpsc::Sender,
    time::Instant,
};

use rackstick_api::guest;
use rackstick_image::{
    manifest::{self, Manifest},
    secrets::Value,
};
use rustix::process::Signal;

use super::{Event, data};
use health::Checks;
pub use health::Health;
use policy::{FirstAnswer, Restarts, Stopping};
use preparation::Preparation;
use process::Process;
use record::Record;

#[derive(Debug)]
struct Running {
    process: Process,
    since: Instant,
    /// Asks for its health as long as this is here.
    checks: Option<Checks>,
    first_answer: FirstAnswer,
    stopping: Option<Stopping>,
    /// Whether it was healthy at least once.
    proven: bool,
}

#[derive(Debug)]
enum Phase {
    /// To be started, not before this moment if there is one.
    Waiting(Option<Instant>),
    Running(Running),
    Stopped,
    Failed,
}

/// A guest with a system of its own on a whole disk, without our init and agent.
#[derive(Debug)]
struct Foreign {
    disk: manifest::Disk,
    /// How the rack sees whether it is well.
    check: Option<guest::Health>,
}

/// One guest.
#[derive(Debug)]
pub struct Guest {
    /// What the manifest says.
    pub spec: manifest::Guest,
    index: usize,
    phase: Phase,
    /// Where its volumes are: the data partition.
    data: PathBuf,
    volumes: Preparation,
    /// What it is if it has no agent.
    foreign: Option<Foreign>,
    /// The values of its secrets, by name.
    secrets: BTreeMap<String, Value>,
    healthy: bool,
    /// What is wrong or what it waits for; empty if nothing.
    detail: String,
    /// Those that it has by DHCP, by network.
    leased: BTreeMap<String, Ipv4Addr>,
    restarts: u32,
    delays: Restarts,
    events: Sender<Event>,
}

impl Guest {
    /// The guest with this index, as it was left: a monitor that still runs is taken over.
    pub fn find(manifest: &Manifest, spec: manifest::Guest, index: usize, events: Sender<Event>) -> Self {
        let record = Record::load(&spec.name).unwrap_or_else(|error| {
            log::warn!("{}: what was known of it can't be read ({error}); it is started anew", spec.name);
            Record::default()
        });
        let disk = manifest.images.get(&spec.image).and_then(|image| image.disk.clone());
        let foreign = disk.map(|disk| Foreign { disk, check: config::check_from_outside(manifest, &spec) });
        let mut guest = Self {
            spec,
            foreign,
            index,
            phase: Phase::Waiting(None),
            data: Path::new(data::MOUNT).to_owned(),
            volumes: Preparation::default(),
            secrets: BTreeMap::new(),
            healthy: false,
            detail: String::new(),
            leased: BTreeMap::new(),
            restarts: record.restarts,
            delays: Restarts::new(),
            events,
        };
        if let Some((pid, start_time)) = record.monitor {
            match Process::adopt(pid, start_time) {
                Ok(Some(process)) => {
                    let now = Instant::now();
                    guest.take_over(process, now);
                    if record.stopped {
                        guest.stop(now);
                    }
                }
                Ok(None) if record.stopped => guest.phase = Phase::Stopped,
                Ok(None) => guest.ended(pid, None, Instant::now()),
                Err(error) => log::error!("{}: its monitor {pid} can't be found again: {error}", guest.spec.name),
            }
        } else if let Some(why) = record.failed {
            guest.phase = Phase::Failed;
            guest.detail = why;
        } else if record.stopped {
            guest.phase = Phase::Stopped;
        }
        guest
    }

    /// Gives it the values of its secrets, by name: at its next start it has them.
    pub fn give(&mut self, secrets: BTreeMap<String, Value>) {
        self.secrets = secrets;
    }

    /// What it waits for, if it lacks secrets that its image wants.
    pub fn lacks(&self, manifest: &Manifest) -> Option<String> {
        let wanted = manifest.secrets(&self.spec).iter().map(|secret| secret.name.as_str());
        let missing: Vec<&str> = wanted.filter(|name| !self.secrets.contains_key(*name)).collect();
        (!missing.is_empty()).then(|| {
            let (s, it) = if missing.len() == 1 { ("", "it") } else { ("s", "them") };
            format!(
                "waits for secret{s} {}: switch the rack off and give {it} with `rackstick secrets`",
                missing.join(", ")
            )
        })
    }

    /// When [`Guest::advance`] has something to do without an event.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting(at) => *at,
            Phase::Running(running) => match &running.stopping {
                Some(stopping) => Some(stopping.deadline()),
                None => running.first_answer.deadline(),
            },
            Phase::Stopped | Phase::Failed => None,
        }
    }

    /// Does what time demands. `obstacle`: what keeps it from being started.
    pub fn advance(&mut self, manifest: &Manifest, obstacle: impl FnOnce() -> Option<Obstacle>, now: Instant) {
        match &mut self.phase {
            Phase::Waiting(not_before) => {
                if not_before.is_some_and(|at| now < at) {
                    return;
                }
                *not_before = None;
                match obstacle() {
                    Some(Obstacle::Wait(why)) => self.detail = why,
                    Some(Obstacle::Fail(why)) => self.fail(why),
                    None => self.start(manifest, now),
                }
            }
            Phase::Running(Running { stopping: Some(stopping), process, .. }) => {
                if let Some(signal) = stopping.overdue(now) {
                    log::warn!("{}: it did not shut down in time", self.spec.name);
                    send(&self.spec.name, process, signal);
                }
            }
            Phase::Running(Running { stopping: None, process, first_answer, .. }) => {
                if first_answer.overdue(now) {
                    log::warn!("{}: its agent has never answered; it is ended, to be started again", self.spec.name);
                    send(&self.spec.name, process, Signal::KILL);
                }
            }
            Phase::Stopped | Phase::Failed => {}
        }
    }

    /// A check has come back.
    pub fn checked(&mut self, pid: u32, health: Health) {
        let Phase::Running(running) = &mut self.phase else { return };
        if running.process.pid != pid || running.stopping.is_some() {
            return;
        }
        if health.healthy != self.healthy {
            let after = running.since.elapsed().as_secs_f32();
            match health.healthy {
                true => log::info!("{}: healthy, {after:.1} s after it was started", self.spec.name),
                false => log::warn!("{}: not healthy: {}", self.spec.name, health.detail),
            }
        }
        if health.answered {
            running.first_answer.came();
        }
        running.proven |= health.healthy;
        self.healthy = health.healthy;
        self.detail = health.detail;
        if health.answered {
            self.leased(&health.addresses);
        }
    }

    /// Notes what it says that DHCP gave it: of that only what concerns interfaces of its own that ask for an address.
    fn leased(&mut self, by_mac: &BTreeMap<String, Ipv4Addr>) {
        for interface in self.spec.interfaces.iter().filter(|interface| interface.address.known().is_none()) {
            let (name, network) = (&self.spec.name, &interface.network);
            let before = match by_mac.get(&interface.mac) {
                Some(address) => self.leased.insert(network.clone(), *address),
                None => self.leased.remove(network),
            };
            match self.leased.get(network) {
                now if now == before.as_ref() => {}
                Some(address) => log::info!("{name}: its address on {network} is {address}"),
                None => log::info!("{name}: it has no address on {network} any more"),
            }
        }
    }

    fn fail(&mut self, why: String) {
        log::error!("{}: {why}", self.spec.name);
        self.volumes.forget();
        self.phase = Phase::Failed;
        self.remember(Some(why.clone()));
        self.detail = why;
    }

    /// Starts it again if it was stopped or has failed.
    pub fn resume(&mut self) {
        if matches!(self.phase, Phase::Stopped | Phase::Failed) {
            self.phase = Phase::Waiting(None);
            self.delays = Restarts::new();
            self.detail = String::new();
            self.remember(None);
        }
    }

    /// Ends its monitor as a crash would.
    pub fn kill(&self) -> io::Result<()> {
        match &self.phase {
            Phase::Running(running) => running.process.signal(Signal::KILL),
            _ => Err(io::Error::other("it does not run")),
        }
    }

    fn remember(&self, failed: Option<String>) {
        let (monitor, stopped) = match &self.phase {
            Phase::Running(Running { process, stopping, .. }) => {
                (Some((process.pid, process.start_time)), stopping.is_some())
            }
            phase => (None, matches!(phase, Phase::Stopped)),
        };
        let record = Record { monitor, restarts: self.restarts, stopped, failed };
        if let Err(error) = record.save(&self.spec.name) {
            log::error!(
                "{}: its state can't be remembered ({error}); a restarted daemon won't find it",
                self.spec.name
            );
        }
    }
}

fn send(guest: &str, process: &Process, signal: Signal) {
    if let Err(error) = process.signal(signal) {
        log::error!("{guest}: its monitor can't be told to stop: {error}");
    }
}

/// What keeps a guest from being started.
pub enum Obstacle {
    /// Something that may still come.
    Wait(String),
    /// Something that won't.
    Fail(String),
}

#[cfg(test)]
mod tests;
