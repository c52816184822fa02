//! Tidying the store up: what no build has used for long goes, and so does what is no longer what its name says. Only
//! for a store that was opened alone: then whatever a build keeps for itself was left by one that was killed.

use std::{
    collections::BTreeSet,
    fs::{self, DirEntry, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rackstick::layers::deb;
use rackstick_image::digest::Sha256;

use super::{SCRATCH, Store, StoreError, THREADS, unpacked};
use crate::parallel::each_by;

/// How many things went, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Packages, and archives' indexes.
    pub files: usize,
    /// Files that were fetched in part.
    pub partial: usize,
    /// What builds that were killed had for themselves.
    pub leftovers: usize,
}

/// A file of the store that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// Name and version of the package that it was, as far as they can still be read.
    pub package: Option<(String, String)>,
}

impl Store {
    /// Removes files that were last used before `before` (seconds since 1970) and that are not to be kept, and what
    /// killed builds left. With `pretend` nothing goes, and what would go is counted.
    pub fn sweep(&self, keep: &BTreeSet<Sha256>, before: i64, pretend: bool) -> Result<Swept, StoreError> {
        let old = |entry: &DirEntry| Ok(entry.metadata()?.mtime() < before);
        let unneeded = |entry: &DirEntry| {
            let name = entry.file_name();
            let kept = name.to_str().and_then(|name| name.parse().ok()).is_some_and(|hash| keep.contains(&hash));
            Ok(!kept && old(entry)?)
        };
        let left = |entry: &DirEntry| Ok(entry.file_name().as_encoded_bytes().starts_with(SCRATCH.as_bytes()));
        // Not counted: each is of a package that is.
        remove(&self.all_unpacked(), unneeded, pretend)?;
        Ok(Swept {
            files: remove(&self.files(), unneeded, pretend)?,
            partial: remove(&self.partial(), old, pretend)?,
            leftovers: remove(self.folder(), left, pretend)?,
        })
    }

    /// Hashes every file anew and removes those that are damaged. Says how many there were, which went, and which can't
    /// be read or removed and were left.
    pub fn verify(&self) -> (usize, Vec<Result<Damaged, StoreError>>) {
        let files = self.judge(&self.files(), |path, hash| Ok(Sha256::of_file(path)? == hash));
        let unpacked = self.judge(&self.all_unpacked(), unpacked::is_whole);
        (files.len(), files.into_iter().chain(unpacked).filter_map(Result::transpose).collect())
    }

    /// Removes what in a folder is not `whole`; each file is named by a hash. One entry for each file.
    fn judge(
        &self,
        folder: &Path,
        whole: impl Fn(&Path, Sha256) -> io::Result<bool> + Sync,
    ) -> Vec<Result<Option<Damaged>, StoreError>> {
        let mut files = Vec::new();
        match entries(folder) {
            Err(error) => return vec![Err(error)],
            Ok(entries) => {
                for entry in entries {
                    let named = entry.file_name().to_str().and_then(|name| name.parse::<Sha256>().ok());
                    files.extend(named.map(|hash| (hash, entry.path())));
                }
            }
        }
        each_by(THREADS, &files, |(hash, path)| {
            let judge = || {
                if whole(path, *hash)? {
                    return Ok(None);
                }
                let package = self.package(*hash);
                fs::remove_file(path)?;
                Ok(Some(Damaged { path: path.clone(), package }))
            };
            judge().map_err(|source| StoreError::Io { path: path.clone(), source })
        })
    }

    /// Name and version of a package, one of whose files is damaged. As it came first: packed, it seldom reads as what it
    /// is not.
    fn package(&self, hash: Sha256) -> Option<(String, String)> {
        let paths = [self.path(hash), self.unpacked(hash)];
        let control = paths.iter().find_map(|path| deb::control(&File::open(path).ok()?).ok())?;
        let version = control.paragraph.lines().find_map(|line| line.strip_prefix("Version:"))?.trim();
        // It goes to a terminal.
        version.bytes().all(|byte| byte.is_ascii_graphic()).then(|| (control.package, version.to_owned()))
    }
}

/// Removes what in a folder is to go, or only counts it.
fn remove(folder: &Path, goes: impl Fn(&DirEntry) -> io::Result<bool>, pretend: bool) -> Result<usize, StoreError> {
    let mut count = 0;
    for entry in entries(folder)? {
        let path = entry.path();
        let removed = goes(&entry).and_then(|goes| {
            if goes && !pretend {
                if entry.file_type()?.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
            }
            Ok(goes)
        });
        count += usize::from(removed.map_err(|source| StoreError::Io { path, source })?);
    }
    Ok(count)
}

fn entries(folder: &Path) -> Result<Vec<DirEntry>, StoreError> {
    let read = || fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>();
    read().map_err(|source| StoreError::Io { path: folder.to_owned(), source })
}
