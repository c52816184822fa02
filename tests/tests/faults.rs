//! Ring 4: what a rack does when something goes wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use rackstick_api::rack::{Process, Request, State, Status, Watched};
use rackstick_image::manifest::Blob;
use rackstick_tests::{
    client::{Asker, Transport, curl, dig},
    disk::{self, BLOCK, Partition},
    image::Image,
    place,
    rack::{BOOT_LIMIT, HEALTHY_LIMIT, Options, Rack, guest},
};

/// The data partition's number.
const DATA: u32 = 2;
/// How long the daemon may take to notice and mend what was broken, without any guest's boot.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// How long a process that hangs may go unnoticed: PID 1 waits for 60 s, the watchdog for twice 30.
const HANG_LIMIT: Duration = Duration::from_secs(150);

fn ask_dns(rack: &Rack) -> Asker {
    let server = rack.address("53/udp");
    Asker::start(move || dig(server, Transport::Udp, "www.lab.internal").map(drop))
}

fn ask_web(rack: &Rack) -> Asker {
    let server = rack.address("8080/tcp");
    Asker::start(move || curl(server, "/").map(drop))
}

fn pids(status: &Status) -> Vec<Option<u32>> {
    status.guests.iter().map(|guest| guest.pid).collect()
}

#[test]
fn a_killed_daemon_finds_its_guests_again_and_a_killed_monitor_is_started_anew() {
    let mut rack = Rack::start("killed", Image::pair(), Options::default());
    let before = rack.until_healthy();

    let (dns, web) = (ask_dns(&rack), ask_web(&rack));
    // The daemon may die before it can answer.
    let _ = rack.client().call(Request::Kill { process: Process::Daemon });
    let after = rack.until_status("another daemon with healthy guests", NOTICE_LIMIT, |status| {
        status.daemon_pid != before.daemon_pid && status.guests.iter().all(|guest| guest.healthy)
    });
    for (name, tally) in [("dns", dns.stop()), ("web", web.stop())] {
        println!("{name} while the daemon was killed: {tally}");
        assert!(tally.answered > 0 && tally.failed.is_empty(), "{name}: {tally}");
    }
    assert_eq!(pids(&after), pids(&before), "the guests' monitors are the same processes");
    assert!(after.guests.iter().all(|guest| guest.restarts == 0), "{after:?}");

    let dns = ask_dns(&rack);
    rack.client().order(Request::Kill { process: Process::Vmm("web".into()) }).unwrap();
    let killed = guest(&after, "web").pid;
    let mended = rack.until_status("web to be healthy again", HEALTHY_LIMIT, |status| {
        let web = guest(status, "web");
        web.healthy && web.restarts == 1 && web.pid.is_some() && web.pid != killed
    });
    let tally = dns.stop();
    println!("dns while web was killed: {tally}");
    assert!(tally.answered > 0 && tally.failed.is_empty(), "{tally}");
    assert_eq!(guest(&mended, "dns"), guest(&after, "dns"), "the other guest was left alone");
    assert!(curl(rack.address("8080/tcp"), "/").is_ok());
    rack.power_off();
}

#[test]
fn a_hanging_daemon_is_started_again_and_a_frozen_pid_1_resets_the_machine_which_comes_up_again() {
    // The chipset's own watchdog (iTCO), which QEMU otherwise keeps from resetting.
    let qemu = ["-global", "ICH9-LPC.noreboot=false"].map(str::to_owned).to_vec();
    let mut rack = Rack::start("frozen", Image::bare(), Options { qemu, ..Options::default() });
    let before = rack.until_status("the rack", BOOT_LIMIT, |status| status.activities.is_empty());
    rack.until_console("watchdog iTCO_wdt resets the machine", NOTICE_LIMIT);

    rack.client().order(Request::Freeze { process: Watched::Daemon }).unwrap();
    let frozen = rack.seconds();
    let after = rack.until_status("another daemon", HANG_LIMIT, |status| status.daemon_pid != before.daemon_pid);
    println!("a daemon that hangs was replaced after {:.0} s", rack.seconds() - frozen);
    assert!(after.uptime_s > before.uptime_s, "the machine itself went on: {after:?}");

    rack.client().order(Request::Freeze { process: Watched::Init }).unwrap();
    let frozen = rack.seconds();
    let event = rack.qmp().until_event("WATCHDOG", HANG_LIMIT);
    println!("the watchdog noticed a frozen PID 1 after {:.0} s", rack.seconds() - frozen);
    assert_eq!(event["action"], "reset");
    let again = rack.until_status("the rack to be up again", BOOT_LIMIT, |status| status.uptime_s < after.uptime_s);
    println!("up again {:.0} s after PID 1 froze: {:?}", rack.seconds() - frozen, again.problems);
    rack.power_off();
}

