//! Where archives are fetched from. Nothing is built in: mirrors are given by `--mirror`, else they are those that the
//! machine's own apt uses (sources.list(5): one-line and deb822 style). A folder that `rackstick vendor` filled is one
//! too. Others' archives are where the recipe says, unless `--mirror` says otherwise.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use deb822_fast::borrowed::{BorrowedParagraph, parse_borrowed};
use rackstick_image::recipe;

use super::repositories::Repositories;

/// Debian's main archive.
pub const DEBIAN: &str = "debian";
/// Debian's archive of security updates.
pub const SECURITY: &str = "debian-security";
/// Where apt's configuration is.
const APT: &str = "/etc/apt";
/// The component that every Debian archive has; sources without it are others' archives.
const COMPONENT: &str = "main";
/// Sources that name their keys are Debian's if the name of the keyring's file begins so.
const KEYRING: &str = "debian-archive-";
/// How the URLs of files of this machine begin.
pub const FILE: &str = "file://";

/// Why it is not known where to fetch from.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Not a mirror.
    #[error(
        "`{0}` is no mirror: the root of a Debian archive is needed, http, https or file, with `debian` or \
         `debian-security` in its path, like http://HOST/debian, or a folder that `rackstick vendor` filled, or \
         REPOSITORY=URL for a repository of the recipe"
    )]
    Url(String),
    /// A repository that the recipe does not have.
    #[error("--mirror {name}=URL: the recipe has no repository `{name}`{}", one_of(.known))]
    Repository {
        /// What was named.
        name: String,
        /// Those that it has.
        known: Vec<String>,
    },
    /// Only security updates.
    #[error("--mirror names only a mirror of `debian-security`: name one of `debian` too")]
    OnlySecurity,
    /// The configuration can't be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is not deb822.
    #[error("{}: {error}", .path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        error: String,
    },
}

fn one_of(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; it has {}", known.join(", ")) }
}

/// Roots of archives, by the archive's name, in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors(BTreeMap<String, Vec<String>>);

impl Mirrors {
    /// The mirrors given on the command line, or else those of the machine's apt. That there are none is an error only
    /// when one is needed: what is in the store can be used without. `NAME=URL` is where a repository is found, in
    /// place of its own URL.
    pub fn choose(given: &[String], repositories: &Repositories) -> Result<Self, MirrorError> {
        let (named, others): (Vec<_>, Vec<_>) = given.iter().partition(|mirror| of_repository(mirror).is_some());
        let others: Vec<String> = others.into_iter().cloned().collect();
        let mut new = if others.is_empty() { Self::of_apt(Path::new(APT)) } else { Self::given(&others) }?;
        new.add_repositories(repositories, &named, &others)?;
        Ok(new)
    }

    /// A repository's packages may be in a folder that `rackstick vendor` filled; else they are where `named` says, or
    /// at the repository's own URL, or, of Debian's own archive, where that is.
    fn add_repositories(
        &mut self,
        repositories: &Repositories,
        named: &[&String],
        folders: &[String],
    ) -> Result<(), MirrorError> {
        let mut elsewhere: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (mirror, (name, url)) in named.iter().filter_map(|mirror| Some((mirror, of_repository(mirror)?))) {
            if !repositories.contains_key(name) {
                let known = repositories.keys().cloned().collect();
                return Err(MirrorError::Repository { name: name.to_owned(), known });
            }
            let root = url.trim_end_matches('/');
            let file = root.strip_prefix(FILE).is_some_and(|path| path.starts_with('/') && !path.contains('%'));
            if !file && !recipe::is_archive_url(root) {
                return Err(MirrorError::Url((*mirror).clone()));
            }
            elsewhere.entry(name).or_default().push(root.to_owned());
        }
        for (name, repository) in repositories {
            folders.iter().filter_map(|folder| archive_in(folder, name)).for_each(|root| self.add(name, root));
            let own = match (elsewhere.remove(name.as_str()), &repository.url) {
                (Some(given), _) => given,
                (None, Some(url)) => vec![url.clone()],
                (None, None) => self.roots(archive_of_suite(&repository.suite)).to_vec(),
            };
            own.into_iter().for_each(|root| self.add(name, root));
        }
        Ok(())
    }

