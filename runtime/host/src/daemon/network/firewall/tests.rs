use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use rackstick_image::manifest::{Address, Forward, Guest, Interface, Nic, UplinkAddress};

use super::{
    super::testing::{Machine, enter_new, run},
    *,
};

/// How long a packet that should arrive may take; and how long to wait for one that should not.
const PATIENCE: Duration = Duration::from_millis(1500);

fn guest(name: &str, network: &str, address: [u8; 4], forwards: Vec<Forward>) -> Guest {
    let interface = Interface {
        network: network.into(),
        mac: format!("52:54:00:00:00:{:02x}", address[3]),
        address: Address::Static { address: address.into(), prefix: 24 },
    };
    Guest {
        name: name.into(),
        image: "none".into(),
        vcpus: 1,
        memory_mib: 64,
        interfaces: vec![interface],
        forwards,
        volumes: Vec::new(),
        disk_mib: None,
        health: None,
        after: vec![],
    }
}

fn forward(port: u16, guest_port: u16, protocol: Protocol) -> Forward {
    Forward { network: "lan".into(), port, guest_port, protocol }
}

/// An uplink `lan`, a network `servers` with NAT and a guest with two forwards, a network `lab` without NAT.
pub fn manifest() -> Manifest {
    let private = |gateway: [u8; 4], nat: Option<&str>| Network::Private {
        gateway: gateway.into(),
        prefix: 24,
        nat: nat.map(str::to_owned),
    };
    let lan = Network::Uplink { nic: Nic::Auto, address: UplinkAddress::Dhcp, gateway: None, resolver: None };
    Manifest {
        format: rackstick_image::manifest::FORMAT,
        rack: "test".into(),
        version: "1".into(),
        domain: "test.internal".into(),
        data_partition: String::new(),
        networks: BTreeMap::from([
            ("lan".into(), lan),
            ("servers".into(), private([10, 20, 0, 1], Some("lan"))),
            ("lab".into(), private([10, 30, 0, 1], None)),
        ]),
        images: BTreeMap::new(),
        guests: vec![
            guest(
                "web",
                "servers",
                [10, 20, 0, 80],
                vec![forward(8080, 80, Protocol::Tcp), forward(53, 5353, Protocol::Udp)],
            ),
            guest("lab", "lab", [10, 30, 0, 5], vec![]),
        ],
    }
}

#[test]
fn the_kernel_holds_the_ruleset_that_was_meant() {
    thread::spawn(|| {
        enter_new();
        // Twice: it replaces itself.
        apply(&manifest()).unwrap();
        apply(&manifest()).unwrap();
        assert_eq!(run("nft list ruleset"), include_str!("expected.nft"));
    })
    .join()
    .unwrap();
}

#[test]
fn what_the_kernel_refuses_is_named_and_the_old_ruleset_stays() {
    thread::spawn(|| {
        enter_new();
        apply(&manifest()).unwrap();
        let before = run("nft list ruleset");
        let mut table = Table::new(TABLE);
        table.rule("nowhere", "nothing", Rule::default().accept());
        let error = table.commit().unwrap_err().to_string();
        assert!(error.contains("chain nowhere's rule for nothing"), "{error}");
        assert_eq!(run("nft list ruleset"), before);
    })
    .join()
    .unwrap();
}

#[test]
fn hundreds_of_forwards_fit_one_ruleset() {
    thread::spawn(|| {
        enter_new();
        let mut manifest = manifest();
        manifest.guests[0].forwards = (10_000..10_300).map(|port| forward(port, 80, Protocol::Tcp)).collect();
        apply(&manifest).unwrap();
        assert_eq!(run("nft list ruleset").matches("dnat ip to 10.20.0.80:80").count(), 300);
    })
    .join()
    .unwrap();
}

/// Answers every TCP connection on the machine with the client's address.
fn answer_tcp(machine: &Machine, port: u16) {
    let listener = machine.on(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
    thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
        }
    });
}

/// Answers every datagram on the machine with the client's address.
fn answer_udp(machine: &Machine, port: u16) {
    let socket = machine.on(|| UdpSocket::bind(("0.0.0.0", port)).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            socket.send_to(peer.ip().to_string().as_bytes(), peer).unwrap();
        }
    });
}

/// What a connection from the machine to this address is answered with.
fn tcp(machine: &Machine, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    machine.on(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok().map(|_| text)
    })
}

/// What a datagram from the machine to this address is answered with.
fn udp(machine: &Machine, to: &str) -> Option<String> {
    machine.on(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"?").ok()?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

/// Answers every datagram to the rack itself with the client's address, from the address that it was sent to.
fn answer_here(port: u16) {
    for address in ["10.9.0.1", "10.20.0.1", "10.30.0.1"] {
        let socket = UdpSocket::bind((address, port)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                socket.send_to(peer.ip().to_string().as_bytes(), peer).unwrap();
            }
        });
    }
}

fn pings(machine: &Machine, address: &str) -> bool {
    machine.succeeds(&format!("ping -c 1 -W 1 {address}"))
}

#[test]
fn a_connection_lives_on_while_the_ruleset_is_replaced() {
    thread::spawn(|| {
        enter_new();
        bridges();
        let pc = Machine::new("c0", Some("br-lan"), "10.9.0.2/24", Some("10.9.0.1"));
        let web = Machine::new("c1", Some("br-servers"), "10.20.0.80/24", Some("10.20.0.1"));
        apply(&manifest()).unwrap();
        let listener = web.on(|| TcpListener::bind("0.0.0.0:80").unwrap());
        let echo = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1];
            while stream.read_exact(&mut buffer).is_ok() {
                stream.write_all(&buffer).unwrap();
            }
        });
        let mut stream = pc.on(|| TcpStream::connect("10.9.0.1:8080").unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for round in 0..20 {
            stream.write_all(&[round]).unwrap();
            apply(&manifest()).unwrap();
            let mut buffer = [0; 1];
            stream.read_exact(&mut buffer).unwrap();
            assert_eq!(buffer, [round]);
        }
        drop(stream);
        echo.join().unwrap();
    })
    .join()
    .unwrap();
}

