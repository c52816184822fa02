//! Reads `[networks.NAME]`.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::Range};

use ipnet::Ipv4Net;
use toml::{Spanned, de::DeValue};

use super::{
    names::{self, shown},
    rack::Network,
    reader::{Report, Table, Text},
    shapes,
};
use crate::manifest::{Nic, UplinkAddress};

/// Widest private subnet: an eighth of 2^32 addresses would take real parts of the world away from guests.
const PREFIX_MIN: u8 = 8;
/// Narrowest subnet: the rack and one other.
const PREFIX_MAX: u8 = 30;
const SUBNET_HINT: &str = "for example `10.20.0.0/24`: the prefix length is 8 to 30, and loopback, link-local and multicast are not for hosts";
const ADDRESS_HINT: &str =
    r#"`"dhcp"`, or the rack's own address with its prefix length, for example `"192.168.1.10/24"`"#;

const NIC_HINT: &str = r#"`"auto"` takes the first NIC with a carrier; else its MAC address, for example `"52:54:00:12:34:56"`, or its name"#;

/// The networks by name. A network in which something is wrong is there too, as `None`, so that what refers to it is
/// not called wrong for it.
pub(super) type Networks = BTreeMap<String, Option<Network>>;

/// Names of those that could be uplinks.
pub(super) fn uplinks(networks: &Networks) -> impl Iterator<Item = &str> + Clone {
    networks
        .iter()
        .filter(|(_, network)| !matches!(network, Some(Network::Private { .. })))
        .map(|(name, _)| name.as_str())
}

/// The rack's own address on a private network: the first.
pub(super) fn gateway(subnet: &Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.network().to_bits().saturating_add(1))
}

/// Whether a host of the subnet may have the address.
pub(super) fn is_host(subnet: &Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}

/// What is compared between networks.
#[derive(Default)]
struct Seen<'a> {
    /// NICs, and where each is named.
    nics: Vec<(Nic, Range<usize>, &'a str)>,
    subnets: Vec<(Ipv4Net, Range<usize>, &'a str)>,
    nats: Vec<(Text<'a>, &'a str)>,
    /// Uplinks that bring a default route, or may: where the recipe says so.
    ways_out: Vec<(Range<usize>, &'a str)>,
}

/// Reads all networks.
pub(super) fn read<'a>(report: &mut Report, entries: Vec<(Text<'a>, &'a Spanned<DeValue<'a>>)>) -> Networks {
    let mut networks = Networks::new();
    let mut seen = Seen::default();
    for (name, value) in entries {
        if !names::is_label(name.value, names::NETWORK_NAME_MAX) {
            let message = format!("`{}` can't be the name of a network", shown(name.value));
            report.wrong(name.span.clone(), message, names::label_rule(names::NETWORK_NAME_MAX));
        }
        networks.insert(name.value.to_owned(), network(report, &mut seen, &name, value));
    }
    check_nics(report, &seen);
    check_ways_out(report, &seen);
    check_subnets(report, &seen);
    check_nats(report, &seen, &networks);
    networks
}

fn network<'a>(
    report: &mut Report,
    seen: &mut Seen<'a>,
    name: &Text<'a>,
    value: &'a Spanned<DeValue<'a>>,
) -> Option<Network> {
    let title = format!("network `{}`", shown(name.value));
    let DeValue::Table(content) = value.get_ref() else {
        report.wrong(
            value.span(),
            format!("{title} must be a table"),
            format!("for example `[networks.{}]`", shown(name.value)),
        );
        return None;
    };
    let has = |key: &str| content.keys().any(|known| known.get_ref() == key);
    match (has("uplink"), has("subnet")) {
        (true, false) => {
            let table = Table::new(report, &shapes::UPLINK, &title, name.span.clone(), content);
            uplink(report, seen, name.value, &table)
        }
        (false, true) => {
            let table = Table::new(report, &shapes::PRIVATE, &title, name.span.clone(), content);
            private(report, seen, name.value, &table)
        }
        (both, _) => {
            let message = if both { "has both `uplink` and `subnet`" } else { "has neither `uplink` nor `subnet`" };
            report.wrong(
                name.span.clone(),
                format!("{title} {message}"),
                r#"`uplink = "auto"` bridges it to the rack's own NIC; `subnet = "10.20.0.0/24"` makes it private"#,
            );
            None
        }
    }
}

