use std::{
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use rackstick_image::manifest::Network;

use super::{
    super::{
        bring_up, firewall, start_uplinks,
        testing::{Machine, enter_new, run},
    },
    *,
};

/// More than DHCP needs with a server that answers.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_rack_gets_its_address_route_and_resolver_from_a_real_dhcp_server() {
    thread::spawn(|| {
        enter_new();
        let mut manifest = firewall::tests::manifest();
        let lan = Network::Uplink { interface: Some("nic".into()), address: UplinkAddress::Dhcp };
        manifest.networks.insert("lan".into(), lan);
        let manifest = Arc::new(manifest);
        bring_up(&manifest, |_| 0).unwrap();
        let router = Machine::new("nic", None, "10.9.0.1/24", None);
        let leases = tempfile::tempdir().unwrap();
        let mut server = router.start(&format!(
            "dnsmasq -k -C /dev/null -i eth0 --bind-interfaces --user=root --leasefile-ro --pid-file={}/pid \
             --dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,2m --dhcp-option=option:dns-server,10.9.0.7 --port=0",
            leases.path().display()
        ));

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