    /// Mirrors by URL, each the root of an archive, or by folder, each with archives in it. If no URL is of
    /// `debian-security`, it is expected beside `debian`: under the same URL with `debian-security` in place of
    /// `debian`.
    pub fn given(mirrors: &[String]) -> Result<Self, MirrorError> {
        let mut new = Self(BTreeMap::new());
        let urls: Vec<_> = mirrors.iter().map(|mirror| archive_of(mirror)).collect();
        let security = urls.iter().flatten().any(|(archive, _)| *archive == SECURITY);
        for (mirror, url) in mirrors.iter().zip(urls) {
            if let Some((archive, root)) = url {
                if archive == DEBIAN && !security {
                    new.add(SECURITY, sibling(&root));
                }
                new.add(archive, root);
                continue;
            }
            let archives = archives_in(mirror).ok_or_else(|| MirrorError::Url(mirror.clone()))?;
            archives.into_iter().for_each(|(archive, root)| new.add(archive, root));
        }
        if !new.0.contains_key(DEBIAN) {
            return Err(MirrorError::OnlySecurity);
        }
        Ok(new)
    }

    /// Where the files of a repository of a registry are: its URL, or before that the folder `name` of one that
    /// `rackstick vendor` filled.
    pub fn of_registry(given: &[String], name: &str, url: &str) -> Self {
        let mut new = Self(BTreeMap::new());
        given.iter().filter_map(|folder| archive_in(folder, name)).for_each(|root| new.add(name, root));
        new.add(name, url.to_owned());
        new
    }

    /// The mirrors in an apt configuration.
    pub fn of_apt(folder: &Path) -> Result<Self, MirrorError> {
        let mut files = vec![folder.join("sources.list")];
        let parts = folder.join("sources.list.d");
        match fs::read_dir(&parts) {
            Ok(entries) => {
                let mut found = Vec::new();
                for entry in entries {
                    found.push(entry.map_err(|source| MirrorError::Io { path: parts.clone(), source })?.path());
                }
                found.sort_unstable();
                files.extend(found);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(MirrorError::Io { path: parts, source }),
        }
        let mut new = Self(BTreeMap::new());
        for path in files {
            let deb822 = match path.extension().and_then(|extension| extension.to_str()) {
                Some("list") => false,
                Some("sources") => true,
                _ => continue,
            };
            match fs::read_to_string(&path) {
                Ok(text) if deb822 => {
                    new.add_deb822(&text).map_err(|error| MirrorError::Syntax { path: path.clone(), error })?
                }
                Ok(text) => new.add_one_line(&text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(MirrorError::Io { path, source }),
            }
        }
        new.expect_siblings();
        Ok(new)
    }

    /// The roots of an archive, without a slash at the end; none for an archive that is not known.
    pub fn roots(&self, archive: &str) -> &[String] {
        self.0.get(archive).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, archive: &str, root: String) {
        let roots = self.0.entry(archive.to_owned()).or_default();
        if !roots.contains(&root) {
            roots.push(root);
        }
    }

    fn expect_siblings(&mut self) {
        if self.0.contains_key(SECURITY) {
            return;
        }
        let siblings = self.roots(DEBIAN).iter().map(|root| sibling(root)).collect();
        self.0.insert(SECURITY.to_owned(), siblings);
    }

    fn add_deb822(&mut self, text: &str) -> Result<(), String> {
        for paragraph in parse_borrowed(text).map_err(|error| error.to_string())? {
            let words = |name| words(&paragraph, name);
            let enabled = !words("Enabled").iter().any(|word| matches!(*word, "no" | "false" | "0"));
            let keyring = words("Signed-By");
            let ours = keyring.first().is_none_or(|path| !path.starts_with('/') || is_debians(path));
            if enabled && ours && words("Types").contains(&"deb") && words("Components").contains(&COMPONENT) {
                for url in words("URIs") {
                    if let Some((archive, root)) = archive_of(url) {
                        self.add(archive, root);
                    }
                }
            }
        }
        Ok(())
    }

    fn add_one_line(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t'])) else { continue };
            let (options, rest) = match rest.trim_start().strip_prefix('[') {
                Some(rest) => rest.split_once(']').unwrap_or((rest, "")),
                None => ("", rest),
            };
            let ours = options
                .split_ascii_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="))
                .is_none_or(is_debians);
            let mut words = rest.split_ascii_whitespace();
            if let (Some(url), Some(_suite)) = (words.next(), words.next())
                && ours
                && words.any(|component| component == COMPONENT)
                && let Some((archive, root)) = archive_of(url)
            {
                self.add(archive, root);
            }
        }
    }
}

fn words<'a>(paragraph: &BorrowedParagraph<'a>, name: &str) -> Vec<&'a str> {
    paragraph.get(name).unwrap_or_default().iter().flat_map(|line| line.split_ascii_whitespace()).collect()
}

