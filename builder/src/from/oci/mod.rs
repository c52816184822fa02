//! OCI images as they are kept in files: a layout folder, the same as a tar archive, or an archive of `docker save`.
//! Follows the OCI Image Format Specification 1.1 (image-layout, image-index, manifest, config). Every blob's hash is
//! checked.

mod format;
mod image;
mod place;

pub use format::{Config, ImageConfig};
pub use image::{Image, Named, find, named};
pub use place::{MAX_TEXT_BYTES, Place};

use std::{io, path::PathBuf};

use rackstick_image::digest::Sha256;

use super::{build::ArchiveError, spool::SpoolError, tar::TarError};

impl OciError {
    /// Whether not the image is at fault but the disk that it is unpacked to.
    pub fn is_of_our_disk(&self) -> bool {
        matches!(self, Self::Spool(SpoolError::Write { .. }))
    }
}

/// Why an image can't be had.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The system.
    #[error("can't be read: {}: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It can't be unpacked.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// It is no archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// Neither of the known kinds.
    #[error("holds no OCI image: there is neither an index nor a manifest")]
    NoImage,
    /// Text that is not what it must be.
    #[error("holds a damaged image: {what} is no valid {kind}: {source}")]
    Json {
        /// What.
        what: String,
        /// As what.
        kind: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
    /// A blob that is not there.
    #[error("lacks {what}, which the image names: copy the whole image anew")]
    Missing {
        /// What.
        what: String,
    },
    /// A blob that is not what its name says.
    #[error("is damaged: {what} has the hash {found} or another size; copy the image anew")]
    Hash {
        /// What.
        what: String,
        /// Its own.
        found: Sha256,
    },
    /// A digest of another kind.
    #[error(
        "names something by the digest `{0}`: only those of the form `sha256:` and 64 hexadecimal digits are known"
    )]
    Digest(String),
    /// Text that is too long.
    #[error("is no sound image: {what} has more than {most} bytes")]
    TooLarge {
        /// What.
        what: String,
        /// How many are accepted.
        most: u64,
    },
    /// Too many layers or images.
    #[error("is no sound image: it names more than {most} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are accepted.
        most: usize,
    },
    /// None for this kind of machine.
    #[error("holds no image for linux/amd64, only for {0}: copy that one")]
    Platform(String),
    /// Several.
    #[error("holds {} images for linux/amd64 ({}): copy the one that is meant into an archive of its own", .0.len(), .0.join(", "))]
    Several(Vec<String>),
    /// A layer of another kind.
    #[error("has a layer of the type `{0}`, which is no archive of files")]
    LayerType(String),
    /// Layers and their hashes do not fit.
    #[error("is no sound image: its manifest has {layers} layers, its configuration {hashes}")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        hashes: usize,
    },
    /// What stands in a layer.
    #[error("has a bad layer, number {}: it {source}", number + 1)]
    Layer {
        /// Which, from 0.
        number: usize,
        /// What is wrong.
        source: Box<ArchiveError>,
    },
}
