//! Which port of this machine leads to which port of the rack.

use std::{
    collections::BTreeSet,
    fmt,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    str::FromStr,
};

use rackstick_image::manifest::{Manifest, Protocol};

/// What is added to a privileged port of the rack, so that forwarding it needs no privilege here.
const UNPRIVILEGED: u16 = 10_000;

/// A port of this machine, on the loopback address, that leads to a port of the rack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Port on this machine.
    pub host_port: u16,
    /// Port on the rack.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// What lies behind it, for people: network and guest, if the manifest knows.
    pub label: Option<(String, String)>,
}

/// A rule of the command line, `HOSTPORT:PORT/PROTO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    host_port: u16,
    port: u16,
    protocol: Protocol,
}

/// Why a forward can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Not a rule.
    #[error("`{0}` is not of the form HOSTPORT:PORT/PROTO, as in 10053:53/udp")]
    Malformed(String),
    /// A port that was asked for is taken.
    #[error("port {host_port}/{protocol} of this machine is already in use; name another with --forward", protocol = name(*protocol))]
    Busy {
        /// Port on this machine.
        host_port: u16,
        /// Transport protocol.
        protocol: Protocol,
    },
    /// Nothing left above the wanted port.
    #[error("no free port from {from} on for the rack's {port}/{protocol}; name one with --forward", protocol = name(*protocol))]
    Exhausted {
        /// Where the search began.
        from: u16,
        /// Port on the rack.
        port: u16,
        /// Transport protocol.
        protocol: Protocol,
    },
}

/// The protocol as QEMU and people write it.
pub fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

impl FromStr for Rule {
    type Err = ForwardError;
    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let port = |text: &str| text.parse().ok().filter(|port: &u16| *port != 0);
        let parse = || {
            let (host_port, rest) = text.split_once(':')?;
            let (rack_port, protocol) = rest.split_once('/')?;
            let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| name(*known) == protocol)?;
            Some(Self { host_port: port(host_port)?, port: port(rack_port)?, protocol })
        };
        parse().ok_or_else(|| ForwardError::Malformed(text.to_owned()))
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = self.label.as_ref().map_or("rack", |(network, _)| network);
        let port = format!("{}/{}", self.port, name(self.protocol));
        write!(f, "{network} {port:<9} -> {}:{}", Ipv4Addr::LOCALHOST, self.host_port)?;
        self.label.iter().try_for_each(|(_, guest)| write!(f, " ({guest})"))
    }
}

/// Every forward of the manifest, plus those that the rules name. A rule's port must be free; the others take the
/// rack's own port where that needs no privilege, else [`UNPRIVILEGED`] more, or the next port that is `free`.
pub fn resolve(
    manifest: Option<&Manifest>,
    rules: &[Rule],
    free: impl Fn(u16, Protocol) -> bool,
) -> Result<Vec<Forward>, ForwardError> {
    let mut taken = BTreeSet::new();
    for Rule { host_port, protocol, .. } in rules {
        // Two rules for one port of this machine: the second finds it taken by the first.
        if !free(*host_port, *protocol) || !taken.insert((*host_port, *protocol)) {
            return Err(ForwardError::Busy { host_port: *host_port, protocol: *protocol });
        }
    }
    let mut named: Vec<Rule> = rules.to_vec();
    let mut out = Vec::new();
    for guest in manifest.iter().flat_map(|manifest| &manifest.guests) {
        for forward in &guest.forwards {
            let (port, protocol) = (forward.port, forward.protocol);
            let label = Some((forward.network.clone(), guest.name.clone()));
            let rule = named.iter().position(|rule| rule.port == port && rule.protocol == protocol);
            let host_port = match rule.map(|index| named.remove(index)) {
                Some(rule) => rule.host_port,
                None => {
                    let from = if port >= 1024 { port } else { UNPRIVILEGED + port };
                    let mut ports = from..=u16::MAX;
                    ports
                        .find(|candidate| free(*candidate, protocol) && taken.insert((*candidate, protocol)))
                        .ok_or(ForwardError::Exhausted { from, port, protocol })?
                }
            };
            out.push(Forward { host_port, port, protocol, label });
        }
    }
    out.extend(named.into_iter().map(|Rule { host_port, port, protocol }| Forward {
        host_port,
        port,
        protocol,
        label: None,
    }));
    Ok(out)
}

