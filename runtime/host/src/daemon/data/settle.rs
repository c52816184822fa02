//! Waiting until no more disks come by themselves. A data partition that no rack has used yet may be a fresh copy on a
//! fast disk, and the rack's own on a stick that turns up seconds later.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rackstick_linux::uevent::{Next, UeventError, Uevents};

use crate::daemon::drivers::Drivers;

/// Buses at which disks turn up some time after their driver was loaded. Without one of these, no disk comes later.
const SLOW_BUSES: [&str; 3] = ["bus/usb/devices", "class/mmc_host", "class/nvme"];
/// What happens there before a disk is there.
const SUBSYSTEMS: [&str; 5] = ["usb", "scsi", "mmc", "nvme", "block"];
/// Nothing may have happened for so long: a port tells of a stick after a few hundred milliseconds, a hub behind it
/// after as many more, and then of the stick's interfaces, which are seen.
const QUIET: Duration = Duration::from_secs(1);
/// No longer than this altogether: a stick may be broken, and devices may come and go without end.
const MOST: Duration = Duration::from_secs(10);
/// The class of an interface through which a USB device is a disk (USB Mass Storage Class Specification Overview 1.4,
/// section 2).
const MASS_STORAGE: &str = "08";
/// A stick's disk is in `host6/target6:0:0/6:0:0:0/block` below its interface.
const BLOCK_DEPTH: u32 = 4;

/// Waits until the drivers of disks that were there at the start are loaded, and no stick that is there lacks its disk.
pub fn wait(drivers: Option<&Drivers>, uevents: &Uevents) -> Result<(), UeventError> {
    if let Some(drivers) = drivers {
        drivers.wait_for_disks();
    }
    let sys = Path::new("/sys");
    if !has_slow_bus(sys) {
        return Ok(());
    }
    let end = Instant::now() + MOST;
    let mut quiet = Instant::now() + QUIET;
    loop {
        let now = Instant::now();
        if now >= end || now >= quiet && !disk_is_coming(sys) {
            return Ok(());
        }
        let until = if now >= quiet { end } else { quiet.min(end) };
        match uevents.next(Some(until))? {
            Next::Event(event) if !SUBSYSTEMS.contains(&event.subsystem.as_str()) => {}
            Next::Event(_) | Next::Lost => quiet = Instant::now() + QUIET,
            Next::Deadline => {}
        }
    }
}

fn has_slow_bus(sys: &Path) -> bool {
    SLOW_BUSES.iter().any(|bus| fs::read_dir(sys.join(bus)).is_ok_and(|mut devices| devices.next().is_some()))
}

/// Whether a stick is there whose disk is not.
fn disk_is_coming(sys: &Path) -> bool {
    let interfaces = fs::read_dir(sys.join("bus/usb/devices")).into_iter().flatten().flatten();
    interfaces.map(|interface| interface.path()).any(|interface| {
        let class = fs::read_to_string(interface.join("bInterfaceClass")).unwrap_or_default();
        class.trim() == MASS_STORAGE && !has_disk(&interface, BLOCK_DEPTH)
    })
}

fn has_disk(folder: &Path, depth: u32) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.any(|entry| entry.file_name() == "block" || depth > 1 && has_disk(&entry.path(), depth - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stick_without_its_disk_is_waited_for_and_a_keyboard_is_not() {
        let sys = tempfile::tempdir().unwrap();
        assert!(!has_slow_bus(sys.path()) && !disk_is_coming(sys.path()));
        let devices = sys.path().join("bus/usb/devices");
        for (name, class) in [("1-1:1.0", "03"), ("1-2:1.0", "08")] {
            // As the kernel has it: links into the tree of devices.
            let device = sys.path().join("devices/usb1").join(name);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("bInterfaceClass"), format!("{class}\n")).unwrap();
            fs::create_dir_all(&devices).unwrap();
            std::os::unix::fs::symlink(&device, devices.join(name)).unwrap();
            assert_eq!((has_slow_bus(sys.path()), disk_is_coming(sys.path())), (true, class == "08"));
        }
        let lun = devices.join("1-2:1.0/host6/target6:0:0/6:0:0:0");
        fs::create_dir_all(&lun).unwrap();
        assert!(disk_is_coming(sys.path()));
        fs::create_dir_all(lun.join("block/sda")).unwrap();
        assert!(!disk_is_coming(sys.path()));
    }

    #[test]
    fn where_nothing_comes_a_first_boot_waits_a_moment() {
        let begun = Instant::now();
        wait(None, &Uevents::open().unwrap()).unwrap();
        assert!(begun.elapsed() < QUIET * 2, "{:?}", begun.elapsed());
    }
}
