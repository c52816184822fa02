//! Waiting for conditions, always with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// Looks again and again until `condition` gives a value, and returns it; panics after `limit`, naming `what`.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "after {} s still waiting for: {what}", limit.as_secs());
        thread::sleep(INTERVAL.min(left));
    }
}
