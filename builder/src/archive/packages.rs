//! The packages of an archive: `Packages` indexes (Debian repository format, deb822) become one catalogue that knows
//! for each name the version that would be installed, and who provides what.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
};

use deb822_fast::borrowed::{BorrowedParagraph, BorrowedParagraphIter};
use rackstick_image::digest::Sha256;

use super::relation::{self, ARCHITECTURE, Bound, RelationError};

/// An index that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PackagesError {
    /// Not deb822.
    #[error("the package index of {suite} can't be read: {error}")]
    Unreadable {
        /// The suite.
        suite: String,
        /// What the parser said.
        error: String,
    },
    /// A package lacks something or has it wrong.
    #[error("the package index of {suite} is not as it should be: package `{package}` has {what}")]
    Package {
        /// The suite.
        suite: String,
        /// The package's name, as far as it is known.
        package: String,
        /// What it has.
        what: String,
    },
    /// A relation can't be read.
    #[error("package `{package}`: {source}")]
    Relation {
        /// The package.
        package: String,
        /// What is wrong.
        source: RelationError,
    },
}

/// One `Packages` file.
pub struct PackageIndex {
    /// The archive it belongs to.
    pub archive: String,
    /// The suite.
    pub suite: String,
    /// Of a repository beside the base: the packages that it comes before the base for.
    pub named: Option<BTreeSet<String>>,
    /// Its text.
    pub text: String,
}

/// Where a package counts among others of its name, least first. Of the same rank the newest version counts. These are
/// apt's priorities 100, 500 and 990 (apt_preferences(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Of a repository beside the base: only if the base has none.
    Beside,
    /// Of the base.
    Base,
    /// Of the repository that the recipe wants it from.
    Named,
}

/// Packages that stay as they are: their versions by name.
pub type Held = BTreeMap<String, String>;

/// One package.
#[derive(Debug)]
pub struct Package<'a> {
    /// Name.
    pub name: &'a str,
    /// Version.
    pub version: &'a str,
    /// Where it counts among others of its name.
    pub rank: Rank,
    /// Architecture: ours or `all`.
    pub architecture: &'a str,
    /// Whether every system must have it. A repository beside the base can't demand that.
    pub essential: bool,
    /// How important it is: 0 is `required`, larger is less.
    pub priority: u8,
    /// `Pre-Depends` and `Depends`.
    pub depends: [&'a str; 2],
    /// `Conflicts` and `Breaks`.
    pub conflicts: [&'a str; 2],
    /// `Provides`.
    pub provides: &'a str,
    /// The archive that holds it.
    pub archive: &'a str,
    /// Path below the archive's root.
    pub path: &'a str,
    /// Size of the .deb in bytes.
    pub size: u64,
    /// Hash of the .deb.
    pub sha256: Sha256,
}

/// A package's place in its catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(usize);

/// The packages of all indexes: of each name the one of the highest rank, and of these the newest.
pub struct Catalogue<'a> {
    packages: Vec<Package<'a>>,
    names: HashMap<&'a str, Id>,
    /// All versions in repositories beside the base that don't come before it, by name: archive and version.
    beside: HashMap<&'a str, Vec<(&'a str, &'a str)>>,
    providers: HashMap<&'a str, Vec<(Id, Option<&'a str>)>>,
}

impl<'a> Catalogue<'a> {
    /// Reads all indexes. Where two hold the same version of a package, the earlier index wins.
    pub fn read(indexes: &'a [PackageIndex]) -> Result<Self, PackagesError> {
        Self::holding(indexes, &Held::new())
    }