fn is_debians(keyring: &str) -> bool {
    keyring.rsplit('/').next().is_some_and(|name| name.starts_with(KEYRING))
}

/// Where security updates are beside `debian`.
fn sibling(root: &str) -> String {
    // The first three parts are scheme and host.
    let sibling = |(index, part)| if index > 2 && part == DEBIAN { SECURITY } else { part };
    root.split('/').enumerate().map(sibling).collect::<Vec<_>>().join("/")
}

/// The archives in a folder that `rackstick vendor` filled: their URLs have the folder's path as it is.
fn archives_in(folder: &str) -> Option<Vec<(&'static str, String)>> {
    let archives: Vec<_> =
        [DEBIAN, SECURITY].into_iter().filter_map(|name| Some((name, archive_in(folder, name)?))).collect();
    (!archives.is_empty()).then_some(archives)
}

/// The archive of this name in such a folder.
fn archive_in(folder: &str, name: &str) -> Option<String> {
    let root = std::path::absolute(folder).ok()?.join(name);
    root.is_dir().then(|| Some(format!("{FILE}{}", root.to_str()?))).flatten()
}

/// Which of Debian's archives holds a suite.
pub fn archive_of_suite(suite: &str) -> &'static str {
    if suite.ends_with("-security") { SECURITY } else { DEBIAN }
}

/// The repository and the URL of `NAME=URL`.
fn of_repository(mirror: &str) -> Option<(&str, &str)> {
    mirror.split_once('=').filter(|(name, url)| recipe::is_name(name) && url.contains("://"))
}

