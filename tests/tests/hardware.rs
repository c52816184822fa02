//! The matrix: a rack on every kind of machine comes up, serves, and says what its machine lacks.
//!
//! Each row of the table is one boot. A sample runs with the other tests of ring 3, all of them by `ci/soak matrix`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use rackstick_api::rack::{State, Status};
use rackstick_tests::{
    client::curl,
    image::Image,
    rack::{BOOT_LIMIT, Disk, HEALTHY_LIMIT, Network, Nic, Options, Rack, guest},
};
use serde_json::json;

/// What the guest serves, as in `tests/recipes/images/page.toml`.
const PAGE: &str = "served by the matrix\n";
/// How long the last line may take to reach screen and serial port.
const CONSOLE_LIMIT: Duration = Duration::from_secs(10);

/// The size of the disk's sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sectors {
    B512,
    B4096,
}

/// Where the rack can say what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Console {
    Serial,
    Screen,
}

/// How the rack is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Api,
    CtrlC,
    PowerButton,
}

/// One machine: disk, size of its sectors, NIC, CPUs, memory in MiB, console, end.
type Machine = (Disk, Sectors, Nic, u8, u32, Console, End);

/// Makes a test of each row, and a table of all.
macro_rules! machines {
    ($($(#[$attribute:meta])* $name:ident: $machine:expr;)*) => {
        $(#[test] $(#[$attribute])* fn $name() { serves(stringify!($name), $machine) })*
        const MACHINES: &[Machine] = &[$($machine),*];
    };
}

use Console::{Screen, Serial};
use Disk::{Ahci, Nvme, Usb, Virtio};
use End::{Api, CtrlC, PowerButton};
use Sectors::{B512, B4096};

machines! {
    a_stick_in_an_old_pc_with_512_mib_serves: (Usb, B512, Nic::Rtl8139, 1, 512, Screen, PowerButton);
    an_nvme_disk_in_a_server_with_8_gib_serves: (Nvme, B512, Nic::Igb, 4, 8192, Serial, Api);
    a_sata_disk_with_1_cpu_and_512_mib_serves: (Ahci, B512, Nic::E1000e, 1, 512, Serial, CtrlC);
    #[ignore = "for ci/soak matrix"]
    a_sata_disk_with_4_cpus_and_8_gib_serves: (Ahci, B512, Nic::Virtio, 4, 8192, Screen, PowerButton);
    #[ignore = "for ci/soak matrix"]
    a_stick_in_a_server_with_8_gib_serves: (Usb, B512, Nic::E1000e, 4, 8192, Serial, CtrlC);
    #[ignore = "for ci/soak matrix"]
    a_virtio_disk_with_1_cpu_and_8_gib_serves: (Virtio, B512, Nic::Rtl8139, 1, 8192, Serial, PowerButton);
    #[ignore = "for ci/soak matrix"]
    a_virtio_disk_with_4_cpus_and_512_mib_serves: (Virtio, B512, Nic::Rtl8139, 4, 512, Screen, Api);
    #[ignore = "for ci/soak matrix"]
    an_nvme_disk_with_1_cpu_and_512_mib_serves: (Nvme, B512, Nic::Virtio, 1, 512, Screen, CtrlC);
    #[ignore = "for ci/soak matrix"]
    an_nvme_disk_of_4096_byte_sectors_with_1_cpu_serves: (Nvme, B4096, Nic::Igb, 1, 8192, Screen, Api);
    #[ignore = "for ci/soak matrix"]
    a_virtio_disk_of_4096_byte_sectors_with_512_mib_serves: (Virtio, B4096, Nic::Igb, 4, 512, Serial, PowerButton);
}

/// Boots the rack, asks its guest through its NIC, and switches it off.
fn serves(name: &str, (disk, sectors, nic, cpus, memory_mib, console, end): Machine) {
    let image = match sectors {
        B512 => Image::matrix(),
        B4096 => Image::matrix_4kn(),
    };
    let (serial, screen) = (console == Serial, console == Screen);
    let options = Options { disk, nics: vec![nic], cpus, memory_mib, serial, screen, ..Options::default() };
    let mut rack = Rack::start(name, image, options);
    let status = rack.until_healthy();
    assert_eq!(status.problems, [""; 0]);
    assert_eq!(curl(rack.address("8080/tcp"), "/").as_deref(), Ok(PAGE));
    match console {
        Serial => rack.until_console("1/1 guests healthy", CONSOLE_LIMIT),
        Screen => rack.until_screen("Guests     1 of 1 healthy", CONSOLE_LIMIT),
    }
    match end {
        Api => rack.power_off(),
        CtrlC => rack.interrupt(),
        PowerButton => rack.press_power_button(),
    }
    if serial {
        let stopped = "page: stopped (it switched itself off)";
        assert!(rack.console().contains(stopped), "`{stopped}` is not on the console");
    }
}

/// Fewer machines than all there are, but each disk and each NIC meets each number of CPUs and each size of memory.
/// Disk and NIC need not meet each other: no code knows both.
#[test]
fn every_disk_and_every_nic_meets_few_and_many_cpus_and_little_and_much_memory() {
    let disks = [(Virtio, B512), (Virtio, B4096), (Ahci, B512), (Nvme, B512), (Nvme, B4096), (Usb, B512)];
    let nics = [Nic::Virtio, Nic::E1000e, Nic::Igb, Nic::Rtl8139];
    let booted = |fits: &dyn Fn(&Machine) -> bool| MACHINES.iter().any(fits);
    for (disk, sectors) in disks {
        assert!(booted(&|machine| (machine.0, machine.1) == (disk, sectors)), "{disk:?} {sectors:?}");
    }
    for (cpus, memory) in [(1, 512), (1, 8192), (4, 512), (4, 8192)] {
        assert!(booted(&|machine| (machine.3, machine.4) == (cpus, memory)), "{cpus} CPUs, {memory} MiB");
        for disk in [Virtio, Ahci, Nvme, Usb] {
            assert!(booted(&|machine| machine.0 == disk && machine.3 == cpus), "{disk:?}, {cpus} CPUs");
            assert!(booted(&|machine| machine.0 == disk && machine.4 == memory), "{disk:?}, {memory} MiB");
        }
        for nic in nics {
            assert!(booted(&|machine| machine.2 == nic && machine.3 == cpus), "{nic:?}, {cpus} CPUs");
            assert!(booted(&|machine| machine.2 == nic && machine.4 == memory), "{nic:?}, {memory} MiB");
        }
    }
}

#[test]
fn a_rack_without_kvm_and_nic_says_what_to_switch_on_and_stays_manageable() {
    let options = Options { virtualization: false, nics: Vec::new(), ..Options::default() };
    let mut rack = Rack::start("no-kvm", Image::matrix(), options);
    let status = rack.until_status("the missing KVM to be reported", BOOT_LIMIT, |status| {
        status.problems.iter().any(|problem| problem.contains("switch on virtualization"))
    });
    let page = guest(&status, "page");
    assert_eq!(page.state, State::Waiting, "{page:?}");
    assert!(page.detail.contains("KVM"), "{page:?}");
    let status = rack.until_status("the missing NIC to be reported", HEALTHY_LIMIT, |status| {
        status.problems.iter().any(|problem| problem.contains("network card"))
    });
    println!("{:#?}", status.problems);
    rack.until_console("switch on virtualization", CONSOLE_LIMIT);
    rack.power_off();
}

fn complains(status: &Status, text: &str) -> bool {
    status.problems.iter().any(|problem| problem.contains(text))
}

/// What `disk1` may transfer in a second, in bytes; 0: as much as it can.
fn throttle(rack: &mut Rack, bytes: u64) {
    let limits =
        json!({ "bps": bytes, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0, "id": "disk1" });
    rack.qmp().execute("block_set_io_throttle", limits);
}

/// A disk that the firmware could read and that then answers nothing: the kernel's drivers wait for it for minutes, and
/// so does every driver that is loaded after them.
#[test]
fn a_disk_that_never_answers_is_reported_and_keeps_the_rack_from_neither_its_data_nor_its_network() {
    let drive = "if=none,id=dead,driver=null-co,size=1G,read-zeroes=on";
    let qemu = ["-drive", drive, "-device", "ich9-ahci,id=sata", "-device", "ide-hd,id=disk1,bus=sata.0,drive=dead"];
    let options = Options { nics: vec![Nic::E1000e], qemu: qemu.map(str::to_owned).to_vec(), ..Options::default() };
    let mut rack = Rack::start("dead-disk", Image::bare(), options);
    rack.until_console("BdsDxe: starting Boot", BOOT_LIMIT);
    throttle(&mut rack, 1);
    let hang = "drivers wait for a device that does not answer";
    rack.until_status("the disk to be reported, data and network to be there", BOOT_LIMIT, |status| {
        complains(status, hang) && status.data.is_some() && status.addresses.contains_key("lan")
    });
    // It answers again, as a disk does whose cable was loose.
    throttle(&mut rack, 0);
    rack.until_status("the drivers to come back", BOOT_LIMIT, |status| !complains(status, hang));
    rack.until_console("of drivers that no device wants are no longer in memory", BOOT_LIMIT);
    rack.power_off();
}

#[test]
fn a_nic_that_is_of_no_use_without_its_firmware_gets_it() {
    let mut rack = Rack::start("firmware", Image::bare(), Options { nics: vec![Nic::I82551], ..Options::default() });
    // By DHCP: a NIC that can't be opened has none, and what nobody answers gives itself a link-local one.
    rack.until_status("an address by the NIC", BOOT_LIMIT, |status| {
        status.addresses.values().any(|address| !address.starts_with("169.254."))
    });
    rack.power_off();
}

#[test]
#[ignore = "for ci/soak matrix"]
fn a_rack_without_a_nic_runs_its_guests() {
    let mut rack = Rack::start("no-nic", Image::matrix(), Options { nics: Vec::new(), ..Options::default() });
    let status = rack.until_healthy();
    assert!(status.addresses.is_empty(), "{status:?}");
    rack.power_off();
}

#[test]
#[ignore = "for ci/soak matrix"]
fn a_rack_whose_network_does_not_answer_takes_an_address_of_its_own_and_runs_its_guests() {
    let options = Options { network: Network::Silent, ..Options::default() };
    let mut rack = Rack::start("silent", Image::matrix(), options);
    rack.until_healthy();
    let status = rack.until_status("a link-local address", HEALTHY_LIMIT, |status| {
        status.addresses.get("lan").is_some_and(|address| address.starts_with("169.254."))
    });
    assert!(status.problems.iter().any(|problem| problem.contains("keeps asking")), "{:?}", status.problems);
    rack.power_off();
}

#[test]
#[ignore = "for ci/soak matrix"]
fn the_first_of_two_nics_is_the_uplink_and_the_second_when_its_cable_is_pulled() {
    let options = Options { nics: vec![Nic::E1000e, Nic::Virtio], ..Options::default() };
    let mut rack = Rack::start("two-nics", Image::matrix(), options);
    rack.until_healthy();
    assert_eq!(curl(rack.address("8080/tcp"), "/").as_deref(), Ok(PAGE));
    rack.qmp().cable("nic0", false);
    // QEMU's second network is 10.0.3.0/24.
    let status = rack.until_status("an address from the second NIC", HEALTHY_LIMIT, |status| {
        status.addresses.get("lan").is_some_and(|address| address.starts_with("10.0.3."))
    });
    assert!(guest(&status, "page").healthy, "{status:?}");
    rack.power_off();
}
