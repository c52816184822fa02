//! What a build gives beside the disk image, named like it. All of it is made from the finished image and what it was made of, and
//! is written whole or not at all.

mod bmap;
mod compress;
mod copyright;
mod licences;
mod provenance;
mod purl;
mod sbom;

use std::{
    env,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
};

use rackstick_image::used::{self, UsedError};
use tempfile::NamedTempFile;
use thiserror::Error;

use crate::{generation::Inputs, package::PackageError, progress::Progress, sets};

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
    /// The program's own place is unknown.
    #[error("can't find out where this program stands: {0}")]
    Program(io::Error),
    /// A file can't be written.
    #[error("can't write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Takes away what an older build left under the image's name: it would tell of another image.
pub fn clear(image: &Path) -> Result<(), ArtifactError> {
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

/// Makes all of it; the compressed image only if it is asked for.
pub fn make(inputs: &Inputs, image: &Path, progress: &Progress) -> Result<(), ArtifactError> {
    let job = progress.spinner("describing", "disk image");
    let read = |source| ArtifactError::Read { path: image.to_owned(), source };
    let file = File::open(image).map_err(read)?;
    let used = used::of(&file).map_err(|source| ArtifactError::Used { image: image.to_owned(), source })?;
    // A hash of all is made by one thread; others do the rest meanwhile.
    let (sha256, map, copyrights) = thread::scope(|scope| {
        let sha256 = scope.spawn(|| provenance::hash(image));
        let map = bmap::text(&file, &used, inputs.jobs).map_err(read);
        let copyrights = copyright::texts(inputs.lock, inputs.packages, inputs.store, inputs.jobs);
        (sha256.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), map, copyrights)
    });
    let (sha256, map, copyrights) = (sha256?, map?, copyrights?);
    let name = image.file_name().unwrap_or_default().to_string_lossy();

    let runtime = inputs.runtime;
    let program = |name, set, path: &Path| Ok(sbom::Program { name, set, sha256: provenance::hash(path)? });
    let programs: Result<Vec<_>, ArtifactError> = [
        program("rackstick-host", sets::HOST, &runtime.host),
        program("rackstick-vmm", sets::HOST, &runtime.vmm),
        program("rackstick-guest", sets::KERNEL, &runtime.guest),
    ]
    .into_iter()
    .collect();
    let subject = sbom::Subject { image: &name, sha256, copyrights: &copyrights, programs: &programs? };
    let builder = provenance::hash(&env::current_exe().map_err(ArtifactError::Program)?)?;
    let statement = provenance::statement(inputs, &name, sha256, builder)?;
    write(&image.with_extension(MAP), map.as_bytes())?;
    write(&image.with_extension(SBOM), &json(&sbom::document(inputs, &subject))?)?;
    write(&image.with_extension(PROVENANCE), &json(&statement)?)?;
    job.done("disk image");

    if inputs.zst {
        let job = progress.bytes("compressing", &name, used.size);
        compress::write(image, &image.with_extension(COMPRESSED), inputs.jobs, |bytes| job.advance(bytes))?;
        job.done(&name);
    }
    Ok(())
}

fn json(document: &serde_json::Value) -> Result<Vec<u8>, ArtifactError> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    Ok(text)
}

/// Writes a file: whoever reads it meanwhile sees the old one or the new one.
pub fn write(path: &Path, content: &[u8]) -> Result<(), ArtifactError> {
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
fn finish(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}
