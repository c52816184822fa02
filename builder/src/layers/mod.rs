//! Layers: from verified packages and a recipe's files to EROFS files. A base is one layer, an image's packages above
//! it the next, what else its recipe asks for another, a guest kernel's modules one of their own: so guests of
//! different images share the base on disk and in memory, and a changed file changes a small layer only.
//!
//! The same inputs give the same bytes on every machine; so a layer that is in the cache under its inputs' hash is
//! taken from there.

mod accounts;
mod cache;
mod clean;
pub mod compare;
mod compressed;
mod configure;
mod database;
pub mod deb;
pub mod files;
mod generators;
mod guest;
mod order;
pub(crate) mod paths;
mod place;
mod region;
pub mod stage;
pub mod sum;
mod tidy;
mod tree;
mod unpack;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rackstick_image::{
    digest::{Sha256, VerityDigest},
    recipe::Compression,
};
use serde::{Serialize, de::DeserializeOwned};

use self::{
    cache::Cache,
    stage::{
        again,
        protocol::{self, Again, Changes, PlacedFile, Request, Task, Written},
    },
};

pub use compressed::CompressError;
pub use files::RecipeFile;
pub use tidy::Swept;

/// Changes whenever the same inputs shall give other layers.
const FORMAT: u32 = 2;

/// A verified package file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the .deb, already checked.
    pub sha256: Sha256,
    /// The .deb.
    #[serde(skip)]
    pub deb: PathBuf,
}

/// What an image adds to its base.
#[derive(Debug, Clone, Default)]
pub struct Additions {
    /// Packages that the base does not have.
    pub packages: Vec<Package>,
    /// Files from beside the recipe.
    pub files: Vec<RecipeFile>,
    /// What else it changes.
    pub changes: Changes,
}

impl Additions {
    /// Whether the image needs a layer beside that of its packages.
    fn is_more_than_packages(&self) -> bool {
        !self.files.is_empty() || self.changes != Changes::default()
    }
}

/// A finished layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Under which the cache has it.
    pub key: String,
    /// The EROFS file, in the cache; not to be changed.
    pub path: PathBuf,
    /// Its fs-verity digest.
    pub digest: VerityDigest,
    /// Its size in bytes.
    pub size: u64,
    /// CRC-32C of it.
    pub crc: u32,
}

impl Layer {
    /// Where the hashes of its blocks are, unless somebody removed them.
    pub fn leaves(&self) -> PathBuf {
        sum::leaves(&self.path)
    }
}

/// A finished layer that others are built upon, a base or packages above it: with its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The layer.
    pub layer: Layer,
    tree: PathBuf,
}

/// Why a layer can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache.
    #[error("in the cache of layers, {} can't be {what}", .path.display())]
    Cache {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Inputs that have no name in text.
    #[error("the inputs of a layer can't be written down, their names must be UTF-8: {0}")]
    Key(serde_json::Error),
    /// A file of the recipe.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The stage.
    #[error("the layer `{label}` can't be made")]
    Stage {
        /// Which layer.
        label: String,
        /// What happened.
        source: stage::Error,
    },
    /// Nothing gives programs another clock.
    #[error(
        "libfaketime is missing, by which a layer is made a second time at another time of day: install it \
         (`apt install libfaketime`), or build without --twice"
    )]
    NoClock,
    /// The clock is wrong, so files made now would not look newer than those of the packages.
    #[error(
        "this machine's clock says {now} s since 1970, which is before the lock's date ({epoch} s): set it and build again"
    )]
    Clock {
        /// The clock.
        now: u64,
        /// The lock's date.
        epoch: i64,
    },
}

