//! What a build gives beside the disk image, named like it. All of it is made from the image, partly while that is
//! written, and what it was made of, and is written whole or not at all.

mod bmap;
mod compress;
mod copyright;
mod licences;
mod provenance;
mod purl;
mod sbom;

use std::{
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    panic,
    path::{Path, PathBuf},
    thread,
};

use rackstick::stamp::Stamp;
use rackstick_image::{
    digest::Sha256,
    disk::Growing,
    used::{self, UsedError},
};
use serde_json::Value;
use tempfile::NamedTempFile;
use thiserror::Error;

pub use copyright::{are_kept as copyrights_are_kept, verify as verify_copyrights};
pub use provenance::made_of;

use crate::{generation::Inputs, package::PackageError, parallel, progress::Progress, sets};

/// Suffixes of all that is made, in place of the image's `.img`.
const MAP: &str = "bmap";
const COMPRESSED: &str = "img.zst";
const SBOM: &str = "spdx.json";
const PROVENANCE: &str = "provenance.json";

/// Why something can't be made. The image itself is whole then.
#[derive(Debug, Error)]
pub enum ArtifactError {
    /// The image can't be read.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image is not what it must be.
    #[error("can't map {}: {source}", .image.display())]
    Used {
        /// The image.
        image: PathBuf,
        /// Why.
        source: UsedError,
    },
    /// A package can't be read.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A document can't be turned into JSON.
    #[error("can't describe the image: {0}")]
    Json(#[from] serde_json::Error),
    /// A file can't be written.
    #[error("can't write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Takes away what tells of an image that is no longer what it was: what has its name, wherever links to it are. Beside
/// a file that is not called as a build calls images, nothing is a build's.
pub fn clear(image: &Path) -> Result<(), ArtifactError> {
    let image = fs::canonicalize(image).map_err(|source| ArtifactError::Read { path: image.to_owned(), source })?;
    if image.extension().is_none_or(|extension| extension != "img") {
        return Ok(());
    }
    for path in [MAP, COMPRESSED, SBOM, PROVENANCE].map(|suffix| image.with_extension(suffix)) {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ArtifactError::Write { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is read of an image while it is written: its hash and its block map.
pub fn follow(inputs: &Inputs, path: &Path, image: &Growing) -> Result<(Sha256, String), ArtifactError> {
    let failed = |source| ArtifactError::Read { path: path.to_owned(), source };
    let (sha256, map) = thread::scope(|scope| {
        // Only one thread can do that.
        let sha256 = scope.spawn(|| image.sha256());
        let map = map(inputs, path, image);
        (sha256.join().unwrap_or_else(|panic| panic::resume_unwind(panic)), map)
    });
    Ok((sha256.map_err(failed)?, map?))
}

fn map(inputs: &Inputs, path: &Path, image: &Growing) -> Result<String, ArtifactError> {
    let failed = |source| ArtifactError::Read { path: path.to_owned(), source };
    image.wait_for_tables().map_err(failed)?;
    let used = used::of(&image.file).map_err(|source| ArtifactError::Used { image: path.to_owned(), source })?;
    bmap::text(image, &used, inputs.jobs.saturating_sub(1).max(1)).map_err(failed)
}

/// The SBOM as far as it can be told before the image is there.
pub fn draft(inputs: &Inputs) -> Result<sbom::Draft, ArtifactError> {
    let copyrights = copyright::texts(inputs.lock, inputs.store, inputs.jobs)?;
    let runtime = inputs.runtime;
    let program = |name, set, path: &Path| Ok(sbom::Program { name, set, sha256: provenance::hash(path)? });
    let programs: Result<Vec<_>, ArtifactError> = [
        program("rackstick-host", sets::HOST, &runtime.host),
        program("rackstick-vmm", sets::HOST, &runtime.vmm),
        program("rackstick-guest", sets::KERNEL, &runtime.guest),
    ]
    .into_iter()
    .collect();
    Ok(sbom::draft(inputs.lock, &copyrights, &programs?))
}

/// Makes all of it; the compressed image only if it is asked for. `made_of` is what [`made_of`] said, `draft` is that
/// of [`draft`], `sha256` and `map` what [`follow`] did. Says what it wrote.
pub fn make(
    inputs: &Inputs,
    made_of: &Value,
    draft: sbom::Draft,
    image: &Path,
    map: &str,
    sha256: Sha256,
    progress: &Progress,
) -> Result<Vec<(PathBuf, Stamp)>, ArtifactError> {
    let job = progress.spinner("describing", "disk image");
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let files = [
        (MAP, map.as_bytes().to_vec()),
        (SBOM, json(&sbom::document(inputs, draft, &name, sha256))?),
        (PROVENANCE, json(&provenance::statement(made_of, &name, sha256))?),
    ];
    // Each waits for the disk, and all for the same one.
    let written = parallel::each_by(files.len(), &files, |(suffix, content)| {
        let path = image.with_extension(suffix);
        write(&path, content).map(|stamp| (path, stamp))
    });
    let mut stamps = written.into_iter().collect::<Result<Vec<_>, _>>()?;
    job.done("disk image");

    if inputs.zst {
        let size = fs::metadata(image).map_err(|source| ArtifactError::Read { path: image.to_owned(), source })?.len();
        let job = progress.bytes("compressing", &name, size);
        let path = image.with_extension(COMPRESSED);
        let stamp = compress::write(image, &path, inputs.jobs, |bytes| job.advance(bytes))?;
        stamps.push((path, stamp));
        job.done(&name);
    }
    Ok(stamps)
}

fn json(document: &serde_json::Value) -> Result<Vec<u8>, ArtifactError> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    Ok(text)
}

/// Writes a file: whoever reads it meanwhile sees the old one or the new one.
pub fn write(path: &Path, content: &[u8]) -> Result<Stamp, ArtifactError> {
    let failed = |source| ArtifactError::Write { path: path.to_owned(), source };
    let mut file = beside(path).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    finish(file, path).map_err(failed)
}

/// A file in the folder of `path`, gone if it is not finished.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    NamedTempFile::new_in(folder)
}

/// Gives a file its name once it is on disk.
fn finish(file: NamedTempFile, path: &Path) -> io::Result<Stamp> {
    file.as_file().sync_all()?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    Ok(file.persist(path)?.metadata()?.into())
}
