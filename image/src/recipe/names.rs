//! Which names are allowed, and why: they become host names (RFC 1123, section 2.1), DNS labels (RFC 1035, section
//! 2.3.4), file names (UAPI.10 for versions), interface names and package names (Debian Policy, section 5.6.1).

/// Longest name of a rack, guest or image: keeps `/run/rackstick/guests/<name>/...` below the 108 bytes of a Unix
/// socket's path.
pub const NAME_MAX: usize = 32;
/// Longest name of a network: with a prefix of three it must fit Linux's 15 bytes for an interface's name.
pub const NETWORK_NAME_MAX: usize = 12;
/// Longest version: it is part of a file name on FAT, beside `rackstick_`, the tries and `.efi`.
pub const VERSION_MAX: usize = 64;
/// Longest domain name without its last dot (RFC 1035, section 2.3.4).
const DOMAIN_MAX: usize = 253;
/// Longest DNS label (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;
/// Longest name of a Linux interface: IFNAMSIZ without its NUL.
const INTERFACE_MAX: usize = 15;
/// Longest package name: far above Debian's longest; keeps messages and paths short.
const PACKAGE_MAX: usize = 128;
/// Longest name of a systemd unit (UNIT_NAME_MAX of systemd is 256 with its NUL).
const UNIT_MAX: usize = 255;
/// Longest name of a user or a group (UT_NAMESIZE of Linux; useradd(8)).
const ACCOUNT_MAX: usize = 32;
/// Longest word that is compared with others for a hint: the comparison takes quadratic time.
const SUGGEST_MAX: usize = 64;
/// Most characters of a user's text that a message repeats.
const SHOWN_MAX: usize = 60;

/// Whether the text is a host name of one label, in lower case.
pub(super) fn is_label(text: &str, max: usize) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=max).contains(&text.len()) && text.bytes().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether a rack, guest or image can have this name.
pub fn is_name(text: &str) -> bool {
    is_label(text, NAME_MAX)
}

/// What [`is_name`] wants, in words.
pub fn name_rule() -> String {
    label_rule(NAME_MAX)
}

/// What [`is_label`] wants, for a hint.
pub(super) fn label_rule(max: usize) -> String {
    format!("1 to {max} lower-case letters, digits and inner hyphens, as in a host name")
}

/// Whether the text is a domain name without a dot at its end.
pub(super) fn is_domain(text: &str) -> bool {
    text.len() <= DOMAIN_MAX && text.split('.').all(|label| is_label(label, LABEL_MAX))
}

/// Whether the text is a version that is safe in a file name: UAPI.10's characters, beginning with a letter or digit.
pub(super) fn is_version(text: &str) -> bool {
    (1..=VERSION_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.~^".contains(&byte))
}

/// Whether the text can be a Debian package's name.
pub(super) fn is_package(text: &str) -> bool {
    (2..=PACKAGE_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte))
}

/// Whether the text can be the name of a Linux network interface.
pub(super) fn is_interface(text: &str) -> bool {
    (1..=INTERFACE_MAX).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}

/// The MAC address of one station that the text names, in lower case with colons; none if it names none. Other systems
/// write it with dashes.
pub(super) fn mac(text: &str) -> Option<String> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<&str> = text.split(separator).collect();
    let pair = |part: &&str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    let bytes = (parts.len() == 6 && parts.iter().all(pair)).then(|| u8::from_str_radix(parts[0], 16).ok())??;
    // The lowest bit of the first byte stands for a group of stations (IEEE 802, section 8.2.2).
    (bytes & 1 == 0).then(|| parts.join(":").to_ascii_lowercase())
}

/// The systemd unit that the text names, with its suffix; none if it can't name one that can be enabled.
pub(super) fn unit(text: &str) -> Option<String> {
    let suffixes = [".service", ".socket", ".timer", ".path", ".mount", ".target"];
    let named = suffixes.iter().find_map(|suffix| text.strip_suffix(suffix));
    let stem = named.unwrap_or(text);
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let unit = if named.is_some() { text.to_owned() } else { format!("{text}.service") };
    (!stem.is_empty() && !stem.starts_with('.') && unit.len() <= UNIT_MAX && stem.bytes().all(inside)).then_some(unit)
}

