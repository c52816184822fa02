use std::{
    fs,
    net::UdpSocket,
    process::Child,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rackstick_image::manifest::{Nic, UplinkAddress};
use tempfile::TempDir;

use super::{
    super::{
        bring_up, firewall, start_uplinks_with,
        testing::{Machine, enter_new, run},
    },
    *,
};

/// More than DHCP needs with a server that answers, or the claim of an address without one.
const PATIENCE_OF_TESTS: Duration = Duration::from_secs(60);
/// How soon a rack of tests takes a cable for pulled; virtual ones negotiate nothing.
const SETTLE: Duration = Duration::from_millis(200);
/// How soon a rack of tests gives up hope for DHCP and takes an address of its own.
const SOON: Duration = Duration::from_secs(2);
/// How long a thread that should be idle is looked at.
const WINDOW: Duration = Duration::from_secs(2);

/// A rack whose uplink is called `nic`.
fn manifest() -> Arc<Manifest> {
    let mut manifest = firewall::tests::manifest();
    let nic = Nic::Name("nic".into());
    let lan = Network::Uplink { nic, address: UplinkAddress::Dhcp, gateway: None, resolver: None };
    manifest.networks.insert("lan".into(), lan);
    Arc::new(manifest)
}

/// Starts a DHCP server on the machine, which listens then: what is asked before is lost, and asked again only four
/// seconds later. Nor does it ping an address for three seconds before it offers it.
fn serve(machine: &Machine, range: &str, option: &str) -> Child {
    let server = machine.start(&format!(
        "dnsmasq -k -C /dev/null -i eth0 --bind-interfaces --user=root --leasefile-ro --no-ping --pid-file= \
         --dhcp-range={range} --dhcp-option={option} --port=0"
    ));
    let deadline = Instant::now() + PATIENCE_OF_TESTS;
    while machine.run("ss -H -u -l -n sport = :67").is_empty() {
        assert!(Instant::now() < deadline, "the DHCP server does not listen");
    }
    server
}

/// A rack's uplinks, and what they say.
struct Uplinks {
    news: Receiver<News>,
    orders: Receiver<gateway::Order>,
    records: TempDir,
}

impl Uplinks {
    fn start(manifest: &Arc<Manifest>) -> Self {
        Self::start_in(manifest, tempfile::tempdir().unwrap(), Waits::default().link_local)
    }

    fn start_in(manifest: &Arc<Manifest>, records: TempDir, link_local: Duration) -> Self {
        let (send, news) = channel();
        let (order, orders) = channel();
        let (gateway, taking) = (gateway::Handle::new(order), Arc::default());
        let shared =
            Shared { taking, gateway, records: records.path().into(), waits: Waits { settle: SETTLE, link_local } };
        let report = move |change| drop(send.send(change));
        start_uplinks_with(manifest, &shared, report).unwrap();
        Self { news, orders, records }
    }

    /// Waits for news that give a value.
    fn until<T>(&self, what: &str, wanted: impl Fn(&News) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE_OF_TESTS;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let news = self.news.recv_timeout(left).unwrap_or_else(|_| panic!("no {what}"));
            if let Some(value) = wanted(&news) {
                return value;
            }
        }
    }

    fn address(&self) -> String {
        self.until("address", |news| match news {
            News::Address(_, Some(address)) => Some(address.clone()),
            _ => None,
        })
    }

    fn no_address(&self) {
        self.until("loss of the address", |news| matches!(news, News::Address(_, None)).then_some(()));
    }

    fn problem(&self) -> String {
        self.until("problem", |news| match news {
            News::Problem(_, Some(problem)) => Some(problem.clone()),
            _ => None,
        })
    }
}

fn in_namespace(test: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        enter_new();
        test();
    })
    .join()
    .unwrap();
}