/// The bridges of [`manifest`], with the rack's addresses; packets are passed on, and only the firewall judges them.
fn bridges() {
    for (bridge, address) in [("br-lan", "10.9.0.1/24"), ("br-servers", "10.20.0.1/24"), ("br-lab", "10.30.0.1/24")] {
        run(&format!("ip link add {bridge} type bridge"));
        run(&format!("ip addr add {address} dev {bridge}"));
        run(&format!("ip link set {bridge} up"));
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{bridge}/rp_filter"), "0").unwrap();
    }
    std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
}

#[test]
fn packets_go_where_the_recipe_says_and_nowhere_else() {
    thread::spawn(|| {
        enter_new();
        bridges();
        let pc = Machine::new("c0", Some("br-lan"), "10.9.0.2/24", Some("10.9.0.1"));
        let web = Machine::new("c1", Some("br-servers"), "10.20.0.80/24", Some("10.20.0.1"));
        let lab = Machine::new("c2", Some("br-lab"), "10.30.0.5/24", Some("10.30.0.1"));
        apply(&manifest()).unwrap();
        let rack = TcpListener::bind("0.0.0.0:22").unwrap();
        for machine in [&pc, &web, &lab] {
            for port in [80, 7777] {
                answer_tcp(machine, port);
            }
            for port in [53, 5353] {
                answer_udp(machine, port);
            }
        }
        let heard = |text: &str| Some(text.to_owned());

        // Forwards, with the client's own address.
        assert_eq!(tcp(&pc, "10.9.0.1:8080"), heard("10.9.0.2"));
        assert_eq!(udp(&pc, "10.9.0.1:53"), heard("10.9.0.2"));
        // Out by NAT.
        assert_eq!(tcp(&web, "10.9.0.2:7777"), heard("10.9.0.1"));
        // The gateway of its own network answers, by DNS and ping.
        answer_here(53);
        assert_eq!(udp(&web, "10.20.0.1:53"), heard("10.20.0.80"));
        assert_eq!(udp(&lab, "10.30.0.1:53"), heard("10.30.0.5"));
        assert!(pings(&web, "10.20.0.1") && pings(&lab, "10.30.0.1") && pings(&pc, "10.9.0.1"));

        // What should not be answered is asked all at once: each has to be waited for as long as an answer may take.
        pc.run("ip route add 10.20.0.0/24 via 10.9.0.1");
        let not_by_tcp = [
            // Not around the forwards, not between private networks, not out without NAT.
            (&pc, "10.20.0.80:80"),
            (&pc, "10.9.0.1:7777"),
            (&web, "10.30.0.5:80"),
            (&lab, "10.20.0.80:80"),
            (&lab, "10.9.0.2:7777"),
            // Not into the rack.
            (&pc, "10.9.0.1:22"),
            (&web, "10.20.0.1:22"),
        ];
        // Another network's gateway is not even there, also not by ping or ARP.
        let not_by_udp = [(&web, "10.30.0.1:53"), (&lab, "10.20.0.1:53"), (&web, "10.9.0.1:53"), (&pc, "10.20.0.1:53")];
        let not_by_ping =
            [(&web, "10.30.0.1"), (&lab, "10.20.0.1"), (&web, "10.30.0.5"), (&lab, "10.20.0.80"), (&pc, "10.20.0.1")];
        thread::scope(|scope| {
            for (machine, to) in not_by_tcp {
                scope.spawn(move || assert_eq!(tcp(machine, to), None, "{to}"));
            }
            for (machine, to) in not_by_udp {
                scope.spawn(move || assert_eq!(udp(machine, to), None, "{to}"));
            }
            for (machine, to) in not_by_ping {
                scope.spawn(move || assert!(!pings(machine, to), "{to}"));
            }
        });
        drop(rack);
    })
    .join()
    .unwrap();
}

#[test]
fn a_lan_host_can_not_speak_to_a_guest_in_another_guest_s_name() {
    thread::spawn(|| {
        enter_new();
        bridges();
        let pc = Machine::new("c0", Some("br-lan"), "10.9.0.2/24", Some("10.9.0.1"));
        let web = Machine::new("c1", Some("br-servers"), "10.20.0.80/24", Some("10.20.0.1"));
        apply(&manifest()).unwrap();
        for forged in ["10.20.0.99/32", "10.30.0.5/32"] {
            pc.run(&format!("ip addr add {forged} dev lo"));
        }
        let heard = web.on(|| UdpSocket::bind("10.20.0.80:5353").unwrap());
        heard.set_read_timeout(Some(PATIENCE)).unwrap();
        // On one cable packets keep their order: what comes first shows what became of those before it.
        for source in ["10.20.0.99:0", "10.30.0.5:0", "10.9.0.2:0"] {
            pc.on(|| UdpSocket::bind(source).unwrap().send_to(source.as_bytes(), "10.9.0.1:53").unwrap());
        }
        let mut buffer = [0; 64];
        let (length, peer) = heard.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], peer.ip().to_string().as_str()), (b"10.9.0.2:0".as_slice(), "10.9.0.2"));
    })
    .join()
    .unwrap();
}
