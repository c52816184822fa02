//! What people paste of a device: its id alone or in brackets, or a whole line of `lspci -nn`, `lspci -n` or `lsusb`.

use super::device::{Device, IdError};

/// Reads an id, or a line with an id in it: the devices that may be meant.
pub fn devices(text: &str) -> Result<Vec<Device>, IdError> {
    let text = text.trim();
    let bare = revision_cut(text);
    let bare = bracketed(bare).unwrap_or(bare);
    if !bare.contains(char::is_whitespace) {
        return Device::parse(bare).map_err(|_| IdError(text.to_owned()));
    }
    let device = of_lsusb(text).or_else(|| of_lspci(text)).ok_or_else(|| IdError(text.to_owned()))?;
    Device::parse(&device).map_err(|_| IdError(text.to_owned()))
}

/// Whether a line of such a list says nothing of a device: it is empty, or belongs to the device above it.
pub fn is_detail(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with(char::is_whitespace)
}

/// `Bus 001 Device 002: ID 0bda:8153 Realtek Semiconductor Corp. RTL8153`.
fn of_lsusb(line: &str) -> Option<String> {
    let (_, id) = line.strip_prefix("Bus ")?.split_once(": ID ")?;
    Some(format!("usb:{}", id.split_whitespace().next()?))
}

/// `00:1f.6 Ethernet controller [0200]: Intel Corporation I219-V [8086:15b8] (rev 10)`, of `lspci -nn`, or
/// `00:1f.6 0200: 8086:15b8 (rev 10)`, of `lspci -n`. What stands behind the id, in parentheses, may have brackets too.
fn of_lspci(line: &str) -> Option<String> {
    let (_, rest) = line.split_once(char::is_whitespace)?;
    let (class, device) = rest.split_once(": ")?;
    let class = class.rsplit_once(' ').map_or(class, |(_, last)| last);
    let class = bracketed(class).unwrap_or(class);
    let words = device.split_whitespace();
    let id = words
        .clone()
        .filter_map(bracketed)
        .rfind(|word| is_id(word))
        .or_else(|| words.clone().find(|word| is_id(word)))?;
    Some(format!("pci:{id}:{class}"))
}

/// Without a `(rev 10)` at its end.
fn revision_cut(text: &str) -> &str {
    text.strip_suffix(')').and_then(|text| text.rsplit_once("(rev ")).map_or(text, |(before, _)| before.trim_end())
}

/// What stands in brackets, if the whole text does.
fn bracketed(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

/// Whether it looks like `8086:15b8`.
fn is_id(text: &str) -> bool {
    text.split_once(':').is_some_and(|(vendor, device)| {
        [vendor, device].iter().all(|part| part.len() == 4 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        devices(text).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_id_is_read_as_lspci_and_lsusb_print_it() {
        for text in ["8086:15b8", "[8086:15b8]", "8086:15B8 (rev 10)", " [8086:15b8] (rev 10)\n"] {
            assert_eq!(read(text), ["PCI 8086:15b8", "USB 8086:15b8"], "{text}");
        }
        assert_eq!(read("[144d:a808:0108]"), ["PCI 144d:a808:0108"]);
    }

    #[test]
    fn of_a_whole_line_the_bus_is_known_and_of_lspci_the_class() {
        for (line, device) in [
            (
                "00:1f.6 Ethernet controller [0200]: Intel Corporation Ethernet Connection (2) I219-V [8086:15b8] (rev 10)",
                "PCI 8086:15b8:0200",
            ),
            // A domain, brackets in a vendor's name, the programming interface behind the id.
            (
                "0000:00:02.0 VGA compatible controller [0300]: Advanced Micro Devices, Inc. [AMD/ATI] Navi [Radeon] \
                 [1002:731f] (rev c1) (prog-if 00 [VGA controller])",
                "PCI 1002:731f:0300",
            ),
            ("00:1f.6 0200: 8086:15b8 (rev 10)", "PCI 8086:15b8:0200"),
            ("01:00.0 0108: 144d:a808", "PCI 144d:a808:0108"),
            (
                "Bus 001 Device 002: ID 0bda:8153 Realtek Semiconductor Corp. RTL8153 Gigabit: a [dead:beef]",
                "USB 0bda:8153",
            ),
            ("Bus 002 Device 001: ID 1d6b:0003", "USB 1d6b:0003"),
        ] {
            assert_eq!(read(line), [device], "{line}");
        }
    }

    #[test]
    fn a_line_without_an_id_is_refused_as_it_stands() {
        for bad in [
            "",
            "[]",
            "[8086:15b8",
            "(rev 10)",
            "Ethernet controller",
            "00:1f.6 Ethernet controller: Intel Corporation I219-V (rev 10)",
            "00:1f.6 Ethernet controller: Intel Corporation I219-V [8086:15b8]",
            "00:1f.6 [0200]: [8086:15b]",
            "Bus 001 Device 002: ID ",
            "Bus 001 Device 002: ID 0bda",
            "é: é [8086:15b8]",
        ] {
            let error = devices(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{}` is no device", bad.trim())), "{bad}: {error}");
        }
        assert!(is_detail("\tKernel driver in use: e1000e") && is_detail("") && !is_detail("00:1f.6 0200: 8086:15b8"));
    }
}
