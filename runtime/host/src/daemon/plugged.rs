//! What a device event means to a person: disks, sticks and network cards that come and go.

use std::{fs, path::Path};

use rackstick_linux::uevent::Uevent;

/// Longest name that a device gives itself and that is shown; anybody can make a stick.
const MAX_MODEL: usize = 40;
/// The unit of `size` in sysfs, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// One line about the event, if it is worth one.
pub fn words(event: &Uevent) -> Option<String> {
    // Taps, bridges, loop devices come and go with guests.
    if event.devpath.starts_with("/devices/virtual/") {
        return None;
    }
    let name = event.devpath.rsplit('/').next()?;
    let device = Path::new("/sys").join(event.devpath.trim_start_matches('/'));
    let kind = match (event.subsystem.as_str(), event.variables.get("DEVTYPE").map(String::as_str)) {
        ("block", Some("disk")) => "disk",
        ("net", None) => "network card",
        _ => return None,
    };
    match event.action.as_str() {
        "add" if kind == "disk" => Some(format!("disk {name} is there{}", disk(&device))),
        "add" => Some(format!("network card {name} is there{}", driver(&device))),
        "remove" => Some(format!("{kind} {name} is gone")),
        _ => None,
    }
}

/// `: QEMU HARDDISK, 8.0 GiB`; what is not known is left out.
fn disk(device: &Path) -> String {
    let read = |file: &str| fs::read_to_string(device.join(file)).ok();
    let model = read("device/model").map(|model| plain(&model)).filter(|model| !model.is_empty());
    let size = read("size").and_then(|size| size.trim().parse::<u64>().ok());
    let size = size.map(|sectors| format!("{:.1} GiB", sectors.saturating_mul(SECTOR) as f64 / f64::from(1 << 30)));
    let known: Vec<String> = [model, size].into_iter().flatten().collect();
    if known.is_empty() { String::new() } else { format!(": {}", known.join(", ")) }
}

/// `, driven by e1000e`.
fn driver(device: &Path) -> String {
    let link = fs::read_link(device.join("device/driver")).ok();
    let name = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    name.map(|name| format!(", driven by {name}")).unwrap_or_default()
}

/// Printable ASCII only, and not much of it.
fn plain(text: &str) -> String {
    let kept: String = text.chars().filter(|c| matches!(c, ' '..='~')).take(MAX_MODEL).collect();
    kept.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: &str, devpath: &str, subsystem: &str, devtype: Option<&str>) -> Uevent {
        let variables = devtype.map(|kind| ("DEVTYPE".to_owned(), kind.to_owned())).into_iter().collect();
        Uevent { action: action.into(), devpath: devpath.into(), subsystem: subsystem.into(), variables }
    }

    #[test]
    fn a_stick_and_a_network_card_that_go_are_named_and_what_the_rack_makes_itself_is_not() {
        let usb = "/devices/pci0000:00/0000:00:04.0/usb1/1-1/1-1:1.0/host6/target6:0:0/6:0:0:0/block/sda";
        assert_eq!(words(&event("remove", usb, "block", Some("disk"))).as_deref(), Some("disk sda is gone"));
        assert_eq!(words(&event("remove", &format!("{usb}/sda1"), "block", Some("partition"))), None);
        let nic = "/devices/pci0000:00/0000:00:03.0/net/eth1";
        assert_eq!(words(&event("remove", nic, "net", None)).as_deref(), Some("network card eth1 is gone"));
        assert_eq!(words(&event("add", nic, "net", None)).as_deref(), Some("network card eth1 is there"));
        assert_eq!(words(&event("add", "/devices/virtual/net/tap0", "net", None)), None);
        assert_eq!(words(&event("change", usb, "block", Some("disk"))), None);
    }

    #[test]
    fn a_stick_s_own_name_can_not_steer_a_terminal() {
        assert_eq!(plain("  Evil\u{1b}[2J\nStick \u{202e} \n"), "Evil[2JStick");
        assert_eq!(plain(&"x".repeat(500)).len(), MAX_MODEL);
    }
}