    /// Reads all indexes, but of the packages that are held only the version in which they are: if no index has that,
    /// the catalogue does not know the package.
    pub fn holding(indexes: &'a [PackageIndex], held: &Held) -> Result<Self, PackagesError> {
        let mut packages: Vec<Package<'a>> = Vec::new();
        let mut names: HashMap<&'a str, Id> = HashMap::new();
        let mut beside: HashMap<&'a str, Vec<(&'a str, &'a str)>> = HashMap::new();
        for index in indexes {
            for paragraph in BorrowedParagraphIter::new(&index.text) {
                let paragraph = paragraph.map_err(|error| PackagesError::Unreadable {
                    suite: index.suite.clone(),
                    error: error.to_string(),
                })?;
                let Some(package) = package(index, &paragraph)? else { continue };
                if held.get(package.name).is_some_and(|version| version != package.version) {
                    continue;
                }
                if package.rank == Rank::Beside {
                    beside.entry(package.name).or_default().push((package.archive, package.version));
                }
                match names.entry(package.name) {
                    Entry::Vacant(entry) => {
                        entry.insert(Id(packages.len()));
                        packages.push(package);
                    }
                    Entry::Occupied(entry) => {
                        let known = &mut packages[entry.get().0];
                        let order = relation::compare(package.version, known.version)
                            .map_err(|source| PackagesError::Relation { package: package.name.to_owned(), source })?;
                        if package.rank.cmp(&known.rank).then(order) == Ordering::Greater {
                            *known = package;
                        }
                    }
                }
            }
        }
        let mut providers: HashMap<&'a str, Vec<(Id, Option<&'a str>)>> = HashMap::new();
        for (index, package) in packages.iter().enumerate() {
            for (name, version) in package.provided()? {
                providers.entry(name).or_default().push((Id(index), version));
            }
        }
        Ok(Self { packages, names, beside, providers })
    }

    /// Repositories beside the base that have this package too and are passed over, and in which version.
    pub fn passed(&self, name: &str) -> &[(&'a str, &'a str)] {
        let passed = self.find(name).is_some_and(|id| self.get(id).rank > Rank::Beside);
        self.beside.get(name).filter(|_| passed).map_or(&[], Vec::as_slice)
    }

    /// The package with this id.
    pub fn get(&self, id: Id) -> &Package<'a> {
        // Ids come only from this catalogue.
        &self.packages[id.0]
    }

    /// The package of this name.
    pub fn find(&self, name: &str) -> Option<Id> {
        self.names.get(name).copied()
    }

    /// Who provides this name, and as which version.
    pub fn providers(&self, name: &str) -> &[(Id, Option<&'a str>)] {
        self.providers.get(name).map_or(&[], Vec::as_slice)
    }

    /// All packages.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &Package<'a>)> {
        self.packages.iter().enumerate().map(|(index, package)| (Id(index), package))
    }
}

impl<'a> Package<'a> {
    /// The names that it provides, each with its version if it has one.
    pub fn provided(&self) -> Result<Vec<(&'a str, Option<&'a str>)>, PackagesError> {
        let groups = self.relation(self.provides)?;
        Ok(groups
            .into_iter()
            .flat_map(|group| group.atoms)
            .map(|atom| (atom.name, atom.bound.as_ref().and_then(Bound::exactly)))
            .collect())
    }

