//! From verified packages to one generation: images, manifest, host, disk image.

mod additions;
mod disk;
mod disks;
mod finished;
mod host;
mod images;
mod parts;
mod secrets;
mod uki;

pub use finished::Now;
pub use images::keys;
pub use parts::Parts;

use std::{
    collections::BTreeMap,
    fs, io, panic,
    path::{Path, PathBuf},
    thread,
};

use rackstick_image::{
    disk::Place,
    guid,
    lock::Lock,
    recipe::{self, Diagnostic, Diagnostics, Placed, Rack},
    sector::SectorSize,
    view::ReadError,
};
use thiserror::Error;

use self::{disk::Written, parts::PartsError};
use rackstick::from::FromError;

use crate::{
    artifacts::{self, ArtifactError},
    hardware::microcode::MicrocodeError,
    initrd::{self, InitrdError},
    kernel::KernelError,
    layers,
    package::PackageError,
    progress::Progress,
    runtime::{Runtime, RuntimeError},
    store::{Store, StoreError},
};

/// What a generation is made of.
pub struct Inputs<'a> {
    /// The recipe's file.
    pub recipe: &'a Path,
    /// The recipe.
    pub rack: &'a Rack,
    /// Its lock.
    pub lock: &'a Lock,
    /// Where each of the lock's packages of the rack's base is once it was obtained.
    pub packages: &'a BTreeMap<String, PathBuf>,
    /// The rack's own binaries.
    pub runtime: &'a Runtime,
    /// Where layers are kept.
    pub store: &'a Store,
    /// How many threads may unpack at once.
    pub jobs: usize,
    /// The logical blocks of the disks that the image is for.
    pub sector: SectorSize,
    /// Whether every layer is made a second time, to see whether it becomes the same.
    pub twice: bool,
    /// Whether the image is also wanted compressed.
    pub zst: bool,
}

/// A disk image that was built.
pub struct Built {
    /// The image.
    pub image: PathBuf,
    /// What it takes on this disk, in bytes; the rest are holes.
    pub allocated: u64,
    /// Size of the UKI in bytes.
    pub uki_size: u64,
    /// Whether it was there already.
    pub up_to_date: bool,
}

