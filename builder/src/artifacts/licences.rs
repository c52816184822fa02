//! From a package's copyright file to a licence expression. Machine-readable Debian copyright files 1.0 ("DEP-5");
//! SPDX 2.3, annex D. What SPDX has no name for becomes a `LicenseRef-` with the text that stands in the file.

use std::collections::{BTreeMap, BTreeSet};

use deb822_fast::Deb822;
use sha2::{Digest, Sha256};

/// Names that SPDX has, by Debian's in lower case. GNU's stand in [`gnu`].
const NAMES: &[(&str, &str)] = &[
    ("0bsd", "0BSD"),
    ("apache-2", "Apache-2.0"),
    ("apache-2.0", "Apache-2.0"),
    ("artistic", "Artistic-1.0"),
    ("artistic-1", "Artistic-1.0"),
    ("artistic-2", "Artistic-2.0"),
    ("artistic-2.0", "Artistic-2.0"),
    ("bsd-2-clause", "BSD-2-Clause"),
    ("bsd-3-clause", "BSD-3-Clause"),
    ("bsd-4-clause", "BSD-4-Clause"),
    ("bsl-1.0", "BSL-1.0"),
    ("cc-by-3.0", "CC-BY-3.0"),
    ("cc-by-4.0", "CC-BY-4.0"),
    ("cc-by-sa-3.0", "CC-BY-SA-3.0"),
    ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
    ("cc0", "CC0-1.0"),
    ("cc0-1.0", "CC0-1.0"),
    ("curl", "curl"),
    ("expat", "MIT"),
    ("fsfap", "FSFAP"),
    ("fsful", "FSFUL"),
    ("fsfullr", "FSFULLR"),
    ("isc", "ISC"),
    ("mit", "MIT"),
    ("mpl-1.1", "MPL-1.1"),
    ("mpl-2.0", "MPL-2.0"),
    ("ofl-1.1", "OFL-1.1"),
    ("unlicense", "Unlicense"),
    ("x11", "X11"),
    ("zlib", "Zlib"),
];
/// GNU's licences in lower case, and their versions that SPDX has.
const GNU: &[(&str, &str, &[&str])] = &[
    ("agpl", "AGPL", &["3.0"]),
    ("gfdl", "GFDL", &["1.1", "1.2", "1.3"]),
    ("gpl", "GPL", &["1.0", "2.0", "3.0"]),
    ("lgpl", "LGPL", &["2.0", "2.1", "3.0"]),
];

/// What a package is licensed under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// An SPDX licence expression.
    pub expression: String,
    /// The licences in it that SPDX has no name for: by `LicenseRef-` their name and text.
    pub extracted: BTreeMap<String, (String, String)>,
}

/// Reads a copyright file; none if it is not machine-readable.
pub fn declared(text: &str) -> Option<Declared> {
    let document: Deb822 = text.parse().ok()?;
    let header = document.iter().next()?;
    if !header.get("Format").is_some_and(|format| format.contains("copyright-format")) {
        return None;
    }
    let split = |value: &str| {
        let (name, text) = value.split_once('\n').unwrap_or((value, ""));
        let lines = text.lines().map(|line| if line.trim() == "." { "" } else { line });
        (name.split_ascii_whitespace().collect::<Vec<_>>().join(" "), lines.collect::<Vec<_>>().join("\n"))
    };
    let paragraphs = document.iter().filter_map(|paragraph| {
        let (name, text) = split(paragraph.get("License")?);
        (!name.is_empty()).then_some((paragraph.get("Files").is_some(), name, text))
    });
    let paragraphs: Vec<(bool, String, String)> = paragraphs.collect();
    let texts = paragraphs.iter().filter(|(_, _, text)| !text.is_empty());
    let texts: BTreeMap<&str, &str> = texts.rev().map(|(_, name, text)| (name.as_str(), text.as_str())).collect();
    let mut extracted = BTreeMap::new();
    let expressions: BTreeSet<String> = paragraphs
        .iter()
        .filter(|(files, _, _)| *files)
        .map(|(_, name, own)| expression(name, |name| reference(name, own, &texts, &mut extracted)))
        .collect();
    if expressions.is_empty() {
        return None;
    }
    let all: Vec<&String> = expressions.iter().collect();
    let expression = match all[..] {
        [one] => one.clone(),
        _ => all.into_iter().map(|one| wrapped(one)).collect::<Vec<_>>().join(" AND "),
    };
    Some(Declared { expression, extracted })
}

/// As a part of a larger expression.
fn wrapped(expression: &str) -> String {
    if expression.contains(' ') { format!("({expression})") } else { expression.to_owned() }
}

