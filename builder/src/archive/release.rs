//! A suite's signed index, `InRelease` (Debian repository format): it names the suite, says from when and until when it
//! holds, and gives the hashes of the indexes below it. Everything else that comes from an archive hangs on it.

use deb822_fast::borrowed::parse_borrowed;
use rackstick_image::digest::Sha256;

use super::{
    date,
    keys::{CLOCK_SKEW, KeyError, Keyring, Signed},
};

/// Most characters of its text that a message repeats.
const MAX_SHOWN: usize = 200;

/// An `InRelease` that is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Not text.
    #[error("it is not text")]
    NotText,
    /// Signed by nobody whose signature counts.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Signed, but not deb822.
    #[error("it can't be read: {0}")]
    Unreadable(String),
    /// A field is missing or wrong.
    #[error("its field `{0}` is missing or wrong")]
    Field(&'static str),
    /// Another suite's index: what a mirror could serve to keep back a suite's updates.
    #[error("it is the index of `{found}`")]
    OtherSuite {
        /// The suite it is for.
        found: String,
    },
    /// Too old: what a mirror could serve to keep back updates.
    #[error(
        "it was valid until {until}, as {by} signed on {date}, and now it is {now}: either the mirror is no longer \
         updated (use another with --mirror), or this machine's clock is wrong"
    )]
    Expired {
        /// Who signed it.
        by: String,
        /// Its date.
        date: String,
        /// Until when it was valid.
        until: String,
        /// What the clock says.
        now: String,
    },
    /// From the future.
    #[error("it is from {date}, and now it is {now}: this machine's clock is wrong")]
    Future {
        /// Its date.
        date: String,
        /// What the clock says.
        now: String,
    },
    /// It lists no such index.
    #[error("it lists no `{path}`{}", components.as_ref().map(|all| format!("; it has the components {all}")).unwrap_or_default())]
    NoIndex {
        /// The index asked for.
        path: String,
        /// The components that it says it has.
        components: Option<String>,
    },
}

/// What an accepted `InRelease` says.
#[derive(Debug)]
pub struct Release {
    /// Its date, as it stands there.
    pub date: String,
    /// Whether the indexes can be had under their hashes, which do not change under a reader.
    pub by_hash: bool,
    /// The components that it says it has.
    components: Option<String>,
    /// SHA-256, size in bytes and path of the indexes.
    files: Vec<(Sha256, u64, String)>,
}

