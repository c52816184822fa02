//! How a guest's monitor ended, and what follows.

use std::{
    fmt,
    time::{Duration, Instant},
};

use rackstick_vmm::exit::Exit;

use super::{Guest, Phase, agent, folder};
use crate::daemon::data;

impl Guest {
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
