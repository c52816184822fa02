//! The only clock of the builder: it judges whether an archive's index is still valid, and nothing that ends up in an
//! image.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub fn now() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        // A clock before 1970: every index is then from the future, and refused with that reason.
        Err(_) => 0,
    }
}
