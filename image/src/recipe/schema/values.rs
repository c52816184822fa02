//! What strings and numbers may stand in a key, as far as a regular expression or a range tells it. The reader knows
//! more: what overlaps, what is missing, what is too much of a unit. All that it takes fits, or editors would mark
//! recipes that are right.

use serde_json::{Value, json};

use super::super::{
    accounts::{ID_MAX, UID_MAX},
    bases::{BASES, RACK_BASE},
    guests::VCPUS_MAX,
    names,
    reader::{Key, Shape},
    shapes,
};

/// What may stand there.
#[derive(Clone, Copy)]
pub enum Form {
    /// Strings that fit a pattern (ECMA 262, of which only what other dialects have too), with at most so many
    /// characters.
    Text(&'static str, usize),
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A whole number in this range.
    Number(u32, u32),
}

/// Where nothing else limits a string's length.
const ANY: usize = super::super::load::RECIPE_MAX as usize;

macro_rules! octet {
    () => {
        "0{0,2}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    };
}
macro_rules! ipv4 {
    () => {
        concat!("(", octet!(), "\\.){3}", octet!())
    };
}
macro_rules! label {
    () => {
        "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
    };
}
macro_rules! prefix {
    () => {
        "/(0?[0-9]|[12][0-9]|3[0-2])"
    };
}
macro_rules! port {
    () => {
        "0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
    };
}
/// A part of a path that is neither empty nor `.` nor `..`.
macro_rules! part {
    () => {
        "([^/.][^/]*|\\.[^/.][^/]*|\\.\\.[^/]+)"
    };
}
/// A word of an archive: a suite's or a component's name.
macro_rules! word {
    () => {
        "[A-Za-z0-9][A-Za-z0-9.+~_:-]*"
    };
}

const LABEL: Form = Form::Text(concat!("^", label!(), "$"), names::NAME_MAX);
const NETWORK: Form = Form::Text(concat!("^", label!(), "$"), names::NETWORK_NAME_MAX);
const DOMAIN: Form = Form::Text(concat!("^", label!(), "(\\.", label!(), ")*$"), 253);
const VERSION: Form = Form::Text("^[A-Za-z0-9][A-Za-z0-9.~^-]*$", names::VERSION_MAX);
const SIZE: Form = Form::Text("^[0-9]+ *(MiB|GiB|TiB)$", ANY);
const ADDRESS: Form = Form::Text(concat!("^", ipv4!(), "$"), ANY);
const SUBNET: Form = Form::Text(concat!("^", ipv4!(), prefix!(), "$"), ANY);
const ADDRESS_OR_DHCP: Form = Form::Text(concat!("^(dhcp|", ipv4!(), prefix!(), ")$"), ANY);
/// Of a guest: on a private network without a prefix length.
const GUEST_ADDRESS: Form = Form::Text(concat!("^(dhcp|", ipv4!(), "(", prefix!(), ")?)$"), ANY);
/// `auto`, a MAC address or the name of an interface.
const NIC: Form = Form::Text("^([0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}|[!-.0-9;-~]{1,15})$", ANY);
const FORWARD: Form =
    Form::Text(concat!("^[^:]+:\\s*", port!(), "\\s*/\\s*(tcp|udp)\\s*(->\\s*", port!(), "\\s*)?$"), ANY);
const HTTP: Form = Form::Text(concat!("^http://(:", port!(), ")?(/[!\"$-~]*)?$"), ANY);
const PORT: Form = Form::Number(1, 65535);
const IMAGE_RECIPE: Form = Form::Text(concat!("^([^/].*/)?", label!(), "\\.toml(/+\\.?)*$"), ANY);
/// In an image.
const PATH: Form = Form::Text(concat!("^(/", part!(), ")+$"), 4095);
const PATH_IN_MEMORY: Form = Form::Text(concat!("^/run(/", part!(), ")+$"), 4095);
const MOUNT: Form = Form::Text("^/[!-\\[\\]-~]+$", 4095);
const WORKDIR: Form = Form::Text("^/", ANY);
/// Beside a recipe or deeper.
const BESIDE: Form = Form::Text(concat!("^(\\.|", part!(), ")(/+(\\.|", part!(), "))*/*$"), ANY);
const PACKAGE: Form = Form::Text("^[a-z0-9][a-z0-9+.-]+$", 128);
const UNIT: Form = Form::Text("^[A-Za-z0-9:_\\\\@-][A-Za-z0-9:_.\\\\@-]*$", 255);
const SUITE: Form = Form::Text(concat!("^(\\./|/|", word!(), "(/", word!(), ")*/?)$"), ANY);
const COMPONENT: Form = Form::Text(concat!("^", word!(), "$"), 64);
const URL: Form = Form::Text("^https?://[^ ?#@\"\\\\`]+$", ANY);
const ACCOUNT: Form = Form::Text("^[A-Za-z_][A-Za-z0-9_.-]*$", 32);
const USER_OF_FROM: Form = Form::Text("^[A-Za-z0-9._$-]+(:[A-Za-z0-9._$-]+)?$", ANY);
const NEW_ID: Form = Form::Number(1, UID_MAX);
const TIMEZONE: Form = Form::Text("^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$", 64);
const LOCALE: Form = Form::Text("^[A-Za-z][A-Za-z0-9_@-]*(\\.UTF-8(@[A-Za-z0-9_@.-]*)?)?$", 64);
const PARAMETER: Form = Form::Text("^[!#-~]+$", 1024);
/// Fields of passwd(5), which end with a colon.
const COMMENT: Form = Form::Text("^[^:]*$", 256);
const FIELD_PATH: Form = Form::Text("^(/([^/.:][^/:]*|\\.[^/.:][^/:]*|\\.\\.[^/:]+))+$", 4095);
/// The line of a public key of OpenSSH, with options before its type or a comment behind it.
const PUBLIC_KEY: Form = Form::Text(
    "(^| )(ecdsa-sha2-nistp(256|384|521)|sk-ecdsa-sha2-nistp256@openssh\\.com|sk-ssh-ed25519@openssh\\.com|ssh-ed25519|ssh-rsa) \
     AAAA[A-Za-z0-9+/=]*( |$)",
    8191,
);

/// Whom a file or secret belongs to, by name; or by number.
pub const OWNER: (Form, Form) = (ACCOUNT, Form::Number(0, ID_MAX));

/// The keys of which that is said: of which shape, which, and what stands in them; in an array, in each of its items;
/// in a table with names of the user's, in each of its values.
const VALUES: &[(&Shape, &str, Form)] = &[
    (&shapes::RACK, "name", LABEL),
    (&shapes::RACK, "version", VERSION),
    (&shapes::RACK, "base", Form::OneOf(&[RACK_BASE])),
    (&shapes::RACK, "domain", DOMAIN),
    (&shapes::REPOSITORY, "base", Form::OneOf(&BASES)),
    (&shapes::REPOSITORY, "suite", SUITE),
    (&shapes::REPOSITORY, "components", COMPONENT),
    (&shapes::REPOSITORY, "packages", PACKAGE),
    (&shapes::REPOSITORY, "url", URL),
    (&shapes::REPOSITORY, "key", BESIDE),
    (&shapes::UPLINK, "uplink", NIC),
    (&shapes::UPLINK, "address", ADDRESS_OR_DHCP),
    (&shapes::UPLINK, "gateway", ADDRESS),
    (&shapes::UPLINK, "resolver", ADDRESS),
    (&shapes::PRIVATE, "subnet", SUBNET),
    (&shapes::PRIVATE, "nat", NETWORK),
    (&shapes::GUEST, "image", IMAGE_RECIPE),
    (&shapes::GUEST, "vcpus", Form::Number(1, VCPUS_MAX as u32)),
    (&shapes::GUEST, "memory", SIZE),
    (&shapes::GUEST, "address", GUEST_ADDRESS),
    (&shapes::GUEST, "forward", FORWARD),
    (&shapes::GUEST, "disk", SIZE),
    (&shapes::GUEST, "after", LABEL),
    (&shapes::VOLUME, "mount", MOUNT),
    (&shapes::VOLUME, "size", SIZE),
    (&shapes::HEALTH, "dns", DOMAIN),
    (&shapes::HEALTH, "http", HTTP),
    (&shapes::HEALTH, "tcp", PORT),
    (&shapes::IMAGE, "base", Form::OneOf(&BASES)),
    (&shapes::IMAGE, "packages", PACKAGE),
    (&shapes::IMAGE, "services", UNIT),
    (&shapes::IMAGE, "timezone", TIMEZONE),
    (&shapes::IMAGE, "locale", LOCALE),
    (&shapes::IMAGE, "cmdline", PARAMETER),
    (&shapes::IMAGE, "compress", Form::OneOf(&["zstd"])),
    (&shapes::IMAGE, "workdir", WORKDIR),
    (&shapes::IMAGE, "user", USER_OF_FROM),
    (&shapes::FROM, "rootfs", BESIDE),
    (&shapes::FROM, "oci", BESIDE),
    (&shapes::FROM, "disk", BESIDE),
    (&shapes::FROM, "kernel", BESIDE),
    (&shapes::FROM, "initrd", BESIDE),
    (&shapes::FILE, "path", PATH),
    (&shapes::FILE, "source", BESIDE),
    (&shapes::FILE, "mode", Form::Number(0, 0o7777)),
    (&shapes::USER, "uid", NEW_ID),
    (&shapes::USER, "group", ACCOUNT),
    (&shapes::USER, "groups", ACCOUNT),
    (&shapes::USER, "home", FIELD_PATH),
    (&shapes::USER, "shell", FIELD_PATH),
    (&shapes::USER, "comment", COMMENT),
    (&shapes::USER, "authorized_keys", PUBLIC_KEY),
    (&shapes::GROUP, "gid", NEW_ID),
    (&shapes::SECRET, "path", PATH_IN_MEMORY),
    (&shapes::SECRET, "mode", Form::Number(0, 0o777)),
];

/// What may stand in a key, if that is said.
pub fn of(shape: &Shape, key: &Key) -> Option<Form> {
    VALUES.iter().find(|(of, name, _)| of.what == shape.what && *name == key.name).map(|(.., form)| *form)
}

impl Form {
    /// Adds it to the schema of a string or number, of an array of such, or of a table of such.
    pub fn add_to(self, schema: &mut Value) {
        let place = match schema["type"].as_str() {
            Some("array") => &mut schema["items"],
            Some("object") => &mut schema["additionalProperties"],
            _ => schema,
        };
        match self {
            Self::Text(pattern, most) => {
                place["pattern"] = json!(pattern);
                if most < ANY {
                    place["maxLength"] = json!(most);
                }
            }
            Self::OneOf(words) => place["enum"] = json!(words),
            Self::Number(least, most) => {
                place["minimum"] = json!(least);
                place["maximum"] = json!(most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_of_a_key_that_there_is() {
        for (shape, name, _) in VALUES {
            assert!(shape.keys.iter().any(|key| key.name == *name), "{} has no `{name}`", shape.what);
        }
    }
}
