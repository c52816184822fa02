//! The daemon as PID 1 sees it: a child that is started, says now and then that it is well, and is started again when
//! it died or hangs.

use std::{
    fmt, fs,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::say::Voice;
use crate::{PROGRAM, STARTED};

/// The first wait before a daemon that died is started again; doubled each time, so that a daemon that can't live
/// does not use up the machine.
const RESTART_DELAY: Duration = Duration::from_millis(250);
/// The longest wait before a daemon that died is started again.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);
/// A daemon that lived this long was well: the next wait is the first again.
const RESTART_FORGIVEN: Duration = Duration::from_secs(60);
/// A daemon that has said nothing for so long hangs. Its main loop says that it is well every few seconds, and nothing
/// that it does at once takes nearly as long, even on a machine that is emulated.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// A killed daemon that has not ended by then is held by the kernel: one of its threads waits for a disk or a driver,
/// and SIGKILL does not end that. A dying disk holds a thread for minutes: Linux gives it 30 s for each of 6 tries of a
/// command (`SD_TIMEOUT`, `SD_MAX_RETRIES`) and resets it between them. What takes longer than that does not come back.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// The kernel must not choose the daemon when memory runs out.
const OOM_DAEMON: &str = "-900";

/// The daemon.
pub struct Daemon {
    /// What it is told in [`STARTED`].
    init_started_ms: u64,
    child: Option<Pid>,
    started: Instant,
    heard: Instant,
    delay: Duration,
    /// When it is to be started again.
    again: Option<Instant>,
    /// When it was killed because it hangs.
    killed: Option<Instant>,
}

impl Daemon {
    /// To be started at once. `init_started_ms`: when PID 1 started, by the kernel's clock.
    pub fn new(init_started_ms: u64, now: Instant) -> Self {
        let (started, heard, again) = (now, now, Some(now));
        Self { init_started_ms, child: None, started, heard, delay: RESTART_DELAY, again, killed: None }
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// When [`Daemon::advance`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match self.child {
            Some(_) => Some(self.killed.map_or(self.heard + HANGS_AFTER, |at| at + STUCK_AFTER)),
            None => self.again,
        }
    }

    /// Starts it if it is time, and ends it if it hangs.
    pub fn advance(&mut self, now: Instant, voice: &Voice) {
        match self.child {
            Some(_) if self.killed.is_none() && now >= self.heard + HANGS_AFTER => {
                let seconds = now.saturating_duration_since(self.heard).as_secs();
                voice.show(format_args!("the daemon hangs, it has said nothing for {seconds} s; it is killed"));
                // Killed once; then only the kernel is waited for.
                self.killed = Some(now);
                self.signal(Signal::KILL, voice);
            }
            None if self.again.is_some_and(|at| now >= at) => {
                (self.started, self.heard, self.killed) = (now, now, None);
                self.child = self.start(voice);
                self.again = self.child.is_none().then(|| now + self.next_delay());
            }
            _ => {}
        }
    }

    /// Whether it was killed long ago and still has not ended: then it never will.
    pub fn is_stuck(&self, now: Instant) -> bool {
        self.child.is_some() && self.killed.is_some_and(|at| now >= at + STUCK_AFTER)
    }

    /// It says that it is well.
    pub fn is_well(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Sends it a signal if it runs.
    pub fn signal(&self, signal: Signal, voice: &Voice) {
        if let Some(pid) = self.child
            && let Err(error) = kill_process(pid, signal)
        {
            voice.say(format_args!("the daemon could not be sent signal {}: {error}", signal.as_raw()));
        }
    }

    /// A child of PID 1 has ended. It is started again unless the machine is to end.
    pub fn reaped(&mut self, pid: Pid, how: &impl fmt::Display, ending: bool, now: Instant, voice: &Voice) {
        if Some(pid) != self.child {
            return;
        }
        self.child = None;
        let lived = now.saturating_duration_since(self.started);
        if lived >= RESTART_FORGIVEN {
            self.delay = RESTART_DELAY;
        }
        if !ending {
            let delay = self.next_delay();
            self.again = Some(now + delay);
            // On the screen stands what the daemon itself said last.
            voice.say(format_args!(
                "the daemon ended ({how}) after {} s; it is started again in {:.1} s",
                lived.as_secs(),
                delay.as_secs_f32()
            ));
        }
    }

    fn next_delay(&mut self) -> Duration {
        let delay = self.delay;
        self.delay = (delay * 2).min(RESTART_DELAY_MAX);
        delay
    }

    fn start(&self, voice: &Voice) -> Option<Pid> {
        let child = match Command::new(PROGRAM).arg("daemon").env(STARTED, self.init_started_ms.to_string()).spawn() {
            Ok(child) => child,
            Err(error) => {
                voice.show(format_args!("the daemon could not be started from {PROGRAM}: {error}"));
                return None;
            }
        };
        if let Err(error) = fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_DAEMON) {
            voice.say(format_args!("the daemon is not protected from the out-of-memory killer: {error}"));
        }
        Pid::from_raw(child.id().cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_hangs_is_killed_and_one_that_the_kernel_holds_even_then_is_given_up() {
        let voice = Voice::silent();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut daemon = Daemon::new(0, start);
        daemon.child = Pid::from_raw(process.id().cast_signed());
        daemon.is_well(at(10));
        daemon.advance(at(69), &voice);
        assert!(process.try_wait().unwrap().is_none() && daemon.deadline() == Some(at(70)));
        daemon.advance(at(70), &voice);
        let ended = process.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(libc::SIGKILL));
        // As long as PID 1 could not reap it, it counts as there.
        daemon.advance(at(369), &voice);
        assert_eq!(
            (daemon.deadline(), daemon.is_stuck(at(369)), daemon.is_stuck(at(370))),
            (Some(at(370)), false, true)
        );
        // A signal that it sent before is no sign of life.
        daemon.is_well(at(369));
        assert!(daemon.is_stuck(at(370)));
        // A disk gave up at last: it is started again, as any that died.
        daemon.reaped(daemon.child.unwrap(), &"killed", false, at(369), &voice);
        assert!(!daemon.is_stuck(at(1000)) && daemon.deadline().unwrap() > at(369));
    }
}
