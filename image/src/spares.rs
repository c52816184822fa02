//! The host's *spare files*: modules and firmware, which are needed only at the moment when a driver is loaded. The
//! rack takes them out of memory once its devices have drivers, and reads one back from its UKI when a new device wants
//! it. This list, in the initrd at [`PATH`], says what each must be. As text, one line a file, sorted by path:
//! ```text
//! 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0bdeb5f15a0b4a1f0a2b0c /lib/modules/6.12.57/kernel/fs/fat/fat.ko.xz
//! ```

use std::collections::BTreeMap;

use crate::digest::Sha256;

/// Where the initrd holds the list.
pub const PATH: &str = "/rackstick/spares";
/// The largest file that is read back, in bytes: the largest firmware has some 40 MiB.
pub const MAX_FILE: u64 = 256 << 20;

/// The list: absolute path of each file, and its digest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spares(BTreeMap<String, Sha256>);

/// A text that is no such list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the list of spare files is damaged: {text:?}; build the image again")]
pub struct ParseError {
    /// Counted from 1.
    line: usize,
    /// The beginning of the line.
    text: String,
}

impl Spares {
    /// Notes a file with this content; `path` is absolute.
    pub fn add(&mut self, path: impl Into<String>, content: &[u8]) {
        self.0.insert(path.into(), digest(content));
    }

    /// All files, sorted by path.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// What the file must be; none if it is not in the list.
    pub fn digest(&self, path: &str) -> Option<Sha256> {
        self.0.get(path).copied()
    }

    /// The list as text.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|(path, digest)| format!("{digest} {path}\n")).collect()
    }

    /// Reads what [`Spares::to_text`] wrote.
    ///
    /// # Errors
    /// [`ParseError`] with the line that is wrong.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut spares = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let parsed = line.split_once(' ').and_then(|(digest, path)| {
                let digest = digest.parse().ok()?;
                (path.starts_with('/') && !path.split('/').any(|part| part == "..")).then_some((path, digest))
            });
            let (path, digest) =
                parsed.ok_or_else(|| ParseError { line: number, text: line.chars().take(80).collect() })?;
            spares.0.insert(path.to_owned(), digest);
        }
        Ok(spares)
    }
}

/// The digest of a file's content, as the list has it.
pub fn digest(content: &[u8]) -> Sha256 {
    Sha256::of(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let mut spares = Spares::default();
        spares.add("/lib/modules/6.12/b.ko.xz", b"two");
        spares.add("/lib/firmware/a b.bin.xz", b"one");
        let text = spares.to_text();
        assert_eq!(Spares::parse(&text).unwrap(), spares);
        assert_eq!(spares.paths().collect::<Vec<_>>(), ["/lib/firmware/a b.bin.xz", "/lib/modules/6.12/b.ko.xz"]);
        // `printf two | sha256sum`
        let two = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3";
        assert_eq!(spares.digest("/lib/modules/6.12/b.ko.xz").unwrap().to_string(), two);
        assert_eq!(spares.digest("/lib/modules/6.12/c.ko.xz"), None);
    }

    #[test]
    fn a_damaged_list_is_refused_with_its_line() {
        let good = format!("{} /a\n", "0".repeat(64));
        for bad in ["", "0 /a", "/a", &format!("{} a", "0".repeat(64)), &format!("{} /a/../b", "0".repeat(64))] {
            let error = Spares::parse(&format!("{good}{bad}\n")).unwrap_err();
            assert!(error.to_string().starts_with("line 2 "), "{error}");
        }
    }
}
