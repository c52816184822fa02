//! The suites that a base is made from and the repositories beside it: their signed indexes are fetched and checked,
//! then their package indexes.

use std::{
    collections::BTreeSet,
    fs,
    io::{Cursor, Read},
    thread,
};

use flate2::read::MultiGzDecoder;
use lzma_rust2::{XzReader, XzReaderMt};
use rackstick_image::{digest::Sha256, lock};

use super::{
    Mirrors,
    keys::{Keyring, Trust},
    mirrors::{DEBIAN, FILE, SECURITY, archive_of_suite},
    packages::PackageIndex,
    release::{Called, Release, ReleaseError},
    repositories::Repositories,
};
use crate::{
    progress::Progress,
    store::{Client, Store, StoreError, Want},
};

/// The suites of each base, by archive and code name.
const BASES: [(&str, &[(&str, &str)]); 4] = [
    ("debian:bookworm", &[(DEBIAN, "bookworm"), (DEBIAN, "bookworm-updates"), (SECURITY, "bookworm-security")]),
    ("debian:trixie", &[(DEBIAN, "trixie"), (DEBIAN, "trixie-updates"), (SECURITY, "trixie-security")]),
    ("debian:forky", &[(DEBIAN, "forky"), (DEBIAN, "forky-updates"), (SECURITY, "forky-security")]),
    // Its updates come into it at once.
    ("debian:sid", &[(DEBIAN, "sid")]),
];
/// The component that everything but firmware comes from.
const MAIN: &str = "main";
/// The component of what devices and processors need that is not free: their firmware and microcode. Only the host asks
/// for it.
const FIRMWARE: &str = "non-free-firmware";
/// How an index is packed, preferred first, as its name ends. Debian has the first of all; others only the second or
/// the last.
const PACKINGS: [&str; 3] = [".xz", ".gz", ""];
/// Trixie's own has 140 KB; more is a server that sends without end.
const MAX_RELEASE: u64 = 8 << 20;
/// Trixie's own unpacks to 57 MB; more is an index that fills memory.
const MAX_PACKAGES: u64 = 512 << 20;

/// Why the suites are not known. A suite that is not the base's is named with its repository.
#[derive(Debug, thiserror::Error)]
pub enum SuitesError {
    /// Not a base that we know.
    #[error("the base `{name}` is not known; known are {}", BASES.map(|(base, _)| base).join(", "))]
    Base {
        /// Its name.
        name: String,
    },
    /// No mirror has a signed index that is accepted.
    #[error("no mirror has an acceptable index of {suite}:{}", refusals.iter().map(|r| format!("\n  {r}")).collect::<String>())]
    Release {
        /// The suite.
        suite: String,
        /// What is wrong with each mirror's.
        refusals: Vec<String>,
    },
    /// A signed index lists no packages.
    #[error("the index of {suite}: {source}")]
    Index {
        /// The suite.
        suite: String,
        /// What is missing.
        source: ReleaseError,
    },
    /// A mirror of a part of Debian.
    #[error(
        "no mirror has the component `{FIRMWARE}` of {suite}, from which the host takes the firmware of network cards and \
         the processors' microcode; use a mirror that has it, with --mirror URL"
    )]
    NoFirmware {
        /// The suite.
        suite: String,
    },
    /// A package index can't be unpacked.
    #[error("the package index of {suite} can't be unpacked: {why}")]
    Unpack {
        /// The suite.
        suite: String,
        /// Why.
        why: String,
    },
    /// A suite that the recipe names.
    #[error("{source}")]
    Named {
        /// Its repository.
        repository: String,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the suites of a base, and the repositories beside it, hold.
pub struct Suites {
    /// The signed indexes, for the lock.
    pub indexes: Vec<lock::Index>,
    /// The package indexes of what images and host are made from.
    pub packages: Vec<PackageIndex>,
    /// The package indexes of firmware, for the host alone.
    pub firmware: Vec<PackageIndex>,
}

/// What is needed to fetch suites.
pub struct Source<'a> {
    /// Where package indexes are kept.
    pub store: &'a Store,
    /// How to ask.
    pub client: &'a Client,
    /// Whom to ask.
    pub mirrors: &'a Mirrors,
    /// What there is beside bases.
    pub repositories: &'a Repositories,
    /// Whose signature counts.
    pub trust: &'a Trust,
    /// The time at which signatures and indexes must be valid, in seconds since 1970.
    pub now: i64,
}