fn end(mut server: Child) {
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_lease_that_overlaps_a_private_network_is_refused_and_the_network_left_alone() {
    in_namespace(|| {
        let manifest = manifest();
        bring_up(&manifest, |_| 0).unwrap();
        let router = Machine::new("nic", None, "10.20.0.254/16", None);
        let server = serve(&router, "10.20.7.50,10.20.7.60,255.255.0.0,2m", "option:router,10.20.0.254");
        let problem = Uplinks::start(&manifest).problem();
        assert!(problem.contains("/16") && problem.contains("servers, 10.20.0.1/24"), "{problem}");
        assert!(!run("ip -4 addr show dev br-lan").contains("inet"));
        assert_eq!(run("ip route get 10.20.0.80").split(' ').nth(2), Some("br-servers"));
        assert!(!run("ip route").contains("default"));
        end(server);
    });
}

#[test]
fn the_rack_gets_its_address_route_and_resolver_from_a_real_dhcp_server() {
    in_namespace(|| {
        let manifest = manifest();
        bring_up(&manifest, |_| 0).unwrap();
        let router = Machine::new("nic", None, "10.9.0.1/24", None);
        let server = serve(&router, "10.9.0.50,10.9.0.59,255.255.255.0,2m", "option:dns-server,10.9.0.7");
        let uplinks = Uplinks::start(&manifest);
        let address = uplinks.address();
        assert!(address.starts_with("10.9.0.5") && address.ends_with("/24"), "{address}");
        assert!(run("ip -4 addr show dev br-lan").contains(&address));
        assert!(run("ip route").contains("default via 10.9.0.1 dev br-lan"));
        for bridge in ["br-lan", "br-servers", "br-lab"] {
            assert_eq!(run(&format!("sysctl -n net.ipv4.conf.{bridge}.rp_filter")), "1\n", "{bridge}");
        }
        let resolvers = uplinks.orders.try_iter().last();
        assert!(
            matches!(&resolvers, Some(gateway::Order::PassOn(uplink, resolvers))
                if uplink == "lan" && *resolvers == [std::net::Ipv4Addr::new(10, 9, 0, 7)]),
            "{resolvers:?}"
        );
        let nic = run("ip link show nic");
        assert!(nic.contains("master br-lan"), "{nic}");
        let mac = nic.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        assert!(run("ip link show br-lan").contains(mac), "the bridge has the NIC's MAC address");
        let tap = run("ip -d link show tap525400000050");
        assert!(tap.contains("master br-servers") && tap.contains("tun type tap"), "{tap}");

        // The next daemon goes on with the lease, also while the server is away.
        end(server);
        bring_up(&manifest, |_| 0).unwrap();
        assert!(run("ip -4 addr show dev br-lan").contains(&address));
        let again = Uplinks::start_in(&manifest, uplinks.records, Waits::default().link_local);
        assert_eq!(again.address(), address);
        assert!(run("ip -4 addr show dev br-lan").contains(&address));
        assert!(run("ip route").contains("default via 10.9.0.1 dev br-lan"));
    });
}

#[test]
fn nothing_is_asked_before_the_bridge_sends_it_to_the_cable() {
    in_namespace(|| {
        let manifest = manifest();
        bring_up(&manifest, |_| 0).unwrap();
        let router = Machine::new("nic", None, "10.9.0.1/24", None);
        let server = serve(&router, "10.9.0.50,10.9.0.59,255.255.255.0,2m", "option:router,10.9.0.1");
        // A bridge that takes its time: two seconds of listening, two of learning.
        run("ip link set br-lan type bridge stp_state 1 forward_delay 200");
        for rule in ["table inet t", "chain inet t out { type filter hook output priority 0; }"] {
            run(&format!("nft add {rule}"));
        }
        run("nft add rule inet t out udp dport 67 counter");
        let asked = || !run("nft list chain inet t out").contains("counter packets 0 ");
        let uplinks = Uplinks::start(&manifest);
        let deadline = Instant::now() + PATIENCE_OF_TESTS;
        let forwards = || run("ip -d link show nic").contains("state forwarding");
        let mut refused = 0;
        loop {
            let asked = asked();
            if forwards() {
                break;
            }
            assert!(!asked, "it was asked while the bridge sent nothing, after {refused} looks");
            assert!(Instant::now() < deadline, "the bridge never forwards");
            refused += 1;
            thread::sleep(Duration::from_millis(20));
        }
        assert!(refused > 10, "the bridge took no time");
        let forwarded = Instant::now();
        assert!(uplinks.address().starts_with("10.9.0."));
        println!("asked in {refused} looks: never; address {:?} after the bridge forwards", forwarded.elapsed());
        end(server);
    });
}

#[test]
fn without_a_dhcp_server_the_rack_takes_an_address_of_its_own_until_one_answers() {
    in_namespace(|| {
        let manifest = manifest();
        bring_up(&manifest, |_| 0).unwrap();
        let neighbour = Machine::new("nic", None, "169.254.0.9/16", None);
        let begun = Instant::now();
        let uplinks = Uplinks::start_in(&manifest, tempfile::tempdir().unwrap(), SOON);
        let address = uplinks.address();
        assert!(address.starts_with("169.254.") && address.ends_with("/16"), "{address}");
        assert!(begun.elapsed() > SOON);
        let problem = uplinks.problem();
        assert!(problem.contains("no DHCP server answers") && problem.contains("169.254."), "{problem}");
        let plain = address.trim_end_matches("/16");
        assert!(neighbour.run(&format!("ping -c 1 -W 5 {plain}")).contains("1 received"));
        assert!(!run("ip route").contains("default"));

        neighbour.run("ip addr add 10.9.0.1/24 dev eth0");
        let server = serve(&neighbour, "10.9.0.50,10.9.0.60,255.255.255.0,2m", "option:router,10.9.0.1");
        assert!(uplinks.address().starts_with("10.9.0."));
        uplinks.until("end of the problem", |news| matches!(news, News::Problem(_, None)).then_some(()));
        let shown = run("ip -4 addr show dev br-lan");
        assert!(!shown.contains("169.254."), "{shown}");
        end(server);
    });
}

#[test]
fn a_card_that_is_pulled_is_reported_and_taken_again_when_it_comes_back() {
    in_namespace(|| {
        let manifest = manifest();
        bring_up(&manifest, |_| 0).unwrap();
        let router = Machine::new("nic", None, "10.9.0.1/24", None);
        let server = serve(&router, "10.9.0.50,10.9.0.60,255.255.255.0,2m", "option:router,10.9.0.1");
        let uplinks = Uplinks::start(&manifest);
        let address = uplinks.address();

        // The cable: the address stays, for connections that outlive it.
        router.run("ip link set eth0 down");
        let problem = uplinks.problem();
        assert!(problem.contains("nic") && problem.contains("no carrier"), "{problem}");
        assert!(run("ip -4 addr show dev br-lan").contains(&address));
        router.run("ip link set eth0 up");
        uplinks.until("end of the problem", |news| matches!(news, News::Problem(_, None)).then_some(()));

        // The card.
        end(server);
        run("ip link delete nic");
        uplinks.no_address();
        let problem = uplinks.problem();
        assert!(problem.contains("nic") && problem.contains("is gone"), "{problem}");
        assert!(!run("ip -4 addr show dev br-lan").contains("inet"));
        drop(router);
        let router = Machine::new("nic", None, "10.9.0.1/24", None);
        let server = serve(&router, "10.9.0.70,10.9.0.79,255.255.255.0,2m", "option:router,10.9.0.1");
        assert!(uplinks.address().starts_with("10.9.0.7"));
        assert!(run("ip link show nic").contains("master br-lan"));
        end(server);
    });
}

/// Processor time of the uplink's thread in this network namespace; other tests have such threads too.
fn processor_time() -> Duration {
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    // A thread of another test may end meanwhile.
    let mut uplinks = tasks.filter(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "uplink lan\n")
            && fs::read_link(task.join("ns/net")).is_ok_and(|namespace| namespace == own)
    });
    let statistics = fs::read_to_string(uplinks.next().unwrap().join("schedstat")).unwrap();
    Duration::from_nanos(statistics.split(' ').next().unwrap().parse().unwrap())
}