/// Whether a port of this machine's loopback address can be listened on now.
pub fn is_free(port: u16, protocol: Protocol) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    match protocol {
        Protocol::Tcp => TcpListener::bind(address).is_ok(),
        Protocol::Udp => UdpSocket::bind(address).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rackstick_image::manifest;

    use super::*;

    fn manifest(forwards: &[(u16, Protocol)]) -> Manifest {
        let forward = |&(port, protocol): &(u16, Protocol)| manifest::Forward {
            network: "lan".into(),
            port,
            guest_port: port,
            protocol,
        };
        Manifest {
            format: manifest::FORMAT,
            rack: "lab".into(),
            version: "1".into(),
            domain: "lab.internal".into(),
            data_partition: String::new(),
            networks: BTreeMap::new(),
            images: BTreeMap::new(),
            guests: vec![manifest::Guest {
                name: "dns".into(),
                image: "dns".into(),
                vcpus: 1,
                memory_mib: 192,
                interfaces: Vec::new(),
                forwards: forwards.iter().map(forward).collect(),
                volumes: Vec::new(),
                disk_mib: None,
                health: None,
                after: Vec::new(),
            }],
        }
    }

    fn host_ports(forwards: &[Forward]) -> Vec<u16> {
        forwards.iter().map(|forward| forward.host_port).collect()
    }

    #[test]
    fn a_forward_keeps_its_port_where_that_needs_no_privilege_and_else_moves_up() {
        let manifest = manifest(&[(53, Protocol::Udp), (53, Protocol::Tcp), (8080, Protocol::Tcp)]);
        let forwards = resolve(Some(&manifest), &[], |_, _| true).unwrap();
        assert_eq!(host_ports(&forwards), [10053, 10053, 8080]);
        assert_eq!(forwards[0].to_string(), "lan 53/udp    -> 127.0.0.1:10053 (dns)");
    }

    #[test]
    fn a_busy_port_gives_way_to_the_next_free_one() {
        let manifest = manifest(&[(8080, Protocol::Tcp), (8081, Protocol::Tcp)]);
        let forwards = resolve(Some(&manifest), &[], |port, _| port != 8080).unwrap();
        assert_eq!(host_ports(&forwards), [8081, 8082]);
        assert!(matches!(resolve(Some(&manifest), &[], |_, _| false), Err(ForwardError::Exhausted { from: 8080, .. })));
    }

    #[test]
    fn a_rule_wins_over_the_manifest_and_fails_rather_than_move() {
        let manifest = manifest(&[(53, Protocol::Udp), (8080, Protocol::Tcp)]);
        let rules = ["8080:53/udp".parse().unwrap(), "2222:22/tcp".parse().unwrap()];
        assert_eq!(host_ports(&resolve(Some(&manifest), &rules, |_, _| true).unwrap()), [8080, 8080, 2222]);
        let error = resolve(None, &rules, |port, _| port != 2222).unwrap_err();
        assert!(error.to_string().contains("2222/tcp"), "{error}");
        assert!(resolve(None, &["1:2/tcp".parse().unwrap(), "1:3/tcp".parse().unwrap()], |_, _| true).is_err());
    }

    #[test]
    fn only_a_whole_rule_is_a_rule() {
        for bad in ["", "1:2", "1/tcp", "0:1/tcp", "1:0/tcp", "1:2/sctp", "65536:1/tcp", "a:1/udp", "1:2/tcp/x"] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!is_free(listener.local_addr().unwrap().port(), Protocol::Tcp));
    }
}
