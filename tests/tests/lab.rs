//! Ring 3: the lab as its users meet it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, time::Duration};

use rackstick_api::rack::{Part, State};
use rackstick_tests::{
    client::{Transport, curl, dig},
    image::Image,
    place,
    rack::{Options, Rack, guest},
};

/// What the host may use for itself, in KiB.
const HOST_MEMORY_GOAL_KIB: u64 = 128 * 1024;

#[test]
fn the_lab_comes_up_answers_its_clients_and_switches_off_cleanly() {
    let mut rack = Rack::start("lab", Image::lab(), Options::default());
    let status = rack.until_healthy();
    rack.until_console("2/2 guests healthy", Duration::from_secs(10));

    assert_eq!((status.rack.as_str(), status.problems.as_slice()), ("lab", [].as_slice()));
    for name in ["dns", "web"] {
        let guest = guest(&status, name);
        assert_eq!((guest.state, guest.restarts, guest.detail.as_str()), (State::Running, 0, ""), "{name}");
    }
    println!("{}", rack.boot(&status));
    let first = status.boot.iter().find(|phase| phase.part == Part::FirstGuest);
    assert!(first.is_some_and(|phase| phase.took_ms.is_some()), "{:?}", status.boot);
    rack.until_console("first guest started ", Duration::from_secs(30));
    println!("host memory {:.1} MiB", status.host_memory_kib as f64 / 1024.0);
    assert!((1..=HOST_MEMORY_GOAL_KIB).contains(&status.host_memory_kib), "{} KiB", status.host_memory_kib);

    for (port, transport) in [("53/udp", Transport::Udp), ("53/tcp", Transport::Tcp)] {
        assert_eq!(
            dig(rack.address(port), transport, "www.lab.internal").as_deref(),
            Ok(&["10.20.0.80".to_owned()][..])
        );
    }
    let page = fs::read_to_string(place::clone().join("recipes/images/web/index.html")).unwrap();
    assert_eq!(curl(rack.address("8080/tcp"), "/"), Ok(page));

    rack.power_off();
    for name in ["dns", "web"] {
        let stopped = format!("{name}: stopped (it switched itself off)");
        assert!(rack.console().contains(&stopped), "`{stopped}` is not on the console");
    }
}
