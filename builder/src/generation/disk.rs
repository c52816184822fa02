//! What goes onto the disk: boot loader and UKI on the ESP, the generation's files on the data partition.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rackstick_image::{
    digest::Sha256,
    disk::{self, Disk},
    esp::EspFile,
    ext4::{self, Data, DataFile, Measured},
    guid::{self, Guid},
    manifest::Manifest,
    recipe::Rack,
    secrets,
    sector::SectorSize,
    source::{Source, SourceError},
};
use rustix::fs::Advice;
use thiserror::Error;

use super::{
    Inputs,
    finished::Stamps,
    images::{BlobFile, Blobs},
    uki::Uki,
};
use crate::{
    artifacts::{self, ArtifactError},
    image::{self, ImageError},
    progress::Progress,
};

/// The loader shows no menu: there is one host, or the newest that has tries left is right.
const LOADER_CONF: &str = "timeout 0\neditor no\n";
/// Blobs are never written again.
const BLOB_MODE: u16 = 0o444;
const MANIFEST_MODE: u16 = 0o444;
const FOLDER_MODE: u16 = 0o755;
/// Only the daemon looks into these.
const PRIVATE_MODE: u16 = 0o700;

/// Why there is no disk image. Nothing is left under its name.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The image.
    #[error(transparent)]
    Disk(#[from] disk::DiskError),
    /// A file that goes onto it.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The manifest can't be turned into JSON.
    #[error("can't write the manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// It would be lost.
    #[error(
        "{} holds what a rack wrote, which a new image would replace: its identity and its guests' volumes (it was run with \
         --persist). Build into another folder with -o DIR, or delete it first",
        .0.display()
    )]
    Used(PathBuf),
    /// It may be lost.
    #[error("{} may hold what a rack wrote ({why}). Build into another folder with -o DIR, or delete it first", .path.display())]
    Unclear {
        /// The image that is there.
        path: PathBuf,
        /// Why that is not known.
        why: String,
    },
    /// The finished image can't be looked at.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The manifest beside the image.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// Where the image goes. One for other sectors than 512 bytes says so in its name: a disk of the wrong kind shows it as
/// empty.
pub fn path(output: &Path, rack: &str, version: &str, sector: SectorSize) -> PathBuf {
    let suffix = match sector {
        SectorSize::B512 => "",
        SectorSize::B4096 => "_4kn",
    };
    output.join(format!("{rack}_{version}{suffix}.img"))
}

/// Takes the place of the new image, for which another build that has it is waited. Refuses to replace an image on
/// which a rack has run.
pub fn take_place(
    output: &Path,
    rack: &Rack,
    sector: SectorSize,
    progress: &Progress,
) -> Result<disk::Place, DiskError> {
    let path = path(output, &rack.name, &rack.version, sector);
    not_used(path.clone())?;
    let waiting = || progress.say(&format!("waiting for another build, which makes {}", path.display()));
    Ok(disk::Place::take(&path, waiting)?)
}

/// Gives the memory back that the kernel keeps the old image in, for the new one: nobody will read it again.
pub fn forget(output: &Path, rack: &Rack, sector: SectorSize) {
    if let Ok(image) = File::open(path(output, &rack.name, &rack.version, sector)) {
        // Without it the same happens when it is deleted, while somebody waits for it.
        _ = rustix::fs::fadvise(&image, 0, None, Advice::DontNeed);
    }
}

fn not_used(path: PathBuf) -> Result<(), DiskError> {
    let unclear = |why: String| DiskError::Unclear { path: path.clone(), why };
    let disk = match image::Disk::open(&path) {
        Ok(disk) => disk,
        // What is not there, or no image, holds nothing of a rack's.
        Err(ImageError::NoTable(_)) => return Ok(()),
        Err(ImageError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unclear(error.to_string())),
    };
    let parts = image::Parts::find(&disk).map_err(|error| unclear(error.to_string()))?;
    let parts = parts.map_err(|fault| unclear(fault.to_string()))?;
    match ext4::read::was_mounted(&parts.data) {
        Ok(false) => Ok(()),
        Ok(true) => Err(DiskError::Used(path)),
        Err(error) => Err(unclear(error.to_string())),
    }
}