impl Suites {
    /// Fetches and checks the suites of a base and the repositories beside it; firmware too if a host is made of it.
    pub fn fetch(base: &str, host: bool, source: &Source, progress: &Progress) -> Result<Self, SuitesError> {
        let mut new = Self { indexes: Vec::new(), packages: Vec::new(), firmware: Vec::new() };
        let suites = source.suites(base, host)?;
        let releases = thread::scope(|scope| {
            let threads: Vec<_> = suites.iter().map(|suite| scope.spawn(move || source.release(suite))).collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect::<Vec<_>>()
        });
        let mut listed = Vec::new();
        for (suite, release) in suites.iter().zip(releases) {
            let (release, sha256) = release.map_err(suite.at_fault())?;
            for component in &suite.components {
                listed.push(Listed::of(&release, suite, component).map_err(suite.at_fault())?);
            }
            new.indexes.push(lock::Index {
                archive: suite.archive.clone(),
                suite: suite.name.clone(),
                date: release.date,
                sha256,
            });
        }
        let files: Vec<Want> = listed.iter().map(|listed| listed.want.clone()).collect();
        source.store.obtain(source.client, &files, source.mirrors, progress).map_err(|error| {
            let StoreError::Gone(gone) = &error else { return error.into() };
            let firmware = listed.iter().find(|listed| listed.is_firmware() && gone.contains(&listed.want));
            firmware.map_or_else(|| error.into(), |listed| SuitesError::NoFirmware { suite: listed.suite.shown() })
        })?;
        for index in listed {
            let path = source.store.path(index.want.sha256);
            let packed = fs::read(&path).map_err(|source| StoreError::Io { path, source })?;
            let unpacked = unpack(packed, index.packing, index.unpacked);
            let damaged = |why| SuitesError::Unpack { suite: index.suite.shown(), why };
            let mut text = unpacked.map_err(damaged).map_err(index.suite.at_fault())?;
            if index.suite.named.is_some() {
                // Others fold long fields. Only descriptions need their lines, and nobody here reads those.
                text = text.replace("\n ", " ").replace("\n\t", " ");
            }
            let firmware = index.is_firmware();
            let Suite { archive, name, named, .. } = index.suite;
            let index = PackageIndex { archive: archive.clone(), suite: name.clone(), named: named.clone(), text };
            if firmware { new.firmware.push(index) } else { new.packages.push(index) }
        }
        Ok(new)
    }
}

/// A suite that is to be fetched.
struct Suite<'a> {
    /// The archive or repository.
    archive: String,
    /// Its name in the archive.
    name: String,
    /// Of a plain folder that is nothing.
    components: Vec<String>,
    /// Of a repository beside the base: the packages that it comes before the base for.
    named: Option<BTreeSet<String>>,
    /// Whether it is of somebody else's archive.
    foreign: bool,
    keyring: &'a Keyring,
}

impl Suite<'_> {
    /// As people are told of it.
    fn shown(&self) -> String {
        match self.named {
            None => self.name.clone(),
            Some(_) => format!("{} of repository `{}`", self.name, self.archive),
        }
    }

    /// An error of this suite: of one beside the base the recipe tells, and has to hear.
    fn at_fault(&self) -> impl Fn(SuitesError) -> SuitesError {
        move |error| match self.named {
            None => error,
            Some(_) => SuitesError::Named { repository: self.archive.clone(), source: Box::new(error) },
        }
    }

    /// The folder of its signed index below the archive's root, with a slash at its end, or nothing for the root
    /// itself.
    fn folder(&self) -> String {
        match self.name.strip_suffix('/') {
            None => format!("dists/{}/", self.name),
            Some("" | ".") => String::new(),
            Some(folder) => format!("{folder}/"),
        }
    }

    fn called(&self) -> Called<'_> {
        match &self.name {
            folder if folder.ends_with('/') => Called::Anything,
            name if self.foreign => Called::Either(name),
            name => Called::CodeName(name),
        }
    }
}

/// A package index as its suite's signed index lists it.
struct Listed<'a> {
    suite: &'a Suite<'a>,
    component: &'a str,
    want: Want,
    /// How it is packed: one of [`PACKINGS`].
    packing: &'static str,
    /// Its size once unpacked, in bytes, if that is listed.
    unpacked: Option<u64>,
}

impl<'a> Listed<'a> {
    fn of(release: &Release, suite: &'a Suite<'a>, component: &'a str) -> Result<Self, SuitesError> {
        // A plain folder has no components.
        let folder = if component.is_empty() { String::new() } else { format!("{component}/binary-amd64/") };
        let plain = format!("{folder}Packages");
        let found = PACKINGS.iter().find_map(|packing| Some((*packing, release.index(&format!("{plain}{packing}"))?)));
        let Some((packing, (sha256, size))) = found else {
            let (suite, of_the_base) = (suite.shown(), suite.named.is_none());
            return Err(match component {
                FIRMWARE if of_the_base => SuitesError::NoFirmware { suite },
                _ => SuitesError::Index { suite, source: release.no_index(&plain) },
            });
        };
        let unpacked = release.index(&plain).map(|(_, size)| size);
        let file = if release.by_hash { format!("by-hash/SHA256/{sha256}") } else { format!("Packages{packing}") };
        let want = Want {
            name: format!("package index of {} {component}", suite.shown()).trim_end().to_owned(),
            archive: suite.archive.clone(),
            path: format!("{}{folder}{file}", suite.folder()),
            size,
            sha256,
        };
        Ok(Self { suite, component, want, packing, unpacked })
    }

