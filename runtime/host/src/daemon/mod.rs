//! The rack daemon: one main loop owns all state; threads wait for devices, networks, guests and clients and send it
//! events. It can be killed at any time: guests go on, and the next daemon finds them.

mod activity;
mod api;
pub mod boot;
mod clock;
mod console;
pub mod data;
mod drivers;
mod freeze;
mod guest;
mod identity;
mod keep;
mod layers;
mod memory;
mod modprobe;
pub mod network;
mod plugged;
mod private_socket;
mod rack;
mod room;
mod screen;
mod secrets;
mod spares;
mod startup;
mod verity;

use std::{convert::Infallible, fs, io, process::ExitCode, sync::Arc, sync::mpsc::Sender, sync::mpsc::channel, thread};

use rackstick_api::rack::{Identity, Phase, Request, Response};
use rackstick_image::{
    digest::VerityDigest,
    manifest::{self, Manifest},
    secrets::Values,
};

use crate::{VERSION, signals};
use screen::{Screen, Style};

/// How the machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEnd {
    /// Switched off.
    PowerOff,
    /// Rebooted.
    Reboot,
}

/// What the main loop is told.
pub enum Event {
    /// A call of the API, and where its answer goes.
    Api(Request, Sender<Response>),
    /// Something about the rack is wrong, or not any more: what it is about, and what is wrong.
    Problem(String, Option<String>),
    /// Something begins, or is over: what it is about, and what is going on.
    Activity(String, Option<String>),
    /// A part of coming up is over.
    Phase(Phase),
    /// The host's own memory in KiB was measured.
    HostMemory(u64),
    /// Who the rack is.
    Identity(Identity),
    /// Whether virtual machines can run.
    Kvm(bool),
    /// Bridges and taps are there.
    NetworksUp,
    /// The rack's address on an uplink network.
    Address(String, Option<String>),
    /// A layer was checked: the reason if it can't be used.
    Layer(VerityDigest, Result<(), String>),
    /// The values of guests' secrets that the rack has.
    Secrets(Values),
    /// Devices came: ports and buttons may be among them.
    Devices,
    /// The preparation of a guest's volumes ended.
    Volumes {
        /// Index of the guest.
        index: usize,
        /// What can be used, or why none can.
        prepared: Result<Vec<guest::volumes::Ready>, guest::volumes::Error>,
    },
    /// A guest's monitor ended.
    GuestEnded {
        /// Index of the guest.
        index: usize,
        /// The monitor.
        pid: u32,
        /// The signal that killed it, if it is known.
        signal: Option<i32>,
    },
    /// A guest was checked.
    GuestHealth {
        /// Index of the guest.
        index: usize,
        /// The monitor at that time.
        pid: u32,
        /// How it is.
        health: guest::Health,
    },
    /// A guest's agent was asked to shut it down.
    ShutdownAsked {
        /// Index of the guest.
        index: usize,
        /// The monitor at that time.
        pid: u32,
        /// Why it won't, if so.
        refused: Option<String>,
    },
    /// The machine is to end: power button, Ctrl-Alt-Del.
    End(MachineEnd),
}

/// Why the daemon can't do anything.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the manifest {path} can't be read: {source}; the host's image is damaged, flash it again")]
    Manifest { path: &'static str, source: io::Error },
    #[error("the manifest {path} can't be understood: {why}; host and image were built by different versions")]
    Format { path: &'static str, why: String },
    #[error("no thread can be started: {0}")]
    Thread(io::Error),
}

/// Runs the daemon until the machine ends.
pub fn run() -> ExitCode {
    let stop = signals::Set::of(&[libc::SIGTERM, libc::SIGINT]);
    stop.block_only();
    console::start();
    let mut screen = Screen::take();
    screen.notice("Now", &format!("rackstick {VERSION} is starting"), Style::Attention);
    if let Err(error) = clock::correct() {
        log::error!("the machine's clock can't be checked or set: {error}");
    }
    let Err(error) = load().and_then(|manifest| start(Arc::new(manifest), stop, screen));
    log::error!("{error}");
    Screen::take().notice("Wrong", &error.to_string(), Style::Bad);
    ExitCode::FAILURE
}

fn start(manifest: Arc<Manifest>, stop: signals::Set, screen: Screen) -> Result<Infallible, Error> {
    log::info!("rackstick-host {VERSION}: rack {}, generation {}", manifest.rack, manifest.version);
    let (events, inbox) = channel();
    let ends = events.clone();
    spawn("signals", move || {
        loop {
            let end = match stop.wait(None) {
                Some(libc::SIGTERM) => MachineEnd::PowerOff,
                Some(libc::SIGINT) => MachineEnd::Reboot,
                _ => continue,
            };
            if ends.send(Event::End(end)).is_err() {
                return;
            }
        }
    })?;
    if let Err(error) = api::listen(events.clone()) {
        log::error!("the API can't be served on {}: {error}", rackstick_api::rack::SOCKET);
    }
    if let Err(error) = screen.follow(&events) {
        log::error!("the screen can't be followed: {error}");
    }
    let rack = rack::Rack::new(manifest.clone(), events.clone());
    spawn("startup", move || startup::run(&manifest, &events))?;
    rack.run(&inbox)
}

fn load() -> Result<Manifest, Error> {
    let path = manifest::PATH;
    let text = fs::read(path).map_err(|source| Error::Manifest { path, source })?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| Error::Format { path, why: error.to_string() })?;
    if manifest.format != manifest::FORMAT {
        let why = format!("it is of format {}, this host reads {}", manifest.format, manifest::FORMAT);
        return Err(Error::Format { path, why });
    }
    Ok(manifest)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    thread::Builder::new().name(name.into()).spawn(body).map(drop).map_err(Error::Thread)
}
