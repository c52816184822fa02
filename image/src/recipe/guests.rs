//! Reads `[guests.NAME]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use toml::{Spanned, de::DeValue};

use super::{
    forward::{self, FORWARD_HINT},
    health,
    names::{self, shown},
    networks::{self, Networks},
    order,
    rack::{Guest, Network},
    reader::{self, Report, Table, Text},
    shapes, units, volumes,
};
use crate::{
    manifest::{Address, Forward, Protocol, UplinkAddress},
    volume::{SIZE_MAX_MIB, SIZE_MIN_MIB},
};

/// Most vCPUs of a guest: a slip of a digit is found here, not when the rack starts.
pub const VCPUS_MAX: u8 = 32;
/// Most guests of a rack: what is compared between guests takes quadratic time.
const GUESTS_MAX: usize = 1000;

/// Where the rack's own DHCP client hears its answers (RFC 2131, section 4.1).
const DHCP_CLIENT_PORT: u16 = 68;

/// A guest of which everything that could be read was, and whose image is yet to be read.
pub(super) struct Draft<'a> {
    /// The path as the recipe gives it.
    pub image: Text<'a>,
    /// With the image's name still empty.
    pub guest: Guest,
}

/// What is compared between guests.
#[derive(Default)]
struct Seen<'a> {
    addresses: BTreeMap<Ipv4Addr, &'a str>,
    forwards: Vec<(Forward, &'a str)>,
    after: BTreeMap<&'a str, Vec<Text<'a>>>,
}

/// Reads all guests. Those that lack something, which was reported, are not among the result.
pub(super) fn read<'a>(
    report: &mut Report,
    networks: &Networks,
    entries: Vec<(Text<'a>, &'a Spanned<DeValue<'a>>)>,
) -> BTreeMap<String, Draft<'a>> {
    if let Some((name, _)) = entries.get(GUESTS_MAX) {
        report.wrong(name.span.clone(), "too many guests", format!("a rack has at most {GUESTS_MAX}"));
        return BTreeMap::new();
    }
    let mut seen = Seen::default();
    let mut drafts = BTreeMap::new();
    for (name, value) in entries {
        if !names::is_label(name.value, names::NAME_MAX) {
            let message = format!("`{}` can't be the name of a guest", shown(name.value));
            report.wrong(name.span.clone(), message, names::label_rule(names::NAME_MAX));
        }
        seen.after.entry(name.value).or_default();
        if let Some(draft) = guest(report, networks, &mut seen, &name, value) {
            drafts.insert(name.value.to_owned(), draft);
        }
    }
    check_after(report, &seen.after);
    drafts
}

fn guest<'a>(
    report: &mut Report,
    networks: &Networks,
    seen: &mut Seen<'a>,
    name: &Text<'a>,
    value: &'a Spanned<DeValue<'a>>,
) -> Option<Draft<'a>> {
    let title = format!("guest `{}`", shown(name.value));
    let table = Table::open(report, &shapes::GUEST, &title, name.span.clone(), value)?;
    let image = table.text(report, "image");
    let vcpus = match table.get("vcpus") {
        None => Some(1),
        Some(_) => table.number(report, "vcpus", (1, VCPUS_MAX)),
    };
    let memory_mib =
        table.text(report, "memory").and_then(|text| size(report, &text, units::MEMORY_MIN_MIB, units::MEMORY_MAX_MIB));
    let addresses = addresses(report, networks, seen, name.value, &table);
    let forwards = forwards(report, networks, seen, name.value, &table);
    let volumes = volumes::read(report, &table);
    let disk_mib = table.text(report, "disk").and_then(|text| size(report, &text, SIZE_MIN_MIB, SIZE_MAX_MIB));
    let health = health::read(report, &table);
    // An address that is wrong was reported; only one that is not there is missing.
    let no_address = match table.get("address").map(Spanned::get_ref) {
        None => true,
        Some(DeValue::Table(content)) => content.is_empty(),
        Some(_) => false,
    };
    for (key, there) in [("forward", !forwards.is_empty()), ("health", health.is_some())] {
        if there && no_address {
            report.wrong(
                table.key_span(key).unwrap_or(name.span.clone()),
                format!("{title} has `{key}`, but no address"),
                r#"give it one on a private network, for example `address = { servers = "10.20.0.80" }`"#,
            );
        }
    }
    let private = |network: &String| !matches!(networks.get(network), Some(Some(Network::Uplink { .. })));
    if !forwards.is_empty() && !addresses.is_empty() && !addresses.keys().any(private) {
        report.wrong(
            table.key_span("forward").unwrap_or(name.span.clone()),
            format!("{title} has `forward`, but no address on a private network"),
            "on an uplink network a guest has an address of its own, which needs no forward; leave it out",
        );
    }
    let after = table.texts(report, "after");
    let after_names = after.iter().map(|text| text.value.to_owned()).collect();
    seen.after.insert(name.value, after);
    let guest = Guest {
        image: String::new(),
        // What is wrong was reported, so no guest will be made of this; but what else is wrong with it and its image is
        // to be told, too.
        vcpus: vcpus.unwrap_or(1),
        memory_mib: memory_mib.unwrap_or(units::MEMORY_MIN_MIB),
        addresses,
        forwards,
        volumes,
        disk_mib,
        health,
        after: after_names,
    };
    Some(Draft { image: image?, guest })
}

