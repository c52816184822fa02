//! Links, addresses and taps in a network namespace of the test's own; iproute2 says whether it is as we say.
//! Needs root, as all of CI has.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rackstick_linux::{
    netlink::{Address, Mac, Netlink},
    tap,
};
use rustix::{
    io::Errno,
    thread::{UnshareFlags, unshare_unsafe},
};

/// Runs `test` in a new network namespace; processes that it starts are in it too.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        // SAFETY: only the network namespace of this thread changes; no file descriptor is shared or closed.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[test]
fn a_bridge_with_a_port_and_an_address_is_what_iproute2_sees() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let mac: Mac = "52:54:00:0a:14:01".parse().unwrap();
        let bridge = netlink.create_bridge("servers", Some(mac)).unwrap();
        ip("link add left type veth peer name right");
        let left = netlink.link("left").unwrap();
        assert_eq!((left.kind.as_deref(), left.ethernet, left.up), (Some("veth"), true, false));
        netlink.set_master(left.index, Some(bridge)).unwrap();
        let address = Address { link: bridge, address: [10, 20, 0, 1].into(), prefix: 24 };
        netlink.add_address(address).unwrap();
        netlink.set_up(bridge, true).unwrap();

        let shown = ip("-d addr show servers");
        for part in
            ["bridge forward_delay 0", "52:54:00:0a:14:01", "inet 10.20.0.1/24 brd 10.20.0.255 scope global", ",UP"]
        {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(ip("link show left").contains("master servers"));
        assert_eq!(netlink.addresses().unwrap(), [address]);

        netlink.set_master(left.index, None).unwrap();
        assert!(!ip("link show left").contains("master"));
        netlink.delete_link(bridge).unwrap();
        assert!(netlink.link("servers").is_err());
    });
}

#[test]
fn doing_it_twice_changes_nothing() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let mac: Mac = "52:54:00:0a:14:01".parse().unwrap();
        let bridge = netlink.create_bridge("servers", Some(mac)).unwrap();
        let other: Mac = "52:54:00:0a:14:02".parse().unwrap();
        assert_eq!(netlink.create_bridge("servers", Some(other)).unwrap(), bridge);
        assert_eq!(netlink.link("servers").unwrap().mac, Some(other));
        let address = Address { link: bridge, address: [10, 20, 0, 1].into(), prefix: 24 };
        netlink.add_address(address).unwrap();
        netlink.add_address(address).unwrap();
        assert_eq!(netlink.addresses().unwrap().len(), 1);
        netlink.delete_address(address).unwrap();
        netlink.delete_address(address).unwrap();

        ip("link add plain type veth peer name other");
        assert_eq!(netlink.create_bridge("plain", None).unwrap_err().errno(), Some(Errno::EXIST));
    });
}

#[test]
fn the_default_route_is_replaced_and_addresses_are_flushed() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        ip("link add uplink type veth peer name world");
        let link = netlink.link("uplink").unwrap().index;
        let world = netlink.link("world").unwrap().index;
        netlink.set_up(world, true).unwrap();
        netlink.set_up(link, true).unwrap();
        for last in [2, 3] {
            netlink.add_address(Address { link, address: [192, 168, 7, last].into(), prefix: 24 }).unwrap();
        }
        netlink.set_default_route(link, [192, 168, 7, 1].into()).unwrap();
        netlink.set_default_route(link, [192, 168, 7, 254].into()).unwrap();
        netlink.set_route(link, [10, 9, 0, 0].into(), 16, None).unwrap();
        assert_eq!(ip("route show default").trim(), "default via 192.168.7.254 dev uplink");
        assert_eq!(ip("route show 10.9.0.0/16").trim(), "10.9.0.0/16 dev uplink scope link");

        let error = netlink.set_default_route(link, [172, 16, 0, 1].into()).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NETUNREACH));
        assert!(error.to_string().contains("172.16.0.1"), "{error}");

        netlink.flush_addresses(link).unwrap();
        assert_eq!(netlink.addresses().unwrap(), []);
    });
}

#[test]
fn a_carrier_that_comes_later_is_seen() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        ip("link add left type veth peer name right");
        let (left, right) = (netlink.link("left").unwrap().index, netlink.link("right").unwrap().index);
        netlink.set_up(left, true).unwrap();
        let mut asked = 0;
        let found = netlink
            .wait_for_link("get a carrier on left", soon(), |links| {
                asked += 1;
                if asked == 1 {
                    assert!(!links.iter().any(|link| link.index == left && link.carrier));
                    Netlink::open().unwrap().set_up(right, true).unwrap();
                }
                links.iter().find(|link| link.index == left && link.carrier).cloned()
            })
            .unwrap();
        assert_eq!(found.name, "left");

        let error = netlink.wait_for_link("see a link that never comes", Instant::now(), |_| None::<()>).unwrap_err();
        assert!(error.to_string().contains("see a link that never comes"), "{error}");
    });
}

#[test]
fn a_tap_stays_and_belongs_to_its_owner() {
    in_namespace(|| {
        drop(tap::create("guest0", 1234).unwrap());
        let shown = ip("-d link show guest0");
        assert!(shown.contains("tun type tap pi off vnet_hdr on persist on user 1234"), "{shown}");
        let file = tap::open("guest0").unwrap();
        assert!(matches!(tap::open("guest0"), Err(tap::TapError::Refused { .. })));
        drop(file);
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link("guest0").unwrap();
        assert_eq!(link.kind.as_deref(), Some("tun"));
        netlink.delete_link(link.index).unwrap();

        for bad in ["", "tap%d", "a/b", "..", "sixteen-bytes-xx", "a b"] {
            assert!(matches!(tap::create(bad, 0), Err(tap::TapError::Name(_))), "{bad}");
        }
    });
}

#[test]
fn a_hundred_links_fit_a_dump_of_several_datagrams() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        for number in 0..100 {
            netlink.create_bridge(&format!("bridge{number}"), None).unwrap();
        }
        assert_eq!(netlink.links().unwrap().len(), 101);
        netlink.set_up(1, true).unwrap();
        assert!(netlink.link("lo").unwrap().up);
    });
}
