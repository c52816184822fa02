//! What a recipe may say, but hardly means.

use std::sync::Arc;

use toml::{Spanned, de::DeTable};

use super::{
    error::{Diagnostic, Place, Source},
    generation,
    rack::{Network, Rack},
    reader::value,
};
use crate::manifest::{self, Address, UplinkAddress};

/// All of them, by place. The rack was read from `root` without any error.
pub(super) fn find(rack: &Rack, source: &Arc<Source>, root: &DeTable<'_>) -> Vec<Diagnostic> {
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
        let span = value(root, &["guests", name, "address", &at.network]).map_or(0..0, Spanned::span);
        let message = format!("guest `{name}` has no way out: network `{}` has no `gateway`", at.network);
        let hint = hint(rack, &at.network);
        found.push(Diagnostic::new(Place { source: Arc::clone(source), span }, message).hint(hint));
    }
    found.sort_by_key(|warning| warning.place.span.start);
    found
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
