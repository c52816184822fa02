//! The main loop: the rack's whole state, changed by events only.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use rackstick_api::rack::{Activity, Identity, Part, Process, Request, Response, State, Status, Watched};
use rackstick_image::{
    digest::VerityDigest,
    manifest::{self, Manifest},
    secrets::Values,
};
use rackstick_linux::buttons::Buttons;
use rustix::{
    process::{Pid, Signal, getppid, kill_process},
    time::{ClockId, clock_gettime},
};

use super::{
    Event, MachineEnd, api,
    boot::{Boot, Watch},
    data, freeze,
    guest::{self, Guest, Obstacle},
    layers, memory,
    room::{self, Plan},
};
use crate::init;

/// How much of a guest's console is read for one answer.
const CONSOLE_BYTES: u64 = 64 << 10;

/// How often the main loop says to PID 1 that it is well; PID 1 bears several that are missed.
const WELL_EVERY: Duration = Duration::from_secs(5);

/// The rack.
pub struct Rack {
    manifest: Arc<Manifest>,
    events: Sender<Event>,
    guests: Vec<Guest>,
    /// Why guests have no room on this machine, by index.
    refused: Vec<Option<String>>,
    host: Host,
    problems: BTreeMap<String, String>,
    addresses: BTreeMap<String, String>,
    activities: BTreeMap<String, (Instant, String)>,
    host_memory_kib: u64,
    boot: Boot,
    /// The start of the first guest, from when nothing kept it from that; it may have to wait for its volumes.
    first_guest: Option<Watch>,
    identity: Option<Identity>,
    healthy_shown: Option<usize>,
    ending: Option<Ending>,
    port: api::Port,
    buttons: Buttons,
}

/// What guests need of the host.
#[derive(Default)]
struct Host {
    kvm: Option<bool>,
    networks: bool,
    layers: BTreeMap<VerityDigest, Result<(), String>>,
}

struct Ending {
    how: MachineEnd,
    told: bool,
}

impl Rack {
    /// The rack as the last daemon left it, or as it is after a boot.
    pub fn new(manifest: Arc<Manifest>, events: Sender<Event>) -> Self {
        let plan = plan(&manifest.guests);
        let find = |(index, spec): (usize, &manifest::Guest)| {
            let vcpus = plan.vcpus.get(index).copied().unwrap_or(spec.vcpus);
            Guest::find(&manifest, manifest::Guest { vcpus, ..spec.clone() }, index, events.clone())
        };
        let guests: Vec<Guest> = manifest.guests.iter().enumerate().map(find).collect();
        let running = guests.iter().filter(|guest| guest.is_running()).count();
        if running > 0 {
            log::info!("the daemon was restarted: {running} of {} guests still run", guests.len());
        }
        let mut rack = Self {
            manifest,
            events,
            guests,
            refused: plan.refused,
            host: Host::default(),
            problems: BTreeMap::new(),
            addresses: BTreeMap::new(),
            activities: BTreeMap::new(),
            host_memory_kib: 0,
            boot: Boot::load(),
            first_guest: None,
            identity: None,
            healthy_shown: None,
            ending: None,
            port: api::Port::default(),
            buttons: Buttons::default(),
        };
        rack.problem("room".into(), plan.memory);
        rack.problem("CPUs".into(), plan.cpus);
        rack
    }

