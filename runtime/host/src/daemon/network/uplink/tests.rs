use std::{
    process::Child,
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::{
    super::{
        bring_up, firewall, start_uplinks,
        testing::{Machine, enter_new, run},
    },
    *,
};

/// More than DHCP needs with a server that answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A rack whose uplink is called `nic`.
fn manifest() -> Arc<Manifest> {
    let mut manifest = firewall::tests::manifest();
    let lan = Network::Uplink { interface: Some("nic".into()), address: UplinkAddress::Dhcp };
    manifest.networks.insert("lan".into(), lan);
    Arc::new(manifest)
}

/// Starts a DHCP server on the machine.
fn serve(machine: &Machine, range: &str, option: &str) -> Child {
    machine.start(&format!(
        "dnsmasq -k -C /dev/null -i eth0 --bind-interfaces --user=root --leasefile-ro --pid-file= \
         --dhcp-range={range} --dhcp-option={option} --port=0"
    ))
}

fn uplink() -> Uplink {
    let (manifest, resolvers) = (manifest(), Resolvers::default());
    Uplink { manifest, name: "lan".into(), interface: None, address: UplinkAddress::Dhcp, resolvers }
}

#[test]
fn a_lease_that_overlaps_a_private_network_is_refused_and_the_network_left_alone() {
    thread::spawn(|| {
        enter_new();
        let manifest = manifest();
        bring_up(&manifest, |_| 0).unwrap();
        let router = Machine::new("nic", None, "10.20.0.254/16", None);
        let mut server = serve(&router, "10.20.7.50,10.20.7.60,255.255.0.0,2m", "option:router,10.20.0.254");

        let (send, news) = channel();
        start_uplinks(&manifest, move |change| drop(send.send(change))).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let problem = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match news.recv_timeout(left).unwrap() {
                News::Problem(_, Some(problem)) => break problem,
                News::Problem(_, None) | News::Activity(..) => {}
                News::Address(network, address) => panic!("{network} has {address:?}"),
            }
        };
        assert!(problem.contains("/16") && problem.contains("servers, 10.20.0.1/24"), "{problem}");
        assert!(!run("ip -4 addr show dev br-lan").contains("inet"));
        assert_eq!(run("ip route get 10.20.0.80").split(' ').nth(2), Some("br-servers"));
        assert!(!run("ip route").contains("default"));
        server.kill().unwrap();
        server.wait().unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn neither_address_nor_gateway_of_an_uplink_may_lie_in_a_private_network() {
    let uplink = uplink();
    let conflict = |address: [u8; 4], prefix, gateway: [u8; 4]| {
        let (address, gateway) = (address.into(), Some(gateway.into()));
        uplink.conflict(&Configuration { address, prefix, gateway, resolver: None })
    };
    assert_eq!(conflict([10, 9, 0, 5], 24, [10, 9, 0, 1]), None);
    assert_eq!(conflict([10, 21, 0, 5], 24, [10, 21, 0, 1]), None);
    for (address, prefix) in [([10, 20, 0, 5], 24), ([10, 20, 0, 5], 32), ([10, 9, 0, 5], 8), ([1, 1, 1, 1], 0)] {
        assert!(conflict(address, prefix, [10, 9, 0, 1]).unwrap().contains("the address"), "{address:?}/{prefix}");
    }
    assert!(conflict([10, 9, 0, 5], 24, [10, 30, 0, 9]).unwrap().contains("the gateway 10.30.0.9"));
}

#[test]
fn a_resolver_that_could_not_be_set_is_tried_again() {
    thread::spawn(|| {
        enter_new();
        let uplink = uplink();
        let all = capabilities(None).unwrap();
        let without = all.effective.difference(CapabilitySet::NET_ADMIN);
        set_capabilities(None, CapabilitySets { effective: without, ..all }).unwrap();
        uplink.pass_queries_to(Some(Ipv4Addr::new(10, 9, 0, 7))).unwrap_err();
        set_capabilities(None, all).unwrap();
        uplink.pass_queries_to(Some(Ipv4Addr::new(10, 9, 0, 7))).unwrap();
        assert!(run("nft list ruleset").contains("dnat ip to 10.9.0.7:53"));
    })
    .join()
    .unwrap();
}

#[test]
fn the_rack_gets_its_address_route_and_resolver_from_a_real_dhcp_server() {
    thread::spawn(|| {
        enter_new();
        let manifest = manifest();
        bring_up(&manifest, |_| 0).unwrap();
        let router = Machine::new("nic", None, "10.9.0.1/24", None);
        let mut server = serve(&router, "10.9.0.50,10.9.0.60,255.255.255.0,2m", "option:dns-server,10.9.0.7");

        let (send, news) = channel();
        start_uplinks(&manifest, move |change| drop(send.send(change))).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let address = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let News::Address(network, Some(address)) = news.recv_timeout(left).unwrap() {
                assert_eq!(network, "lan");
                break address;
            }
        };
        assert!(address.starts_with("10.9.0.5") && address.ends_with("/24"), "{address}");
        assert!(run("ip -4 addr show dev br-lan").contains(&address));
        assert!(run("ip route").contains("default via 10.9.0.1 dev br-lan"));
        for bridge in ["br-lan", "br-servers", "br-lab"] {
            assert_eq!(run(&format!("sysctl -n net.ipv4.conf.{bridge}.rp_filter")), "1\n", "{bridge}");
        }
        assert!(run("nft list ruleset").contains("dnat ip to 10.9.0.7:53"));
        let nic = run("ip link show nic");
        assert!(nic.contains("master br-lan"), "{nic}");
        let mac = nic.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        assert!(run("ip link show br-lan").contains(mac), "the bridge has the NIC's MAC address");
        let tap = run("ip -d link show tap525400000050");
        assert!(tap.contains("master br-servers") && tap.contains("tun type tap"), "{tap}");

        // Again, as after a restart of the daemon: nothing is in the way.
        bring_up(&manifest, |_| 0).unwrap();
        assert!(run("ip -4 addr show dev br-lan").contains(&address));
        server.kill().unwrap();
        server.wait().unwrap();
    })
    .join()
    .unwrap();
}
