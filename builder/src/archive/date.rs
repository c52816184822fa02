//! Dates as Release files write them: `Sat, 21 Nov 2026 09:15:44 UTC` (RFC 5322, section 3.3, always in UTC).

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
const SECONDS_OF_DAY: i64 = 86_400;

/// Seconds since 1970 of a date, or none if it is not written as expected or no such date exists.
pub fn parse(text: &str) -> Option<i64> {
    let (_weekday, rest) = text.trim().split_once(',')?;
    let mut words = rest.split_ascii_whitespace();
    let mut next = || words.next();
    let day = number(next()?, 1, 31)?;
    let month = next()?;
    let month = 1 + i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()?;
    let year = number(next()?, 1970, 9999)?;
    let mut clock = next()?.split(':');
    let hour = number(clock.next()?, 0, 23)?;
    let minute = number(clock.next()?, 0, 59)?;
    let second = number(clock.next()?, 0, 60)?;
    let zone = next()?;
    if !matches!(zone, "UTC" | "GMT" | "+0000") || clock.next().is_some() || next().is_some() {
        return None;
    }
    let days = days(year, month, day);
    let exists = civil(days) == (year, month, day);
    exists.then_some(days * SECONDS_OF_DAY + hour * 3600 + minute * 60 + second)
}

/// The date as Release files write it.
pub fn show(seconds: i64) -> String {
    let days = seconds.div_euclid(SECONDS_OF_DAY);
    let clock = seconds.rem_euclid(SECONDS_OF_DAY);
    let (year, month, day) = civil(days);
    let name = |names: &[&'static str], index: i64| usize::try_from(index).ok().and_then(|i| names.get(i).copied());
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} UTC",
        // 1970-01-01 was a Thursday.
        name(&WEEKDAYS, (days + 4).rem_euclid(7)).unwrap_or_default(),
        name(&MONTHS, month - 1).unwrap_or_default(),
        clock / 3600,
        clock / 60 % 60,
        clock % 60,
    )
}

/// The date as snapshots of archives are named: `20261121T091544Z`.
pub fn stamp(seconds: i64) -> String {
    let (year, month, day) = civil(seconds.div_euclid(SECONDS_OF_DAY));
    let clock = seconds.rem_euclid(SECONDS_OF_DAY);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", clock / 3600, clock / 60 % 60, clock % 60)
}

fn number(text: &str, least: i64, most: i64) -> Option<i64> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|value| (least..=most).contains(value))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that the leap day is the
/// last of its year; 719,468 is the number of days from 0000-03-01 to 1970-01-01.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

/// The inverse of [`days`]; 146,097 is the number of days in 400 years.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_the_second_that_date_1_says() {
        // Expected values from `date -u -d TEXT +%s`.
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 UTC", 0),
            ("Tue, 29 Feb 2000 23:59:59 UTC", 951_868_799),
            ("Sat, 21 Nov 2026 09:15:44 UTC", 1_795_252_544),
            ("Mon, 01 Mar 2100 00:00:00 UTC", 4_107_542_400),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
        }
        assert_eq!(show(1_795_252_544), "Sat, 21 Nov 2026 09:15:44 UTC");
        assert_eq!(stamp(1_795_252_544), "20261121T091544Z");
    }

    #[test]
    fn what_is_written_reads_back_on_every_day_of_two_centuries() {
        for day in 0..73_049 {
            let seconds = day * SECONDS_OF_DAY + 12_345;
            assert_eq!(parse(&show(seconds)), Some(seconds));
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for bad in [
            "",
            "Sat, 21 Nov 2026 09:15:44",
            "Sat, 21 Nov 2026 09:15:44 CET",
            "Sat, 30 Feb 2026 09:15:44 UTC",
            "Sat, 21 Nov 2026 24:15:44 UTC",
            "Sat, 21 Nov 2026 09:15 UTC",
            "Sat, 21 Nov 2026 09:15:44 UTC now",
            "Sat, -1 Nov 2026 09:15:44 UTC",
            "Sat, 21 Nov 99999 09:15:44 UTC",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
