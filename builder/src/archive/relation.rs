//! Relations between packages: `libc6 (>= 2.38), debconf | debconf-2.0` (Debian Policy, section 7.1), and versions
//! compared as section 5.6.12 says.

use std::cmp::Ordering;

use debversion::Version;

/// The architecture that racks run on.
pub const ARCHITECTURE: &str = "amd64";

/// A relation field that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum RelationError {
    /// Not a relation.
    #[error("`{0}` is not a relation between packages")]
    Syntax(String),
    /// Not a version.
    #[error("`{0}` is not a version")]
    Version(String),
}

/// One package that is named, perhaps with a bound on its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Atom<'a> {
    /// The name; one that asks for another architecture keeps its suffix and thereby names nothing that exists here.
    pub name: &'a str,
    /// The bound.
    pub bound: Option<Bound<'a>>,
}

/// A bound on a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound<'a> {
    operator: Operator,
    version: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Earlier,
    EarlierOrEqual,
    Equal,
    LaterOrEqual,
    Later,
}

/// Alternatives of which one must hold; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<'a> {
    /// As it stands in the field.
    pub text: &'a str,
    /// The alternatives, preferred first.
    pub atoms: Vec<Atom<'a>>,
}

impl<'a> Bound<'a> {
    /// Whether a version lies within the bound.
    pub fn holds(&self, version: &str) -> Result<bool, RelationError> {
        let order = compare(version, self.version)?;
        Ok(match self.operator {
            Operator::Earlier => order == Ordering::Less,
            Operator::EarlierOrEqual => order != Ordering::Greater,
            Operator::Equal => order == Ordering::Equal,
            Operator::LaterOrEqual => order != Ordering::Less,
            Operator::Later => order == Ordering::Greater,
        })
    }

    /// The version, if the bound admits no other.
    pub fn exactly(&self) -> Option<&'a str> {
        (self.operator == Operator::Equal).then_some(self.version)
    }
}

/// Compares two versions.
pub fn compare(a: &str, b: &str) -> Result<Ordering, RelationError> {
    let read = |text: &str| Version::parse_lenient(text).map_err(|_| RelationError::Version(text.to_owned()));
    Ok(read(a)?.cmp(&read(b)?))
}

/// The groups of a field, all of which must hold. Atoms that are not for our architecture are left out.
pub fn parse(field: &str) -> Result<Vec<Group<'_>>, RelationError> {
    let mut groups = Vec::new();
    for text in field.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let mut atoms = Vec::new();
        for alternative in text.split('|') {
            atoms.extend(atom(alternative)?);
        }
        if !atoms.is_empty() {
            groups.push(Group { text, atoms });
        }
    }
    Ok(groups)
}

fn atom(text: &str) -> Result<Option<Atom<'_>>, RelationError> {
    let bad = || RelationError::Syntax(text.trim().chars().take(200).collect());
    let text = text.trim();
    let end = text.find(|c: char| c.is_ascii_whitespace() || "([<".contains(c)).unwrap_or(text.len());
    let (qualified, mut rest) = text.split_at(end);
    let name = match qualified.split_once(':') {
        Some((name, "any" | "native" | "all" | ARCHITECTURE)) => name,
        _ => qualified,
    };
    if name.is_empty() || name.bytes().any(|byte| !(byte.is_ascii_alphanumeric() || b"+-.:_".contains(&byte))) {
        return Err(bad());
    }
    let mut bound = None;
    let mut wanted = true;
    loop {
        rest = rest.trim_start();
        let Some(open) = rest.chars().next() else { break };
        let close = match open {
            '(' if bound.is_none() => ')',
            '[' => ']',
            '<' => '>',
            _ => return Err(bad()),
        };
        let (inside, after) = rest[1..].split_once(close).ok_or_else(bad)?;
        rest = after;
        match open {
            '(' => bound = Some(self::bound(inside).ok_or_else(bad)?),
            '[' => wanted &= listed(inside, |word| matches!(word, ARCHITECTURE | "any" | "linux-any" | "any-amd64")),
            // No build profile is active in an archive.
            _ => wanted &= listed(inside, |_| false),
        }
    }
    Ok(wanted.then_some(Atom { name, bound }))
}

fn bound(text: &str) -> Option<Bound<'_>> {
    let text = text.trim();
    let (operator, version) = text.split_at(text.find(|c: char| !"<=>".contains(c))?);
    let operator = match operator {
        "<<" => Operator::Earlier,
        "<=" | "<" => Operator::EarlierOrEqual,
        "=" => Operator::Equal,
        ">=" | ">" => Operator::LaterOrEqual,
        ">>" => Operator::Later,
        _ => return None,
    };
    let version = version.trim();
    (!version.is_empty()).then_some(Bound { operator, version })
}

/// Whether a list like `amd64 arm64` or `!i386 !armhf` admits what `matches` knows.
fn listed(list: &str, matches: impl Fn(&str) -> bool) -> bool {
    let mut words = list.split_ascii_whitespace().peekable();
    let negative = words.peek().is_some_and(|word| word.starts_with('!'));
    words.any(|word| matches(word.trim_start_matches('!'))) != negative
}

#[cfg(test)]
mod tests {
    use super::*;

    fn atoms(field: &str) -> Vec<Vec<String>> {
        let show = |atom: &Atom| match &atom.bound {
            Some(bound) => format!("{} {:?} {}", atom.name, bound.operator, bound.version),
            None => atom.name.to_owned(),
        };
        parse(field).unwrap().iter().map(|group| group.atoms.iter().map(show).collect()).collect()
    }

    #[test]
    fn every_form_that_archives_use_is_read() {
        assert_eq!(
            atoms("libc6 (>= 2.38), debconf (>= 0.5) | debconf-2.0, perl:any, a(=1:2-3), b (<<2~), c [amd64], d:i386"),
            [
                vec!["libc6 LaterOrEqual 2.38"],
                vec!["debconf LaterOrEqual 0.5", "debconf-2.0"],
                vec!["perl"],
                vec!["a Equal 1:2-3"],
                vec!["b Earlier 2~"],
                vec!["c"],
                vec!["d:i386"],
            ]
        );
    }

    #[test]
    fn what_is_for_other_architectures_and_profiles_is_left_out() {
        assert_eq!(atoms("a [i386 arm64] | b [!i386], c [!amd64], d <!nocheck>, e <cross>"), [["b"], ["d"]]);
    }

    #[test]
    fn what_is_no_relation_is_refused() {
        for bad in ["a (", "a (1)", "a (>= )", "a b", "|", "a |", "a ($)", "ä", "a (= 1) (= 2)", "a [amd64"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_compare_as_dpkg_says() {
        let versions =
            ["1.0~~", "1.0~rc1", "1.0", "1.0-1", "1.0-1+b1", "1.0-1+deb13u1", "1.0+dfsg-1", "1.9", "1.10", "1:0.1"];
        for (i, a) in versions.iter().enumerate() {
            for (j, b) in versions.iter().enumerate() {
                for (operator, expected) in [("lt", i < j), ("eq", i == j), ("gt", i > j)] {
                    let status =
                        std::process::Command::new("dpkg").args(["--compare-versions", a, operator, b]).status();
                    assert_eq!(status.unwrap().success(), expected, "{a} {operator} {b}");
                }
                assert_eq!(compare(a, b).unwrap(), i.cmp(&j), "{a} and {b}");
            }
        }
        assert!(compare("1 0", "1").is_err());
    }
}
