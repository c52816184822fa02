//! How an image in a registry is named: `registry.example.org/team/app:1.2`. The grammar is that of the OCI
//! Distribution Specification 1.1, "Pulling manifests", with the registry's host before it, as all tools write it.

use std::{fmt, str::FromStr};

use crate::digest::Sha256;

/// Longest name of a repository: what registries take (Distribution Specification 1.1, together with the host).
const REPOSITORY_MAX: usize = 255;
/// Longest tag (same place).
const TAG_MAX: usize = 128;
/// Longest name of a host (RFC 1035, section 2.3.4), with a port.
const HOST_MAX: usize = 253 + 6;
/// What is meant where there is neither tag nor digest, as for all tools.
const LATEST: &str = "latest";

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The host, and after a colon its port, if that is not HTTPS's.
    pub registry: String,
    /// The repository there, with slashes.
    pub repository: String,
    /// Which of its images.
    pub version: Version,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// What this tag stands for at the moment.
    Tag(String),
    /// That one.
    Digest(Sha256),
}

/// Why a text names no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// No host before the first slash.
    #[error("it names no registry")]
    NoRegistry,
    /// The host.
    #[error("what stands before its first `/` is no host name with or without a port")]
    Registry,
    /// The repository.
    #[error(
        "a repository has parts of lower-case letters and digits with `.`, `_`, `__` or hyphens between them, {REPOSITORY_MAX} \
         characters at most"
    )]
    Repository,
    /// The tag.
    #[error("a tag has 1 to {TAG_MAX} letters, digits, `_`, `.` and `-`, and does not begin with `.` or `-`")]
    Tag,
    /// The digest.
    #[error("a digest is `sha256:` and 64 hexadecimal digits in lower case")]
    Digest,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (registry, rest) = text.split_once('/').ok_or(ReferenceError::NoRegistry)?;
        // Without one of these it would be the first part of a name that some tools complete.
        if registry != "localhost" && !registry.contains(['.', ':']) {
            return Err(ReferenceError::NoRegistry);
        }
        if !is_host(registry) {
            return Err(ReferenceError::Registry);
        }
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = match name.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (name, None),
        };
        if repository.len() > REPOSITORY_MAX || !repository.split('/').all(is_part) {
            return Err(ReferenceError::Repository);
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag);
        }
        let version = match (digest, tag) {
            // A tag beside it is for people.
            (Some(digest), _) => {
                let digits = digest.strip_prefix("sha256:").ok_or(ReferenceError::Digest)?;
                Version::Digest(digits.parse().map_err(|_| ReferenceError::Digest)?)
            }
            (None, tag) => Version::Tag(tag.unwrap_or(LATEST).to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository: repository.to_owned(), version })
    }
}

impl fmt::Display for Version {
    /// As it stands in a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "sha256:{digest}"),
        }
    }
}

/// A host name, an IPv4 address or an IPv6 address in brackets, with or without a port.
fn is_host(text: &str) -> bool {
    let (host, rest) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => (true, rest),
        Some(_) => (false, ""),
        None => {
            let (name, _) = text.split_once(':').unwrap_or((text, ""));
            let label = |label: &str| {
                let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                !label.is_empty() && label.bytes().all(fine) && !label.starts_with('-') && !label.ends_with('-')
            };
            (name.split('.').all(label), &text[name.len()..])
        }
    };
    let port =
        rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    text.len() <= HOST_MAX && host && port
}

/// Whether it is a part of a repository's name: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_part(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [text.bytes().next(), text.bytes().last()];
    let separators = text.split(|c: char| plain(c as u8) && c.is_ascii());
    ends.into_iter().all(|end| end.is_some_and(plain))
        && separators
            .filter(|separator| !separator.is_empty())
            .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=TAG_MAX).contains(&text.len()) && text.bytes().all(fine) && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_names_registry_repository_and_version() {
        let digest = "ab".repeat(32);
        let by_digest = format!("registry.example.org/app:1.2@sha256:{digest}");
        for (text, registry, repository, version) in [
            ("registry.example.org/team/app:1.2", "registry.example.org", "team/app", "1.2"),
            ("localhost/a", "localhost", "a", "latest"),
            ("127.0.0.1:5000/a-b__c/d.e_f---g:V_1.x-", "127.0.0.1:5000", "a-b__c/d.e_f---g", "V_1.x-"),
            ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
            (by_digest.as_str(), "registry.example.org", "app", &format!("sha256:{digest}")),
        ] {
            let found: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(
                (found.registry.as_str(), found.repository.as_str(), found.version.to_string().as_str()),
                (registry, repository, version),
                "{text}"
            );
        }
    }

    #[test]
    fn what_names_no_image_is_refused() {
        let long = format!("r.test/a:{}", "x".repeat(129));
        for (text, error) in [
            ("", ReferenceError::NoRegistry),
            ("app", ReferenceError::NoRegistry),
            ("team/app:1", ReferenceError::NoRegistry),
            ("https://r.test/app", ReferenceError::Registry),
            ("r.test:0/app", ReferenceError::Registry),
            ("r.test:/app", ReferenceError::Registry),
            ("user@r.test/app", ReferenceError::Registry),
            ("r..test/app", ReferenceError::Registry),
            ("[::1/app", ReferenceError::Registry),
            ("r.test/", ReferenceError::Repository),
            ("r.test/App", ReferenceError::Repository),
            ("r.test/a//b", ReferenceError::Repository),
            ("r.test/../b", ReferenceError::Repository),
            ("r.test/a___b", ReferenceError::Repository),
            ("r.test/a?x=b", ReferenceError::Repository),
            ("r.test/ä", ReferenceError::Repository),
            ("r.test/a:", ReferenceError::Tag),
            ("r.test/a:.x", ReferenceError::Tag),
            ("r.test/a:b:c", ReferenceError::Tag),
            (&long, ReferenceError::Tag),
            ("r.test/a@sha512:ab", ReferenceError::Digest),
            ("r.test/a:1@sha256:AB", ReferenceError::Digest),
        ] {
            assert_eq!(text.parse::<Reference>(), Err(error), "{text}");
        }
    }
}