/// `GPL-2+ or Artistic, and Expat`: a comma binds less than the words do.
fn expression(line: &str, mut reference: impl FnMut(&str) -> String) -> String {
    let mut whole = String::new();
    for part in line.split(',') {
        let words: Vec<&str> = part.split_ascii_whitespace().collect();
        let (joint, words) = match words.split_first() {
            Some((&first, rest)) if !whole.is_empty() && matches!(first, "and" | "or") => (first, rest),
            // A comma before anything else belongs to a name.
            _ if !whole.is_empty() => return reference(line),
            _ => ("", &words[..]),
        };
        let mut names = vec![Vec::new()];
        let mut joints = Vec::new();
        for &word in words {
            match word {
                "and" | "or" => {
                    joints.push(word.to_ascii_uppercase());
                    names.push(Vec::new());
                }
                _ => names.iter_mut().last().into_iter().for_each(|name| name.push(word)),
            }
        }
        if names.iter().any(Vec::is_empty) {
            return reference(line);
        }
        let mut names = names.into_iter().map(|name| {
            let name = name.join(" ");
            spdx(&name).unwrap_or_else(|| reference(&name))
        });
        let first = names.next().unwrap_or_default();
        let part = joints.into_iter().zip(names).fold(first, |part, (joint, name)| format!("{part} {joint} {name}"));
        whole = match joint {
            "" => part,
            joint => format!("{} {} {}", wrapped(&whole), joint.to_ascii_uppercase(), wrapped(&part)),
        };
    }
    whole
}

/// SPDX's name for a licence of Debian's.
fn spdx(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let known = NAMES.iter().find(|(debian, _)| *debian == lower).map(|(_, spdx)| (*spdx).to_owned());
    known.or_else(|| gnu(&lower))
}

/// `gpl-2+` is `GPL-2.0-or-later`, `lgpl-2.1` is `LGPL-2.1-only`.
fn gnu(lower: &str) -> Option<String> {
    let (family, version) = lower.split_once('-')?;
    let later = version.strip_suffix('+').or_else(|| version.strip_suffix("-or-later"));
    let number = later.or_else(|| version.strip_suffix("-only")).unwrap_or(version);
    let number = if number.contains('.') { number.to_owned() } else { format!("{number}.0") };
    let (_, family, versions) = GNU.iter().find(|(name, _, _)| *name == family)?;
    let which = if later.is_some() { "or-later" } else { "only" };
    versions.contains(&number.as_str()).then(|| format!("{family}-{number}-{which}"))
}

/// A name of its own for a licence that SPDX does not know: packages that mean the same text by the same name share it.
fn reference(
    name: &str,
    own: &str,
    texts: &BTreeMap<&str, &str>,
    extracted: &mut BTreeMap<String, (String, String)>,
) -> String {
    let text = texts.get(name).copied().unwrap_or(own).trim();
    let text = if text.is_empty() { name } else { text };
    let hash = Sha256::new().chain_update(name).chain_update("\n").chain_update(text).finalize();
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let id = format!("LicenseRef-{}-{}", plain.trim_matches('-'), &format!("{hash:x}")[..8]);
    extracted.insert(id.clone(), (name.to_owned(), text.to_owned()));
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n";

    fn of(licences: &[&str]) -> Declared {
        let files: String =
            licences.iter().map(|line| format!("\nFiles: *\nCopyright: x\nLicense: {line}\n")).collect();
        declared(&format!("{FORMAT}{files}")).unwrap()
    }

    #[test]
    fn debians_names_become_those_of_spdx() {
        for (debian, spdx) in [
            ("GPL-2+", "GPL-2.0-or-later"),
            ("GPL-3", "GPL-3.0-only"),
            ("LGPL-2.1+", "LGPL-2.1-or-later"),
            ("GPL-2.0-only", "GPL-2.0-only"),
            ("Expat", "MIT"),
            ("GPL-1+ or Artistic", "GPL-1.0-or-later OR Artistic-1.0"),
            ("GPL-2+ or Expat, and BSD-3-clause", "(GPL-2.0-or-later OR MIT) AND BSD-3-Clause"),
        ] {
            assert_eq!(of(&[debian]), Declared { expression: spdx.into(), extracted: BTreeMap::new() }, "{debian}");
        }
        assert_eq!(of(&["ISC", "GPL-2+ or Expat", "ISC"]).expression, "(GPL-2.0-or-later OR MIT) AND ISC");
    }

    #[test]
    fn what_spdx_has_no_name_for_is_told_with_its_text() {
        let text = format!(
            "{FORMAT}\nFiles: *\nLicense: GPL-2+ with OpenSSL exception or public-domain\n\nLicense: public-domain\n No rights\n .\n are reserved.\n"
        );
        let Declared { expression, extracted } = declared(&text).unwrap();
        let ids: Vec<&String> = extracted.keys().collect();
        assert_eq!(expression, format!("{} OR {}", ids[0], ids[1]));
        assert!(ids[0].starts_with("LicenseRef-GPL-2--with-OpenSSL-exception-"), "{expression}");
        assert_eq!(extracted[ids[1]], ("public-domain".into(), "No rights\n\nare reserved.".into()));
    }

    #[test]
    fn what_is_not_machine_readable_says_nothing() {
        for text in
            ["", "This package was debianized by somebody.\n", "Format: x\n", FORMAT, "Files: *\nLicense: Expat\n"]
        {
            assert_eq!(declared(text), None, "{text}");
        }
        // Odd, but never a panic nor a broken expression.
        for line in ["or", "GPL-2+ or", ", and", "GPL-2+,", "and and and", "ä"] {
            let Declared { expression, .. } = of(&[line]);
            assert!(expression.starts_with("LicenseRef-") && !expression.contains(' '), "{line}: {expression}");
        }
    }
}
