//! When a guest that ended is started again, and how far one that is to stop is pressed: decisions by the clock alone.

use std::time::{Duration, Instant};

use rustix::process::Signal;

/// The first wait before a guest that ended unasked is started again; doubled each time, so that one that can't live
/// does not use up the machine.
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// The longest wait before it is started again.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(60);
/// A guest that ran this long was well: the next wait is the first again.
const RESTART_FORGIVEN: Duration = Duration::from_secs(120);
/// How long a guest may take to shut down once its agent was asked.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(90);
/// How long it may take after its power button was pressed, where the agent could not be asked.
const BUTTON_DEADLINE: Duration = Duration::from_secs(45);
/// How long a guest may take until its agent answers for the first time. The agent is there before the image's own
/// init, so it is the guest's kernel that takes this time; one that hangs so early says nothing, and only a new start
/// helps.
const ANSWER_DEADLINE: Duration = Duration::from_secs(180);
/// After SIGKILL, only the kernel is waited for.
const KILL_DEADLINE: Duration = Duration::from_secs(60);

/// The waits between a guest's starts.
#[derive(Debug)]
pub struct Restarts {
    delay: Duration,
}

impl Restarts {
    /// Of a guest that has not failed yet.
    pub fn new() -> Self {
        Self { delay: RESTART_DELAY }
    }

    /// How long to wait now that it has ended after it ran for `lived`.
    pub fn next(&mut self, lived: Duration) -> Duration {
        if lived >= RESTART_FORGIVEN {
            self.delay = RESTART_DELAY;
        }
        let delay = self.delay;
        self.delay = (delay * 2).min(RESTART_DELAY_MAX);
        delay
    }
}

/// The first answer of a guest's agent, which is waited for.
#[derive(Debug)]
pub struct FirstAnswer {
    deadline: Option<Instant>,
}

impl FirstAnswer {
    /// Of a guest that runs since now, as far as is known.
    pub fn expect(now: Instant) -> Self {
        Self { deadline: Some(now + ANSWER_DEADLINE) }
    }

    /// None is expected: there is no agent.
    pub fn none() -> Self {
        Self { deadline: None }
    }

    /// It has come.
    pub fn came(&mut self) {
        self.deadline = None;
    }

    /// When [`FirstAnswer::overdue`] has something to say.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether it has not come in time; said once.
    pub fn overdue(&mut self, now: Instant) -> bool {
        self.deadline.take_if(|deadline| now >= *deadline).is_some()
    }
}

/// How a shutdown goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The agent was asked.
    Agent,
    /// The power button was pressed.
    Button,
    /// It was killed.
    Kill,
}

/// A shutdown.
#[derive(Debug, Clone, Copy)]
pub struct Stopping {
    begun: Instant,
    stage: Stage,
    deadline: Instant,
}

impl Stopping {
    /// The agent is asked now.
    pub fn begin(now: Instant) -> Self {
        Self { begun: now, stage: Stage::Agent, deadline: now + SHUTDOWN_DEADLINE }
    }

    /// There is no agent: with the signal that presses the power button. What then shuts down takes as long as with
    /// one.
    pub fn by_button(now: Instant) -> (Self, Signal) {
        let mut stopping = Self::begin(now);
        let signal = stopping.press(Stage::Button, now);
        stopping.deadline = now + SHUTDOWN_DEADLINE;
        (stopping, signal)
    }

    /// When it began.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// When [`Stopping::overdue`] has something to say.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The agent won't do it, or can't be asked: the signal that presses the power button, unless it was pressed
    /// already.
    pub fn refused(&mut self, now: Instant) -> Option<Signal> {
        (self.stage == Stage::Agent).then(|| self.press(Stage::Button, now))
    }

    /// The signal to send now that a deadline has passed.
    pub fn overdue(&mut self, now: Instant) -> Option<Signal> {
        let next = if self.stage == Stage::Agent { Stage::Button } else { Stage::Kill };
        (now >= self.deadline).then(|| self.press(next, now))
    }

