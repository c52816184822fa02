//! The gateway's own process, in a network namespace of the test's own, asked by other people's clients: dig, udhcpc.
//! Needs root, as all of CI has.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::UdpSocket,
    process::{Child, ChildStdin, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// A namespace, kept by a process that does nothing; what it starts ends with it.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut child =
            Command::new("unshare").args(["-n", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // `cat` answers only once `unshare` has become it.
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self(child)
    }

    fn command(&self, command: &str) -> Command {
        let mut words = command.split_whitespace();
        let mut inside = Command::new("nsenter");
        inside.args(["-t", &self.0.id().to_string(), "-n", "--"]).args(words.by_ref());
        inside
    }

    fn output(&self, command: &str) -> Output {
        self.command(command).output().unwrap()
    }

    fn run(&self, command: &str) -> String {
        let output = self.output(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A rack with two private networks, a guest on each, and the world's resolver behind one of them.
struct Rack {
    rack: Namespace,
    web: Namespace,
    lab: Namespace,
    _world: Namespace,
    resolver: Child,
    gateway: Child,
    orders: ChildStdin,
}

fn config(resolvers: &str) -> String {
    format!(
        r#"{{"domain":"rack.internal","networks":[
        {{"name":"servers","bridge":"br-servers","gateway":"10.20.0.1","prefix":24,"uplink":"lan","resolvers":[{resolvers}],
          "hosts":[{{"name":"web","address":"10.20.0.80"}},{{"name":"mail","address":"10.20.0.25"}},
                   {{"name":"rack","address":"10.20.0.1"}}],
          "leases":[{{"mac":"52:54:00:00:00:50","name":"web","address":"10.20.0.80","default_route":true}}],
          "hidden":[["10.30.0.1",24]]}},
        {{"name":"lab","bridge":"br-lab","gateway":"10.30.0.1","prefix":24,"uplink":null,"resolvers":[],
          "hosts":[{{"name":"lab","address":"10.30.0.5"}},{{"name":"rack","address":"10.30.0.1"}}],
          "leases":[{{"mac":"52:54:00:00:00:05","name":"lab","address":"10.30.0.5","default_route":true}}],
          "hidden":[["10.20.0.1",24]]}}]}}"#
    )
    .replace('\n', "")
}

/// Starts a gateway and waits until it serves.
fn gateway(rack: &Namespace, resolvers: &str) -> (Child, ChildStdin) {
    let mut command = rack.command(&format!("{} gateway", env!("CARGO_BIN_EXE_rackstick-host")));
    let mut gateway = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut orders = gateway.stdin.take().unwrap();
    writeln!(orders, "{}", config(resolvers)).unwrap();
    let mut line = String::new();
    BufReader::new(gateway.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (gateway, orders)
}

impl Rack {
    fn start(resolvers: &str) -> Self {
        let (rack, web, lab, world) = (Namespace::new(), Namespace::new(), Namespace::new(), Namespace::new());
        rack.run("ip link set lo up");
        let cables = [
            ("br-servers", "10.20.0.1/24", &web, "52:54:00:00:00:50"),
            ("br-lab", "10.30.0.1/24", &lab, "52:54:00:00:00:05"),
            ("br-lan", "10.9.0.1/24", &world, "52:54:00:00:00:99"),
        ];
        for (bridge, address, guest, mac) in cables {
            rack.run(&format!("ip link add {bridge} type bridge forward_delay 0"));
            rack.run(&format!("ip addr add {address} dev {bridge}"));
            rack.run(&format!("ip link set {bridge} up"));
            let cable = format!("p-{bridge}");
            rack.run(&format!("ip link add {cable} type veth peer name eth0 address {mac} netns {}", guest.0.id()));
            rack.run(&format!("ip link set {cable} master {bridge} up"));
            guest.run("ip link set eth0 up");
        }
        world.run("ip addr add 10.9.0.2/24 dev eth0");
        let resolver = world
            .command(
                "dnsmasq -k -C /dev/null --no-resolv --no-hosts --user=root --pid-file= --bind-interfaces -i eth0 \
                 --address=/www.example.org/192.0.2.80 --txt-record=long.example.org,0123456789012345678901234567890123",
            )
            .spawn()
            .unwrap();
        let (gateway, orders) = gateway(&rack, resolvers);
        Self { rack, web, lab, _world: world, resolver, gateway, orders }
    }

    fn with_addresses(self) -> Self {
        self.web.run("ip addr add 10.20.0.80/24 dev eth0");
        self.web.run("ip route add default via 10.20.0.1");
        self.lab.run("ip addr add 10.30.0.5/24 dev eth0");
        self.lab.run("ip route add default via 10.30.0.1");
        self
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        for child in [&mut self.gateway, &mut self.resolver] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// The status and the answers of a query by dig.
fn dig(guest: &Namespace, server: &str, question: &str) -> (String, Vec<String>) {
    let said = guest.output(&format!("dig @{server} +time=4 +tries=2 +noall +comments +answer {question}"));
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("none").to_owned();
    let fields = |line: &str| line.split_whitespace().skip(3).collect::<Vec<_>>().join(" ");
    let answers = text.lines().filter(|line| !line.starts_with(';') && !line.is_empty()).map(fields).collect();
    (status, answers)
}

fn yes(answer: &str) -> (String, Vec<String>) {
    ("NOERROR".into(), vec![answer.into()])
}

fn no(status: &str) -> (String, Vec<String>) {
    (status.into(), vec![])
}

#[test]
fn guests_know_each_other_by_name_and_the_world_by_the_uplinks_resolver() {
    let rack = Rack::start(r#""10.9.0.2""#).with_addresses();
    for transport in ["+notcp", "+tcp"] {
        let ask = |question: &str| dig(&rack.web, "10.20.0.1", &format!("{transport} {question}"));
        assert_eq!(ask("mail.rack.internal A"), yes("A 10.20.0.25"));
        assert_eq!(ask("MaIl.RACK.internal ANY"), yes("A 10.20.0.25"));
        assert_eq!(ask("rack.rack.internal A"), yes("A 10.20.0.1"));
        assert_eq!(ask("mail.rack.internal AAAA"), no("NOERROR"));
        assert_eq!(ask("-x 10.20.0.80"), yes("PTR web.rack.internal."));
        assert_eq!(ask("-x 10.20.0.81"), no("NXDOMAIN"));
        assert_eq!(ask("nobody.rack.internal A"), no("NXDOMAIN"));
        assert_eq!(ask("x.web.rack.internal A"), no("NXDOMAIN"));
        assert_eq!(ask("rack.internal SOA").0, "NOERROR");
        assert_eq!(ask("www.example.org A"), yes("A 192.0.2.80"));
        assert_eq!(ask("long.example.org TXT").1[0].len(), "TXT \"\"".len() + 34);
        assert_eq!(ask("CH version.bind TXT"), no("REFUSED"));
    }
    assert_eq!(dig(&rack.web, "10.20.0.1", "rack.internal AXFR +onesoa").1, Vec::<String>::new());
}

#[test]
fn an_isolated_network_learns_nothing_of_another_and_asks_nobody() {
    let rack = Rack::start(r#""10.9.0.2""#).with_addresses();
    let ask = |question: &str| dig(&rack.lab, "10.30.0.1", question);
    assert_eq!(ask("lab.rack.internal A"), yes("A 10.30.0.5"));
    assert_eq!(ask("mail.rack.internal A"), no("NXDOMAIN"));
    assert_eq!(ask("-x 10.20.0.25"), no("NXDOMAIN"));
    assert_eq!(ask("www.example.org A"), no("REFUSED"));
    let other = |question: &str| dig(&rack.web, "10.20.0.1", question);
    assert_eq!(other("lab.rack.internal A"), no("NXDOMAIN"));
    assert_eq!(other("-x 10.30.0.5"), no("NXDOMAIN"));
}

#[test]
fn a_resolver_that_is_silent_or_unknown_costs_an_answer_and_nothing_more() {
    // The first does not exist; the second answers.
    let mut rack = Rack::start(r#""10.9.0.77","10.9.0.2""#).with_addresses();
    assert_eq!(dig(&rack.web, "10.20.0.1", "www.example.org A +time=8"), yes("A 192.0.2.80"));
    writeln!(rack.orders, "{}", config("")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while dig(&rack.web, "10.20.0.1", "www.example.org A") != no("SERVFAIL") {
        assert!(Instant::now() < deadline, "the resolver is still asked");
    }
    assert_eq!(dig(&rack.web, "10.20.0.1", "web.rack.internal A"), yes("A 10.20.0.80"));
}

#[test]
fn it_outlives_its_daemon_and_makes_room_for_the_next_one() {
    let mut rack = Rack::start(r#""10.9.0.2""#).with_addresses();
    // The daemon is the other end of its input and output.
    let (sink, _) = std::io::pipe().map(|(reader, writer)| (writer, reader)).unwrap();
    drop(std::mem::replace(&mut rack.orders, ChildStdin::from(std::os::fd::OwnedFd::from(sink))));
    drop(rack.gateway.stdout.take());
    assert_eq!(dig(&rack.web, "10.20.0.1", "www.example.org A"), yes("A 192.0.2.80"));

    let (mut next, _orders) = gateway(&rack.rack, r#""10.9.0.2""#);
    rack.gateway.kill().unwrap();
    for transport in ["+notcp", "+tcp"] {
        let answer = dig(&rack.web, "10.20.0.1", &format!("{transport} www.example.org A"));
        assert_eq!(answer, yes("A 192.0.2.80"));
    }
    next.kill().unwrap();
    next.wait().unwrap();
}

#[test]
fn each_guest_gets_the_recipes_address_by_dhcp_and_a_stranger_gets_none() {
    let rack = Rack::start(r#""10.9.0.2""#);
    let script = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        script.path(),
        "#!/bin/sh\n[ \"$1\" = bound ] && env | grep -E '^(ip|subnet|router|dns|domain|hostname|lease)='\nexit 0\n",
    )
    .unwrap();
    fs::set_permissions(script.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = script.into_temp_path();
    let ask = format!("udhcpc -f -q -n -t 3 -T 1 -i eth0 -s {}", path.display());
    let said = rack.web.run(&ask);
    for line in [
        "ip=10.20.0.80",
        "subnet=255.255.255.0",
        "router=10.20.0.1",
        "dns=10.20.0.1",
        "domain=rack.internal",
        "hostname=web",
        "lease=86400",
    ] {
        assert!(said.lines().any(|said| said == line), "no {line} in {said}");
    }
    assert!(rack.lab.run(&ask).contains("ip=10.30.0.5"));
    // Another's address is refused, its own given.
    assert!(rack.web.run(&format!("{ask} -r 10.20.0.25")).contains("ip=10.20.0.80"));
    rack.web.run("ip link set eth0 address 52:54:00:00:00:77");
    assert!(!rack.web.output(&ask).status.success());
}

#[test]
fn it_has_no_rights_and_survives_garbage() {
    let rack = Rack::start(r#""10.9.0.2""#).with_addresses();
    let pid = rack.gateway.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in
        ["Uid:\t1900\t1900\t1900\t1900", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"]
    {
        assert!(status.contains(line), "no {line} in {status}");
    }
    assert_eq!(fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(), 0);

    // Steele, Lea, Flood: SplitMix64. The same garbage in every run, half of it damaged from a good query.
    let mut state = 7_u64;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut garbage = Vec::new();
    for round in 0..4000 {
        let mut packet = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x03web\x04rack\x08internal\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00".to_vec();
        if round % 4 == 0 {
            packet = (0..random() % 400).map(|_| random() as u8).collect();
        }
        for _ in 0..1 + random() % 4 {
            let length = packet.len().max(1) as u64;
            if let Some(byte) = packet.get_mut((random() % length) as usize) {
                *byte = random() as u8;
            }
        }
        garbage.push(packet);
    }
    let dhcp = |packet: &[u8]| {
        let mut whole = vec![0_u8; 236];
        whole[..3].copy_from_slice(&[1, 1, 6]);
        whole[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 0x50]);
        whole.extend([99, 130, 83, 99]);
        whole.extend(packet);
        whole
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let namespace = fs::File::open(format!("/proc/{}/ns/net", rack.web.0.id())).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).unwrap();
            let socket = UdpSocket::bind("10.20.0.80:0").unwrap();
            for packet in &garbage {
                socket.send_to(packet, "10.20.0.1:53").unwrap();
                socket.send_to(&dhcp(packet), "10.20.0.1:67").unwrap();
            }
            let mut stream = std::net::TcpStream::connect("10.20.0.1:53").unwrap();
            // It may be closed at any of them.
            let _ = garbage.iter().try_for_each(|packet| stream.write_all(packet));
        });
    });
    assert_eq!(dig(&rack.web, "10.20.0.1", "web.rack.internal A"), yes("A 10.20.0.80"));
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/status")).unwrap().lines().next(), status.lines().next());
}