/// Whether the text can be the name of a user or a group, as packages make them.
pub(super) fn is_account(text: &str) -> bool {
    (1..=ACCOUNT_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// Whether the text can be the name of a new user or group: what useradd(8) takes without being forced to.
pub(super) fn is_new_account(text: &str) -> bool {
    is_account(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b'.')
}

/// Whether the text can be the name of a variable in a template.
pub(super) fn is_variable(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The candidate that was probably meant, if one is near.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > SUGGEST_MAX {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// The names in quotes, with commas.
pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{}`", shown(name))).collect();
    quoted.join(", ")
}

/// `did you mean ...?`, or else which names there are.
pub(super) fn suggest_or_list<'a>(
    word: &str,
    what: &str,
    candidates: impl IntoIterator<Item = &'a str, IntoIter: Clone>,
) -> String {
    let candidates = candidates.into_iter();
    match closest(word, candidates.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if candidates.clone().next().is_none() => format!("this rack has no {what}"),
        None => format!("{what} of this rack: {}", list(candidates)),
    }
}

/// A user's text for a message: short, and without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_names_are_names() {
        for good in ["a", "0", "dns", "web-1", &"a".repeat(NAME_MAX)] {
            assert!(is_label(good, NAME_MAX), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "..", "ä", "a b", "a\0", &"a".repeat(NAME_MAX + 1)] {
            assert!(!is_label(bad, NAME_MAX), "{bad}");
        }
    }

    #[test]
    fn only_what_uapi_10_allows_is_a_version() {
        for good in ["1", "2026.11.1", "1~rc1", "1^git", "a-1"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", ".1", "1+3", "1_2", "1/2", "../1", "1 ", "ä", &"1".repeat(VERSION_MAX + 1)] {
            assert!(!is_version(bad), "{bad}");
        }
    }

    #[test]
    fn only_policy_names_are_packages() {
        for good in ["g++", "libc6", "0ad", "python3.13", "nginx-light"] {
            assert!(is_package(good), "{good}");
        }
        for bad in ["", "a", "Nginx", "-a", "nginx=1", "nginx:amd64", "a/b", "a b", "+ab"] {
            assert!(!is_package(bad), "{bad}");
        }
    }

    #[test]
    fn a_service_is_named_with_or_without_its_suffix() {
        assert_eq!(unit("nginx").as_deref(), Some("nginx.service"));
        assert_eq!(unit("php8.4-fpm").as_deref(), Some("php8.4-fpm.service"));
        assert_eq!(unit("dovecot.socket").as_deref(), Some("dovecot.socket"));
        assert_eq!(unit("getty@tty1").as_deref(), Some("getty@tty1.service"));
        for bad in ["", ".service", "../x", "a b", "a/b", "ä"] {
            assert_eq!(unit(bad), None, "{bad}");
        }
    }

    #[test]
    fn new_users_have_names_that_every_tool_takes_and_packages_more() {
        for good in ["alice", "_apt", "www-data", "x2", &"a".repeat(32)] {
            assert!(is_new_account(good), "{good}");
        }
        for packages in ["Debian-exim", "a.b"] {
            assert!(is_account(packages) && !is_new_account(packages), "{packages}");
        }
        for bad in ["", "0", "1a", "-a", "a b", "a:b", "a/b", "a\n", "ä", &"a".repeat(33)] {
            assert!(!is_account(bad), "{bad}");
        }
    }

    #[test]
    fn hints_come_only_for_near_names() {
        let known = ["image", "memory", "vcpus"];
        assert_eq!(closest("memry", known), Some("memory"));
        assert_eq!(closest("Memory", known), Some("memory"));
        assert_eq!(closest("volumes", known), None);
        assert_eq!(closest(&"m".repeat(1 << 20), known), None);
    }

    #[test]
    fn messages_repeat_little_and_no_control_characters() {
        assert_eq!(shown("a\u{1b}[31m"), "a\\u{1b}[31m");
        assert!(shown(&"x".repeat(1 << 20)).len() < 100);
    }
}