/// Which of Debian's archives has its root at this URL, and the URL without a slash at its end.
fn archive_of(url: &str) -> Option<(&'static str, String)> {
    let root = url.trim_end_matches('/');
    let (scheme, rest) = root.split_once("://")?;
    let (host, path) = rest.split_once('/')?;
    let right = match scheme {
        "http" | "https" => !host.is_empty(),
        "file" => host.is_empty() && !root.contains('%'),
        _ => false,
    };
    if !right || root.contains(['?', '#']) || !root.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let has = |name| path.split('/').any(|part| part == name);
    let archive = if has(SECURITY) {
        SECURITY
    } else if has(DEBIAN) {
        DEBIAN
    } else {
        return None;
    };
    Some((archive, root.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apt(files: &[(&str, &str)]) -> Result<Mirrors, MirrorError> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Mirrors::of_apt(folder.path())
    }

    #[test]
    fn both_styles_of_apt_configuration_are_understood() {
        let one_line = "# deb http://old.test/debian trixie main\n\
            deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://a.test/debian/ trixie main # x\n\
            deb-src http://src.test/debian trixie main\n\
            deb http://security.test/debian-security trixie-security main\n";
        let deb822 = "Types: deb deb-src\n# a comment\nURIs: https://b.test/debian\n http://a.test/debian\nSuites: bookworm\n\
            Components: main contrib\n\nTypes: deb\nEnabled: no\nURIs: http://off.test/debian\nSuites: x\nComponents: main\n";
        let mirrors = apt(&[("sources.list", one_line), ("sources.list.d/debian.sources", deb822)]).unwrap();
        assert_eq!(mirrors.roots(DEBIAN), ["http://a.test/debian", "https://b.test/debian"]);
        assert_eq!(mirrors.roots(SECURITY), ["http://security.test/debian-security"]);
    }

    #[test]
    fn archives_of_others_are_left_alone() {
        let none = apt(&[
            ("sources.list.d/a.list", "deb http://a.test/linux/debian trixie stable\ndeb cdrom:[x]/ trixie main\n"),
            ("sources.list.d/b.list", "deb [signed-by=/usr/share/keyrings/b.gpg] http://b.test/debian trixie main\n"),
            ("sources.list.d/c.list", "deb http://c.test/ubuntu noble main\n"),
            ("sources.list.d/d.list.save", "deb http://d.test/debian trixie main\n"),
            (
                "sources.list.d/e.sources",
                "Types: deb\nURIs: http://e.test/debian\nSuites: x\nComponents: main\nSigned-By: /etc/apt/keyrings/e.asc\n",
            ),
        ])
        .unwrap();
        assert!(none.roots(DEBIAN).is_empty() && none.roots(SECURITY).is_empty(), "{none:?}");
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Mirrors::of_apt(&folder.path().join("none")).unwrap(), none, "no apt at all");
    }

    #[test]
    fn security_updates_are_expected_beside_the_archive_unless_given() {
        let urls = |urls: &[&str]| Mirrors::given(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>());
        let beside = urls(&["http://debian/pub/debian/"]).unwrap();
        assert_eq!(beside.roots(DEBIAN), ["http://debian/pub/debian"]);
        assert_eq!(beside.roots(SECURITY), ["http://debian/pub/debian-security"]);
        let given = urls(&["http://m.test/debian", "http://s.test/debian-security"]).unwrap();
        assert_eq!(given.roots(SECURITY), ["http://s.test/debian-security"]);
        assert!(matches!(urls(&["http://s.test/debian-security"]), Err(MirrorError::OnlySecurity)));
    }

    #[test]
    fn a_folder_with_archives_is_a_mirror_beside_others() {
        let folder = tempfile::tempdir().unwrap();
        // A name that no URL could have, and one that is no archive's.
        let vendor = folder.path().join("debian/all packages");
        fs::create_dir_all(vendor.join("debian")).unwrap();
        let given = |other: &[&str]| {
            let all = [&[vendor.to_str().unwrap()], other].concat();
            Mirrors::given(&all.into_iter().map(str::to_owned).collect::<Vec<_>>()).unwrap()
        };
        let root = |name| format!("file://{}", vendor.join(name).display());
        assert_eq!((given(&[]).roots(DEBIAN), given(&[]).roots(SECURITY).len()), ([root(DEBIAN)].as_slice(), 0));
        fs::create_dir(vendor.join("debian-security")).unwrap();
        let both = given(&["http://m.test/debian"]);
        assert_eq!(both.roots(DEBIAN), [root(DEBIAN), "http://m.test/debian".to_owned()]);
        assert_eq!(both.roots(SECURITY), [root(SECURITY), "http://m.test/debian-security".to_owned()]);
        let both = given(&["http://m.test/debian", "http://s.test/debian-security"]);
        assert_eq!(both.roots(SECURITY), [root(SECURITY), "http://s.test/debian-security".to_owned()]);
        let files = Mirrors::given(&["file:///srv/debian/".to_owned()]).unwrap();
        assert_eq!(files.roots(SECURITY), ["file:///srv/debian-security"]);
    }

    #[test]
    fn what_is_no_mirror_is_refused() {
        for bad in [
            "m.test/debian",
            "ftp://m.test/debian",
            "http://m.test",
            "http:///debian",
            "http://m.test/debian?x",
            "",
            "file://srv/debian",
            "file:///srv/%64ebian",
            "file:///srv",
        ] {
            assert!(matches!(Mirrors::given(&[bad.to_owned()]), Err(MirrorError::Url(_))), "{bad}");
        }
    }
}