/// What an index must call itself.
#[derive(Debug, Clone, Copy)]
pub enum Called<'a> {
    /// This code name, as all of Debian's suites do.
    CodeName(&'a str),
    /// This code name or suite: others have one of them.
    Either(&'a str),
    /// Anything: plain folders have no name.
    Anything,
}

impl Release {
    /// Checks the `InRelease` of a suite at a time in seconds since 1970.
    pub fn verify(file: &[u8], keyring: &Keyring, called: Called, now: i64) -> Result<Self, ReleaseError> {
        let file = std::str::from_utf8(file).map_err(|_| ReleaseError::NotText)?;
        let Signed { text, by } = keyring.verify(file, now)?;
        let paragraphs = parse_borrowed(&text).map_err(|error| ReleaseError::Unreadable(error.to_string()))?;
        let [fields] = paragraphs.as_slice() else {
            return Err(ReleaseError::Unreadable(format!("{} paragraphs instead of one", paragraphs.len())));
        };
        let (code_name, suite) = (fields.get_single("Codename"), fields.get_single("Suite"));
        let right = match called {
            Called::CodeName(name) => code_name.ok_or(ReleaseError::Field("Codename"))? == name,
            Called::Either(name) => [code_name, suite].contains(&Some(name)),
            Called::Anything => true,
        };
        if !right {
            let found = code_name.or(suite).ok_or(ReleaseError::Field("Codename"))?;
            return Err(ReleaseError::OtherSuite { found: found.to_owned() });
        }
        let date = fields.get_single("Date").ok_or(ReleaseError::Field("Date"))?.to_owned();
        let seconds = date::parse(&date).ok_or(ReleaseError::Field("Date"))?;
        if seconds > now.saturating_add(CLOCK_SKEW) {
            return Err(ReleaseError::Future { date, now: date::show(now) });
        }
        // Stable itself carries none: its point releases are months apart.
        if let Some(until) = fields.get_field("Valid-Until") {
            let until = until.as_single_line().ok_or(ReleaseError::Field("Valid-Until"))?;
            if date::parse(until).ok_or(ReleaseError::Field("Valid-Until"))? < now {
                return Err(ReleaseError::Expired { by, date, until: until.to_owned(), now: date::show(now) });
            }
        }
        let by_hash = fields.get_single("Acquire-By-Hash") == Some("yes");
        let lines = fields.get("SHA256").ok_or(ReleaseError::Field("SHA256"))?;
        let files =
            lines.iter().filter(|line| !line.trim().is_empty()).map(|line| file_of(line)).collect::<Option<_>>();
        let components = fields.get_single("Components").map(|all| all.chars().take(MAX_SHOWN).collect());
        Ok(Self { date, by_hash, components, files: files.ok_or(ReleaseError::Field("SHA256"))? })
    }

    /// Hash and size of an index, by its path below the suite.
    pub fn index(&self, path: &str) -> Option<(Sha256, u64)> {
        let found = self.files.iter().find(|(_, _, known)| known.strip_prefix("./").unwrap_or(known) == path);
        found.map(|(hash, size, _)| (*hash, *size))
    }

    /// That it has no such index.
    pub fn no_index(&self, path: &str) -> ReleaseError {
        ReleaseError::NoIndex { path: path.to_owned(), components: self.components.clone() }
    }
}

fn file_of(line: &str) -> Option<(Sha256, u64, String)> {
    let mut words = line.split_ascii_whitespace();
    let entry = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.to_owned());
    words.next().is_none().then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::keys::tests::{NOW, data, keyring};

    fn verify(file: &str, suite: &str) -> Result<Release, ReleaseError> {
        Release::verify(data(file).as_bytes(), &keyring("primary"), Called::CodeName(suite), NOW)
    }

    #[test]
    fn an_accepted_index_gives_date_and_hashes() {
        let release = verify("primary.InRelease", "trixie").unwrap();
        assert_eq!((&*release.date, release.by_hash), ("Sun, 01 Jun 2025 00:00:00 UTC", true));
        let mut hash = [0; 32];
        hash[31] = 2;
        assert_eq!(release.index("main/binary-amd64/Packages.xz"), Some((Sha256(hash), 9)));
        assert_eq!(release.index("main/binary-i386/Packages"), None);
    }

    #[test]
    fn an_index_that_is_expired_of_the_future_or_of_another_suite_is_refused_although_its_signature_is_good() {
        assert!(verify("expired.InRelease", "trixie").is_ok(), "valid until this very second");
        let trixie = Called::CodeName("trixie");
        let later = Release::verify(data("expired.InRelease").as_bytes(), &keyring("primary"), trixie, NOW + 1);
        let fingerprint = keyring("primary").fingerprints().remove(0);
        let expected = format!(
            "it was valid until Mon, 02 Jun 2025 00:00:00 UTC, as primary, key {fingerprint} signed on Sun, 01 Jun 2025 \
             00:00:00 UTC, and now it is Mon, 02 Jun 2025 00:00:01 UTC: either the mirror is no longer updated (use another \
             with --mirror), or this machine's clock is wrong"
        );
        assert_eq!(later.unwrap_err().to_string(), expected);
        assert!(matches!(verify("future.InRelease", "trixie"), Err(ReleaseError::Future { .. })));
        assert!(matches!(verify("bookworm.InRelease", "trixie"), Err(ReleaseError::OtherSuite { .. })));
        assert!(matches!(verify("primary.InRelease", "trixie-updates"), Err(ReleaseError::OtherSuite { .. })));
        assert!(matches!(verify("two-paragraphs.InRelease", "trixie"), Err(ReleaseError::Unreadable(_))));
        assert!(matches!(verify("other.InRelease", "trixie"), Err(ReleaseError::Key(_))));
    }
}
