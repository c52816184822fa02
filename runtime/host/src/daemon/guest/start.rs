//! A guest's start: its volumes are prepared, its monitor is started and watched.

use std::{
    io,
    time::{Duration, Instant},
};

use rackstick_image::manifest::Manifest;
use rackstick_linux::mount::MountError;

use super::{
    Guest, Phase, Running, cgroup, config, folder,
    health::{Asked, Checks},
    policy::FirstAnswer,
    preparation::Preparation,
    process::{self, Process},
    volumes,
};
use crate::daemon::Event;

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

impl Guest {
    /// Starts it, or has its volumes prepared first.
    pub(super) fn start(&mut self, manifest: &Manifest, now: Instant) {
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

    /// Watches its monitor, which runs.
    pub(super) fn take_over(&mut self, process: Process, now: Instant) {
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
}
