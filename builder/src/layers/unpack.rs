//! Unpacks the data parts of many packages into one tree, in parallel, as `dpkg --unpack` would: conffiles become
//! `.dpkg-new`, diversions are honoured, folders that exist stay as they are. Debian Policy 10.1, 10.7; DEP 17 (merged
//! /usr).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid};

use super::{
    deb::{self, Control},
    paths::{LongNames, inside, is_merged_link, listed, merged, with_suffix},
    tree::{self, Tree},
};

/// Entries in one package at most: stops a package that uses up the file system's inodes. The largest in trixie has
/// 60,000.
const MAX_ENTRIES: usize = 1_000_000;
/// Ids above this are not mapped in the stage; no package may ship files of others (Debian Policy 9.2.2).
const MAX_ID: u64 = 65_535;
/// Why packages can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive.
    #[error("package {package} {source}")]
    Deb {
        /// Whose.
        package: String,
        /// What is wrong.
        source: deb::Error,
    },
    /// The file system.
    #[error("package {package}: {path} can't be written: {source}")]
    Write {
        /// Whose.
        package: String,
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A path that leads out of the tree.
    #[error("package {package} has an entry with the path `{path}`: it leads out of the file system")]
    Path {
        /// Whose.
        package: String,
        /// What stands there.
        path: String,
    },
    /// Neither file, folder, symlink nor hard link.
    #[error("package {package}: {path} is a device or another kind of file that no package may ship (type `{kind}`)")]
    Kind {
        /// Whose.
        package: String,
        /// Where.
        path: String,
        /// The type byte of the tar header.
        kind: char,
    },
    /// An id outside 0 to 65535.
    #[error("package {package}: {path} belongs to user {uid}, group {gid}; only 0 to {MAX_ID} exist in a guest")]
    Owner {
        /// Whose.
        package: String,
        /// Where.
        path: String,
        /// User.
        uid: u64,
        /// Group.
        gid: u64,
    },
    /// Two packages hold the same file.
    #[error("{path} is in package {first} and in package {second}: they can't be installed together")]
    Conflict {
        /// Where.
        path: String,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// Too many entries.
    #[error("package {package} has more than {MAX_ENTRIES} entries")]
    TooMany {
        /// Whose.
        package: String,
    },
}

/// A package that is about to be unpacked.
#[derive(Debug)]
pub struct Opened {
    /// The .deb.
    pub deb: File,
    /// Its control part.
    pub control: Control,
}

/// What already stands in the tree.
pub struct Existing<'a> {
    /// Where diverted paths go and which package diverted them, by path.
    pub diversions: HashMap<PathBuf, (PathBuf, String)>,
    /// Which installed package owns a path; asked only where a file is in the way.
    pub owners: &'a (dyn Fn() -> io::Result<HashMap<PathBuf, String>> + Sync),
}

/// The paths of one package, in the archive's order, as dpkg's `.list` files hold them: `/.`, `/usr`, `/usr/bin/x`.
pub type Listing = Vec<Vec<u8>>;

/// Unpacks `packages`; the listings come back in their order.
pub fn unpack(
    tree: &Tree,
    packages: &[Opened],
    existing: &Existing<'_>,
    threads: usize,
    wanted: &(dyn Fn(&Path) -> bool + Sync),
) -> Result<Vec<Listing>, Error> {
    let job = Job {
        tree,
        packages,
        existing,
        wanted,
        installed: Mutex::default(),
        files: Mutex::default(),
        new_folders: Mutex::default(),
        folders: Mutex::default(),
    };
    // The largest first, so that no thread is left alone with it at the end.
    let mut order: Vec<usize> = (0..packages.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(packages[index].deb.metadata().map_or(0, |meta| meta.len())));
    let next = AtomicUsize::new(0);
    let results: Mutex<BTreeMap<usize, Result<Listing, Error>>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, packages.len().max(1)) {
            scope.spawn(|| {
                while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = job.package(index);
                    if result.is_err() {
                        next.store(order.len(), Ordering::Relaxed);
                    }
                    lock(&results).insert(index, result);
                }
            });
        }
    });
    let listings =
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect::<Result<_, _>>()?;
    job.finish_folders()?;
    Ok(listings)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Job<'a> {
    tree: &'a Tree,
    packages: &'a [Opened],
    existing: &'a Existing<'a>,
    wanted: &'a (dyn Fn(&Path) -> bool + Sync),
    /// Read from the database once something is in the way.
    installed: Mutex<Option<HashMap<PathBuf, String>>>,
    /// Which package wrote a file.
    files: Mutex<HashMap<PathBuf, usize>>,
    /// Folders that were not there before.
    new_folders: Mutex<BTreeSet<PathBuf>>,
    /// What the packages say of their folders.
    folders: Mutex<BTreeMap<PathBuf, BTreeMap<usize, Attributes>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Attributes {
    const USUAL: Self = Self { mode: 0o755, uid: 0, gid: 0 };
}

