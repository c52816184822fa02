//! Messages to standard error, one line each. What a guest does can cause messages, so there is a limit to how many.

use std::{
    io::Write,
    sync::Mutex,
    time::{Duration, Instant},
};

use log::{LevelFilter, Log, Metadata, Record};

use crate::sync::lock;

/// Messages that may come at once; a guest that causes more can't fill the host's log.
const BURST: u32 = 100;
/// Afterwards one message in this time.
const REFILL: Duration = Duration::from_secs(1);

struct Logger(Mutex<Bucket>);

struct Bucket {
    left: u32,
    since: Instant,
    dropped: u64,
}

/// Sends all messages from now on to standard error.
pub fn install() {
    let bucket = Bucket { left: BURST, since: Instant::now(), dropped: 0 };
    // An error says that there is a logger already, which is as good.
    if log::set_boxed_logger(Box::new(Logger(Mutex::new(bucket)))).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Bucket {
    /// Whether a message may be written at `now`, and how many were dropped before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let refill = (now.duration_since(self.since).as_nanos() / REFILL.as_nanos()).min(BURST.into()) as u32;
        if refill > 0 {
            self.left = (self.left + refill).min(BURST);
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.dropped))
            }
            None => {
                self.dropped += 1;
                None
            }
        }
    }
}

impl Log for Logger {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let Some(dropped) = lock(&self.0).take(Instant::now()) else { return };
        let mut stderr = std::io::stderr().lock();
        // There is nowhere to report that standard error can't be written.
        if dropped > 0 {
            let _ = writeln!(stderr, "({dropped} messages left out)");
        }
        let _ = writeln!(stderr, "{}: {}", record.level().as_str().to_lowercase(), record.args());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut bucket = Bucket { left: BURST, since: start, dropped: 0 };
        let written = (0..1000).filter(|_| bucket.take(start).is_some()).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(bucket.take(start + REFILL), Some(900));
        assert_eq!(bucket.take(start + REFILL), None);
    }
}
