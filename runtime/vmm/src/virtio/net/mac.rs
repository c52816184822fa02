//! MAC addresses as the configuration writes them.

use std::str::FromStr;

/// A unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// A text that is no address of one station.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the MAC address of one interface, such as 52:54:00:12:34:56")]
pub struct BadMac(String);

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.chars().take(40).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(bad)?;
        }
        // The lowest bit of the first byte marks a group (IEEE 802).
        match parts.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6] {
            true => Ok(Self(bytes)),
            false => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_six_bytes_of_one_station_are_an_address() {
        assert_eq!("52:54:00:12:aB:ff".parse(), Ok(Mac([0x52, 0x54, 0, 0x12, 0xAB, 0xFF])));
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "53:54:00:12:34:56",
            "00:00:00:00:00:00",
            "52:54:00:12:34:g6",
            "+1:54:00:12:34:56",
            "52-54-00-12-34-56",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
