//! The rack's networks on whole racks: cards and cables that come and go, a LAN without DHCP, guests on the LAN and
//! behind the rack. What needs no machine is tested in network namespaces, beside the code and in
//! `runtime/host/tests/gateway.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use rackstick_api::rack::{Process, Request, Status};
use rackstick_tests::{
    client::curl,
    image::Image,
    rack::{BOOT_LIMIT, Network, Nic, Options, Rack, guest},
};
use serde_json::json;

/// How long the rack may take to notice a cable or a card and to have an address again.
const CHANGE_LIMIT: Duration = Duration::from_secs(90);
/// How long a card may take to be let go.
const PULL_LIMIT: Duration = Duration::from_secs(60);

/// QEMU numbers its cards' addresses from here.
const FIRST: &str = "52:54:00:12:34:56";
const SECOND: &str = "52:54:00:12:34:57";

fn complains(status: &Status, words: &[&str]) -> bool {
    status.problems.iter().any(|problem| words.iter().all(|word| problem.contains(word)))
}

fn has_address(status: &Status) -> bool {
    status.addresses.contains_key("lan") && status.problems.is_empty()
}

#[test]
fn cards_and_cables_may_come_and_go() {
    let options = Options { nics: vec![Nic::E1000e, Nic::Virtio], ..Options::default() };
    let mut rack = Rack::start("cards", Image::bare(), options);
    rack.until_status("an address", BOOT_LIMIT, has_address);
    let taken = |mac: &str| format!("({mac}) is its network card");
    assert!(rack.console().contains(&taken(FIRST)), "the first by bus address");

    // The cable of the first is pulled: the second takes over.
    rack.qmp().cable("nic0", false);
    rack.until_console(&taken(SECOND), CHANGE_LIMIT);
    rack.until_status("an address by the second card", CHANGE_LIMIT, has_address);

    // No cable at all.
    rack.qmp().cable("nic1", false);
    rack.until_status("the missing cable to be reported", CHANGE_LIMIT, |status| {
        complains(status, &[SECOND, "no carrier"])
    });
    rack.qmp().cable("nic1", true);
    rack.until_status("all well again", CHANGE_LIMIT, has_address);

    // The card is pulled, and comes back.
    rack.qmp().pull("nic1", PULL_LIMIT);
    rack.until_status("the missing card to be reported", CHANGE_LIMIT, |status| {
        complains(status, &[SECOND, "is gone"]) && status.addresses.is_empty()
    });
    let card = json!({ "driver": "virtio-net-pci", "id": "nic1", "bus": "slot-nic1", "netdev": "net1", "mac": SECOND });
    rack.qmp().plug(card);
    rack.until_status("the card to be taken again", CHANGE_LIMIT, has_address);
    rack.power_off();
}

#[test]
fn a_lan_without_dhcp_leaves_the_rack_an_address_of_its_own() {
    let options = Options { network: Network::Silent, ..Options::default() };
    let mut rack = Rack::start("silent-lan", Image::bare(), options);
    let status = rack.until_status("an address of its own", BOOT_LIMIT, |status| status.addresses.contains_key("lan"));
    assert!(status.addresses["lan"].starts_with("169.254."), "{status:?}");
    rack.until_status("the missing answer to be reported", CHANGE_LIMIT, |status| {
        complains(status, &["no DHCP server answers", "169.254."])
    });
    rack.power_off();
}

#[test]
fn guests_are_on_the_lan_and_behind_the_rack_and_know_names_of_their_own_networks_only() {
    let mut rack = Rack::start("networks", Image::networks(), Options::default());
    rack.until_healthy();
    let status = rack.until_status("outer to have an address on the LAN", CHANGE_LIMIT, |status| {
        guest(status, "outer").addresses.contains_key("lan")
    });
    assert!(status.problems.is_empty(), "{status:?}");
    let address = |name: &str, network: &str| guest(&status, name).addresses[network].to_string();
    // By QEMU's DHCP server, which the guest itself asks.
    assert!(address("outer", "lan").starts_with("10.0.2.1"), "{status:?}");
    assert_eq!(address("inner", "inside"), "10.40.0.81");
    let inner = curl(rack.address("8080/tcp"), "/").unwrap();
    for line in [
        "10.40.0.81/24",
        "default via 10.40.0.1",
        "nameserver 10.40.0.1",
        "network is 10.40.0.1       network.network.internal",
        "inner.network.internal is 10.40.0.81",
        "nobody.network.internal is unknown",
        "10.40.0.1 is 10.40.0.1",
        "10.50.0.1 is unknown",
    ] {
        assert!(inner.contains(line), "no `{line}` in what inner sees:\n{inner}");
    }

    let console = |rack: &Rack| rack.client().text(Request::Console { guest: "outer".into() }).unwrap();
    let outer = rack.until("outer to say what it sees", CHANGE_LIMIT, |rack| {
        Some(console(rack)).filter(|text| text.contains("10.50.0.1 is "))
    });
    for line in [
        // By QEMU's DHCP server.
        "10.0.2.1",
        "default via 10.0.2.2",
        "10.50.0.82/24",
        "nameserver 10.50.0.1",
        "nameserver 10.0.2.3",
        "network is 10.50.0.1       network.network.internal",
        "inner.network.internal is unknown",
        "10.40.0.1 is unknown",
    ] {
        assert!(outer.contains(line), "no `{line}` in what outer sees:\n{outer}");
    }

    // The daemon crashes: whoever speaks with a guest does not notice, and all is as it was.
    let old = status.daemon_pid;
    rack.client().order(Request::Kill { process: Process::Daemon }).unwrap();
    let again = rack.until_status("the next daemon", BOOT_LIMIT, |status| {
        status.daemon_pid != old && status.addresses.contains_key("lan") && status.activities.is_empty()
    });
    assert_eq!(again.addresses, status.addresses);
    assert_eq!(curl(rack.address("8080/tcp"), "/"), Ok(inner));
    rack.power_off();
}
