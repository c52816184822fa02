//! The suites that a base is made from: their signed indexes are fetched and checked, then their package indexes.

use std::{
    io::{Cursor, Read},
    thread,
};

use lzma_rust2::{XzReader, XzReaderMt};
use rackstick_image::{digest::Sha256, lock};
use sha2::Digest;

use super::{
    Mirrors,
    keys::Trust,
    mirrors::{DEBIAN, SECURITY},
    packages::PackageIndex,
    release::{Release, ReleaseError},
};
use crate::{
    progress::Progress,
    store::{Client, Store, StoreError, Want},
};

/// The base that is known.
pub const TRIXIE: &str = "debian:trixie";
/// Its suites, by archive and code name.
const TRIXIE_SUITES: [(&str, &str); 3] =
    [(DEBIAN, "trixie"), (DEBIAN, "trixie-updates"), (SECURITY, "trixie-security")];
/// The component that everything but firmware comes from.
const MAIN: &str = "main";
/// The component of what devices and processors need that is not free: their firmware and microcode. Only the host asks
/// for it.
const FIRMWARE: &str = "non-free-firmware";
/// Trixie's own has 140 KB; more is a server that sends without end.
const MAX_RELEASE: u64 = 8 << 20;
/// Trixie's own unpacks to 57 MB; more is an index that fills memory.
const MAX_PACKAGES: u64 = 512 << 20;

