//! Reads a guest's `volumes`.

use std::collections::BTreeMap;

use super::{
    guests::size,
    images::image_path,
    names::{self, shown},
    rack::Volume,
    reader::{Report, Table, Text},
    shapes,
};
use crate::volume::{NAME_MAX, SIZE_MAX_MIB, SIZE_MIN_MIB};

/// Most volumes of a guest: with its layers and networks they share the 31 places of its bus.
const VOLUMES_MAX: usize = 8;
/// What comes from the image. A volume in their place would keep the old files for ever, whatever a new generation
/// brings.
const OF_THE_IMAGE: &[&str] = &["/", "/etc", "/var", "/var/lib"];
/// The same, with all folders in them: programs, what is known of installed packages, and which services there are.
const WHOLLY_OF_THE_IMAGE: &[&str] = &["/boot", "/etc/systemd", "/usr", "/var/lib/dpkg"];
/// What lies below one of those and is the administrator's all the same (FHS 3.0, section 4.9).
const LOCAL: &str = "/usr/local";
/// Symbolic links of Debian's images: what was mounted there would be mounted elsewhere.
const LINKS: &[&str] = &["/bin", "/lib", "/lib64", "/sbin", "/var/lock", "/var/run"];

/// The volumes. Those with something wrong, which was reported, are not among the result.
pub(super) fn read(report: &mut Report, guest: &Table<'_>) -> BTreeMap<String, Volume> {
    let entries = guest.entries(report, "volumes");
    if let Some((name, _)) = entries.get(VOLUMES_MAX) {
        report.wrong(name.span.clone(), "too many volumes", format!("a guest has at most {VOLUMES_MAX}"));
        return BTreeMap::new();
    }
    let mut volumes: BTreeMap<String, Volume> = BTreeMap::new();
    for (name, value) in entries {
        if !names::is_label(name.value, NAME_MAX) {
            let message = format!("`{}` can't be the name of a volume", shown(name.value));
            report.wrong(name.span.clone(), message, names::label_rule(NAME_MAX));
        }
        let title = format!("volume `{}`", shown(name.value));
        let Some(table) = Table::open(report, &shapes::VOLUME, &title, name.span.clone(), value) else { continue };
        let mount = table.text(report, "mount").and_then(|text| mount(report, &volumes, &text));
        let size = table.text(report, "size").and_then(|text| size(report, &text, SIZE_MIN_MIB, SIZE_MAX_MIB));
        if let (Some(mount), Some(size_mib)) = (mount, size) {
            volumes.insert(name.value.to_owned(), Volume { mount, size_mib });
        }
    }
    volumes
}

/// The path, if a volume can be mounted there beside the `others`.
fn mount(report: &mut Report, others: &BTreeMap<String, Volume>, text: &Text<'_>) -> Option<String> {
    let path = match text.value {
        "/" => text.value.to_owned(),
        _ => image_path(report, text)?.value,
    };
    let mut wrong = |message: String, hint: &str| {
        report.wrong(text.span.clone(), message, hint);
        None
    };
    if let Some(bad) = path.chars().find(|c| !c.is_ascii_graphic() || *c == '\\') {
        return wrong(
            format!("`{}` has the character `{}` in it", shown(&path), bad.escape_debug()),
            "a mount has visible ASCII characters without blanks and backslashes",
        );
    }
    if let Some(link) = LINKS.iter().find(|link| is_within(&path, link)) {
        return wrong(
            format!("`{}` leads through `{link}`, which is a symbolic link", shown(&path)),
            "name the folder that it points to, or another one",
        );
    }
    if OF_THE_IMAGE.contains(&path.as_str()) {
        return wrong(
            format!("`{path}` is the image's own"),
            "what a volume holds is kept, so a new image could not change it; mount it on a folder further down",
        );
    }
    let owner = WHOLLY_OF_THE_IMAGE.iter().find(|folder| is_within(&path, folder) && !is_within(&path, LOCAL));
    if let Some(folder) = owner {
        return wrong(
            format!("`{}` is the image's own, as all of `{folder}`", shown(&path)),
            "what a volume holds is kept, so a new image could not change it; mount it where programs keep their data, \
             for example below `/var/lib`, `/srv` or `/home`",
        );
    }
    if let Some((other, _)) = others.iter().find(|(_, v)| is_within(&path, &v.mount) || is_within(&v.mount, &path)) {
        return wrong(
            format!("`{}` and the mount of volume `{other}` lie within each other", shown(&path)),
            "each volume needs a folder of its own",
        );
    }
    Some(path)
}

/// Whether a path is the other one or lies below it.
fn is_within(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