/// The folder of the last entry, kept open: archives list folder after folder.
#[derive(Default)]
struct Parent(Option<(PathBuf, OwnedFd)>);

impl Job<'_> {
    fn package(&self, index: usize) -> Result<Listing, Error> {
        let Opened { deb, control } = &self.packages[index];
        let conffiles: BTreeSet<PathBuf> = control
            .lines("conffiles")
            .iter()
            .filter_map(|line| inside(line.split_whitespace().next_back()?.as_bytes()))
            .map(|path| merged(&path))
            .collect();
        let mut listing = Vec::new();
        let mut parent = Parent::default();
        let package = || control.package.clone();
        deb::data::<_, Outcome>(deb, |archive| {
            let mut long = LongNames::default();
            for entry in archive.entries()?.raw(true) {
                let mut entry = entry?;
                if long.take(&mut entry)? {
                    continue;
                }
                let (name, link) = (long.name.take(), long.link.take());
                let raw = name.unwrap_or_else(|| entry.path_bytes().into_owned());
                let link = link.unwrap_or_else(|| entry.link_name_bytes().unwrap_or_default().into_owned());
                let path = inside(&raw).ok_or_else(|| Error::Path { package: package(), path: lossy(&raw) })?;
                if listing.len() >= MAX_ENTRIES {
                    return Err(Error::TooMany { package: package() }.into());
                }
                listing.push(listed(&path));
                if path.as_os_str().is_empty() || !(self.wanted)(&merged(&path)) {
                    continue;
                }
                self.entry(index, &path, &link, &conffiles, &mut parent, &mut entry)?;
            }
            Ok(())
        })
        .map_err(|outcome| match outcome {
            Outcome::Deb(source) => Error::Deb { package: package(), source },
            Outcome::Unpack(error) => error,
        })?;
        Ok(listing)
    }

    fn entry(
        &self,
        index: usize,
        original: &Path,
        link: &[u8],
        conffiles: &BTreeSet<PathBuf>,
        parent: &mut Parent,
        entry: &mut tar::Entry<'_, &mut dyn Read>,
    ) -> Result<(), Outcome> {
        let package = &self.packages[index].control.package;
        let kind = entry.header().entry_type();
        let attributes = self.attributes(package, original, entry)?;
        let write = |source: io::Error| Error::Write { package: package.clone(), path: shown(original), source };
        if kind.is_symlink() && is_merged_link(original, link) {
            return Ok(());
        }
        let path = merged(original);
        if kind.is_dir() {
            self.make_folder(&path).map_err(write)?;
            lock(&self.folders).entry(path).or_default().insert(index, attributes);
            return Ok(());
        }
        let path = self.diverted(package, path);
        self.claim(index, &path)?;
        let mut target = path.clone();
        if conffiles.contains(&path) {
            target = with_suffix(&path, ".dpkg-new");
        }
        let (Some(name), Some(folder)) = (target.file_name(), target.parent()) else {
            return Err(Error::Path { package: package.clone(), path: shown(original) }.into());
        };
        let parent = match &mut parent.0 {
            Some((last, fd)) if last == folder => fd,
            slot => &mut slot.insert((folder.to_owned(), self.make_folder(folder).map_err(write)?)).1,
        };
        if self.tree_has(parent, name).map_err(write)? {
            self.replace(package, &path)?;
            tree::unlink(rustix::fd::AsFd::as_fd(parent), name).map_err(write)?;
        }
        let owner = (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
        if kind.is_symlink() {
            rustix::fs::symlinkat(link, &*parent, name).map_err(|e| write(e.into()))?;
            rustix::fs::chownat(&*parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| write(e.into()))?;
            let times = times(entry.header().mtime()?);
            rustix::fs::utimensat(&*parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| write(e.into()))?;
        } else if kind.is_hard_link() {
            let bad = || Error::Path { package: package.clone(), path: lossy(link) };
            let first = self.diverted(package, merged(&inside(link).ok_or_else(bad)?));
            let first = if conffiles.contains(&first) { with_suffix(&first, ".dpkg-new") } else { first };
            // Only to what this very package brought: anything else could be a file of another package or of a script.
            if lock(&self.files).get(&first) != Some(&index) {
                return Err(bad().into());
            }
            let from = self.tree.dir(first.parent().unwrap_or(Path::new("/"))).map_err(write)?;
            let from_name = first.file_name().ok_or_else(bad)?;
            rustix::fs::linkat(&from, from_name, &*parent, name, AtFlags::empty()).map_err(|e| write(e.into()))?;
        } else if kind.is_file() || kind.is_contiguous() {
            let mut file = tree::create(rustix::fd::AsFd::as_fd(parent), name).map_err(write)?;
            copy(entry, &mut file, write)?;
            // The mode comes last: changing the owner takes the set-id bits away.
            rustix::fs::fchown(&file, owner.0, owner.1).map_err(|e| write(e.into()))?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(attributes.mode)).map_err(|e| write(e.into()))?;
            rustix::fs::futimens(&file, &times(entry.header().mtime()?)).map_err(|e| write(e.into()))?;
        } else {
            let kind = char::from(kind.as_byte());
            return Err(Error::Kind { package: package.clone(), path: shown(original), kind }.into());
        }
        Ok(())
    }

    fn attributes(
        &self,
        package: &str,
        path: &Path,
        entry: &tar::Entry<'_, &mut dyn Read>,
    ) -> Result<Attributes, Outcome> {
        let (uid, gid) = (entry.header().uid()?, entry.header().gid()?);
        let id = |id: u64| u32::try_from(id).ok().filter(|_| id <= MAX_ID);
        match (id(uid), id(gid)) {
            (Some(uid), Some(gid)) => Ok(Attributes { mode: entry.header().mode()? & 0o7777, uid, gid }),
            _ => Err(Error::Owner { package: package.to_owned(), path: shown(path), uid, gid }.into()),
        }
    }

    fn make_folder(&self, path: &Path) -> io::Result<OwnedFd> {
        self.tree.create_dirs(path, &mut |new| {
            lock(&self.new_folders).insert(new.to_owned());
        })
    }

    fn tree_has(&self, parent: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<bool> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn diverted(&self, package: &str, path: PathBuf) -> PathBuf {
        match self.existing.diversions.get(&path) {
            Some((to, by)) if by != package => to.clone(),
            _ => path,
        }
    }

    /// Notes that this package writes `path`; two of them can't.
    fn claim(&self, index: usize, path: &Path) -> Result<(), Error> {
        match lock(&self.files).insert(path.to_owned(), index) {
            None => Ok(()),
            Some(other) => Err(Error::Conflict {
                path: shown(path),
                first: self.packages[index.min(other)].control.package.clone(),
                second: self.packages[index.max(other)].control.package.clone(),
            }),
        }
    }

    /// Something stands where this package wants to write: fine unless it is another package's.
    fn replace(&self, package: &str, path: &Path) -> Result<(), Error> {
        let mut installed = lock(&self.installed);
        let owners = match &mut *installed {
            Some(owners) => owners,
            none => none.insert((self.existing.owners)().map_err(|source| Error::Write {
                package: package.to_owned(),
                path: shown(path),
                source,
            })?),
        };
        match owners.get(path) {
            Some(first) if first != package => {
                Err(Error::Conflict { path: shown(path), first: first.clone(), second: package.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Gives new folders their owner and mode, whatever the order of unpacking was: the first package that asks for
    /// something else than the usual has its way.
    fn finish_folders(&self) -> Result<(), Error> {
        let new = lock(&self.new_folders);
        for (path, claims) in &*lock(&self.folders) {
            let special = claims.iter().find(|(_, attributes)| **attributes != Attributes::USUAL);
            let Some((&index, attributes)) = special.filter(|_| new.contains(path)) else {
                continue;
            };
            let apply = || -> io::Result<()> {
                let fd = self.tree.dir(path)?;
                let owner = (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
                rustix::fs::chownat(&fd, "", owner.0, owner.1, AtFlags::EMPTY_PATH)?;
                Ok(rustix::fs::chmodat(&fd, ".", Mode::from_raw_mode(attributes.mode), AtFlags::empty())?)
            };
            let package = || self.packages[index].control.package.clone();
            apply().map_err(|source| Error::Write { package: package(), path: shown(path), source })?;
        }
        Ok(())
    }
}

/// Two kinds of failure travel through [`deb::data`].
enum Outcome {
    Deb(deb::Error),
    Unpack(Error),
}

impl From<deb::Error> for Outcome {
    fn from(error: deb::Error) -> Self {
        Self::Deb(error)
    }
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        Self::Deb(error.into())
    }
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        Self::Unpack(error)
    }
}

/// Copies an entry; says whether the archive or the disk was at fault.
fn copy(entry: &mut impl Read, file: &mut File, write: impl Fn(io::Error) -> Error) -> Result<(), Outcome> {
    let mut buffer = [0; 1 << 16];
    loop {
        match entry.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => io::Write::write_all(file, &buffer[..read]).map_err(&write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn times(mtime: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(i64::MAX), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn shown(path: &Path) -> String {
    format!("/{}", path.display())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