    /// Handles events until the machine ends.
    pub fn run(mut self, inbox: &Receiver<Event>) -> ! {
        let mut next_well = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_well {
                tell_init(init::WELL);
                next_well = now + WELL_EVERY;
            }
            self.advance(now);
            let deadline = self.guests.iter().filter_map(Guest::deadline).min();
            let next = deadline.map_or(next_well, |deadline| deadline.min(next_well));
            // Time is up, or else all senders are gone, which can't be: this struct holds one itself.
            if let Ok(event) = inbox.recv_timeout(next.saturating_duration_since(now)) {
                self.handle(event, Instant::now());
            }
        }
    }

    fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Api(request, reply) => {
                // A client that has left needs no answer.
                let _ = reply.send(self.answer(request, now));
            }
            Event::Problem(about, what) => self.problem(about, what),
            Event::Phase(phase) => self.boot.add(phase, !self.guests.is_empty()),
            Event::Activity(about, what) => self.activity(about, what, now),
            Event::Identity(identity) => self.identity = Some(identity),
            Event::HostMemory(kib) => self.host_memory_kib = kib,
            Event::Kvm(there) => {
                self.host.kvm = Some(there);
                let missing = "no KVM: switch on virtualization (SVM/VT-x) in the firmware";
                self.problem("kvm".into(), (!there).then(|| missing.into()));
            }
            Event::NetworksUp => self.host.networks = true,
            Event::Address(network, address) => self.address(network, address),
            Event::Layer(digest, checked) => {
                if let Err(why) = &checked {
                    log::error!("{why}");
                }
                self.host.layers.insert(digest, checked);
            }
            Event::Secrets(values) => self.give(&values),
            Event::Devices => self.look_for_devices(),
            Event::Volumes { index, prepared } => {
                if let Some(guest) = self.guests.get_mut(index) {
                    guest.prepared(prepared, now);
                }
            }
            Event::GuestEnded { index, pid, signal } => {
                if let Some(guest) = self.guests.get_mut(index) {
                    guest.ended(pid, signal, now);
                }
            }
            Event::GuestHealth { index, pid, health } => {
                if let Some(guest) = self.guests.get_mut(index) {
                    guest.checked(pid, health);
                }
            }
            Event::ShutdownAsked { index, pid, refused } => {
                if let Some(guest) = self.guests.get_mut(index) {
                    guest.shutdown_asked(pid, refused, now);
                }
            }
            Event::End(how) => self.end(how, now),
        }
    }

    fn problem(&mut self, about: String, what: Option<String>) {
        match what {
            Some(what) => {
                if self.problems.get(&about) != Some(&what) {
                    log::error!("{what}");
                    self.problems.insert(about, what);
                }
            }
            None => {
                if self.problems.remove(&about).is_some() {
                    log::info!("{about}: well again");
                }
            }
        }
    }

    fn give(&mut self, values: &Values) {
        let mut problems = Vec::new();
        for guest in &mut self.guests {
            let own = values.iter().filter(|((name, _), _)| *name == guest.spec.name);
            guest.give(own.map(|((_, name), value)| (name.clone(), value.clone())).collect());
            let lacks = guest.lacks(&self.manifest);
            let name = &guest.spec.name;
            problems.push((format!("secrets of {name}"), lacks.map(|lacks| format!("guest {name} {lacks}"))));
        }
        problems.into_iter().for_each(|(about, what)| self.problem(about, what));
    }

    fn activity(&mut self, about: String, what: Option<String>, now: Instant) {
        match what {
            // What goes on unchanged keeps its time.
            Some(what) if self.activities.get(&about).is_none_or(|(_, known)| *known != what) => {
                self.activities.insert(about, (now, what));
            }
            Some(_) => {}
            None => {
                self.activities.remove(&about);
            }
        }
    }

    fn address(&mut self, network: String, address: Option<String>) {
        match address {
            Some(address) => {
                if self.addresses.get(&network) != Some(&address) {
                    log::info!("uplink {network}: the rack's address is {address}");
                    self.addresses.insert(network, address);
                }
            }
            None => {
                if self.addresses.remove(&network).is_some() {
                    log::warn!("uplink {network}: the rack has no address any more");
                }
            }
        }
    }

    fn look_for_devices(&mut self) {
        if let Err(error) = self.port.look(&self.events) {
            log::error!("the API can't be served on the virtio-serial port: {error}");
        }
        let events = self.events.clone();
        let pressed = move || {
            // The main loop is gone only when the daemon ends.
            let _ = events.send(Event::End(MachineEnd::PowerOff));
        };
        if let Err(error) = self.buttons.look(pressed) {
            log::error!("the power button can't be listened to: {error}");
        }
    }

    /// Does what can be done now.
    fn advance(&mut self, now: Instant) {
        let healthy: Vec<(String, bool)> =
            self.guests.iter().map(|guest| (guest.spec.name.clone(), guest.is_healthy())).collect();
        for (guest, refused) in self.guests.iter_mut().zip(&self.refused) {
            let spec = guest.spec.clone();
            let (refused, lacks) = (refused.as_deref(), guest.lacks(&self.manifest));
            let obstacle = || self.host.obstacle(&self.manifest, &spec, refused, lacks, &healthy, &self.problems);
            let watch = Watch::begin(&self.events, Part::FirstGuest);
            let (idle, waited) = (!guest.holds_data(), !guest.is_running());
            guest.advance(&self.manifest, obstacle, now);
            if idle && guest.holds_data() {
                self.first_guest.get_or_insert(watch);
            }
            if waited
                && guest.is_running()
                && let Some(watch) = self.first_guest.take()
            {
                // Only the first counts.
                watch.end();
            }
        }
        let count = self.guests.iter().filter(|guest| guest.is_healthy()).count();
        if self.healthy_shown != Some(count) {
            self.healthy_shown = Some(count);
            if self.guests.is_empty() {
                log::info!("this rack has no guests: its recipe names none");
            } else {
                log::info!("{count}/{} guests healthy", self.guests.len());
            }
        }
        let busy = self.guests.iter().any(Guest::holds_data);
        if let Some(ending) = self.ending.as_mut().filter(|ending| !ending.told && !busy) {
            ending.told = true;
            log::info!("all guests have stopped");
            let signal = match ending.how {
                MachineEnd::PowerOff => init::POWER_OFF,
                MachineEnd::Reboot => init::REBOOT,
            };
            tell_init(signal);
        }
    }

    fn end(&mut self, how: MachineEnd, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        log::info!("{}: stopping all guests", if how == MachineEnd::PowerOff { "power off" } else { "reboot" });
        self.ending = Some(Ending { how, told: false });
        let (what, signal) = match how {
            MachineEnd::PowerOff => ("switching off", Signal::TERM),
            MachineEnd::Reboot => ("rebooting", Signal::INT),
        };
        // Should this daemon not come to an end with it, PID 1 will.
        tell_init(signal);
        self.activity("end".into(), Some(what.into()), now);
        for guest in &mut self.guests {
            guest.stop(now);
        }
    }

    fn answer(&mut self, request: Request, now: Instant) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(self.status(now))),
            Request::Console { guest } => {
                self.with(&guest, |guest| match guest::folder::console(&guest.spec.name, CONSOLE_BYTES) {
                    Ok(bytes) => Response::Text(api::console_text(&bytes)),
                    Err(error) => Response::Error(format!("{}'s console can't be read: {error}", guest.spec.name)),
                })
            }
            Request::Stop { guest } => self.with(&guest, |guest| {
                guest.stop(now);
                Response::Ok
            }),
            Request::Start { .. } if self.ending.is_some() => Response::Error("the rack is being stopped".into()),
            Request::Start { guest } => self.with(&guest, |guest| match guest.status().state {
                State::Stopped | State::Failed => {
                    guest.resume();
                    Response::Ok
                }
                state => Response::Error(format!("guest `{}` is {state:?}, not stopped or failed", guest.spec.name)),
            }),
            // Whoever took the call does it, once the answer is out.
            Request::Kill { process: Process::Daemon }
            | Request::Freeze { process: Watched::Daemon }
            | Request::PowerOff
            | Request::Reboot => Response::Ok,
            Request::Freeze { process: Watched::Init } => match freeze::freeze(Pid::INIT) {
                Ok(()) => Response::Ok,
                Err(error) => Response::Error(format!("PID 1 can't be frozen: {error}")),
            },
            Request::Kill { process: Process::Vmm(guest) } => self.with(&guest, |guest| match guest.kill() {
                Ok(()) => Response::Ok,
                Err(error) => Response::Error(format!("guest `{}`: {error}", guest.spec.name)),
            }),
        }
    }

    fn with(&mut self, name: &str, act: impl FnOnce(&mut Guest) -> Response) -> Response {
        match self.guests.iter_mut().find(|guest| guest.spec.name == name) {
            Some(guest) => act(guest),
            None => {
                let known: Vec<&str> = self.guests.iter().map(|guest| guest.spec.name.as_str()).collect();
                let name: String = name.chars().take(80).collect();
                Response::Error(format!("no guest `{name}` here; there are: {}", known.join(", ")))
            }
        }
    }

    /// The one place from which the API and the screen know how the rack is.
    fn status(&self, now: Instant) -> Status {
        let own = self.activities.values().cloned();
        let mut activities: Vec<(Instant, String)> =
            own.chain(self.guests.iter().filter_map(Guest::activity)).collect();
        activities.sort_by_key(|(since, _)| *since);
        let told =
            |(since, what): (Instant, String)| Activity { what, for_s: now.saturating_duration_since(since).as_secs() };
        Status {
            rack: self.manifest.rack.clone(),
            version: self.manifest.version.clone(),
            uptime_s: u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0),
            problems: self.problems.values().cloned().collect(),
            daemon_pid: std::process::id(),
            host_memory_kib: self.host_memory_kib,
            boot: self.boot.phases().to_vec(),
            identity: self.identity.clone(),
            data: data::status(),
            addresses: self.addresses.clone(),
            activities: activities.into_iter().map(told).collect(),
            guests: self.guests.iter().map(Guest::status).collect(),
        }
    }
}