    /// Whether it is of the base's firmware.
    fn is_firmware(&self) -> bool {
        self.component == FIRMWARE && self.suite.named.is_none()
    }
}

impl Source<'_> {
    /// The suites of a base, and those beside it.
    fn suites(&self, base: &str, host: bool) -> Result<Vec<Suite<'_>>, SuitesError> {
        let (_, suites) = BASES
            .iter()
            .find(|(known, _)| *known == base)
            .ok_or_else(|| SuitesError::Base { name: base.to_owned() })?;
        let components: &[&str] = if host { &[MAIN, FIRMWARE] } else { &[MAIN] };
        let keyring = |archive: &str| if archive == SECURITY { &self.trust.security } else { &self.trust.debian };
        let own = suites.iter().map(|(archive, name)| Suite {
            archive: (*archive).to_owned(),
            name: (*name).to_owned(),
            components: components.iter().map(|component| (*component).to_owned()).collect(),
            named: None,
            foreign: false,
            keyring: keyring(archive),
        });
        let beside = self.repositories.iter().filter(|(_, repository)| repository.base == base);
        let beside = beside.map(|(name, repository)| Suite {
            archive: name.clone(),
            name: repository.suite.clone(),
            components: match repository.components.as_slice() {
                [] => vec![String::new()],
                several => several.to_vec(),
            },
            named: Some(repository.packages.iter().cloned().collect()),
            foreign: repository.url.is_some(),
            keyring: match repository.url {
                Some(_) => self.trust.foreign.get(name).unwrap_or(Keyring::NONE),
                None => keyring(archive_of_suite(&repository.suite)),
            },
        });
        Ok(own.chain(beside).collect())
    }

    /// The first acceptable signed index of a suite, and its hash.
    fn release(&self, suite: &Suite) -> Result<(Release, Sha256), SuitesError> {
        let roots = self.mirrors.roots(&suite.archive);
        if roots.is_empty() {
            return Err(StoreError::NoMirror { name: format!("the index of {}", suite.shown()) }.into());
        }
        let mut refusals = Vec::new();
        for root in roots {
            let url = format!("{root}/{}InRelease", suite.folder());
            match self.client.read(&url, MAX_RELEASE) {
                Ok(file) => match Release::verify(&file, suite.keyring, suite.called(), self.now) {
                    Ok(release) => return Ok((release, Sha256::of(&file))),
                    Err(error) => refusals.push(format!("{url}: {error}")),
                },
                Err(error) if root.starts_with(FILE) => refusals.push(format!(
                    "{error}; if `rackstick vendor` filled this folder it has packages only, so name a mirror too"
                )),
                Err(error) => refusals.push(error.to_string()),
            }
        }
        Err(SuitesError::Release { suite: suite.shown(), refusals })
    }
}

/// Unpacks an index whose hash was checked. Its signed index says how large it becomes, or else it may not become too
/// large.
fn unpack(packed: Vec<u8>, packing: &str, size: Option<u64>) -> Result<String, String> {
    let most = size.unwrap_or(MAX_PACKAGES);
    if most > MAX_PACKAGES {
        return Err(format!("it has {most} bytes, more than {MAX_PACKAGES}"));
    }
    let threads = thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    let packed = Cursor::new(packed);
    let reader: Box<dyn Read> = match packing {
        "" => Box::new(packed),
        ".gz" => Box::new(MultiGzDecoder::new(packed)),
        // An index without packages is packed without a block, which the other reader refuses.
        _ if size == Some(0) => Box::new(XzReader::new(packed, false)),
        _ => Box::new(XzReaderMt::new(packed, false, threads).map_err(|error| error.to_string())?),
    };
    let mut text = String::new();
    // The size is limited above.
    text.reserve(usize::try_from(size.unwrap_or_default()).unwrap_or_default());
    reader.take(most.saturating_add(1)).read_to_string(&mut text).map_err(|error| error.to_string())?;
    match size {
        Some(size) if text.len() as u64 != size => Err(format!("its size is not {size} bytes")),
        None if text.len() as u64 > most => Err(format!("it has more than {most} bytes")),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests;
