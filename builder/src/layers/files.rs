//! The files that a recipe puts into an image: which ones there are, with which mode, and the hash of each.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use rackstick_image::{digest::Sha256, recipe::Owner};

use super::stage::protocol::{Content, Marked, PlacedFile};
use crate::hashed::Hashed;

/// Files that one entry of a recipe may bring: stops a source such as `/`.
const MAX_FILES: usize = 100_000;
/// Mode of files whose recipe names none. Not the source's own: that depends on the umask of whoever cloned it.
const FILE_MODE: u32 = 0o644;
/// Mode of folders.
const FOLDER_MODE: u32 = 0o755;

/// One entry of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecipeFile {
    /// Absolute path in the image.
    pub path: PathBuf,
    /// A file or folder of this machine.
    pub source: PathBuf,
    /// Permission bits of a file, or of all files in a folder; 0644 if none.
    pub mode: Option<u32>,
    /// The user that it and everything in it belongs to; root if none.
    pub owner: Option<Marked<Owner>>,
    /// The group that it and everything in it belongs to; root's if none.
    pub group: Option<Marked<Owner>>,
}

/// Why a recipe's file can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("the recipe's file {} can't be read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its place in the image is none.
    #[error("`{}` is no place for a file in an image: an absolute path without `..` is needed", .0.display())]
    Place(PathBuf),
    /// Devices, sockets.
    #[error("the recipe's file {} is neither a file nor a folder nor a symlink", .0.display())]
    Kind(PathBuf),
    /// Too many.
    #[error("the recipe's folder {} holds more than {MAX_FILES} files", .0.display())]
    TooMany(PathBuf),
}

/// Resolves a recipe's entries into single files, in their order; folders are taken whole, sorted. The second list is
/// what of them decides a layer's bytes: it does not say where on this machine they lie.
pub fn collect(entries: &[RecipeFile]) -> Result<(Vec<PlacedFile>, Vec<PlacedFile>), Error> {
    let mut placed = Vec::new();
    for entry in entries {
        let RecipeFile { path, source, .. } = entry;
        let fine = |component| matches!(component, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || path.file_name().is_none() || !path.components().all(fine) {
            return Err(Error::Place(path.clone()));
        }
        let read = |error| Error::Read { path: source.clone(), source: error };
        // The source itself may be a symlink; those inside of a folder stay what they are.
        let source = &fs::canonicalize(source).map_err(read)?;
        let end = placed.len() + MAX_FILES;
        add(&mut placed, end, path, source, entry)?;
    }
    let anywhere = placed.iter().cloned().map(|mut file| {
        if let Content::Copy { source, .. } = &mut file.content {
            source.clear();
        }
        file
    });
    let anywhere = anywhere.collect();
    Ok((placed, anywhere))
}

/// Copies a file of a recipe, as `write` writes it. It must still be what it was when it was hashed, for that decided
/// under which key the layer is kept.
pub fn copy(source: &Path, sha256: Sha256, write: &mut dyn FnMut(&mut dyn Read) -> io::Result<()>) -> io::Result<()> {
    let mut file = Hashed::new(File::open(source)?);
    write(&mut file)?;
    if file.finish() == sha256 {
        return Ok(());
    }
    Err(io::Error::other("it changed while the image was built: build it again"))
}

fn add(placed: &mut Vec<PlacedFile>, end: usize, path: &Path, source: &Path, entry: &RecipeFile) -> Result<(), Error> {
    let read = |error| Error::Read { path: source.to_owned(), source: error };
    if placed.len() >= end {
        return Err(Error::TooMany(source.to_owned()));
    }
    let kind = fs::symlink_metadata(source).map_err(read)?.file_type();
    let (content, own_mode) = if kind.is_dir() {
        (Content::Folder, FOLDER_MODE)
    } else if kind.is_symlink() {
        (Content::Symlink(fs::read_link(source).map_err(read)?), 0o777)
    } else if kind.is_file() {
        let sha256 = Sha256::of_file(source).map_err(read)?;
        (Content::Copy { source: source.to_owned(), sha256 }, entry.mode.unwrap_or(FILE_MODE))
    } else {
        return Err(Error::Kind(source.to_owned()));
    };
    let (owner, group) = (entry.owner.clone(), entry.group.clone());
    placed.push(PlacedFile { path: path.to_owned(), content, mode: own_mode, owner, group });
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(source).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(read)?;
        names.sort_by_key(fs::DirEntry::file_name);
        for name in names {
            add(placed, end, &path.join(name.file_name()), &name.path(), entry)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_is_taken_whole_and_sorted_and_known_by_content() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/y"), "1").unwrap();
        fs::write(dir.path().join("a"), "2").unwrap();
        symlink("a", dir.path().join("c")).unwrap();
        let entry =
            RecipeFile { path: "/srv/x".into(), source: dir.path().into(), mode: Some(0o600), ..RecipeFile::default() };
        let (placed, hashes) = collect(std::slice::from_ref(&entry)).unwrap();
        let paths: Vec<_> = placed.iter().map(|file| (file.path.to_str().unwrap(), file.mode)).collect();
        assert_eq!(
            paths,
            [("/srv/x", 0o755), ("/srv/x/a", 0o600), ("/srv/x/b", 0o755), ("/srv/x/b/y", 0o600), ("/srv/x/c", 0o777)]
        );
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir(copy.path().join("b")).unwrap();
        fs::write(copy.path().join("a"), "2").unwrap();
        symlink("a", copy.path().join("c")).unwrap();
        fs::write(copy.path().join("b/y"), "1").unwrap();
        let moved = RecipeFile { source: copy.path().into(), ..entry };
        assert_eq!(collect(std::slice::from_ref(&moved)).unwrap().1, hashes);
        fs::write(copy.path().join("b/y"), "3").unwrap();
        assert_ne!(collect(&[moved]).unwrap().1, hashes);
    }

    #[test]
    fn a_file_that_changed_since_it_was_hashed_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page");
        fs::write(&path, "one").unwrap();
        let mut seen = Vec::new();
        let mut copy = |sha256| {
            seen.clear();
            copy(&path, sha256, &mut |bytes| bytes.read_to_end(&mut seen).map(|_| ()))
        };
        copy(Sha256::of("one")).unwrap();
        let error = copy(Sha256::of("two")).unwrap_err();
        assert!(error.to_string().contains("changed while the image was built"), "{error}");
    }

    #[test]
    fn files_have_a_place_inside_the_image() {
        for path in ["etc/x", "/", "/etc/../x"] {
            let entry = RecipeFile { path: path.into(), source: "/etc/hostname".into(), ..RecipeFile::default() };
            assert!(matches!(collect(&[entry]), Err(Error::Place(_))), "{path}");
        }
    }
}
