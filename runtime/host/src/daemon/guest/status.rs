//! What is told of a guest: to the API, the screen and the main loop.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

use rackstick_api::rack;
use rackstick_image::manifest;

use super::{Guest, Phase, Running};

impl Guest {
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
}