    /// Reads one of its relation fields.
    pub fn relation(&self, field: &'a str) -> Result<Vec<relation::Group<'a>>, PackagesError> {
        relation::parse(field).map_err(|source| PackagesError::Relation { package: self.name.to_owned(), source })
    }
}

/// The package of a paragraph; none if it is for another architecture, which plain folders of packages hold too.
fn package<'a>(
    index: &'a PackageIndex,
    paragraph: &BorrowedParagraph<'a>,
) -> Result<Option<Package<'a>>, PackagesError> {
    let mut package = Package {
        name: "",
        version: "",
        rank: Rank::Base,
        architecture: "",
        essential: false,
        priority: u8::MAX,
        depends: [""; 2],
        conflicts: [""; 2],
        provides: "",
        archive: &index.archive,
        path: "",
        size: 0,
        sha256: Sha256([0; 32]),
    };
    let fail = |name: &str, what: String| PackagesError::Package {
        suite: index.suite.clone(),
        package: name.to_owned(),
        what,
    };
    let mut hash = "";
    let mut size = "";
    for field in paragraph.iter() {
        let slot = match field.name() {
            "Package" => &mut package.name,
            "Version" => &mut package.version,
            "Architecture" => &mut package.architecture,
            "Pre-Depends" => &mut package.depends[0],
            "Depends" => &mut package.depends[1],
            "Conflicts" => &mut package.conflicts[0],
            "Breaks" => &mut package.conflicts[1],
            "Provides" => &mut package.provides,
            "Filename" => &mut package.path,
            "SHA256" => &mut hash,
            "Size" => &mut size,
            "Essential" => {
                package.essential = field.as_single_line() == Some("yes");
                continue;
            }
            "Priority" => {
                package.priority = priority(field.as_single_line().unwrap_or_default());
                continue;
            }
            _ => continue,
        };
        let Some(value) = field.as_single_line() else {
            return Err(fail(package.name, format!("a field `{}` of more than one line", field.name())));
        };
        *slot = value;
    }
    let name = package.name;
    // Names and paths become names of files here and in the lock: nothing may climb out of its folder.
    if !plain(name) {
        return Err(fail(name, "no proper name".to_owned()));
    }
    if package.version.is_empty() {
        return Err(fail(name, "no version".to_owned()));
    }
    if !matches!(package.architecture, ARCHITECTURE | "all") {
        if index.named.is_some() {
            return Ok(None);
        }
        return Err(fail(name, format!("architecture `{}`, not {ARCHITECTURE} or all", package.architecture)));
    }
    if let Some(named) = &index.named {
        package.path = package.path.strip_prefix("./").unwrap_or(package.path);
        package.rank = if named.contains(name) { Rank::Named } else { Rank::Beside };
        package.essential &= package.rank == Rank::Named;
    }
    if !proper_path(package.path, index.named.is_some()) {
        return Err(fail(name, format!("the path `{}`, which is not one below the archive's pool", package.path)));
    }
    package.size = size.parse().map_err(|_| fail(name, format!("the size `{size}`")))?;
    package.sha256 = hash.parse().map_err(|error| fail(name, format!("a wrong SHA256: {error}")))?;
    Ok(Some(package))
}

/// Whether a package's name is one (Debian Policy, section 5.6.1).
pub fn plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte))
}

/// Whether a path stays below an archive's pool; others' archives may have theirs anywhere below their root.
pub fn proper_path(path: &str, foreign: bool) -> bool {
    (foreign || path.starts_with("pool/"))
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\\".contains(&byte))
}