/// Why the suites are not known.
#[derive(Debug, thiserror::Error)]
pub enum SuitesError {
    /// Not a base that we know.
    #[error("the base `{0}` is not known; `{TRIXIE}` is")]
    Base(String),
    /// No mirror has a signed index that is accepted.
    #[error("no mirror has an acceptable index of {suite}:{}", refusals.iter().map(|r| format!("\n  {r}")).collect::<String>())]
    Release {
        /// The suite.
        suite: &'static str,
        /// What is wrong with each mirror's.
        refusals: Vec<String>,
    },
    /// A signed index lists no packages.
    #[error("the index of {suite}: {source}")]
    Index {
        /// The suite.
        suite: &'static str,
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
        suite: &'static str,
    },
    /// A package index can't be unpacked.
    #[error("the package index of {suite} can't be unpacked: {why}")]
    Unpack {
        /// The suite.
        suite: &'static str,
        /// Why.
        why: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the suites of a base hold.
pub struct Suites {
    /// The signed indexes, for the lock.
    pub indexes: Vec<lock::Index>,
    /// The newest of their dates, in seconds since 1970.
    pub newest: i64,
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
    /// Whose signature counts.
    pub trust: &'a Trust,
    /// The time at which signatures and indexes must be valid, in seconds since 1970.
    pub now: i64,
}

impl Suites {
    /// Fetches and checks the suites of a base.
    pub fn fetch(base: &str, source: &Source, progress: &Progress) -> Result<Self, SuitesError> {
        if base != TRIXIE {
            return Err(SuitesError::Base(base.to_owned()));
        }
        let mut new = Self { indexes: Vec::new(), newest: i64::MIN, packages: Vec::new(), firmware: Vec::new() };
        let mut listed = Vec::new();
        let releases = thread::scope(|scope| {
            let fetch = |(archive, suite)| scope.spawn(move || source.release(archive, suite));
            TRIXIE_SUITES.map(fetch).map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        });
        for ((archive, suite), release) in TRIXIE_SUITES.into_iter().zip(releases) {
            let (release, sha256) = release?;
            for component in [MAIN, FIRMWARE] {
                listed.push(Listed::of(&release, archive, suite, component)?);
            }
            new.newest = new.newest.max(release.seconds);
            new.indexes.push(lock::Index {
                archive: archive.to_owned(),
                suite: suite.to_owned(),
                date: release.date,
                sha256,
            });
        }
        let files: Vec<Want> = listed.iter().map(|listed| listed.want.clone()).collect();
        source.store.obtain(source.client, &files, source.mirrors, progress).map_err(|error| {
            let StoreError::Gone(gone) = &error else { return error.into() };
            let firmware = listed.iter().find(|listed| listed.component == FIRMWARE && gone.contains(&listed.want));
            firmware.map_or_else(|| error.into(), |listed| SuitesError::NoFirmware { suite: listed.suite })
        })?;
        for Listed { suite, component, want, unpacked } in listed {
            let path = source.store.path(want.sha256);
            let packed = std::fs::read(&path).map_err(|source| StoreError::Io { path, source })?;
            let text = unpack(packed, unpacked).map_err(|why| SuitesError::Unpack { suite, why })?;
            let index = PackageIndex { archive: want.archive, suite: suite.to_owned(), text };
            if component == MAIN { new.packages.push(index) } else { new.firmware.push(index) }
        }
        Ok(new)
    }
}

/// A package index as its suite's signed index lists it.
struct Listed {
    suite: &'static str,
    component: &'static str,
    want: Want,
    /// Its size once unpacked, in bytes.
    unpacked: u64,
}

impl Listed {
    fn of(release: &Release, archive: &str, suite: &'static str, component: &'static str) -> Result<Self, SuitesError> {
        let folder = format!("{component}/binary-amd64");
        let find = |path: &str| {
            release.index(path).map_err(|source| match (component, source) {
                (FIRMWARE, ReleaseError::NoIndex(_)) => SuitesError::NoFirmware { suite },
                (_, source) => SuitesError::Index { suite, source },
            })
        };
        let (sha256, size) = find(&format!("{folder}/Packages.xz"))?;
        let (_, unpacked) = find(&format!("{folder}/Packages"))?;
        let file = if release.by_hash { format!("by-hash/SHA256/{sha256}") } else { "Packages.xz".to_owned() };
        let want = Want {
            name: format!("package index of {suite} {component}"),
            archive: archive.to_owned(),
            path: format!("dists/{suite}/{folder}/{file}"),
            size,
            sha256,
        };
        Ok(Self { suite, component, want, unpacked })
    }
}

impl Source<'_> {
    /// The first acceptable signed index of a suite, and its hash.
    fn release(&self, archive: &'static str, suite: &'static str) -> Result<(Release, Sha256), SuitesError> {
        let keyring = if archive == SECURITY { &self.trust.security } else { &self.trust.debian };
        let roots = self.mirrors.roots(archive);
        if roots.is_empty() {
            return Err(StoreError::NoMirror { name: format!("the index of {suite}") }.into());
        }
        let mut refusals = Vec::new();
        for root in roots {
            let url = format!("{root}/dists/{suite}/InRelease");
            match self.client.read(&url, MAX_RELEASE) {
                Ok(file) => match Release::verify(&file, keyring, suite, self.now) {
                    Ok(release) => return Ok((release, Sha256(sha2::Sha256::digest(&file).into()))),
                    Err(error) => refusals.push(format!("{url}: {error}")),
                },
                Err(error) => refusals.push(error.to_string()),
            }
        }
        Err(SuitesError::Release { suite, refusals })
    }
}

/// Unpacks an index whose hash was checked, and whose signed index says how large it becomes.
fn unpack(packed: Vec<u8>, size: u64) -> Result<String, String> {
    if size > MAX_PACKAGES {
        return Err(format!("it has {size} bytes, more than {MAX_PACKAGES}"));
    }
    let threads = thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    let reader: Box<dyn Read> = if size == 0 {
        // An index without packages is packed without a block, which the other reader refuses.
        Box::new(XzReader::new(Cursor::new(packed), false))
    } else {
        Box::new(XzReaderMt::new(Cursor::new(packed), false, threads).map_err(|error| error.to_string())?)
    };
    let mut text = String::new();
    // The size is limited above.
    text.reserve(usize::try_from(size).unwrap_or_default());
    reader.take(size.saturating_add(1)).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 != size {
        return Err(format!("its size is not {size} bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
