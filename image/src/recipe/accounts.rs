//! Reads `[users.NAME]` and `[groups.NAME]` of image recipes, and whom files belong to. Who is in an image already,
//! only the image itself knows: that is looked at when it is built. Follows passwd(5), group(5) and sshd(8).

use std::collections::{BTreeMap, BTreeSet};

use toml::de::DeValue;

use super::{
    error::Placed,
    image::{Group, Owner, User},
    images,
    names::{self, shown},
    reader::{Report, Table, Text},
    shapes,
};

/// Largest number that a file's owner can have: what a build maps (`nobody`; 65535 is `(uid_t) -1` in old formats).
pub const ID_MAX: u32 = 65534;
/// Largest number of a recipe's own users and groups: from 60000 on they are Debian's and systemd's (Debian Policy
/// 9.2.2).
pub const UID_MAX: u32 = 59_999;
/// Longest line of an `authorized_keys`, which sshd(8) reads up to 8 KiB.
const KEY_MAX: usize = 8191;
/// Longest comment of a user: tools read lines of passwd(5) into buffers of 1 KiB.
const COMMENT_MAX: usize = 256;
/// What a public key begins with (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
const KEY_TYPES: &[&str] = &[
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "sk-ssh-ed25519@openssh.com",
    "ssh-ed25519",
    "ssh-rsa",
];

/// What [`names::is_new_account`] wants, for a hint.
const NAME_RULE: &str = "1 to 32 lower-case letters, digits, `_` and `-`, beginning with a letter or `_`";

/// Whom a file belongs to, if that is right; it may be left out.
#[expect(clippy::option_option, reason = "the outer says whether it was right, the inner whether it was there")]
pub(super) fn owner(report: &mut Report, table: &Table<'_>, key: &str) -> Option<Option<Placed<Owner>>> {
    let Some(value) = table.get(key) else { return Some(None) };
    let owner = match value.get_ref() {
        DeValue::Integer(_) => Owner::Id(table.number(report, key, (0, ID_MAX))?),
        DeValue::String(name) if names::is_account(name) => Owner::Name(name.to_string()),
        DeValue::String(name) => {
            let message = format!("`{}` can't be the name of {}", shown(name), article(key));
            report.wrong(value.span(), message, "a name that the image knows, as `www-data`, or a number");
            return None;
        }
        _ => {
            table.wrong_type(report, key, "a name or a number", value);
            return None;
        }
    };
    Some(Some(Placed { value: owner, place: report.place(value.span()) }))
}

fn article(key: &str) -> &'static str {
    if key == "owner" { "a user" } else { "a group" }
}

/// Reads all groups.
pub(super) fn groups(report: &mut Report, table: &Table<'_>) -> BTreeMap<String, Group> {
    let mut groups = BTreeMap::new();
    let mut ids = BTreeMap::new();
    for (name, value) in table.entries(report, "groups") {
        if !is_new(report, &name, "a group") {
            continue;
        }
        let title = format!("group `{}`", name.value);
        let Some(table) = Table::open(report, &shapes::GROUP, &title, name.span.clone(), value) else { continue };
        let gid = id(report, &table, "gid", &name, &mut ids);
        let system = table.flag(report, "system");
        if let (Some(gid), Some(system)) = (gid, system) {
            groups.insert(name.value.to_owned(), Group { place: report.place(name.span), gid, system });
        }
    }
    groups
}

/// Reads all users.
pub(super) fn users(report: &mut Report, table: &Table<'_>) -> BTreeMap<String, User> {
    let mut users = BTreeMap::new();
    let mut ids = BTreeMap::new();
    for (name, value) in table.entries(report, "users") {
        // A package's user may have a name that a new one can't have.
        if !names::is_account(name.value) && !is_new(report, &name, "a user") {
            continue;
        }
        let title = format!("user `{}`", name.value);
        let Some(table) = Table::open(report, &shapes::USER, &title, name.span.clone(), value) else { continue };
        if let Some(user) = user(report, &table, &name, &mut ids) {
            users.insert(name.value.to_owned(), user);
        }
    }
    users
}

fn is_new(report: &mut Report, name: &Text<'_>, what: &str) -> bool {
    let right = names::is_new_account(name.value);
    if !right {
        report.wrong(name.span.clone(), format!("`{}` can't be the name of {what}", shown(name.value)), NAME_RULE);
    }
    right
}

