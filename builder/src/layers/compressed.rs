//! Layers for images whose recipe asks for compression: made of the plain layer itself, so nothing is unpacked or
//! configured again where a rack needs both, and the same for every kind of layer.

use std::{fs::File, io, num::NonZero, path::PathBuf, sync::PoisonError};

use rackstick_image::{
    erofs::{self, CopyError, Mtime, WriteError, WriteOptions, read},
    recipe::Compression,
    view::View,
};

use super::{Error, Layer, Layers, sum};

/// Why a layer can't be compressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The file of either.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The plain layer can't be read.
    #[error("the layer that is to be compressed can't be read: {0}")]
    Read(#[from] CopyError),
    /// The compressed layer can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The cache.
    #[error(transparent)]
    Layer(#[from] Error),
}

impl Layers {
    /// The layer with its files compressed.
    pub fn compressed(&self, layer: &Layer, how: Compression) -> Result<Layer, CompressError> {
        let failed = |source| CompressError::File { path: layer.path.clone(), source };
        self.written(&self.compressed_key(&layer.key, how)?, |out| {
            let file = File::open(&layer.path).map_err(failed)?;
            let view = View::whole(&file).map_err(failed)?;
            let tree = read::Layer::open(view).map_err(CopyError::Read);
            let tree = tree.and_then(|plain| erofs::tree_of(&plain, &layer.path))?;
            let failed = |source| CompressError::File { path: out.to_owned(), source };
            let compress = match how {
                Compression::Zstd => NonZero::new(self.threads).or(Some(NonZero::<usize>::MIN)),
            };
            let build_time = Mtime::from_seconds(self.epoch);
            // All threads compress one layer; with several at once there would be that many more.
            let _alone = self.compressing.lock().unwrap_or_else(PoisonError::into_inner);
            let options = WriteOptions { build_time, compress, ..WriteOptions::default() };
            erofs::write(&tree, &File::create_new(out).map_err(failed)?, &options)?;
            sum::of(out).map_err(failed)
        })
    }

    /// The key of the layer with this key once its files are compressed.
    pub fn compressed_key(&self, layer: &str, how: Compression) -> Result<String, Error> {
        self.key(&of(layer, how))
    }
}

/// What decides a compressed layer, beside the builder.
fn of(layer: &str, how: Compression) -> (&'static str, &str) {
    match how {
        Compression::Zstd => ("zstd", layer),
    }
}
