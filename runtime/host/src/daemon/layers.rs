//! The files under `layers/` of the data partition: fs-verity is switched on when a file is first met, and its
//! digest compared with the manifest's before any guest sees it. Reading is then checked by the kernel.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use rackstick_image::{
    digest::VerityDigest,
    manifest::{Blob, Image, Manifest},
};

use super::{data, verity};

/// Why a layer can't be used. The guests that need it fail with this text; the others go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there or can't be opened.
    #[error("layer {digest} ({label}) can't be opened: {source}; flash the image again or restore the data partition")]
    Open {
        /// The layer.
        digest: VerityDigest,
        /// What it is.
        label: String,
        /// The cause.
        source: io::Error,
    },
    /// Its size is not the manifest's.
    #[error("layer {digest} ({label}) has {found} bytes instead of {expected}: it was cut short when it was written")]
    Size {
        /// The layer.
        digest: VerityDigest,
        /// What it is.
        label: String,
        /// Bytes it has.
        found: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// fs-verity could not be switched on, or the file could not be read.
    #[error("layer {digest} ({label}) can't be protected by fs-verity: {source}")]
    Verity {
        /// The layer.
        digest: VerityDigest,
        /// What it is.
        label: String,
        /// The cause.
        source: io::Error,
    },
    /// Its bytes are not what its name says.
    #[error("layer {digest} ({label}) is corrupt: its measured digest is {found}")]
    Corrupt {
        /// The layer.
        digest: VerityDigest,
        /// What it is.
        label: String,
        /// What was measured.
        found: VerityDigest,
    },
}

/// Where a blob's file is.
pub fn path(digest: &VerityDigest) -> PathBuf {
    path_in(Path::new(data::MOUNT), digest)
}

/// Where a blob's file is on the data partition that is mounted at `base`.
pub fn path_in(base: &Path, digest: &VerityDigest) -> PathBuf {
    base.join("layers").join(digest.to_string())
}

/// All files an image needs, each once.
pub fn of_image(image: &Image) -> impl Iterator<Item = &Blob> {
    let disk = image.disk.iter().map(|disk| &disk.blob);
    [&image.kernel, &image.initrd].into_iter().chain(&image.layers).chain(disk)
}

/// All files the manifest's guests need, each once, in the order in which guests start.
pub fn of_guests(manifest: &Manifest) -> Vec<&Blob> {
    let mut seen = BTreeMap::new();
    let mut blobs = Vec::new();
    for guest in &manifest.guests {
        for blob in manifest.images.get(&guest.image).into_iter().flat_map(of_image) {
            if seen.insert(blob.digest, ()).is_none() {
                blobs.push(blob);
            }
        }
    }
    blobs
}

/// Makes sure that a blob's file is what the manifest says and stays so. Takes as long as reading it when fs-verity
/// is not on yet, else no time.
pub fn check(file: &Path, blob: &Blob) -> Result<(), Error> {
    let (digest, label) = (blob.digest, blob.label.clone());
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(source) => return Err(Error::Open { digest, label, source }),
    };
    let verity = |source| Error::Verity { digest, label: label.clone(), source };
    let found = opened.metadata().map_err(verity)?.len();
    if found != blob.size {
        return Err(Error::Size { digest, label, found, expected: blob.size });
    }
    if verity::measure(&opened).map_err(verity)?.is_none() {
        let started = Instant::now();
        verity::enable(&opened).map_err(verity)?;
        log::info!(
            "fs-verity switched on for {label} ({} MiB) in {:.1} s",
            found >> 20,
            started.elapsed().as_secs_f32()
        );
    }
    match verity::measure(&opened).map_err(verity)? {
        Some(found) if found == digest => Ok(()),
        Some(found) => Err(Error::Corrupt { digest, label, found }),
        None => Err(verity(io::Error::other("it was switched on, yet the file has no digest"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_is_missing_or_cut_short_is_named() {
        let blob = Blob { digest: VerityDigest([7; 32]), size: 8192, label: "base".into() };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("layer");
        let missing = check(&file, &blob).unwrap_err();
        assert!(matches!(missing, Error::Open { .. }), "{missing}");
        std::fs::write(&file, [0; 4096]).unwrap();
        let cut = check(&file, &blob).unwrap_err();
        assert!(matches!(cut, Error::Size { found: 4096, expected: 8192, .. }), "{cut}");
        for error in [missing, cut] {
            assert!(error.to_string().starts_with(&format!("layer {} (base) ", blob.digest)));
        }
    }
}
