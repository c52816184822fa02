//! Where an image's files are: in a folder, or in an archive, from which they are read where they lie.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, symlink},
    },
    path::{Component, Path, PathBuf},
};

use rackstick_image::digest::Sha256;
use rustix::fs::OFlags;

use super::OciError;
use crate::{
    from::{
        spool::{self, SpoolError},
        tar::{Entries, Kind, TarError},
    },
    layers::paths::inside,
};

/// Bytes of a manifest, an index or a configuration at most: what registries take (Distribution Specification 1.1).
pub const MAX_TEXT_BYTES: u64 = 4 << 20;

/// A folder or an archive.
#[derive(Debug)]
pub enum Place {
    /// A layout folder.
    Folder(PathBuf),
    /// A plain tar archive.
    Archive {
        /// The archive.
        path: PathBuf,
        /// Where its files begin and how long they are, by path.
        files: HashMap<Vec<u8>, (u64, u64)>,
    },
}

impl Place {
    /// Opens the folder or archive `path`; a compressed one is unpacked into `scratch`.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, OciError> {
        let read = |source| OciError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let mut begin = Vec::new();
        File::open(path).and_then(|file| file.take(512).read_to_end(&mut begin)).map_err(read)?;
        let plain = match begin.get(257..262) {
            Some(b"ustar") => path.to_owned(),
            _ => spool::spool(File::open(path).map_err(read)?, scratch.join("archive"))?.path,
        };
        let file = File::open(&plain).map_err(read)?;
        let mut entries = Entries::new(BufReader::new(file)).map_err(TarError::Read)?;
        let (mut files, mut links) = (HashMap::new(), Vec::new());
        while let Some(entry) = entries.next()? {
            let Some(name) = inside(&entry.path).map(|name| name.as_os_str().as_bytes().to_vec()) else { continue };
            match entry.kind {
                Kind::File { offset, size } => _ = files.insert(name, (offset, size)),
                Kind::Symlink => links.push((name, entry.link)),
                _ => {}
            }
        }
        // `docker save` names a layer that it has already by a link from folder to folder.
        for (name, target) in links {
            let folder = name.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &name[..slash]);
            let target = match target.strip_prefix(b"../") {
                Some(above) if !folder.contains(&b'/') => above.to_vec(),
                _ if folder.is_empty() => target,
                _ => [folder, b"/", &target].concat(),
            };
            if let Some(found) = files.get(&target).copied() {
                files.insert(name, found);
            }
        }
        Ok(Self::Archive { path: plain, files })
    }

    /// An image whose blobs are files in the folder `blobs`, each named by its hash, as the store has them: a layout in
    /// `scratch` leads there.
    pub fn of_blobs(blobs: &Path, manifest: Sha256, scratch: &Path) -> Result<Self, OciError> {
        let folder = scratch.join("layout");
        let index = serde_json::json!({ "manifests": [{ "digest": format!("sha256:{manifest}") }] });
        let make = || -> io::Result<()> {
            std::fs::create_dir_all(folder.join("blobs"))?;
            symlink(blobs, folder.join("blobs/sha256"))?;
            std::fs::write(folder.join("index.json"), index.to_string())
        };
        make().map_err(|source| SpoolError::Write { path: folder.clone(), source })?;
        Ok(Self::Folder(folder))
    }

    /// Opens one of its files: a reader of its bytes, and how many there are. None if it is not there.
    pub fn file(&self, name: &str) -> Result<Option<(io::Take<File>, u64)>, OciError> {
        match self {
            Self::Folder(folder) => {
                // Names stand in documents that anybody may have written.
                if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
                    return Ok(None);
                }
                let path = folder.join(name);
                let read = |source| OciError::Read { path: path.clone(), source };
                // A pipe is not waited for, and a link may lead anywhere.
                let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
                match File::options().read(true).custom_flags(flags).open(&path) {
                    Ok(file) => {
                        let metadata = file.metadata().map_err(read)?;
                        Ok(metadata.is_file().then(|| (file.take(metadata.len()), metadata.len())))
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(read(error)),
                }
            }
            Self::Archive { path, files } => {
                let Some(&(offset, size)) = files.get(name.as_bytes()) else { return Ok(None) };
                let read = |source| OciError::Read { path: path.clone(), source };
                let mut file = File::open(path).map_err(read)?;
                file.seek(SeekFrom::Start(offset)).map_err(read)?;
                Ok(Some((file.take(size), size)))
            }
        }
    }

    /// A short text, if it is there.
    pub fn text(&self, name: &str) -> Result<Option<Vec<u8>>, OciError> {
        let Some((mut file, size)) = self.file(name)? else { return Ok(None) };
        if size > MAX_TEXT_BYTES {
            return Err(OciError::TooLarge { what: format!("`{name}`"), most: MAX_TEXT_BYTES });
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|source| OciError::Read { path: PathBuf::from(name), source })?;
        Ok(Some(bytes))
    }

    /// A short text of this hash.
    pub fn blob(&self, digest: Sha256) -> Result<Vec<u8>, OciError> {
        let name = blob(digest);
        let bytes = self.text(&name)?.ok_or_else(|| OciError::Missing { what: format!("`{name}`") })?;
        let found = Sha256::of(&bytes);
        if found == digest { Ok(bytes) } else { Err(OciError::Hash { what: format!("`{name}`"), found }) }
    }
}

/// Where a layout has the blob of this hash.
pub fn blob(digest: Sha256) -> String {
    format!("blobs/sha256/{digest}")
}
