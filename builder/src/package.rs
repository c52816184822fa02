//! Files out of a .deb whose bytes were checked against the lock, into memory.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::layers::deb;

/// The most one file may hold; the largest of Debian's kernel packages is below 16 MiB. Stops a package that would fill
/// memory.
const MAX_FILE: u64 = 256 << 20;
/// The most the files taken from one package may hold, for the same reason; those of Debian's kernel are below 128 MiB.
const MAX_FILES: u64 = 1 << 30;

/// Why a package can't be read.
#[derive(Debug, Error)]
pub enum PackageError {
    /// The .deb can't be opened.
    #[error("the package {} can't be read: {source}", .package.display())]
    Read {
        /// The package's file.
        package: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The .deb's content.
    #[error("the package {} {source}", .package.display())]
    Deb {
        /// The package's file.
        package: PathBuf,
        /// What is wrong with it.
        source: deb::Error,
    },
    /// More than memory should hold.
    #[error("the package {} is larger than any of Debian's: {file} has {size} bytes", .package.display())]
    TooLarge {
        /// The package's file.
        package: PathBuf,
        /// The file in it.
        file: String,
        /// Its size in bytes.
        size: u64,
    },
}

/// What is taken out of a package, by path without the leading `./`.
#[derive(Default)]
pub struct Contents {
    /// Regular files.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Symbolic links and their targets, as they stand there. A hard link is one whose target begins with `/`.
    pub links: BTreeMap<String, String>,
}

/// The regular files of a package whose path `wanted` accepts.
pub fn files(package: &Path, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>, PackageError> {
    Ok(contents(package, wanted)?.files)
}

/// The files and links of a package whose path `wanted` accepts.
pub fn contents(package: &Path, wanted: impl Fn(&str) -> bool) -> Result<Contents, PackageError> {
    let read = |source| PackageError::Read { package: package.to_owned(), source };
    let broken = |source| PackageError::Deb { package: package.to_owned(), source };
    let file = File::open(package).map_err(read)?;
    let mut found = Contents::default();
    let mut room = MAX_FILES;
    let mut too_large = None;
    deb::data(&file, |archive| {
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let path = path.trim_start_matches("./");
            if !wanted(path) {
                continue;
            }
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                let target = if kind.is_symlink() { target } else { format!("/{}", target.trim_start_matches("./")) };
                found.links.insert(path.to_owned(), target);
            } else if kind.is_file() {
                let size = entry.size();
                if size > MAX_FILE || size > room {
                    too_large = Some((path.to_owned(), size));
                    break;
                }
                room -= size;
                let mut content = Vec::with_capacity(size as usize);
                entry.read_to_end(&mut content)?;
                found.files.insert(path.to_owned(), content);
            }
        }
        Ok(())
    })
    .map_err(broken)?;
    match too_large {
        Some((file, size)) => Err(PackageError::TooLarge { package: package.to_owned(), file, size }),
        None => Ok(found),
    }
}