fn user<'a>(report: &mut Report, table: &Table<'a>, name: &Text<'a>, ids: &mut BTreeMap<u32, &'a str>) -> Option<User> {
    let uid = id(report, table, "uid", name, ids);
    let group = table.text(report, "group").map(|text| known_group(report, &text));
    let groups = further_groups(report, table);
    let home = table.text(report, "home").map(|text| field_path(report, &text));
    let shell = table.text(report, "shell").map(|text| field_path(report, &text));
    let comment = table.text(report, "comment").map(|text| comment(report, &text));
    let system = table.flag(report, "system");
    let authorized_keys = keys(report, table);
    Some(User {
        place: report.place(name.span.clone()),
        uid: uid?,
        group: flatten(group)?,
        groups,
        home: flatten(home)?.map(|home| home.value),
        shell: flatten(shell)?,
        comment: flatten(comment)?,
        system: system?,
        authorized_keys,
    })
}

/// What is wrong is nothing; what is not there is fine.
#[expect(clippy::option_option, reason = "the outer says whether it was right, the inner whether it was there")]
fn flatten<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        None => Some(None),
        Some(right) => right.map(Some),
    }
}

/// A number that no other one of its kind has, if it is right; it may be left out.
#[expect(clippy::option_option, reason = "the outer says whether it was right, the inner whether it was there")]
fn id<'a>(
    report: &mut Report,
    table: &Table<'a>,
    key: &str,
    name: &Text<'a>,
    ids: &mut BTreeMap<u32, &'a str>,
) -> Option<Option<u32>> {
    let Some(value) = table.get(key) else { return Some(None) };
    let id = table.number(report, key, (1, UID_MAX))?;
    if let Some(other) = ids.insert(id, name.value) {
        report.wrong(
            value.span(),
            format!("{id} is the `{key}` of `{other}` already"),
            "each needs a number of its own",
        );
        return None;
    }
    Some(Some(id))
}

fn known_group(report: &mut Report, text: &Text<'_>) -> Option<Placed<String>> {
    if names::is_account(text.value) {
        return Some(report.placed(text));
    }
    let message = format!("`{}` can't be the name of a group", shown(text.value));
    report.wrong(text.span.clone(), message, "the name of a group of the image or of this recipe, as `www-data`");
    None
}

fn further_groups(report: &mut Report, table: &Table<'_>) -> Vec<Placed<String>> {
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for text in table.texts(report, "groups") {
        let Some(group) = known_group(report, &text) else { continue };
        if seen.insert(text.value) {
            groups.push(group);
        } else {
            report.wrong(text.span, format!("group `{}` is named twice", text.value), "leave one out");
        }
    }
    groups
}

/// A path that can stand in passwd(5).
fn field_path(report: &mut Report, text: &Text<'_>) -> Option<Placed<String>> {
    if text.value.contains(':') {
        report.wrong(
            text.span.clone(),
            format!("`{}` has a colon", shown(text.value)),
            "colons end a field of passwd(5)",
        );
        return None;
    }
    images::image_path(report, text)
}

fn comment(report: &mut Report, text: &Text<'_>) -> Option<String> {
    if text.value.len() > COMMENT_MAX || text.value.contains(|char: char| char == ':' || char.is_control()) {
        let message = format!("`{}` can't be the comment of a user", shown(text.value));
        report.wrong(text.span.clone(), message, format!("one line of at most {COMMENT_MAX} bytes, without colons"));
        return None;
    }
    Some(text.value.to_owned())
}

fn keys(report: &mut Report, table: &Table<'_>) -> Vec<String> {
    let mut keys = Vec::new();
    for text in table.texts(report, "authorized_keys") {
        if text.value.contains("PRIVATE KEY") {
            // Not repeated: what is printed ends up in logs.
            report.wrong(
                text.span,
                "a private key stands here",
                "it is known to everybody who can read this file: make a new one, and put the line of its `.pub` file here",
            );
        } else if is_public_key(text.value) {
            keys.push(text.value.to_owned());
        } else {
            let message = format!("`{}` is not the line of a public key", shown(text.value));
            report.wrong(text.span, message, "the one line of a file like `id_ed25519.pub`: `ssh-ed25519 AAAA… name`");
        }
    }
    keys
}

/// Whether the line can stand in an `authorized_keys`: maybe options, then a key's type, the key in Base64, maybe a
/// comment.
fn is_public_key(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    // A key begins with its type's length as four bytes, of which the first three are zero.
    let is_key = |word: &str| word.starts_with("AAAA") && word.bytes().all(base64);
    line.len() <= KEY_MAX
        && !line.contains(char::is_control)
        && words.windows(2).any(|pair| KEY_TYPES.contains(&pair[0]) && is_key(pair[1]))
}
