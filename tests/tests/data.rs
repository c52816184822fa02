//! Ring 4: the data partition of a whole rack, from its first boot to the disk that is pulled out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path, time::Duration};

use rackstick_api::rack::{State, Status};
use rackstick_tests::{
    disk::Partition,
    image::Image,
    place,
    rack::{BOOT_LIMIT, Disk, Options, Rack},
    tool,
};

/// Number of the data partition in our disks.
const DATA: u32 = 2;
/// How long the rack may take to notice what happens to its disk.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// What a disk of 64 GiB has for files at least.
const GROWN: u64 = 60 << 30;

fn is_clean(image: &Path) {
    assert!(tool::ask("sgdisk", ["--verify".as_ref(), image.as_os_str()]).contains("No problems found"));
    tool::ask("e2fsck", ["-fn", &Partition::of(image, DATA).for_e2fsprogs()]);
}

fn has_problem(status: &Status, words: &str) -> bool {
    status.problems.iter().any(|problem| problem.contains(words))
}

/// The first boot is cut while the partition grows; the second finishes it and makes the rack's identity; the third, on
/// another PC, has nothing of this to do and is the same rack.
#[test]
fn a_growth_cut_in_the_middle_is_finished_and_the_stick_is_the_same_rack_in_another_pc() {
    let image = Image::bare().copy_to(&place::test_folder("grown"));
    let options = || Options { persist: true, disk_gib: Some(64), ..Options::default() };
    let mut rack = Rack::start("grown-1", &image, options());
    rack.until_console("the data partition grows to its disk", BOOT_LIMIT);
    rack.kill_hard();
    println!("cut while it grew: {} bytes", Partition::of(&image.path, DATA).length);

    let mut rack = Rack::start("grown-2", &image, options());
    let first = rack.until_status("an identity", BOOT_LIMIT, |status| status.identity.is_some());
    println!("{:?} {:?}", first.identity, first.data);
    assert!(first.data.as_ref().unwrap().size_bytes > GROWN, "{first:?}");
    assert_eq!(first.problems, [""; 0]);
    rack.power_off();
    is_clean(&image.path);
    // A new build does not take the rack's place.
    let recipe = place::clone().join("tests/recipes/bare.toml");
    let folder = image.path.parent().unwrap();
    let said = tool::run(tool::rackstick().arg("build").arg(recipe).arg("-o").arg(folder));
    assert!(!said.success && said.stderr.contains("holds what a rack wrote"), "{said:?}");
    let data = Partition::of(&image.path, DATA);
    let machine_id = data.read_file("/state/machine-id");
    assert_eq!(machine_id, format!("{}\n", first.identity.as_ref().unwrap().machine_id).as_bytes());
    let key = data.debugfs("stat /state/identity.pem");
    assert!(key.contains("Mode:  0600"), "{key}");

    let other_pc = Options { disk: Disk::Ahci, cpus: 1, memory_mib: 1024, ..options() };
    let mut rack = Rack::start("grown-3", &image, other_pc);
    let second = rack.until_status("the same identity", BOOT_LIMIT, |status| status.identity.is_some());
    assert_eq!(second.identity, first.identity);
    assert_eq!(second.data.as_ref().unwrap().size_bytes, first.data.as_ref().unwrap().size_bytes);
    assert!(second.data.as_ref().unwrap().device.starts_with("sd"), "{second:?}");
    rack.power_off();
    for done_before in ["grows to its disk", "first boot"] {
        assert!(!rack.console().contains(done_before), "`{done_before}` is said again");
    }
    is_clean(&image.path);
}

/// A stick that is as full as its disk, has errors on record, and a fresh twin on a disk that is there long before it.
#[test]
fn a_full_and_damaged_partition_with_a_twin_is_reported_and_the_rack_boots() {
    let folder = place::test_folder("faulty");
    let image = Image::bare().copy_to(&folder);
    let twin = folder.join("twin.img");
    tool::ask("cp", ["--sparse=always".as_ref(), image.path.as_os_str(), twin.as_os_str()]);
    let data = Partition::of(&image.path, DATA);
    fill(&data, &image.path, &folder.join("mounted"));
    let name = data.for_e2fsprogs();
    for request in ["ssv state 3", "ssv error_count 3", "ssv last_error_func ext4_find_entry"] {
        tool::ask("debugfs", ["-w", "-R", request, &name]);
    }

    let drive = format!("if=none,id=twin,format=raw,snapshot=on,file={}", twin.display());
    let qemu = ["-drive", &drive, "-device", "virtio-blk-pci,drive=twin"].map(str::to_owned).to_vec();
    let mut rack =
        Rack::start("faulty-boot", &image, Options { persist: true, disk: Disk::Usb, qemu, ..Options::default() });
    let status = rack.until_status("three problems", BOOT_LIMIT, |status| status.problems.len() >= 3);
    println!("{:#?}", status.problems);
    assert!(has_problem(&status, "is full"), "{:?}", status.problems);
    assert!(has_problem(&status, "log 1"), "what takes the space: {:?}", status.problems);
    assert!(has_problem(&status, "the last in ext4_find_entry"), "{:?}", status.problems);
    let taken = status.data.as_ref().map(|data| data.device.as_str());
    assert_eq!(taken, Some("sda2"), "{:?}", status.problems);
    let twice = |problem: &String| problem.contains("sda2 (") && problem.contains("vda2 is left alone");
    assert!(status.problems.iter().any(twice), "{:?}", status.problems);
    for problem in &status.problems {
        rack.until_console(problem, Duration::from_secs(10));
    }
    rack.power_off();
}

/// Fills the file system from outside.
fn fill(data: &Partition, image: &Path, at: &Path) {
    fs::create_dir(at).unwrap();
    let options = format!("loop,offset={},sizelimit={}", data.offset, data.length);
    tool::ask(
        "mount",
        ["-t".as_ref(), "ext4".as_ref(), "-o".as_ref(), options.as_ref(), image.as_os_str(), at.as_os_str()],
    );
    let stat = rustix::fs::statvfs(at).unwrap();
    let free = stat.f_bavail * stat.f_frsize;
    let filled = fs::write(at.join("log/filler"), vec![0x5a; (free - (8 << 20)) as usize]);
    tool::ask("umount", [at]);
    filled.unwrap();
}

#[test]
fn a_stick_that_is_pulled_is_reported_and_no_layer_is_called_corrupt() {
    let mut rack = Rack::start("pulled", Image::matrix(), Options { disk: Disk::Usb, ..Options::default() });
    let before = rack.until_healthy();
    rack.qmp().pull("disk0", NOTICE_LIMIT);
    let status = rack.until_status("the stick to be missed", NOTICE_LIMIT, |status| has_problem(status, "is gone"));
    println!("{:#?}", status.problems);
    assert_eq!((status.daemon_pid, status.data.is_none()), (before.daemon_pid, true));
    // A guest goes on until it wants what is not in memory; then it waits for the disk.
    let later = status.uptime_s + 15;
    let status = rack.until_status("15 s to pass", NOTICE_LIMIT, |status| status.uptime_s >= later);
    println!("{:#?}", status.guests);
    assert_eq!(status.daemon_pid, before.daemon_pid);
    let page = &status.guests[0];
    match page.state {
        State::Running => assert_eq!(page.pid, before.guests[0].pid, "the guest's monitor is the same process"),
        state => {
            assert!(state == State::Waiting && page.detail.contains("the data partition is not there"), "{page:?}")
        }
    }
    rack.power_off();
}
