//! Sizes as people write them: a whole number and a binary unit.

use super::names::shown;

/// Least memory of a guest in MiB: below it a Debian kernel with systemd does not come up.
pub const MEMORY_MIN_MIB: u32 = 64;
/// Most memory of a guest in MiB, 1 TiB: a slip of the unit is found here, not when the rack starts.
pub const MEMORY_MAX_MIB: u32 = 1024 * 1024;

/// A size that is not one, or out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SizeError {
    /// Not a number with a unit.
    #[error("`{0}` is not a size")]
    Malformed(String),
    /// Too small or too big.
    #[error("{0} is out of range")]
    OutOfRange(String),
}

/// Reads a size from `min` to `max` MiB, `192 MiB` or `2 GiB`, as MiB.
pub(super) fn size_mib(text: &str, min: u32, max: u32) -> Result<u32, SizeError> {
    let malformed = || SizeError::Malformed(shown(text));
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let mib_per_unit = match unit.trim_start_matches(' ') {
        "MiB" => 1,
        "GiB" => 1024,
        "TiB" => 1024 * 1024,
        _ => return Err(malformed()),
    };
    if number.is_empty() {
        return Err(malformed());
    }
    // What does not fit 64 bits is a number all the same, only too big.
    let mib = number.parse::<u64>().ok().and_then(|number| number.checked_mul(mib_per_unit));
    mib.and_then(|mib| u32::try_from(mib).ok())
        .filter(|mib| (min..=max).contains(mib))
        .ok_or_else(|| SizeError::OutOfRange(shown(text)))
}

/// A number of MiB as people would write it.
pub(super) fn shown_mib(mib: u32) -> String {
    match mib {
        tib if tib.is_multiple_of(1 << 20) && tib > 0 => format!("{} TiB", tib >> 20),
        gib if gib.is_multiple_of(1 << 10) && gib > 0 => format!("{} GiB", gib >> 10),
        mib => format!("{mib} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_mib(text: &str) -> Result<u32, SizeError> {
        size_mib(text, MEMORY_MIN_MIB, MEMORY_MAX_MIB)
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        for text in ["1 MiB", "1025 MiB", "8 GiB", "1 TiB"] {
            assert_eq!(size_mib(text, 0, u32::MAX).map(shown_mib).as_deref(), Ok(text));
        }
    }

    #[test]
    fn memory_is_a_whole_number_of_a_binary_unit_within_range() {
        assert_eq!(memory_mib("192 MiB"), Ok(192));
        assert_eq!(memory_mib("2GiB"), Ok(2048));
        assert_eq!(memory_mib("1 TiB"), Ok(MEMORY_MAX_MIB));
        for bad in ["", "MiB", "192", "192 MB", "192 mib", "1.5 GiB", "-1 MiB", "+1 MiB", "192 MiB ", "ä MiB", "1é"] {
            assert!(matches!(memory_mib(bad), Err(SizeError::Malformed(_))), "{bad}");
        }
        for bad in ["0 MiB", "63 MiB", "2 TiB", "99999999999999999999999 GiB", "18446744073709551615 TiB"] {
            assert!(matches!(memory_mib(bad), Err(SizeError::OutOfRange(_))), "{bad}");
        }
    }
}
