//! Guests: what each is to do, what it does, and what follows when that changes.

mod agent;
pub mod cgroup;
mod config;
mod disk;
pub mod folder;
mod health;
mod policy;
mod preparation;
pub mod process;
mod record;
pub mod volumes;
mod vsock;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use rackstick_api::{agent::Request, agent::Response, guest, rack};
use rackstick_image::{
    manifest::{self, Manifest},
    secrets::Value,
};
use rackstick_linux::mount::MountError;
use rackstick_vmm::exit::Exit;
use rustix::process::Signal;

use super::{Event, data};
pub use health::Health;
use health::{Asked, Checks};
use policy::{FirstAnswer, Restarts, Stopping};
use preparation::Preparation;
use process::Process;
use record::Record;

/// How long the agent may take to accept a shutdown.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);

/// Why a guest could not be started; tried again.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Folder(#[from] MountError),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Volume(#[from] volumes::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error("no thread can be started that prepares its volumes: {0}")]
    Thread(#[source] io::Error),
    #[error("its monitor can't be started: {0}")]
    Process(#[from] io::Error),
}

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

    /// How it is, for the API.
    pub fn status(&self) -> rack::Guest {
        rack::Guest {
            name: self.spec.name.clone(),
            state: match self.phase {
                Phase::Waiting(_) => rack::State::Waiting,
                Phase::Running(_) => rack::State::Running,
                Phase::Stopped => rack::State::Stopped,
                Phase::Failed => rack::State::Failed,
            },
            healthy: self.healthy,
            detail: self.detail.clone(),
            addresses: self.addresses(),
            pid: self.monitor(),
            restarts: self.restarts,
        }
    }

    fn addresses(&self) -> BTreeMap<String, Ipv4Addr> {
        let known = |interface: &manifest::Interface| Some((interface.network.clone(), interface.address.known()?));
        self.spec.interfaces.iter().filter_map(known).chain(self.leased.clone()).collect()
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

    /// Whether its last check passed.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Whether its monitor runs.
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running(_))
    }

    /// Process id of its monitor while it runs.
    pub fn monitor(&self) -> Option<u32> {
        match &self.phase {
            Phase::Running(running) => Some(running.process.pid),
            _ => None,
        }
    }

    /// Whether something is still written to its volumes: it runs, or they are being prepared.
    pub fn holds_data(&self) -> bool {
        self.is_running() || self.volumes.since().is_some()
    }

    /// What goes on with it, and since when: its volumes are prepared, it starts or stops.
    pub fn activity(&self) -> Option<(Instant, String)> {
        match &self.phase {
            Phase::Waiting(_) | Phase::Stopped | Phase::Failed => {
                self.volumes.since().map(|since| (since, format!("preparing the volumes of {}", self.spec.name)))
            }
            Phase::Running(Running { stopping: Some(stopping), .. }) => {
                Some((stopping.begun(), format!("stopping {}", self.spec.name)))
            }
            Phase::Running(Running { proven: false, since, .. }) => {
                Some((*since, format!("starting {}", self.spec.name)))
            }
            Phase::Running(_) => None,
        }
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

    fn start(&mut self, manifest: &Manifest, now: Instant) {
        let user = (self.index, process::uid(self.index));
        let disk = self.foreign.as_ref().map(|foreign| &foreign.disk);
        let started = match self.volumes.take(&self.data, &self.spec, disk, user, &self.events, now) {
            Ok(Some(volumes)) => self.spawn(manifest, &volumes),
            Ok(None) => {
                self.detail = "its volumes are being prepared".into();
                return;
            }
            Err(error) => Err(StartError::Thread(error)),
        };
        match started {
            Ok(process) => {
                log::info!("{}: started (monitor {})", self.spec.name, process.pid);
                self.take_over(process, now);
                self.detail = "it is starting".into();
                self.remember(None);
            }
            Err(error) => self.postpone(&error, now),
        }
    }

    /// It could not be started; that is tried again.
    fn postpone(&mut self, error: &StartError, now: Instant) {
        log::error!("{}: {error}", self.spec.name);
        self.detail = error.to_string();
        self.phase = Phase::Waiting(Some(now + self.delays.next(Duration::ZERO)));
    }

    /// The preparation of its volumes has ended.
    pub fn prepared(&mut self, prepared: Result<Vec<volumes::Ready>, volumes::Error>, now: Instant) {
        self.volumes = Preparation::None;
        let waits = matches!(self.phase, Phase::Waiting(_));
        match prepared {
            Ok(volumes) if waits => self.volumes = Preparation::Done(volumes),
            // Stopped meanwhile: at its next start they are looked at again.
            Ok(_) => {}
            Err(error) if waits && error.is_lasting() => self.fail(error.to_string()),
            Err(error) if waits => self.postpone(&error.into(), now),
            Err(error) => log::error!("{}: {error}", self.spec.name),
        }
    }

    fn spawn(&self, manifest: &Manifest, volumes: &[volumes::Ready]) -> Result<Process, StartError> {
        let uid = process::uid(self.index);
        let folder = folder::prepare(&self.spec.name, uid)?;
        for volume in volumes {
            let about = format!("volume {}/{}", self.spec.name, volume.name);
            // As in `take_over`.
            let _ = self.events.send(Event::Problem(about, volume.differs.clone()));
        }
        let config = config::write(manifest, self.index, &self.spec, &folder, volumes, &self.secrets)?;
        let group = cgroup::prepare(&self.spec)?;
        cgroup::clear(&group)?;
        Ok(Process::start(&config, folder::log(&folder)?, uid, cgroup::door(&group)?)?)
    }

    fn take_over(&mut self, process: Process, now: Instant) {
        let (name, index, pid) = (self.spec.name.clone(), self.index, process.pid);
        let events = self.events.clone();
        let watched = process.watch(&name, move |signal| {
            // The main loop is gone only when the daemon ends.
            let _ = events.send(Event::GuestEnded { index, pid, signal });
        });
        let events = self.events.clone();
        let asked = match &self.foreign {
            None => Asked::Agent(config::cid(index)),
            Some(foreign) => Asked::Service(foreign.check.clone()),
        };
        let checks =
            Checks::start(&name, asked, move |health| events.send(Event::GuestHealth { index, pid, health }).is_ok());
        let checks = match (watched, checks) {
            (Ok(()), Ok(checks)) => Some(checks),
            (Err(error), _) | (_, Err(error)) => {
                log::error!("{name}: no thread can be started to watch it: {error}");
                None
            }
        };
        let first_answer = if self.foreign.is_none() { FirstAnswer::expect(now) } else { FirstAnswer::none() };
        self.phase =
            Phase::Running(Running { process, since: now, checks, first_answer, stopping: None, proven: false });
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

    /// Its monitor has ended.
    pub fn ended(&mut self, pid: u32, signal: Option<i32>, now: Instant) {
        let (mut stopping, mut lived) = (None, Duration::ZERO);
        if let Phase::Running(running) = &self.phase {
            if running.process.pid != pid {
                return;
            }
            (stopping, lived) = (running.stopping, now.saturating_duration_since(running.since));
        }
        self.healthy = false;
        self.leased.clear();
        let end = match stopping.and_then(|stopping| stopping.killed()) {
            Some(after) => End::Killed(after),
            None => End::of(&self.spec.name, signal),
        };
        match (stopping, end) {
            (Some(_), end) => {
                log::info!("{}: stopped ({end})", self.spec.name);
                self.phase = Phase::Stopped;
                self.detail = String::new();
                self.remember(None);
            }
            // Then nothing is known of the layer itself.
            (None, End::Said(Exit::CorruptLayer { .. })) if data::is_gone() => {
                self.detail = "its layers can't be read any more: the data partition is not there".into();
                log::warn!("{}: {}", self.spec.name, self.detail);
                self.phase = Phase::Waiting(Some(now + self.delays.next(lived)));
                self.remember(None);
            }
            (None, End::Said(Exit::CorruptLayer { label, block })) => {
                self.fail(format!("layer {} corrupt at block {block}", agent::plain(&label)));
            }
            (None, end) => {
                let delay = self.delays.next(lived);
                self.restarts = self.restarts.saturating_add(1);
                self.detail = format!("{end}; it is started again");
                log::warn!("{}: {end}; it is started again in {} s", self.spec.name, delay.as_secs());
                self.phase = Phase::Waiting(Some(now + delay));
                self.remember(None);
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

    /// Stops it cleanly, or keeps it from being started.
    pub fn stop(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Running(Running { stopping: Some(_), .. }) | Phase::Stopped | Phase::Failed => {}
            Phase::Waiting(_) => {
                self.phase = Phase::Stopped;
                self.volumes.forget();
                self.detail = String::new();
                self.remember(None);
            }
            Phase::Running(running) => {
                log::info!("{}: stopping", self.spec.name);
                running.checks = None;
                let has_agent = self.foreign.is_none();
                if has_agent {
                    running.stopping = Some(Stopping::begin(now));
                } else {
                    let (stopping, signal) = Stopping::by_button(now);
                    running.stopping = Some(stopping);
                    log::info!("{}: its power button is pressed: it has no agent", self.spec.name);
                    send(&self.spec.name, &running.process, signal);
                }
                self.healthy = false;
                self.detail = "it is shutting down".into();
                self.remember(None);
                if has_agent {
                    self.ask_agent(now);
                }
            }
        }
    }

    fn ask_agent(&mut self, now: Instant) {
        let (index, events, cid) = (self.index, self.events.clone(), config::cid(self.index));
        let Some(pid) = self.monitor() else { return };
        let asked = thread::Builder::new().name(format!("stop {}", self.spec.name)).spawn(move || {
            let refused = match agent::call(cid, Request::Shutdown, AGENT_PATIENCE) {
                Ok(Response::ShuttingDown) => None,
                Ok(other) => Some(agent::plain(&format!("its agent answered {other:?}"))),
                Err(error) => Some(error.to_string()),
            };
            // As above.
            let _ = events.send(Event::ShutdownAsked { index, pid, refused });
        });
        if let Err(error) = asked {
            self.shutdown_asked(pid, Some(error.to_string()), now);
        }
    }

    /// The agent has answered the request to shut down.
    pub fn shutdown_asked(&mut self, pid: u32, refused: Option<String>, now: Instant) {
        let (Some(why), Phase::Running(running)) = (refused, &mut self.phase) else { return };
        if running.process.pid == pid
            && let Some(signal) = running.stopping.as_mut().and_then(|stopping| stopping.refused(now))
        {
            log::info!("{}: its power button is pressed: {why}", self.spec.name);
            send(&self.spec.name, &running.process, signal);
        }
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

/// How a monitor ended.
enum End {
    /// As it said itself.
    Said(Exit),
    /// With a reset, before which the guest said why it can't start.
    CantStart(String),
    /// Because the one command that it runs did, as it said.
    CommandEnded(String),
    /// By us, so long after it was asked to stop.
    Killed(Duration),
    Signal(i32),
    Unknown(String),
}

impl End {
    fn of(guest: &str, signal: Option<i32>) -> Self {
        match (folder::exit(guest), signal) {
            (Ok(Exit::Reset), _) => folder::cant_start(guest).map_or(Self::Said(Exit::Reset), Self::CantStart),
            (Ok(Exit::PoweredOff), _) => {
                folder::command_ended(guest).map_or(Self::Said(Exit::PoweredOff), Self::CommandEnded)
            }
            (Ok(exit), _) => Self::Said(exit),
            (Err(_), Some(signal)) => Self::Signal(signal),
            (Err(_), None) => Self::Unknown(agent::plain(&folder::last_message(guest))),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(Exit::PoweredOff) => f.write_str("it switched itself off"),
            Self::Said(Exit::Reset) => f.write_str("it asked for a reset"),
            Self::Said(Exit::CorruptLayer { label, block }) => {
                write!(f, "layer {} corrupt at block {block}", agent::plain(label))
            }
            Self::Said(Exit::GuestFault { message }) => write!(f, "it crashed: {}", agent::plain(message)),
            Self::Said(Exit::Error { message }) => write!(f, "its monitor failed: {}", agent::plain(message)),
            Self::CommandEnded(how) => write!(f, "its command ended: {}", agent::plain(how)),
            Self::CantStart(why) => write!(f, "it can't start: {}", agent::plain(why)),
            Self::Killed(after) => {
                write!(f, "it had to be killed, {} s after it was asked to shut down", after.as_secs())
            }
            Self::Signal(signal) => write!(f, "its monitor was killed by signal {signal}"),
            Self::Unknown(last) if last.is_empty() => f.write_str("its monitor ended without a reason"),
            Self::Unknown(last) => write!(f, "its monitor ended without a reason; its last words: {last}"),
        }
    }
}

#[cfg(test)]
mod tests;