/// A size from `min` to `max` MiB.
pub(super) fn size(report: &mut Report, text: &Text<'_>, min: u32, max: u32) -> Option<u32> {
    match units::size_mib(text.value, min, max) {
        Ok(mib) => Some(mib),
        Err(error) => {
            let hint = match error {
                units::SizeError::Malformed(_) => {
                    "a whole number with `MiB`, `GiB` or `TiB`, for example `256 MiB`".to_owned()
                }
                units::SizeError::OutOfRange(_) => {
                    format!("{} to {} is allowed", units::shown_mib(min), units::shown_mib(max))
                }
            };
            report.wrong(text.span.clone(), error.to_string(), hint);
            None
        }
    }
}

fn addresses<'a>(
    report: &mut Report,
    networks: &Networks,
    seen: &mut Seen<'a>,
    guest: &'a str,
    table: &Table<'a>,
) -> BTreeMap<String, Address> {
    let mut addresses = BTreeMap::new();
    for (network, value) in table.entries(report, "address") {
        let hint = || names::suggest_or_list(network.value, "networks", networks.keys().map(String::as_str));
        let known = match networks.get(network.value) {
            None => {
                report.wrong(network.span.clone(), format!("unknown network `{}`", shown(network.value)), hint());
                continue;
            }
            Some(known) => known,
        };
        let Some(text) = reader::text(value) else {
            table.wrong_type(report, "address", "a table of strings", value);
            continue;
        };
        let address = match known {
            Some(Network::Private { subnet, .. }) => private_address(network.value, subnet, text.value),
            Some(Network::Uplink { address, gateway, .. }) => {
                bridged_address(networks, network.value, address, *gateway, text.value)
            }
            // What is wrong with the network was reported.
            None => continue,
        };
        let address = match address {
            Ok(address) => address,
            Err((message, hint)) => {
                report.wrong(text.span, message, hint);
                continue;
            }
        };
        if let Some(known) = address.known()
            && let Some(other) = seen.addresses.insert(known, guest)
        {
            let message = format!("{known} is the address of guest `{other}` already");
            report.wrong(text.span, message, "each guest needs an address of its own");
            continue;
        }
        addresses.insert(network.value.to_owned(), address);
    }
    addresses
}

/// A guest's address on a private network; else what is wrong with it, and what it could be.
fn private_address(network: &str, subnet: &Ipv4Net, text: &str) -> Result<Address, (String, String)> {
    let Ok(address) = text.parse::<Ipv4Addr>() else {
        let without_prefix = text.parse::<Ipv4Net>().ok().map(|net| net.addr());
        let hint = match without_prefix.filter(|address| unusable(subnet, *address).is_none()) {
            _ if text == "dhcp" => {
                let range = possible(subnet);
                format!("the address that stands here is what the rack's own DHCP gives to the guest; {range}")
            }
            Some(address) => format!("write `{address}`: the prefix length is that of the network's `subnet`"),
            None => "an address is four numbers from 0 to 255, for example `10.20.0.80`".to_owned(),
        };
        return Err((format!("`{}` is not an IPv4 address", shown(text)), hint));
    };
    match unusable(subnet, address) {
        Some(why) => Err((format!("{address} is {why} network `{network}`"), possible(subnet))),
        None => Ok(Address::Static { address, prefix: subnet.prefix_len() }),
    }
}

/// A guest's address on a network that is bridged to a NIC; else what is wrong with it, and what it could be.
fn bridged_address(
    networks: &Networks,
    network: &str,
    rack: &UplinkAddress,
    gateway: Option<Ipv4Addr>,
    text: &str,
) -> Result<Address, (String, String)> {
    if text == "dhcp" {
        return Ok(Address::Dhcp);
    }
    let net = text.parse::<Ipv4Net>().ok().filter(|net| networks::usable(net) && networks::is_host(net, net.addr()));
    let Some(net) = net else {
        let hint = r#"`"dhcp"`, or its own address there with the prefix length, for example `"192.168.1.20/24"`"#;
        return Err((
            format!("`{}` is not an address for a guest on `{network}`, an uplink", shown(text)),
            hint.into(),
        ));
    };
    let address = net.addr();
    if let UplinkAddress::Static { address: own, .. } = rack
        && *own == address
    {
        let message = format!("{address} is the rack's own address on network `{network}`");
        return Err((message, "each guest needs an address of its own".to_owned()));
    }
    if let Some(gateway) = gateway.filter(|gateway| *gateway == address || !networks::is_host(&net, *gateway)) {
        let message = format!("{net} can't be reached by {gateway}, the gateway of network `{network}`");
        return Err((message, "the gateway must be another host of the same subnet".to_owned()));
    }
    let overlapping = networks.iter().find_map(|(name, other)| match other {
        Some(Network::Private { subnet, .. }) if subnet.contains(&net) || net.contains(subnet) => Some((name, subnet)),
        _ => None,
    });
    if let Some((name, subnet)) = overlapping {
        let hint = "no address may belong to two networks of a rack".to_owned();
        return Err((format!("{net} overlaps {subnet} of network `{name}`"), hint));
    }
    Ok(Address::Static { address, prefix: net.prefix_len() })
}

