//! The copyright file of each package (Debian Policy, section 12.5), out of its .deb. What was found is kept in the
//! store, by the .deb's hash: finding it means unpacking all of it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use rackstick_image::{digest::Sha256, lock::Lock};
use serde::{Deserialize, Serialize};

use super::ArtifactError;
use crate::{package, parallel, store::Store};

/// Folder in the store; another format gets another number.
const FOLDER: &str = "store/copyright-2";
/// Packages whose file is another's, of which the file is another's, and so on: at most so many. Stops two that name
/// each other.
const MOST_LINKS: usize = 8;

/// What a package holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Found {
    /// The file's text.
    Text(String),
    /// It is that of another package of the same source.
    Of(String),
    /// None.
    Nothing,
}

/// Texts by the package's base and name.
pub type Texts = BTreeMap<(String, String), String>;

/// The text for each package of the lock that has one.
pub fn texts(lock: &Lock, store: &Store, jobs: usize) -> Result<Texts, ArtifactError> {
    let folder = store.folder().join(FOLDER);
    fs::create_dir_all(&folder).map_err(|source| ArtifactError::Write { path: folder.clone(), source })?;
    let packages: Vec<_> = lock.packages().collect();
    let found = parallel::each_by(jobs, &packages, |(base, name, package)| {
        let kept = folder.join(package.sha256.to_string());
        Ok(((base.as_str(), name.as_str()), cached(&kept, name, &store.unpacked(package.sha256))?))
    });
    let found: BTreeMap<(&str, &str), Found> = found.into_iter().collect::<Result<_, ArtifactError>>()?;
    let text = |(base, name): (&str, &str)| {
        let mut at = name;
        for _ in 0..MOST_LINKS {
            match found.get(&(base, at))? {
                Found::Text(text) => return Some(((base.to_owned(), name.to_owned()), text.clone())),
                Found::Of(other) => at = other,
                Found::Nothing => return None,
            }
        }
        None
    };
    Ok(found.keys().filter_map(|of| text(*of)).collect())
}

/// Whether what was found in all packages of the lock is kept, so that none is needed.
pub fn are_kept(lock: &Lock, store: &Store) -> bool {
    let folder = store.folder().join(FOLDER);
    lock.packages().all(|(_, _, package)| {
        let kept = fs::read(folder.join(package.sha256.to_string()));
        kept.is_ok_and(|bytes| whole(&bytes).is_some())
    })
}

/// Removes what is kept and is not what it was. Says which, and what can't be read or removed and was left.
pub fn verify(store: &Store) -> Vec<Result<PathBuf, ArtifactError>> {
    let folder = store.folder().join(FOLDER);
    let unread = |path: &Path| {
        let path = path.to_owned();
        move |source| ArtifactError::Read { path, source }
    };
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![Err(unread(&folder)(error))],
        Ok(entries) => entries,
    };
    let judge = |entry: io::Result<fs::DirEntry>| {
        let path = entry.map_err(unread(&folder))?.path();
        if understand(&fs::read(&path).map_err(unread(&path))?).is_some() {
            return Ok(None);
        }
        fs::remove_file(&path).map_err(|source| ArtifactError::Write { path: path.clone(), source })?;
        Ok(Some(path))
    };
    entries.filter_map(|entry| judge(entry).transpose()).collect()
}

/// What is kept of what was found: a line with the SHA-256 of the rest, which is JSON.
fn keep(found: &Found) -> Result<String, ArtifactError> {
    let text = serde_json::to_string(found)?;
    Ok(format!("{}\n{text}", Sha256::of(&text)))
}

/// What was found, of what is kept. None if that can't be understood.
fn understand(kept: &[u8]) -> Option<Found> {
    serde_json::from_str(whole(kept)?).ok()
}

/// The JSON in what is kept. None if it was cut off, or is not what it was.
fn whole(kept: &[u8]) -> Option<&str> {
    let (sum, rest) = std::str::from_utf8(kept).ok()?.split_once('\n')?;
    (Sha256::of(rest).to_string() == sum).then_some(rest)
}

fn cached(kept: &Path, name: &str, deb: &Path) -> Result<Found, ArtifactError> {
    match fs::read(kept) {
        Ok(bytes) => {
            if let Some(found) = understand(&bytes) {
                return Ok(found);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(ArtifactError::Read { path: kept.to_owned(), source }),
    }
    let found = find(name, deb)?;
    super::write(kept, keep(&found)?.as_bytes())?;
    Ok(found)
}

fn find(name: &str, deb: &Path) -> Result<Found, ArtifactError> {
    let folder = format!("usr/share/doc/{name}");
    let file = format!("{folder}/copyright");
    let contents = package::contents(deb, |path| path == folder || path == file)?;
    if let Some(text) = contents.files.get(&file) {
        return Ok(Found::Text(String::from_utf8_lossy(text).into_owned()));
    }
    // `usr/share/doc/libc-bin -> libc6`, or `copyright -> ../libc6/copyright`.
    let of_folder = contents.links.get(&folder).and_then(|target| target.rsplit('/').next());
    let of_file = contents.links.get(&file).and_then(|target| target.rsplit('/').nth(1));
    Ok(of_folder.or(of_file).map_or(Found::Nothing, |other| Found::Of(other.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_believed_only_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        fs::write(&kept, keep(&Found::Text("License: GPL-2".to_owned())).unwrap()).unwrap();
        let found = || cached(&kept, "a", Path::new("/nowhere.deb")).ok();
        assert_eq!(found(), Some(Found::Text("License: GPL-2".to_owned())));
        let damaged = fs::read_to_string(&kept).unwrap().replace("GPL-2", "MIT-9");
        fs::write(&kept, damaged).unwrap();
        assert_eq!(found(), None, "the package is asked, which is nowhere");
    }
}