fn uplink<'a>(report: &mut Report, seen: &mut Seen<'a>, name: &'a str, table: &Table<'a>) -> Option<Network> {
    let text = table.text(report, "uplink");
    let address = uplink_address(report, seen, name, table);
    let subnet = match address {
        Some(UplinkAddress::Static { address, prefix }) => Ipv4Net::new(address, prefix).ok(),
        _ => None,
    };
    let way_out = table.text(report, "gateway");
    let gateway = way_out.as_ref().map(|text| gateway_address(report, name, subnet, text));
    let resolver = table.text(report, "resolver").map(|text| host_address(report, &text));
    let text = text?;
    let Some(nic) = nic(text.value) else {
        report.wrong(text.span, format!("`{}` can't be a NIC", shown(text.value)), NIC_HINT);
        return None;
    };
    let way_out = match (way_out, &address) {
        (Some(gateway), _) => Some(gateway.span),
        // A DHCP server names one.
        (None, Some(UplinkAddress::Dhcp)) => Some(table.get("address").map_or(text.span.clone(), Spanned::span)),
        (None, _) => None,
    };
    seen.ways_out.extend(way_out.map(|span| (span, name)));
    seen.nics.push((nic.clone(), text.span, name));
    // What is wrong with either was reported; nothing else depends on them.
    Some(Network::Uplink { nic, address: address?, gateway: gateway.flatten(), resolver: resolver.flatten() })
}

fn nic(text: &str) -> Option<Nic> {
    if text == "auto" {
        return Some(Nic::Auto);
    }
    match names::mac(text) {
        Some(mac) => Some(Nic::Mac(mac)),
        None => names::is_interface(text).then(|| Nic::Name(text.to_owned())),
    }
}

fn gateway_address(report: &mut Report, name: &str, subnet: Option<Ipv4Net>, text: &Text<'_>) -> Option<Ipv4Addr> {
    let gateway = host_address(report, text)?;
    match subnet {
        Some(net) if !is_host(&net, gateway) || gateway == net.addr() => {
            let hint = format!("it must be another host of {}", net.trunc());
            report.wrong(text.span.clone(), format!("{gateway} can't be the gateway of `{name}`"), hint);
            None
        }
        _ => Some(gateway),
    }
}

/// An address that a host can have.
fn host_address(report: &mut Report, text: &Text<'_>) -> Option<Ipv4Addr> {
    let address = text.value.parse::<Ipv4Addr>().ok().filter(|address| {
        !address.is_loopback() && !address.is_multicast() && !address.is_broadcast() && !address.is_unspecified()
    });
    if address.is_none() {
        let hint = "an address is four numbers from 0 to 255, for example `192.168.1.1`";
        report.wrong(text.span.clone(), format!("`{}` is not the IPv4 address of a host", shown(text.value)), hint);
    }
    address
}

fn uplink_address<'a>(
    report: &mut Report,
    seen: &mut Seen<'a>,
    name: &'a str,
    table: &Table<'a>,
) -> Option<UplinkAddress> {
    if table.get("address").is_none_or(|value| value.get_ref().as_str() == Some("dhcp")) {
        return Some(UplinkAddress::Dhcp);
    }
    let text = table.text(report, "address")?;
    let Ok(net) = text.value.parse::<Ipv4Net>() else {
        report.wrong(text.span, format!("`{}` is not an address for an uplink", shown(text.value)), ADDRESS_HINT);
        return None;
    };
    if !usable(&net) || !is_host(&net, net.addr()) {
        report.wrong(text.span, format!("`{net}` can't be the address of a host"), ADDRESS_HINT);
        return None;
    }
    seen.subnets.push((net.trunc(), text.span, name));
    Some(UplinkAddress::Static { address: net.addr(), prefix: net.prefix_len() })
}