/// What each guest is given of this machine.
fn plan(guests: &[manifest::Guest]) -> Plan {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    match memory::total_mib() {
        Ok(memory_mib) => room::plan(room::Machine { memory_mib, cpus }, guests),
        Err(error) => {
            log::error!("the machine's memory is not known ({error}); all guests are started");
            room::plan(room::Machine { memory_mib: u64::MAX, cpus }, guests)
        }
    }
}

/// Sends PID 1 a signal. Started by hand, outside a rack, there is no PID 1 that understands it.
fn tell_init(signal: Signal) {
    if getppid() == Some(Pid::INIT)
        && let Err(error) = kill_process(Pid::INIT, signal)
    {
        log::error!("PID 1 can't be sent signal {}: {error}", signal.as_raw());
    }
}

impl Host {
    /// What keeps a guest from being started now.
    fn obstacle(
        &self,
        manifest: &Manifest,
        spec: &manifest::Guest,
        refused: Option<&str>,
        lacks: Option<String>,
        healthy: &[(String, bool)],
        problems: &BTreeMap<String, String>,
    ) -> Option<Obstacle> {
        let wait = |why: &str| Some(Obstacle::Wait(why.to_owned()));
        match self.kvm {
            None => return wait("the rack is starting"),
            Some(false) => return wait("the rack has no KVM"),
            Some(true) => {}
        }
        if problems.contains_key(data::ABOUT) {
            return wait("the data partition is not there");
        }
        let has_disk = manifest.images.get(&spec.image).is_some_and(|image| image.disk.is_some());
        if (has_disk || !spec.volumes.is_empty()) && problems.contains_key(data::READ_ONLY) {
            return wait("the data partition takes no writes, and its volumes are there");
        }
        if let Some(why) = refused {
            return wait(why);
        }
        if let Some(image) = manifest.images.get(&spec.image) {
            for blob in layers::of_image(image) {
                match self.layers.get(&blob.digest) {
                    Some(Ok(())) => {}
                    Some(Err(why)) => return Some(Obstacle::Fail(why.clone())),
                    None => return wait("its layers are being checked"),
                }
            }
        }
        // Known before any layer is.
        if let Some(lacks) = lacks {
            return wait(&lacks);
        }
        if !self.networks {
            return wait("its networks are not up");
        }
        let waits_for = spec.after.iter().find(|name| healthy.iter().any(|(other, well)| other == *name && !well));
        waits_for.map(|name| Obstacle::Wait(format!("waits until {name} is healthy")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::network::firewall::tests as sample;

    #[test]
    fn while_the_data_partition_takes_no_writes_only_guests_with_volumes_wait() {
        let mut manifest = sample::manifest();
        let mut spec = manifest.guests.remove(0);
        manifest.images.clear();
        spec.volumes.clear();
        spec.after.clear();
        let host = Host { kvm: Some(true), networks: true, ..Host::default() };
        let read_only = [(data::READ_ONLY.to_owned(), String::new())].into();
        let obstacle = |spec: &manifest::Guest, problems: &BTreeMap<String, String>| {
            host.obstacle(&manifest, spec, None, None, &[], problems).map(|obstacle| match obstacle {
                Obstacle::Wait(why) => why,
                Obstacle::Fail(why) => panic!("it fails: {why}"),
            })
        };
        assert_eq!(obstacle(&spec, &read_only), None);
        spec.volumes.push(manifest::Volume { name: "a".into(), mount: "/srv/a".into(), size_mib: 32 });
        assert_eq!(obstacle(&spec, &BTreeMap::new()), None);
        let why = obstacle(&spec, &read_only).unwrap();
        assert!(why.contains("takes no writes"), "{why}");
    }
}