/// Why a generation can't be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A layer.
    #[error(transparent)]
    Layer(#[from] layers::Error),
    /// A layer that is compressed.
    #[error(transparent)]
    Compress(#[from] layers::CompressError),
    /// The recipe of an image does not fit what the image is made of.
    #[error("the recipe of an image does not fit what the image is made of")]
    Recipe(#[source] Diagnostics),
    /// What was built can't be read.
    #[error("can't look into layer {layer}: {source}; `rackstick store verify` finds what is damaged")]
    Look {
        /// The layer.
        layer: String,
        /// Why.
        source: ReadError,
    },
    /// An image that is not made of packages.
    #[error(transparent)]
    From(#[from] FromError),
    /// An image that is a whole disk.
    #[error(transparent)]
    WholeDisk(#[from] disks::WholeDiskError),
    /// A kernel package.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A package of firmware.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The processors' microcode.
    #[error(transparent)]
    Microcode(#[from] MicrocodeError),
    /// An initrd.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The cache.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It lacks a file.
    #[error("the package {} holds no {file}; another version of it is needed", .package.display())]
    NoFile {
        /// The package.
        package: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// The rack's own binaries.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// What is made of packages alone.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] recipe::GenerationError),
    /// The UKI.
    #[error(transparent)]
    Uki(#[from] uki::UkiError),
    /// The disk image.
    #[error(transparent)]
    Disk(#[from] disk::DiskError),
    /// What lies beside the image.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A set of the lock lacks what it must hold.
    #[error("the lock's set `{set}` holds no {what}; renew it with `rackstick lock --update`")]
    Missing {
        /// The set.
        set: String,
        /// What it must hold.
        what: &'static str,
    },
    /// The lock's date does not fit the formats' clocks.
    #[error("the lock's epoch {0} is not a date between 1980 and 2106")]
    Epoch(i64),
    /// A file of the build can't be written.
    #[error("can't write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program's own place is unknown.
    #[error("can't find out where this program stands: {0}")]
    Program(io::Error),
}

impl BuildError {
    /// The error, told where the recipe of `image` names what it is made from, if that is at fault.
    fn of_input(self, named: &Placed<String>) -> Self {
        let at_fault = match &self {
            Self::From(error) => error.is_of_the_input(),
            Self::WholeDisk(error) => error.is_of_the_input(),
            _ => false,
        };
        if !at_fault {
            return self;
        }
        Self::Recipe(Diagnostic::new(named.place.clone(), self.to_string()).into())
    }

    /// All that was made. Of several errors the first, unless all of them are mistakes in recipes: then these together,
    /// as they stand there.
    fn all<T>(made: impl IntoIterator<Item = Result<T, Self>>) -> Result<Vec<T>, Self> {
        let (mut done, mut mistakes) = (Vec::new(), Vec::new());
        for made in made {
            match made {
                Ok(made) => done.push(made),
                Err(Self::Recipe(Diagnostics(all))) => mistakes.extend(all),
                Err(other) => return Err(other),
            }
        }
        if mistakes.is_empty() {
            return Ok(done);
        }
        mistakes.sort_by(|a, b| {
            let [a, b] = [a, b].map(|mistake| (&mistake.place.source.path, mistake.place.span.start));
            a.cmp(&b)
        });
        Err(Self::Recipe(Diagnostics(mistakes)))
    }
}

/// Files that only live as long as the build, on the store's disk.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new(store: &Store) -> Result<Self, BuildError> {
        Ok(Self(store.scratch()?))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Takes the place of the image in the folder `output`. While another build has it, that is waited for, and this is
/// said: what it makes may be just what is wanted.
pub fn take_place(inputs: &Inputs, output: &Path, progress: &Progress) -> Result<Place, BuildError> {
    Ok(disk::take_place(output, inputs.rack, inputs.sector, progress)?)
}

/// Builds the generation from what was `now` and writes its disk image to its `place` in the folder `output`, and
/// beside it what else a build gives.
pub fn build(inputs: &Inputs, now: Now, output: &Path, place: Place, progress: &Progress) -> Result<Built, BuildError> {
    let Inputs { rack, lock, .. } = inputs;
    let epoch = epoch(lock)?;
    let scratch = Scratch::new(inputs.store)?;

    // What the host is made of takes as long as the base, and neither needs the other.
    let (images, host) = thread::scope(|scope| {
        let host = scope.spawn(|| host::part(inputs, &now.parts, epoch));
        scope.spawn(|| disk::forget(output, rack, inputs.sector));
        let images = images::build(inputs, &now, &scratch, epoch, progress);
        (images, host.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    });
    let (images, host) = (images?, host?);
    let job = progress.spinner("assembling", "host and disk image");
    let partition = guid::derive(&[b"data partition", rack.name.as_bytes(), rack.version.as_bytes()]);
    let manifest = recipe::manifest(rack, images.manifests, partition)?;

    let initrd = initrd::host(inputs.runtime, &host.file(host::DRIVERS), &manifest, epoch)?;
    let uki = uki::make(rack, &host, initrd)?;
    let uki_size = uki.content.size();

    let (written, read) = thread::scope(|scope| {
        // From here on no input is read any more, but to see whether it is what it was.
        let read = scope.spawn(|| (artifacts::draft(inputs), now.holds(inputs, output)));
        let written = disk::write(inputs, place, &manifest, partition, uki, &images.files, epoch);
        (written, read.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    });
    let Written { image, allocated, sha256, map, mut stamps, replaced, held: _held } = written?;
    job.done("host and disk image");
    let (draft, holds) = (read.0?, read.1?);
    let artifacts = thread::scope(|scope| {
        scope.spawn(|| drop(replaced));
        artifacts::make(inputs, &now.made_of, draft, &image, &map, sha256, progress)
    });
    stamps.extend(artifacts?);
    if holds {
        now.note(output, uki_size, stamps)?;
    }
    Ok(Built { image, allocated, uki_size, up_to_date: false })
}

/// The lock's date, as the formats of an image write it.
fn epoch(lock: &Lock) -> Result<u32, BuildError> {
    let epoch = u32::try_from(lock.epoch).ok().filter(|epoch| *epoch >= EPOCH_MIN);
    epoch.ok_or(BuildError::Epoch(lock.epoch))
}

/// FAT's clock begins in 1980.
const EPOCH_MIN: u32 = 315_532_800;

impl Inputs<'_> {
    /// The .deb of the package in `set` that `is` accepts.
    fn named(&self, set: &str, is: impl Fn(&str) -> bool, what: &'static str) -> Result<&Path, BuildError> {
        let found = self.all(set, is).next();
        found.map(|(_, deb)| deb).ok_or_else(|| BuildError::Missing { set: set.to_owned(), what })
    }

    /// Name and .deb of all packages in `set` that `is` accepts, by name.
    fn all(&self, set: &str, is: impl Fn(&str) -> bool) -> impl Iterator<Item = (&str, &Path)> {
        let names = self.lock.own().sets.get(set).into_iter().flatten().filter(move |name| is(name));
        names.filter_map(|name| Some((name.as_str(), self.packages.get(name)?.as_path())))
    }
}

/// Writes a file whole.
fn write(path: &Path, content: &[u8]) -> Result<(), BuildError> {
    fs::write(path, content).map_err(|source| BuildError::Write { path: path.to_owned(), source })
}