/// Makes layers. Calls may run at the same time on several threads, and several builders may share one cache.
#[derive(Debug)]
pub struct Layers {
    cache: Cache,
    program: PathBuf,
    epoch: i64,
    threads: usize,
    /// The library that gives programs another clock, if layers are to be made twice.
    clock: Option<PathBuf>,
    /// Whoever compresses a layer has it.
    compressing: Mutex<()>,
    /// The layers that were found whole, by their keys: that is looked at once.
    whole: Mutex<HashMap<String, Layer>>,
}

impl Layers {
    /// `folder` is where layers are kept (`$XDG_CACHE_HOME/rackstick/layers`), `program` the command `rackstick`, which
    /// is started again for the work, `epoch` the lock's `SOURCE_DATE_EPOCH`, `threads` how many unpack at once.
    pub fn new(folder: &Path, program: &Path, epoch: i64, threads: usize) -> Result<Self, Error> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        if i64::try_from(now).is_ok_and(|now| now < epoch) {
            return Err(Error::Clock { now, epoch });
        }
        Ok(Self {
            cache: Cache::open(folder, program)?,
            program: program.to_owned(),
            epoch,
            threads: threads.max(1),
            clock: None,
            compressing: Mutex::default(),
            whole: Mutex::default(),
        })
    }

    /// Lets every layer be made a second time, those of the cache too: it is an error if one becomes another.
    pub fn twice(self) -> Result<Self, Error> {
        Ok(Self { clock: Some(again::find_clock().ok_or(Error::NoClock)?), ..self })
    }

    /// The base: all of its packages, configured, and made fit for a guest.
    pub fn base(&self, packages: &[Package], step: &dyn Fn(&str)) -> Result<Base, Error> {
        let packages = sorted(packages);
        self.with_tree("base", self.base_key(&packages)?, step, |tree, slot| Task::Base {
            root: tree,
            packages: staged(&packages),
            out: slot.partial(),
        })
    }

    /// What the image `name` adds to `base`: its layers above it, lowest first, each with its label. Images with the
    /// same packages share the layer of those.
    pub fn image(
        &self,
        name: &str,
        base: &Base,
        additions: &Additions,
        step: &dyn Fn(&str),
    ) -> Result<Vec<(String, Layer)>, Error> {
        let packages = sorted(&additions.packages);
        let packed = match packages.is_empty() {
            true => None,
            false => Some(self.packages(name, base, &packages, step)?),
        };
        let own = match additions.is_more_than_packages() {
            true => Some(self.own(name, base, packed.as_ref(), additions, step)?),
            false => None,
        };
        let packed = packed.map(|packed| (format!("packages of {name}"), packed.layer));
        Ok(packed.into_iter().chain(own.map(|own| (name.to_owned(), own))).collect())
    }

    fn packages(&self, name: &str, base: &Base, packages: &[Package], step: &dyn Fn(&str)) -> Result<Base, Error> {
        self.with_tree(name, self.packages_key(&base.layer.key, packages)?, step, |tree, slot| {
            let (base, work, out) = (base.tree.clone(), slot.work(), slot.partial());
            Task::Packages { base, tree, work, packages: staged(packages), out }
        })
    }

    /// The layer of what a recipe asks for beside packages, which are `packed`.
    fn own(
        &self,
        name: &str,
        base: &Base,
        packed: Option<&Base>,
        additions: &Additions,
        step: &dyn Fn(&str),
    ) -> Result<Layer, Error> {
        let (key, files) = self.own_key(&packed.unwrap_or(base).layer.key, additions)?;
        let slot = self.cache.slot(&key)?;
        let task = || Task::Image {
            below: packed.into_iter().chain([base]).map(|below| below.tree.clone()).collect(),
            work: slot.work(),
            packages: sorted(&additions.packages).into_iter().map(|package| package.name).collect(),
            files: files.clone(),
            changes: additions.changes.clone(),
            out: slot.partial(),
        };
        let layer = match self.finished(&slot)? {
            Some(layer) => layer,
            None => self.make(name, task(), &slot, step)?,
        };
        self.again(name, &layer, &slot, step, task)?;
        Ok(layer)
    }

    /// A layer whose tree stays, for others to be built upon. `task` is given the tree to make.
    fn with_tree(
        &self,
        label: &str,
        key: String,
        step: &dyn Fn(&str),
        task: impl Fn(PathBuf, &cache::Slot) -> Task,
    ) -> Result<Base, Error> {
        let slot = self.cache.slot(&key)?;
        let tree = slot.tree();
        let layer = match self.finished(&slot)? {
            Some(layer) => layer,
            None => self.make(label, task(tree.clone(), &slot), &slot, step)?,
        };
        self.again(label, &layer, &slot, step, || task(slot.again(), &slot))?;
        Ok(Base { layer, tree })
    }

    /// The modules of the kernel in `package`, indexed by the `depmod` of `base`.
    pub fn kernel(&self, base: &Base, package: &Package, step: &dyn Fn(&str)) -> Result<Layer, Error> {
        let slot = self.cache.slot(&self.kernel_key(&base.layer.key, package)?)?;
        let task = || {
            let (work, out) = (slot.work(), slot.partial());
            let package = protocol::Package { name: package.name.clone(), deb: package.deb.clone() };
            Task::Kernel { base: base.tree.clone(), work, package, out }
        };
        let layer = match self.finished(&slot)? {
            Some(layer) => layer,
            None => self.make("kernel", task(), &slot, step)?,
        };
        self.again("kernel", &layer, &slot, step, task)?;
        Ok(layer)
    }

    /// The layer under this key, if there is a whole one.
    pub fn kept(&self, key: &str) -> Result<Option<Layer>, Error> {
        self.finished(&self.cache.slot(key)?)
    }

    /// The layer under this key: from the cache, or as `write` writes it to the new file whose path it is given.
    pub fn written<E: From<Error>>(
        &self,
        key: &str,
        write: impl FnOnce(&Path) -> Result<Written, E>,
    ) -> Result<Layer, E> {
        let slot = self.cache.slot(key)?;
        if let Some(layer) = self.finished(&slot)? {
            return Ok(layer);
        }
        slot.forget_partial()?;
        Ok(slot.finish(write(&slot.partial())?)?)
    }

    fn finished(&self, slot: &cache::Slot) -> Result<Option<Layer>, Error> {
        let whole = || self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = whole().get(slot.key()) {
            return Ok(Some(layer.clone()));
        }
        let found = slot.finished()?;
        whole().extend(found.iter().map(|layer| (slot.key().to_owned(), layer.clone())));
        Ok(found)
    }

    /// SHA-256 of the command itself, which is part of every key.
    pub fn builder(&self) -> Sha256 {
        self.cache.builder
    }

    /// What [`Layers::remember`] was told under this key; none if nothing.
    pub fn recall<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        self.cache.slot(key)?.recall()
    }

    /// Keeps what was found out from what decides the key.
    pub fn remember(&self, key: &str, found: &impl Serialize) -> Result<(), Error> {
        self.cache.slot(key)?.remember(found)
    }

    /// Counts what lies under these keys as used now, as far as there is something.
    pub fn touch<'a>(&self, keys: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
        keys.into_iter().try_for_each(|key| self.cache.touch(key))
    }

    /// The key of what `inputs` decide.
    pub fn key(&self, inputs: &impl Serialize) -> Result<String, Error> {
        self.cache.key(&("from", FORMAT, self.epoch, inputs))
    }

    /// `SOURCE_DATE_EPOCH`.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The keys of all layers that are made of a base, a kernel if its modules are indexed there, and images with how
    /// they are compressed: those of packages alone, and those of what else is made of them.
    pub fn keys_of(
        &self,
        base: &[Package],
        kernel: Option<&Package>,
        images: &[(Additions, Option<Compression>)],
    ) -> Result<(Vec<String>, Vec<String>), Error> {
        let base = self.base_key(&sorted(base))?;
        let (mut of_packages, mut others) = (Vec::new(), Vec::new());
        of_packages.extend(kernel.map(|kernel| self.kernel_key(&base, kernel)).transpose()?);
        for (additions, compress) in images {
            let packages = sorted(&additions.packages);
            let packed = if packages.is_empty() { None } else { Some(self.packages_key(&base, &packages)?) };
            let own = match additions.is_more_than_packages() {
                true => Some(self.own_key(packed.as_ref().unwrap_or(&base), additions)?.0),
                false => None,
            };
            if let Some(how) = *compress {
                for plain in [Some(&base), packed.as_ref(), own.as_ref()].into_iter().flatten() {
                    others.push(self.compressed_key(plain, how)?);
                }
            }
            others.extend(own);
            of_packages.extend(packed);
        }
        of_packages.push(base);
        Ok((of_packages, others))
    }

    fn base_key(&self, packages: &[Package]) -> Result<String, Error> {
        self.cache.key(&("base", FORMAT, self.epoch, packages))
    }

    fn packages_key(&self, base: &str, packages: &[Package]) -> Result<String, Error> {
        self.cache.key(&("packages", FORMAT, self.epoch, base, packages))
    }

    /// `below` is the key of the layer that it is built upon.
    fn own_key(&self, below: &str, additions: &Additions) -> Result<(String, Vec<PlacedFile>), Error> {
        let (files, hashes) = files::collect(&additions.files)?;
        let key = self.cache.key(&("own", FORMAT, self.epoch, below, hashes, &additions.changes))?;
        Ok((key, files))
    }

    fn kernel_key(&self, base: &str, package: &Package) -> Result<String, Error> {
        self.cache.key(&("kernel", FORMAT, self.epoch, base, package))
    }

    fn make(&self, label: &str, task: Task, slot: &cache::Slot, step: &dyn Fn(&str)) -> Result<Layer, Error> {
        slot.begin()?;
        self.remove(label, &slot.leftovers())?;
        let written = self.run(label, task, None, step)?;
        let written = written.ok_or_else(|| Error::Stage {
            label: label.to_owned(),
            source: stage::Error::Failed("the stage wrote no layer".to_owned()),
        })?;
        slot.finish(written)
    }

    /// Makes a layer a second time, if that is asked for; nothing of it stays.
    fn again(
        &self,
        label: &str,
        layer: &Layer,
        slot: &cache::Slot,
        step: &dyn Fn(&str),
        task: impl FnOnce() -> Task,
    ) -> Result<(), Error> {
        let Some(clock) = &self.clock else { return Ok(()) };
        self.remove(label, &[slot.again(), slot.work(), slot.partial()])?;
        let again = Again { first: layer.path.clone(), clock: clock.clone() };
        self.run(label, task(), Some(again), step).map(|_| ())
    }

    fn remove(&self, label: &str, trees: &[PathBuf]) -> Result<(), Error> {
        if trees.is_empty() {
            return Ok(());
        }
        self.run(label, Task::Remove { trees: trees.to_vec() }, None, &|_| ()).map(|_| ())
    }

    fn run(
        &self,
        label: &str,
        task: Task,
        again: Option<Again>,
        step: &dyn Fn(&str),
    ) -> Result<Option<protocol::Written>, Error> {
        let request = Request { task, epoch: self.epoch, threads: self.threads, again };
        stage::run(&self.program, &request, step).map_err(|source| Error::Stage { label: label.to_owned(), source })
    }
}

fn sorted(packages: &[Package]) -> Vec<Package> {
    let mut packages = packages.to_vec();
    packages.sort_by(|a, b| (&a.name, &a.sha256).cmp(&(&b.name, &b.sha256)));
    packages
}

fn staged(packages: &[Package]) -> Vec<protocol::Package> {
    packages.iter().map(|package| protocol::Package { name: package.name.clone(), deb: package.deb.clone() }).collect()
}
