//! The names of the rack's own interfaces, at most 15 bytes as the kernel demands, the same after every restart.

use std::hash::{DefaultHasher, Hash, Hasher};

/// IFNAMSIZ without its terminating zero.
const LONGEST: usize = 15;

/// The bridge of a network: `br-NAME`, where that is short and plain enough for the kernel.
pub fn bridge(network: &str) -> String {
    let plain = network.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let name = format!("br-{network}");
    if plain && name.len() <= LONGEST {
        return name;
    }
    let mut hasher = DefaultHasher::new();
    network.hash(&mut hasher);
    format!("br-{:08x}", hasher.finish() >> 32)
}

/// The tap of a guest's interface: `tap` and its MAC address, which no other interface has.
pub fn tap(mac: &str) -> String {
    let digits: String = mac.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    format!("tap{}", digits.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_fits_the_kernel_and_differs() {
        for network in ["lan", "servers", "a-network-with-a-long-name", "b-network-with-a-long-name", "späti", "a/b"] {
            let name = bridge(network);
            assert!(name.len() <= LONGEST && name.is_ascii() && !name.contains('/'), "{name}");
        }
        assert_ne!(bridge("a-network-with-a-long-name"), bridge("b-network-with-a-long-name"));
        assert_eq!(bridge("servers"), "br-servers");
        assert_eq!(tap("52:54:00:Ab:cd:01"), "tap52540".to_owned() + "0abcd01");
    }
}