fn private<'a>(report: &mut Report, seen: &mut Seen<'a>, name: &'a str, table: &Table<'a>) -> Option<Network> {
    let nat = table.text(report, "nat");
    let subnet = table.text(report, "subnet").and_then(|text| subnet(report, seen, name, &text));
    let nat_name = nat.as_ref().map(|nat| nat.value.to_owned());
    seen.nats.extend(nat.map(|nat| (nat, name)));
    // A `nat` of the wrong type was reported; the network itself is known all the same.
    Some(Network::Private { subnet: subnet?, nat: nat_name })
}

fn subnet<'a>(report: &mut Report, seen: &mut Seen<'a>, name: &'a str, text: &Text<'a>) -> Option<Ipv4Net> {
    let span = text.span.clone();
    let Ok(net) = text.value.parse::<Ipv4Net>() else {
        report.wrong(span, format!("`{}` is not a subnet", shown(text.value)), SUBNET_HINT);
        return None;
    };
    if net != net.trunc() {
        let hint = format!("did you mean `{}`?", net.trunc());
        report.wrong(span, format!("`{net}` is an address within a subnet, not a subnet"), hint);
        return None;
    }
    if !usable(&net) {
        report.wrong(span, format!("`{net}` can't be a private subnet"), SUBNET_HINT);
        return None;
    }
    seen.subnets.push((net, span, name));
    Some(net)
}

/// Whether hosts can have addresses of this subnet: not loopback, multicast, link-local, reserved or "this network"
/// (RFC 6890), and neither too wide nor too narrow.
pub(super) fn usable(net: &Ipv4Net) -> bool {
    let first = net.network();
    (PREFIX_MIN..=PREFIX_MAX).contains(&net.prefix_len())
        && !first.is_loopback()
        && !first.is_link_local()
        && first.octets()[0] != 0
        && first.octets()[0] < 224
}

fn check_nics(report: &mut Report, seen: &Seen<'_>) {
    for (index, (nic, span, _)) in seen.nics.iter().enumerate() {
        let same = |other: &Nic| other == nic || *other == Nic::Auto || *nic == Nic::Auto;
        if let Some((_, _, other)) = seen.nics[..index].iter().find(|(other, ..)| same(other)) {
            report.wrong(
                span.clone(),
                format!("this could be the NIC of network `{other}`"),
                r#"with several uplinks each names its own NIC, and none is `"auto"`"#,
            );
        }
    }
}

/// The rack has one default route: two uplinks would take it from each other.
fn check_ways_out(report: &mut Report, seen: &Seen<'_>) {
    let Some(((_, first), others)) = seen.ways_out.split_first() else { return };
    for (span, _) in others {
        report.wrong(
            span.clone(),
            format!("this would be a second way out, beside network `{first}`"),
            "of several uplinks only one may ask DHCP or have a `gateway`; \
             each other one has an address of its own, for example `\"192.168.2.10/24\"`, and no `gateway`",
        );
    }
}

fn check_subnets(report: &mut Report, seen: &Seen<'_>) {
    for (index, (net, span, _)) in seen.subnets.iter().enumerate() {
        let overlaps = |other: &Ipv4Net| other.contains(net) || net.contains(other);
        if let Some((other, _, name)) = seen.subnets[..index].iter().find(|(other, ..)| overlaps(other)) {
            report.wrong(
                span.clone(),
                format!("{net} overlaps {other} of network `{name}`"),
                "no address may belong to two networks of a rack",
            );
        }
    }
}

fn check_nats(report: &mut Report, seen: &Seen<'_>, networks: &Networks) {
    for (nat, _) in &seen.nats {
        let hint = names::suggest_or_list(nat.value, "uplink networks", uplinks(networks));
        match networks.get(nat.value) {
            None => report.wrong(nat.span.clone(), format!("unknown network `{}`", shown(nat.value)), hint),
            Some(Some(Network::Private { .. })) => {
                report.wrong(nat.span.clone(), format!("`{}` is not an uplink network", nat.value), hint);
            }
            Some(Some(Network::Uplink { .. }) | None) => {}
        }
    }
}
