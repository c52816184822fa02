//! Reads `[secrets.NAME]` of image recipes: files that a guest finds in its memory. A recipe says where, and never what
//! is in them.

use std::collections::BTreeMap;

use super::{
    accounts,
    image::Secret,
    images,
    names::{self, NAME_MAX, shown},
    reader::{Report, Table, Text},
    shapes,
};
use crate::secrets::SECRETS_MAX;

/// What a guest has in memory from its first moment on.
const IN_MEMORY: &str = "/run/";
/// Where a secret is if the recipe does not say.
const FOLDER: &str = "/run/secrets";
const MODE: u32 = 0o400;
/// Without set-user-id and its like: nobody runs a secret.
const MODE_MAX: u32 = 0o777;
/// Folders below it in which others keep their own, or over which something is mounted later.
const TAKEN: &[&str] = &["credentials", "initramfs", "lock", "rackstick", "systemd", "udev", "user"];

/// Reads all secrets. Those with something wrong, which was reported, are not among the result.
pub(super) fn read(report: &mut Report, table: &Table<'_>) -> BTreeMap<String, Secret> {
    let entries = table.entries(report, "secrets");
    if let Some((name, _)) = entries.get(SECRETS_MAX) {
        report.wrong(name.span.clone(), "too many secrets", format!("an image has at most {SECRETS_MAX}"));
        return BTreeMap::new();
    }
    let mut secrets: BTreeMap<String, Secret> = BTreeMap::new();
    for (name, value) in entries {
        if !names::is_name(name.value) {
            let message = format!("`{}` can't be the name of a secret", shown(name.value));
            report.wrong(name.span.clone(), message, names::label_rule(NAME_MAX));
            continue;
        }
        if value.get_ref().is_str() {
            report.wrong(
                value.span(),
                format!("the value of secret `{}` stands here", name.value),
                "everybody who can read this file knows it: make a new one, and give it to `flash` or `run` with `--secrets`",
            );
            continue;
        }
        let title = format!("secret `{}`", name.value);
        let Some(table) = Table::open(report, &shapes::SECRET, &title, name.span.clone(), value) else { continue };
        let secret = secret(report, &table, &name);
        let path = table.get("path").map_or(name.span, |path| path.span());
        let Some(secret) = secret else { continue };
        if let Some((other, _)) = secrets.iter().find(|(_, other)| clash(&secret.path, &other.path)) {
            let message = format!("`{}` is in the way of secret `{other}`", shown(&secret.path));
            report.wrong(path, message, "give each secret a path of its own, none below another");
        }
        secrets.insert(name.value.to_owned(), secret);
    }
    secrets
}

fn secret(report: &mut Report, table: &Table<'_>, name: &Text<'_>) -> Option<Secret> {
    let path = match table.get("path") {
        None => Some(format!("{FOLDER}/{}", name.value)),
        Some(_) => table.text(report, "path").and_then(|text| path(report, &text)),
    };
    let mode = images::mode(report, table, MODE_MAX);
    let owner = accounts::owner(report, table, "owner");
    let group = accounts::owner(report, table, "group");
    Some(Secret { path: path?, mode: mode?.unwrap_or(MODE), owner: owner?, group: group? })
}

/// The path, if a secret can be there.
fn path(report: &mut Report, text: &Text<'_>) -> Option<String> {
    let path = images::whole_path(report, text)?.value;
    let first = path.strip_prefix(IN_MEMORY).and_then(|below| below.split('/').next());
    let (message, hint) = match first {
        None => (
            "is not in memory".to_owned(),
            "a secret's path is below `/run`, so that no disk holds it; programs find it elsewhere by a symbolic link"
                .to_owned(),
        ),
        Some(first) if TAKEN.contains(&first) => (
            "is not free".to_owned(),
            format!("others keep their own in `/run/{first}`; leave `path` out, or take another folder below `/run`"),
        ),
        Some(_) => return Some(path),
    };
    report.wrong(text.span.clone(), format!("`{}` {message}", shown(&path)), hint);
    None
}

/// Whether two files can't be at these paths at once.
fn clash(one: &str, other: &str) -> bool {
    let below =
        |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below(one, other) || below(other, one)
}