/// What the address is that a guest can't have.
fn unusable(subnet: &Ipv4Net, address: Ipv4Addr) -> Option<String> {
    if !subnet.contains(&address) {
        Some(format!("outside {subnet}, the subnet of"))
    } else if address == networks::gateway(subnet) {
        Some("the rack's own address on".to_owned())
    } else if !networks::is_host(subnet, address) {
        Some(format!("not a host's address in {subnet}, the subnet of"))
    } else {
        None
    }
}

/// Which addresses guests can have.
fn possible(subnet: &Ipv4Net) -> String {
    let last = Ipv4Addr::from_bits(subnet.broadcast().to_bits().saturating_sub(1));
    let second = Ipv4Addr::from_bits(networks::gateway(subnet).to_bits().saturating_add(1));
    if second == last { format!("it can only be {last}") } else { format!("{second} to {last} are possible") }
}

fn forwards<'a>(
    report: &mut Report,
    networks: &Networks,
    seen: &mut Seen<'a>,
    guest: &'a str,
    table: &Table<'a>,
) -> Vec<Forward> {
    let mut forwards = Vec::new();
    for text in table.texts(report, "forward") {
        let forward = match forward::parse(text.value) {
            Ok(forward) => forward,
            Err(error) => {
                report.wrong(report.within(&text, error.part), error.message, FORWARD_HINT);
                continue;
            }
        };
        let place = report.within(&text, 0..forward.network.len());
        let hint = || names::suggest_or_list(&forward.network, "uplink networks", networks::uplinks(networks));
        match networks.get(&forward.network) {
            None => {
                report.wrong(place, format!("unknown network `{}`", shown(&forward.network)), hint());
                continue;
            }
            Some(Some(Network::Private { .. })) => {
                let message =
                    format!("`{}` is not an uplink network; forwards come from outside the rack", forward.network);
                report.wrong(place, message, hint());
                continue;
            }
            Some(Some(Network::Uplink { address: UplinkAddress::Dhcp, .. }))
                if (forward.port, forward.protocol) == (DHCP_CLIENT_PORT, Protocol::Udp) =>
            {
                let message = format!("the rack itself listens on 68/udp of `{}`, for its address", forward.network);
                report.wrong(text.span, message, "choose another port, or give the network an `address` of its own");
                continue;
            }
            Some(Some(Network::Uplink { .. }) | None) => {}
        }
        let same = |other: &Forward| {
            (&other.network, other.port, other.protocol) == (&forward.network, forward.port, forward.protocol)
        };
        if let Some((_, other)) = seen.forwards.iter().find(|(other, _)| same(other)) {
            let message = format!(
                "port {} of `{}` leads to guest `{other}` already",
                forward::shown_port(&forward),
                forward.network
            );
            report.wrong(text.span, message, "a port of the rack leads to one guest");
            continue;
        }
        seen.forwards.push((forward.clone(), guest));
        forwards.push(forward);
    }
    forwards
}

fn check_after<'a>(report: &mut Report, after: &BTreeMap<&'a str, Vec<Text<'a>>>) {
    for (guest, names) in after {
        let mut seen = BTreeSet::new();
        for name in names {
            let span = name.span.clone();
            if name.value == *guest {
                report.wrong(span, format!("guest `{guest}` would wait for itself"), "leave it out");
            } else if !after.contains_key(name.value) {
                let hint = names::suggest_or_list(name.value, "guests", after.keys().copied());
                report.wrong(span, format!("unknown guest `{}`", shown(name.value)), hint);
            } else if !seen.insert(name.value) {
                report.wrong(span, format!("guest `{}` is named twice", name.value), "leave one out");
            }
        }
    }
    let edges = after.iter().map(|(&guest, names)| {
        (guest, names.iter().map(|name| name.value).filter(|&name| name != guest).collect::<BTreeSet<_>>())
    });
    let Err(cycle) = order::start_order(&edges.collect()) else { return };
    let [first, .., last] = cycle[..] else { return };
    if let Some(place) = after.get(last).and_then(|names| names.iter().find(|name| name.value == first)) {
        let chain: Vec<String> = cycle.iter().chain([&first]).map(|name| format!("`{name}`")).collect();
        let message = format!("these guests wait for each other: {}", chain.join(" -> "));
        report.wrong(place.span.clone(), message, "at least one of them must start without the others");
    }
}