fn priority(name: &str) -> u8 {
    ["required", "important", "standard", "optional", "extra"].iter().position(|known| *known == name).map_or(
        u8::MAX,
        // Five elements.
        |index| index as u8,
    )
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A stanza with what every package has, and more.
    pub fn stanza(name: &str, version: &str, more: &str) -> String {
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}.deb\nSize: 1\nSHA256: {}\n{more}\n",
            "0".repeat(64)
        )
    }

    pub fn index(text: impl Into<String>) -> PackageIndex {
        PackageIndex { archive: "debian".to_owned(), suite: "trixie".to_owned(), named: None, text: text.into() }
    }

    /// The index of a repository beside the base that comes before it for these packages.
    pub fn beside(archive: &str, named: &[&str], text: impl Into<String>) -> PackageIndex {
        let named = Some(named.iter().map(|name| (*name).to_owned()).collect());
        PackageIndex { archive: archive.to_owned(), suite: "stable".to_owned(), named, text: text.into() }
    }

    #[test]
    fn the_newest_version_of_all_suites_is_the_one() {
        let old = index(stanza("a", "1.9", "") + &stanza("b", "2", ""));
        let new = index(stanza("a", "1.10", "") + &stanza("b", "2~rc", ""));
        let indexes = [old, new];
        let catalogue = Catalogue::read(&indexes).unwrap();
        let version = |name| catalogue.get(catalogue.find(name).unwrap()).version;
        assert_eq!((version("a"), version("b")), ("1.10", "2"));
    }

    #[test]
    fn a_repository_beside_the_base_counts_only_where_it_is_named_or_alone() {
        let base = || stanza("a", "1", "") + &stanza("b", "1", "") + &stanza("c", "3", "");
        let other = |bound: &str| {
            let essential = stanza("only", "5", "Essential: yes\n") + &stanza("b", "2", "Essential: yes\n");
            stanza("a", "2", "") + &essential + &stanza("c", bound, "")
        };
        for order in [false, true] {
            let mut indexes = [index(base()), beside("x", &["b", "c"], other("2")), beside("y", &[], other("9"))];
            if order {
                indexes.reverse();
            }
            let catalogue = Catalogue::read(&indexes).unwrap();
            let package = |name| catalogue.get(catalogue.find(name).unwrap());
            assert_eq!(package("a").version, "1", "the base has it");
            assert_eq!((package("b").version, package("b").essential), ("2", true), "named");
            assert_eq!((package("c").version, package("c").archive), ("2", "x"), "although others have newer ones");
            assert_eq!((package("only").version, package("only").essential), ("5", false));
            let mut passed = catalogue.passed("a").to_vec();
            passed.sort_unstable();
            assert_eq!(passed, [("x", "2"), ("y", "2")]);
            assert_eq!(catalogue.passed("only"), [], "nothing came before it");
        }
    }

    #[test]
    fn what_others_write_otherwise_than_debian_is_read() {
        let text = stanza("a", "1", "").replace("pool/a.deb", "./a.deb")
            + &stanza("b", "1", "").replace("amd64", "arm64")
            + &stanza("c", "1", "").replace("pool/c.deb", "dists/stable/pool/c.deb");
        let indexes = [beside("x", &[], text.clone())];
        let catalogue = Catalogue::read(&indexes).unwrap();
        let path = |name| catalogue.find(name).map(|id| catalogue.get(id).path);
        assert_eq!((path("a"), path("b"), path("c")), (Some("a.deb"), None, Some("dists/stable/pool/c.deb")));
        assert!(Catalogue::read(&[index(text)]).is_err(), "but not from Debian");
        for bad in ["../a.deb", "/a.deb", ".//a.deb", "a/../b.deb", "a?b.deb"] {
            let indexes = [beside("x", &[], stanza("a", "1", "").replace("pool/a.deb", bad))];
            assert!(Catalogue::read(&indexes).is_err(), "{bad}");
        }
    }

    #[test]
    fn providers_are_found_with_their_versions() {
        let indexes = [index(stanza("a", "1", "Provides: mta, lib (= 3)\n"))];
        let catalogue = Catalogue::read(&indexes).unwrap();
        let id = catalogue.find("a").unwrap();
        assert_eq!(catalogue.providers("mta"), [(id, None)]);
        assert_eq!(catalogue.providers("lib"), [(id, Some("3"))]);
        assert!(catalogue.find("mta").is_none());
    }

    #[test]
    fn an_index_that_could_write_outside_its_folder_is_refused() {
        for (from, to) in [
            ("Package: a", "Package: ../a"),
            ("pool/a.deb", "pool/../../etc/passwd"),
            ("pool/a.deb", "/etc/passwd"),
            ("pool/a.deb", "pool//a.deb"),
            ("Size: 1", "Size: -1"),
            ("Size: 1", "Size: 99999999999999999999999"),
            ("amd64", "i386"),
            ("SHA256: 00", "SHA256: 0"),
            ("Version: 1", "Version:"),
        ] {
            let indexes = [index(stanza("a", "1", "").replace(from, to))];
            assert!(Catalogue::read(&indexes).is_err(), "{to}");
        }
    }
}
