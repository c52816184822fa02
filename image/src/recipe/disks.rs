//! What a rack recipe may say of a guest only if its image is a whole disk, and what it may not say then: known once
//! its image recipe was read.

use std::sync::Arc;

use toml::{Spanned, de::DeTable};

use super::{
    error::{Diagnostic, Place, Source},
    rack::{Guest, Rack},
    reader::value,
};

/// All that is wrong, by guest. The rack was read from `root`.
pub(super) fn check(rack: &Rack, source: &Arc<Source>, root: &DeTable<'_>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (name, guest) in &rack.guests {
        let is_disk = rack.images.get(&guest.image).is_some_and(|image| image.disk().is_some());
        for (key, message, hint) in faults(guest, is_disk) {
            let span = value(root, &["guests", name, key]).map_or(0..0, Spanned::span);
            let place = Place { source: Arc::clone(source), span };
            found.push(Diagnostic::new(place, format!("guest `{name}` {message}")).hint(hint));
        }
    }
    found.sort_by_key(|fault| fault.place.span.start);
    found
}

/// The key, what is wrong with it, and what to do.
fn faults(guest: &Guest, is_disk: bool) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut found = Vec::new();
    if !is_disk && guest.disk_mib.is_some() {
        found.push((
            "disk",
            "has a size for its disk, but its image is none",
            "leave it out; what other guests keep is on their `volumes`",
        ));
    }
    if is_disk && !guest.volumes.is_empty() {
        found.push((
            "volumes",
            "has volumes, but its image is a whole disk",
            "nothing of the rack's runs in it that could mount them; what it writes to its disk is kept, and `disk` makes that larger",
        ));
    }
    if is_disk && guest.health.is_some() && guest.addresses.values().all(|address| address.known().is_none()) {
        found.push((
            "health",
            "has a check, but no address that the rack knows",
            "its image is a whole disk, so it is checked from outside: give it an address on a private network, or leave the check out",
        ));
    }
    found
}