    /// After how long it had to be killed, if it had to.
    pub fn killed(&self) -> Option<Duration> {
        // Each kill has set a new deadline.
        let at = self.deadline.checked_sub(KILL_DEADLINE).unwrap_or(self.begun);
        (self.stage == Stage::Kill).then(|| at.saturating_duration_since(self.begun))
    }

    fn press(&mut self, stage: Stage, now: Instant) -> Signal {
        let (signal, patience) = match stage {
            // The monitor presses its guest's power button.
            Stage::Agent | Stage::Button => (Signal::TERM, BUTTON_DEADLINE),
            Stage::Kill => (Signal::KILL, KILL_DEADLINE),
        };
        (self.stage, self.deadline) = (stage, now + patience);
        signal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_guest_that_never_answers_is_given_up_once_and_one_that_has_answered_never() {
        let now = Instant::now();
        let mut silent = FirstAnswer::expect(now);
        assert_eq!([179, 180, 181].map(|at| silent.overdue(now + seconds(at))), [false, true, false]);
        let mut answers = FirstAnswer::expect(now);
        answers.came();
        assert_eq!((answers.deadline(), answers.overdue(now + seconds(1000))), (None, false));
    }

    #[test]
    fn a_guest_that_can_not_live_is_started_ever_more_seldom_until_it_has_lived() {
        let mut restarts = Restarts::new();
        let waits: Vec<u64> = (0..8).map(|_| restarts.next(seconds(3)).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(restarts.next(seconds(119)).as_secs(), 60);
        assert_eq!([restarts.next(seconds(120)).as_secs(), restarts.next(seconds(0)).as_secs()], [1, 2]);
    }

    #[test]
    fn a_guest_that_does_not_shut_down_is_pressed_harder_at_each_deadline() {
        let start = Instant::now();
        let at = |after| start + seconds(after);
        let mut stopping = Stopping::begin(start);
        assert_eq!((stopping.deadline(), stopping.overdue(at(89))), (at(90), None));
        assert_eq!(stopping.overdue(at(90)), Some(Signal::TERM));
        assert_eq!((stopping.deadline(), stopping.overdue(at(134)), stopping.killed()), (at(135), None, None));
        assert_eq!(stopping.overdue(at(135)), Some(Signal::KILL));
        assert_eq!(stopping.killed(), Some(seconds(135)));
        // Only the kernel can be waited for now; it is told again.
        assert_eq!((stopping.overdue(at(194)), stopping.overdue(at(195))), (None, Some(Signal::KILL)));
        assert_eq!(stopping.refused(at(196)), None);
    }

    #[test]
    fn a_guest_whose_agent_refuses_has_its_power_button_pressed_at_once_and_once() {
        let start = Instant::now();
        let mut stopping = Stopping::begin(start);
        assert_eq!(stopping.refused(start + seconds(10)), Some(Signal::TERM));
        assert_eq!(stopping.refused(start + seconds(11)), None);
        assert_eq!(stopping.deadline(), start + seconds(55));
        assert_eq!(stopping.overdue(start + seconds(55)), Some(Signal::KILL));
        assert_eq!(stopping.killed(), Some(seconds(55)));
    }

    #[test]
    fn a_guest_without_an_agent_is_waited_for_as_long_as_one_with_and_then_killed() {
        let start = Instant::now();
        let (mut stopping, signal) = Stopping::by_button(start);
        assert_eq!(signal, Signal::TERM);
        assert_eq!((stopping.deadline(), stopping.overdue(start + seconds(89))), (start + seconds(90), None));
        assert_eq!(stopping.refused(start + seconds(1)), None);
        assert_eq!(stopping.overdue(start + seconds(90)), Some(Signal::KILL));
        assert_eq!(stopping.killed(), Some(seconds(90)));
        assert_eq!(FirstAnswer::none().deadline(), None);
    }

    #[test]
    fn all_deadlines_together_end_before_pid_1_loses_patience() {
        let all = SHUTDOWN_DEADLINE + BUTTON_DEADLINE + KILL_DEADLINE;
        assert!(all < crate::init::DAEMON_DEADLINE, "{all:?}");
    }
}
