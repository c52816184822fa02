//! The copyright file of each package (Debian Policy, section 12.5), out of its .deb. What was found is kept in the store, by the .deb's hash:
//! finding it means unpacking all of it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use rackstick_image::lock::Lock;
use serde::{Deserialize, Serialize};

use super::ArtifactError;
use crate::{package, parallel, store::Store};

/// Folder in the store; another format gets another number.
const FOLDER: &str = "store/copyright-1";
/// Packages whose file is another's, of which the file is another's, and so on: at most so many. Stops two that name each other.
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

/// The text for each package of the lock that has one, by the package's name.
pub fn texts(
    lock: &Lock,
    debs: &BTreeMap<String, PathBuf>,
    store: &Store,
    jobs: usize,
) -> Result<BTreeMap<String, String>, ArtifactError> {
    let folder = store.folder().join(FOLDER);
    fs::create_dir_all(&folder).map_err(|source| ArtifactError::Write { path: folder.clone(), source })?;
    let packages: Vec<(&String, &PathBuf)> =
        debs.iter().filter(|(name, _)| lock.packages.contains_key(*name)).collect();
    let found = parallel::each_by(jobs, &packages, |(name, deb)| {
        let kept = folder.join(lock.packages[*name].sha256.to_string());
        Ok((name.as_str(), cached(&kept, name, deb)?))
    });
    let found: BTreeMap<&str, Found> = found.into_iter().collect::<Result<_, ArtifactError>>()?;
    let text = |name: &str| {
        let mut at = name;
        for _ in 0..MOST_LINKS {
            match found.get(at)? {
                Found::Text(text) => return Some((name.to_owned(), text.clone())),
                Found::Of(other) => at = other,
                Found::Nothing => return None,
            }
        }
        None
    };
    Ok(found.keys().filter_map(|name| text(name)).collect())
}

/// Whether what was found in all packages of the lock is kept, so that none is needed.
pub fn are_kept(lock: &Lock, store: &Store) -> bool {
    let folder = store.folder().join(FOLDER);
    lock.packages.values().all(|package| folder.join(package.sha256.to_string()).exists())
}

fn cached(kept: &Path, name: &str, deb: &Path) -> Result<Found, ArtifactError> {
    match fs::read(kept) {
        // What can't be understood was cut off, and is found again.
        Ok(bytes) => {
            if let Ok(found) = serde_json::from_slice(&bytes) {
                return Ok(found);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(ArtifactError::Read { path: kept.to_owned(), source }),
    }
    let found = find(name, deb)?;
    super::write(kept, &serde_json::to_vec(&found)?)?;
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
