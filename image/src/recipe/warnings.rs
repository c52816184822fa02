//! What a recipe may say, but hardly means.

use std::sync::Arc;

use toml::{Spanned, de::DeTable};

use super::{
    error::{Diagnostic, Place, Source},
    generation,
    rack::{Network, Rack, Repository},
    reader::value,
};
use crate::manifest::{self, Address, Nic, UplinkAddress};

/// All of them, by place. The rack was read from `root` without any error.
pub(super) fn find(rack: &Rack, source: &Arc<Source>, root: &DeTable<'_>) -> Vec<Diagnostic> {
    let place = |path: &[&str]| {
        let span = value(root, path).map_or(0..0, Spanned::span);
        Place { source: Arc::clone(source), span }
    };
    let mut found = foreign_names(rack, &place);
    found.extend(without_way_out(rack, &place));
    found.extend(without_images(rack, &place));
    found.sort_by_key(|warning| warning.place.span.start);
    found
}

/// Uplinks with a name that only udev gives.
fn foreign_names(rack: &Rack, place: &dyn Fn(&[&str]) -> Place) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (network, what) in &rack.networks {
        let Network::Uplink { nic: Nic::Name(name), .. } = what else { continue };
        let own = name.strip_prefix("eth").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        if !own {
            let message = format!("a rack calls its NICs `eth0`, `eth1` and so on, hardly `{name}`");
            found.push(Diagnostic::new(place(&["networks", network, "uplink"]), message).hint(
                "name it by its MAC address, which `ip link` shows on any Linux, for example `uplink = \"52:54:00:12:34:56\"`, \
                 or take the first with a cable: `uplink = \"auto\"`",
            ));
        }
    }
    found
}

/// Guests that reach nothing behind their LAN.
fn without_way_out(rack: &Rack, place: &dyn Fn(&[&str]) -> Place) -> Vec<Diagnostic> {
    let networks =
        rack.networks.iter().map(|(name, network)| (name.clone(), generation::network_of(network))).collect();
    let mut found = Vec::new();
    for (name, guest) in &rack.guests {
        let guest = generation::guest_of(&rack.name, name, guest);
        let Some(at) = guest.way_out(&networks).and_then(|way_out| guest.interfaces.get(way_out)) else { continue };
        let no_router = matches!(networks.get(&at.network), Some(manifest::Network::Uplink { gateway: None, .. }));
        if at.address == Address::Dhcp || !no_router {
            continue;
        }
        let message = format!("guest `{name}` has no way out: network `{}` has no `gateway`", at.network);
        let hint = hint(rack, &at.network);
        found.push(Diagnostic::new(place(&["guests", name, "address", &at.network]), message).hint(hint));
    }
    found
}

/// Repositories beside a base that nothing is made of.
fn without_images(rack: &Rack, place: &dyn Fn(&[&str]) -> Place) -> Vec<Diagnostic> {
    let images = || rack.images.values().filter(|image| image.from.is_none());
    let unused = rack.repositories.iter().filter(|(_, repository)| {
        repository.base != rack.base.value && images().all(|image| rack.base_of(image).value != repository.base)
    });
    let warning = |(name, repository): (&String, &Repository)| {
        let message = format!("nothing comes from repository `{name}`: no image is made of `{}`", repository.base);
        Diagnostic::new(place(&["repositories", name, "base"]), message)
            .hint("images that name no `base` are made of the rack's, and see only its repositories")
    };
    unused.map(warning).collect()
}

/// How a guest with an address of its own on this network, which names no router, gets a default route.
fn hint(rack: &Rack, network: &str) -> String {
    let ask = format!("let the guest ask DHCP, with `{network} = \"dhcp\"`");
    let leads_out = |network: &Network| match network {
        Network::Uplink { address, gateway, .. } => *address == UplinkAddress::Dhcp || gateway.is_some(),
        Network::Private { .. } => false,
    };
    // Of several uplinks only one may have a gateway.
    match rack.networks.iter().find(|(name, other)| *name != network && leads_out(other)) {
        Some((other, _)) => format!(
            "if it is to reach more than this network's machines, give it an address on `{other}` too, which leads out, or {ask}"
        ),
        None => format!(
            "if it is to reach more than this network's machines, name the router in `[networks.{network}]`, for example \
             `gateway = \"192.168.1.1\"`, or {ask}"
        ),
    }
}
