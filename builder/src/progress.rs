//! What a command is doing, on stderr: bars where it is a terminal, plain lines where it is not.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// How a job with a known number of bytes looks; the bar is left out where there is no terminal.
const BYTES: &str = "{prefix:>9} {bar:30} {bytes:>11}/{total_bytes} {bytes_per_sec:>11} {eta:>4} {wide_msg}";
/// How a job of unknown length looks.
const SPINNER: &str = "{prefix:>9} {spinner} {wide_msg}";
/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// All that is going on.
pub struct Progress {
    bars: MultiProgress,
    lines: bool,
}

/// One job; it ends with [`Job::done`], or when dropped.
pub struct Job {
    bar: ProgressBar,
    verb: &'static str,
    lines: bool,
    started: Instant,
}

impl Progress {
    /// On stderr, or nowhere if the command is to be quiet.
    pub fn stderr() -> Self {
        if output::manner().quiet {
            return Self::quiet();
        }
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), lines: !terminal }
    }

    /// Nowhere.
    pub fn quiet() -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()), lines: false }
    }

    /// Says something that stays on the screen.
    pub fn say(&self, line: &str) {
        if self.lines {
            output::tell(line);
        } else {
            // There is nobody left to tell if the terminal fails.
            let _ = self.bars.println(line);
        }
    }

    /// Starts a job of this many bytes: `verb` as in `fetching`, `what` as in `212 packages`.
    pub fn bytes(&self, verb: &'static str, what: &str, bytes: u64) -> Job {
        self.start(verb, what, ProgressBar::new(bytes), BYTES)
    }

    /// Starts a job of unknown length.
    pub fn spinner(&self, verb: &'static str, what: &str) -> Job {
        let job = self.start(verb, what, ProgressBar::no_length(), SPINNER);
        if !self.bars.is_hidden() {
            job.bar.enable_steady_tick(TICK);
        }
        job
    }

    fn start(&self, verb: &'static str, what: &str, bar: ProgressBar, template: &str) -> Job {
        let bar = self.bars.add(bar);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(verb);
        bar.set_message(what.to_owned());
        if self.lines {
            output::tell(format!("{verb} {what}"));
        }
        Job { bar, verb, lines: self.lines, started: Instant::now() }
    }
}

impl Job {
    /// Says that this many more bytes are done.
    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Says that this many bytes that were said to be done are not.
    pub fn retreat(&self, bytes: u64) {
        self.bar.dec(bytes);
    }

    /// Ends the job.
    pub fn done(self, what: &str) {
        let time = self.started.elapsed().as_secs_f64();
        if self.lines {
            output::tell(format!("{} {what}: done in {time:.1} s", self.verb));
        }
        self.bar.finish_with_message(format!("{what}: {time:.1} s"));
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
    }
}
