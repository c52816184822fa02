//! What was built last under an image's name. If nothing that decides the image has changed since, nor any of its
//! files, there is nothing to build.

use std::{
    collections::BTreeMap,
    env, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf, absolute},
};

use rackstick::{layers::Layers, stamp::Stamp};
use rackstick_image::{digest::Sha256, lock::Input};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BuildError, Built, Inputs, Parts, disk, images};
use crate::{
    artifacts::{self, ArtifactError},
    parallel,
};

/// Files, and what each was when this program had written it.
pub type Stamps = BTreeMap<PathBuf, Stamp>;

/// What the cache keeps of a finished image.
#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    /// Hash of what decided it.
    inputs: Sha256,
    uki_size: u64,
    /// The image and what lies beside it.
    files: Stamps,
}

/// The key of what is made of packages alone.
enum Made<'a> {
    Layer(&'a String),
    Part(&'a Sha256),
}

/// The state of all inputs at a moment, and where what they make is noted.
pub struct Now {
    image: PathBuf,
    /// Absolute, so that a note is for one image only.
    place: PathBuf,
    /// Those of the inputs' date.
    pub layers: Layers,
    /// All of the store.
    pub parts: Parts,
    keys: images::Keys,
    /// As the provenance tells it.
    pub made_of: Value,
    /// Hash of all of it.
    inputs: Sha256,
}

impl Now {
    /// Reads all inputs that are not in the store.
    pub fn read(inputs: &Inputs, output: &Path) -> Result<Self, BuildError> {
        let image = disk::path(output, &inputs.rack.name, &inputs.rack.version, inputs.sector);
        let place = absolute(&image).map_err(|source| BuildError::Write { path: image.clone(), source })?;
        let program = env::current_exe().map_err(BuildError::Program)?;
        let layers = Layers::new(&inputs.store.layers(), &program, inputs.lock.epoch, inputs.jobs)?;
        let layers = if inputs.twice { layers.twice()? } else { layers };
        let parts = Parts::open(inputs.store, layers.builder())?;
        let keys = images::keys(inputs.rack, inputs.lock, inputs.store, &layers, &parts)?;
        let made_of = artifacts::made_of(inputs, layers.builder())?;
        let all = (&keys, inputs.lock, &made_of, inputs.zst);
        let inputs = Sha256::of(serde_json::to_vec(&all).map_err(ArtifactError::Json)?);
        Ok(Self { image, place, layers, parts, keys, made_of, inputs })
    }

    /// Under which key the cache has the note.
    fn key(&self) -> Result<String, BuildError> {
        Ok(self.layers.key(&("image", &self.place))?)
    }

    /// The image that is there, if building it would make the same one. What it is made of counts as used then.
    pub fn is_there(&self, inputs: &Inputs) -> Result<Option<Built>, BuildError> {
        let Some(finished) = self.layers.recall::<Finished>(&self.key()?)? else { return Ok(None) };
        if finished.inputs != self.inputs {
            return Ok(None);
        }
        for (path, stamp) in &finished.files {
            // Whatever else is there, building tells whether it may be replaced.
            if !fs::symlink_metadata(path).is_ok_and(|metadata| Stamp::from(metadata) == *stamp) {
                return Ok(None);
            }
        }
        let failed = |source| BuildError::Write { path: self.image.clone(), source };
        let allocated = fs::metadata(&self.image).map_err(failed)?.blocks() * 512;
        touch_packages(inputs)?;
        inputs.lock.inputs.values().try_for_each(|input| touch_blobs(inputs, input))?;
        self.layers.touch(self.keys.all_layers())?;
        self.parts.touch(self.keys.all_parts())?;
        Ok(Some(Built { image: self.image.clone(), allocated, uki_size: finished.uki_size, up_to_date: true }))
    }

    /// Whether nothing has to be made of packages: all that is made of them alone is there and whole. They count as
    /// used then.
    pub fn needs_no_packages(&self, inputs: &Inputs) -> Result<bool, BuildError> {
        // To make all of it a second time.
        if inputs.twice || !artifacts::copyrights_are_kept(inputs.lock, inputs.store) {
            return Ok(false);
        }
        let layers = self.keys.layers.iter().map(Made::Layer);
        let all: Vec<_> = self.keys.parts.iter().map(Made::Part).chain(layers).collect();
        let there = parallel::each_by(inputs.jobs, &all, |made| -> Result<bool, BuildError> {
            Ok(match made {
                Made::Layer(key) => self.layers.kept(key)?.is_some(),
                Made::Part(key) => self.parts.is_there(key)?,
            })
        });
        let there = there.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().all(|there| there);
        if there {
            touch_packages(inputs)?;
        }
        Ok(there)
    }

    /// What images are made from of which the cache lacks something, so that they are made anew. All others count as
    /// used then.
    pub fn needed<'a>(&self, inputs: &Inputs<'a>) -> Result<Vec<&'a Input>, BuildError> {
        let mut needed = Vec::new();
        for (name, keys) in &self.keys.from {
            let Some(input) = inputs.lock.inputs.get(name) else { continue };
            if keys.lack_anything(&self.layers)? {
                needed.push(input);
            } else {
                touch_blobs(inputs, input)?;
            }
        }
        Ok(needed)
    }

    /// Whether the inputs are still what they were.
    pub fn holds(&self, inputs: &Inputs, output: &Path) -> Result<bool, BuildError> {
        Ok(Self::read(inputs, output)?.inputs == self.inputs)
    }

    /// Notes what was written of inputs that did not change, unless the file system's clock stands still.
    pub fn note(&self, output: &Path, uki_size: u64, files: Stamps) -> Result<(), BuildError> {
        let failed = |source: io::Error| BuildError::Write { path: output.to_owned(), source };
        if !Stamp::wait_until_past(files.values(), output).map_err(failed)? {
            return Ok(());
        }
        let files = files.into_iter().map(|(path, stamp)| Ok((absolute(path)?, stamp)));
        let files = files.collect::<io::Result<_>>().map_err(failed)?;
        Ok(self.layers.remember(&self.key()?, &Finished { inputs: self.inputs, uki_size, files })?)
    }
}

/// Counts the lock's packages as used now.
fn touch_packages(inputs: &Inputs) -> Result<(), BuildError> {
    Ok(inputs.store.touch(inputs.lock.packages().map(|(_, _, package)| package.sha256))?)
}

/// Counts what comes of an input from a registry as used now.
fn touch_blobs(inputs: &Inputs, input: &Input) -> Result<(), BuildError> {
    Ok(inputs.store.touch(input.blobs().map(|blob| blob.sha256))?)
}