/// An image that was written, and its manifest.
pub struct Written {
    /// The image.
    pub image: PathBuf,
    /// What it takes on this disk, in bytes.
    pub allocated: u64,
    /// Its hash.
    pub sha256: Sha256,
    /// Its block map.
    pub map: String,
    /// Both files, as they were when they were written.
    pub stamps: Stamps,
    /// The image that was there before, which has no name any more. To free what it takes is a matter of a tenth of a
    /// second, for which nobody has to wait.
    pub replaced: Option<File>,
    /// What keeps other builds of it waiting.
    pub held: File,
}

/// Writes `<rack>_<version>.img` to its `place`, and its manifest beside it.
pub fn write(
    inputs: &Inputs,
    place: disk::Place,
    manifest: &Manifest,
    partition: Guid,
    uki: Uki,
    blobs: &Blobs,
    epoch: u32,
) -> Result<Written, DiskError> {
    let (rack, version, sector) = (&manifest.rack, &manifest.version, inputs.sector);
    let guid = |what: &str| guid::derive(&[what.as_bytes(), rack.as_bytes(), version.as_bytes()]);
    let json = serde_json::to_vec_pretty(manifest)?;
    let bytes = |content: Vec<u8>| Source::Bytes(content).into();
    let esp = [
        ("EFI/BOOT/BOOTX64.EFI".to_owned(), bytes(uki.loader)),
        ("loader/loader.conf".to_owned(), bytes(LOADER_CONF.into())),
        (format!("EFI/Linux/rackstick_{version}.efi"), uki.content),
        // Of every image, also one whose guests want none: those of a later generation may.
        (secrets::SLOT.to_owned(), bytes(vec![0; secrets::SLOT_SIZE as usize])),
    ];
    let mut files = BTreeMap::new();
    for (digest, BlobFile { path, kept }) in blobs {
        let verity = Some(Measured { digest: *digest, kept: kept.clone() });
        files.insert(format!("layers/{digest}"), DataFile { mode: BLOB_MODE, source: Source::file(path)?, verity });
    }
    files.insert(
        format!("generations/{version}/manifest.json"),
        DataFile { mode: MANIFEST_MODE, source: Source::Bytes(json.clone()), verity: None },
    );
    let folders = [
        ("layers", FOLDER_MODE),
        ("generations", FOLDER_MODE),
        ("volumes", PRIVATE_MODE),
        ("state", PRIVATE_MODE),
        ("log", PRIVATE_MODE),
    ];
    let volume_id = guid("ESP volume");
    let disk = Disk {
        sector,
        guid: guid("disk"),
        esp_guid: guid("ESP"),
        esp_volume_id: u32::from_le_bytes([volume_id.0[0], volume_id.0[1], volume_id.0[2], volume_id.0[3]]),
        esp: esp.into_iter().map(|(path, content)| EspFile { path, content }).collect(),
        data_guid: partition,
        data: Data {
            uuid: guid("data file system"),
            label: "rackstick-data".to_owned(),
            epoch: i64::from(epoch),
            directories: folders.map(|(path, mode)| (path.to_owned(), mode)).into(),
            files,
        },
    };

    let image = place.path().to_owned();
    // A rack may have been started on it meanwhile.
    not_used(image.clone())?;
    let replaced = File::open(&image).ok();
    let (written, read) = place.write(&disk, |growing| artifacts::follow(inputs, &image, growing))?;
    artifacts::clear(&image)?;
    let (sha256, map) = read?;
    let beside = image.with_extension("json");
    let stamp = artifacts::write(&beside, &json)?;
    let failed = |source| DiskError::Read { path: image.clone(), source };
    let metadata = written.file.metadata().map_err(failed)?;
    let allocated = metadata.blocks() * 512;
    let stamps = Stamps::from([(image.clone(), metadata.into()), (beside, stamp)]);
    Ok(Written { image, allocated, sha256, map, stamps, replaced, held: written.file })
}
