//! Ring 3: devices that come and go while a rack runs, most of them with drivers that are no longer in memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, time::Duration};

use rackstick_tests::{
    image::Image,
    rack::{BOOT_LIMIT, Nic, Options, Rack},
};
use serde_json::json;

/// How long a driver may take to be read back and to find its device, under software emulation on a busy machine.
const DRIVER_LIMIT: Duration = Duration::from_secs(90);
/// How long the rack may take to let go of a device: the slot's button blinks for five seconds first.
const PULL_LIMIT: Duration = Duration::from_secs(60);

fn plug_nic(rack: &mut Rack, id: &str, nic: Nic, slot: &str) {
    let net = format!("net-{id}");
    rack.qmp().execute("netdev_add", json!({ "type": "user", "id": net }));
    rack.qmp().plug(json!({ "driver": nic.model(), "id": id, "bus": slot, "netdev": net, "romfile": "" }));
}

/// The stick of a person, with nothing on it.
fn plug_stick(rack: &mut Rack) {
    let blank = json!({ "driver": "null-co", "node-name": "blank", "size": 1 << 30, "read-zeroes": true });
    rack.qmp().execute("blockdev-add", blank);
    rack.qmp().plug(json!({ "driver": "usb-storage", "id": "stick", "bus": "usb.0", "drive": "blank" }));
}

fn plug_disk(rack: &mut Rack, image: &Path, slot: &str) {
    let file = json!({ "driver": "file", "filename": image, "read-only": true });
    rack.qmp()
        .execute("blockdev-add", json!({ "driver": "raw", "node-name": "back", "read-only": true, "file": file }));
    rack.qmp().plug(json!({ "driver": "virtio-blk-pci", "id": "back", "bus": slot, "drive": "back" }));
}

#[test]
fn what_is_plugged_in_gets_its_driver_back_from_the_disk_and_what_goes_is_named() {
    let options = Options { slots: 3, usb: true, ..Options::default() };
    let mut rack = Rack::start("hotplug", Image::bare(), options);
    rack.until_console("of drivers that no device wants are no longer in memory", BOOT_LIMIT);

    plug_stick(&mut rack);
    rack.until_console("disk sda is there: QEMU HARDDISK, 1.0 GiB", DRIVER_LIMIT);
    rack.qmp().pull("stick", PULL_LIMIT);
    rack.until_console("disk sda is gone", DRIVER_LIMIT);

    plug_nic(&mut rack, "nic8", Nic::E1000e, "slot0");
    rack.until_console("driver e1000e loaded for a device that was plugged in", DRIVER_LIMIT);
    rack.until_console("is there, driven by e1000e", DRIVER_LIMIT);
    rack.qmp().pull("nic8", PULL_LIMIT);
    rack.until_console("network card eth1 is gone", DRIVER_LIMIT);
    assert_eq!(rack.client().status().unwrap().problems, [""; 0]);

    // Without its disk the rack can't read the next driver, says so, and has it as soon as the disk is back.
    rack.qmp().pull("disk0", PULL_LIMIT);
    rack.until_console("disk vda is gone", DRIVER_LIMIT);
    plug_nic(&mut rack, "nic9", Nic::Igb, "slot1");
    let missing = "the driver igb is wanted and can't be loaded";
    let names_it = |problem: &String| problem.contains(missing);
    rack.until_status("the missing driver to be reported", DRIVER_LIMIT, |status| status.problems.iter().any(names_it));
    plug_disk(&mut rack, &Image::bare().path, "slot2");
    rack.until_console("driver igb loaded for a device that was plugged in", DRIVER_LIMIT);
    rack.until_status("the driver not to be missing any more", DRIVER_LIMIT, |status| {
        !status.problems.iter().any(names_it)
    });
    rack.power_off();
}
