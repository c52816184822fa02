//! What images are made of: releases of Debian.

use super::{
    names::{closest, list, shown},
    reader::{Report, Text},
};

/// The bases that images can be made of.
pub const BASES: [&str; 4] = ["debian:bookworm", "debian:trixie", "debian:forky", "debian:sid"];
/// The only base of racks: we are made to fit its kernels.
pub const RACK_BASE: &str = "debian:trixie";

/// Reports a base that no rack can have.
pub(super) fn check_racks(report: &mut Report, base: &Text<'_>) {
    if base.value != RACK_BASE {
        let message = format!("`{}` can't be the base of a rack", shown(base.value));
        let hint = format!(
            "host and guests' kernel are of `{RACK_BASE}` alone; an image can be of another base ({}), which its recipe names, or \
             have packages of another suite, see `[repositories.NAME]`",
            list(BASES.into_iter().filter(|known| *known != RACK_BASE))
        );
        report.wrong(base.span.clone(), message, hint);
    }
}

/// Reports a base that no image can have.
pub(super) fn check(report: &mut Report, base: &Text<'_>) {
    if !BASES.contains(&base.value) {
        let near = closest(base.value, BASES).or_else(|| closest(&format!("debian:{}", base.value), BASES));
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("images can be made of {}", list(BASES)),
        };
        report.wrong(base.span.clone(), format!("`{}` can't be the base of an image", shown(base.value)), hint);
    }
}