/// What waits to be read on the DHCP client's port, in bytes.
fn unread() -> u64 {
    let sockets = run("ss -H -u -a -n sport = :68");
    sockets.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_guest_that_floods_an_unplugged_uplink_keeps_neither_its_thread_nor_the_main_loop_busy() {
    in_namespace(|| {
        let manifest = manifest();
        bring_up(&manifest, |_| 0).unwrap();
        let router = Machine::new("nic", None, "10.9.0.1/24", None);
        let server = serve(&router, "10.9.0.50,10.9.0.59,255.255.255.0,2m", "option:router,10.9.0.1");
        let uplinks = Uplinks::start(&manifest);
        uplinks.address();
        let guest = Machine::new("guest", Some("br-lan"), "10.9.0.200/24", None);
        router.run("ip link set eth0 down");
        assert!(uplinks.problem().contains("no carrier"));

        let socket = guest.on(|| UdpSocket::bind("0.0.0.0:67").unwrap());
        socket.set_broadcast(true).unwrap();
        let deadline = Instant::now() + PATIENCE_OF_TESTS;
        while unread() == 0 {
            assert!(Instant::now() < deadline, "nothing arrives");
            socket.send_to(&[0; 64], "10.9.0.255:68").unwrap();
        }
        let (before, told) = (processor_time(), uplinks.news.try_iter().count());
        assert!(told < 10, "{told} news of a cable that was pulled once");
        let news = uplinks.news.recv_timeout(WINDOW);
        assert!(news.is_err(), "{news:?}");
        let busy = processor_time() - before;
        assert!(busy < WINDOW / 20, "{busy:?} of {WINDOW:?}");

        // It is read once the cable is in again.
        router.run("ip link set eth0 up");
        uplinks.until("end of the problem", |news| matches!(news, News::Problem(_, None)).then_some(()));
        let deadline = Instant::now() + PATIENCE_OF_TESTS;
        while unread() > 0 {
            assert!(Instant::now() < deadline, "it is not read");
        }
        end(server);
    });
}

#[test]
fn the_next_daemon_mends_what_differs_and_leaves_the_rest() {
    in_namespace(|| {
        let manifest = manifest();
        bring_up(&manifest, |_| 0).unwrap();
        let index = |link: &str| run(&format!("ip -o link show {link}")).split(':').next().unwrap().to_owned();
        let before = (index("br-servers"), index("tap525400000050"));
        run("ip addr add 10.66.0.1/24 dev br-servers");
        run("ip addr del 10.30.0.1/24 dev br-lab");
        run("ip link set br-lab down");
        run("ip link add foreign type veth peer name other");
        run("ip link set foreign master br-servers");
        run("ip link set tap525400000005 nomaster");
        run("nft flush chain inet rackstick forward");
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();

        bring_up(&manifest, |_| 0).unwrap();
        assert_eq!(before, (index("br-servers"), index("tap525400000050")), "they are the same as before");
        let addresses = run("ip -4 addr");
        assert!(!addresses.contains("10.66.0.1") && addresses.contains("10.30.0.1/24"), "{addresses}");
        assert!(run("ip link show br-lab").contains(",UP"));
        assert!(!run("ip link show foreign").contains("master"));
        assert!(run("ip link show tap525400000005").contains("master br-lab"));
        assert_eq!(run("nft list table inet rackstick"), include_str!("../firewall/expected.nft"));
        assert_eq!(run("sysctl -n net.ipv4.ip_forward"), "1\n");
    });
}
