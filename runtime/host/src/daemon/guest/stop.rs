//! A guest's stop: its agent is asked, or its power button pressed.

use std::{
    thread,
    time::{Duration, Instant},
};

use rackstick_api::agent::{Request, Response};

use super::{Guest, Phase, Running, agent, config, policy::Stopping, send};
use crate::daemon::Event;

/// How long the agent may take to accept a shutdown.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);

impl Guest {
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
}