/// Where the page that `web` serves lies in its own layer: a block that is certain to be read.
fn block_of_the_page(data: &Partition, file: &str) -> u64 {
    let page = std::fs::read(place::clone().join("tests/recipes/images/web/index.html")).unwrap();
    let layer = data.read_file(file);
    let begin = page.get(..page.len().min(BLOCK as usize)).unwrap();
    // Files begin at a block's begin: layers have no inlined tails.
    let mut blocks = layer.chunks(BLOCK as usize);
    blocks.position(|block| block.starts_with(begin)).expect("the layer holds the page") as u64
}

#[test]
fn a_flipped_bit_in_a_guests_own_layer_stops_that_guest_and_no_other() {
    let folder = place::test_folder("flipped");
    let image = Image::pair().copy_to(&folder);
    // The first boot turns fs-verity on.
    let mut rack = Rack::start("flipped-before", &image, Options { persist: true, ..Options::default() });
    rack.until_healthy();
    rack.power_off();

    let layers = &image.manifest.images["web"].layers;
    let Blob { digest, .. } = layers.iter().find(|layer| layer.label == "web").expect("web has a layer of its own");
    let data = Partition::of(&image.path, DATA);
    let file = format!("/layers/{digest}");
    let block = block_of_the_page(&data, &file);
    disk::flip_bit(&image.path, data.place_of_block(&file, block));

    let mut rack = Rack::start("flipped-after", &image, Options::default());
    let status = rack.until_status("web to fail and dns to be healthy", HEALTHY_LIMIT, |status| {
        guest(status, "web").state == State::Failed && guest(status, "dns").healthy
    });
    let web = guest(&status, "web");
    println!("web: {}", web.detail);
    assert!(!web.healthy);
    assert!(
        web.detail.contains(&digest.to_string()) && web.detail.contains(&format!("block {block}")),
        "{}",
        web.detail
    );

    // It stays failed, and the other one goes on.
    let dns = ask_dns(&rack);
    let restarts = web.restarts;
    let later = status.uptime_s + 20;
    let status = rack.until_status("20 s to pass", NOTICE_LIMIT, |status| status.uptime_s >= later);
    assert_eq!((guest(&status, "web").state, guest(&status, "web").restarts), (State::Failed, restarts));
    let tally = dns.stop();
    println!("dns beside the failed web: {tally}");
    assert!(tally.answered > 0 && tally.failed.is_empty(), "{tally}");
    rack.power_off();
}

#[test]
fn a_data_partition_that_can_not_be_mounted_is_reported_and_left_untouched() {
    let folder = place::test_folder("unmountable");
    let image = Image::pair().copy_to(&folder);
    let data = Partition::of(&image.path, DATA);
    // The superblock, at byte 1024 (ext4 disk layout, section "The Super Block").
    disk::overwrite(&image.path, data.offset + 1024, &[0xa5; 1024]);
    let untouched = folder.join("untouched.img");
    rackstick_tests::tool::ask("cp", ["--sparse=always".as_ref(), image.path.as_os_str(), untouched.as_os_str()]);

    let mut rack = Rack::start("unmountable-boot", &image, Options { persist: true, ..Options::default() });
    let status = rack.until_status("the rack to report its problem", BOOT_LIMIT, |status| !status.problems.is_empty());
    println!("problems: {:?}", status.problems);
    assert!(status.problems.iter().any(|problem| problem.contains("data partition")), "{:?}", status.problems);
    assert!(status.guests.iter().all(|guest| !guest.healthy), "{:?}", status.guests);
    let problem = status.problems[0].clone();
    rack.until_console(&problem, Duration::from_secs(10));
    rack.power_off();
    assert!(data.same_bytes(&Partition::of(&untouched, DATA)), "the data partition was written to");
}
