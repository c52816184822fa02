//! The machine's clock, which a PC with an empty battery sets to 1970 or to when its board was made. Nothing that the
//! rack measures hangs on it, but guests take their time from it, and certificates are valid by it.

use std::{fs, io, os::unix::fs::MetadataExt};

use rackstick_image::manifest;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Sets the clock to when this generation was built, if it shows an earlier time: so late it must be by now. The
/// builder gives every file of the host that time.
pub fn correct() -> io::Result<()> {
    let built = fs::metadata(manifest::PATH)?.mtime();
    let shown = clock_gettime(ClockId::Realtime).tv_sec;
    if let Some(seconds) = earliest(shown, built) {
        clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: 0 })?;
        log::warn!(
            "the machine's clock said {}; it is set to {}, when this generation was built: set it in the firmware, and \
             change the battery if it is lost again",
            date(shown),
            date(seconds)
        );
    }
    Ok(())
}

/// What the clock must be set to, in seconds since 1970; none: it may be right.
fn earliest(shown: i64, built: i64) -> Option<i64> {
    (shown < built).then_some(built)
}

/// The date of a moment, UTC, by days counted from 1 March 0000 (the algorithm that Howard Hinnant published as
/// `civil_from_days`).
fn date(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_shows_a_time_before_the_build_is_set_and_no_other() {
        assert_eq!(earliest(86_400, 1_795_000_000), Some(1_795_000_000));
        assert_eq!(earliest(1_795_000_000, 1_795_000_000), None);
        assert_eq!(earliest(1_900_000_000, 1_795_000_000), None);
    }

    #[test]
    fn a_date_is_the_one_that_coreutils_says() {
        for seconds in [0, 86_399, 86_400, 951_782_400, 951_868_800, 1_709_164_800, 1_795_000_000, 4_102_444_799, -1] {
            let said = std::process::Command::new("date").args(["-u", "+%F", "-d", &format!("@{seconds}")]).output();
            assert_eq!(date(seconds), String::from_utf8(said.unwrap().stdout).unwrap().trim_end());
        }
    }
}
