//! What guests boot: layers, the unpacked kernel, the initrd; and the manifest's entry for each image.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs, panic,
    path::{Path, PathBuf},
    thread,
};

use rackstick::from::{self, FromError, Pinned, Start};
use rackstick_image::{
    digest::{Sha256, VerityDigest},
    ext4::Kept,
    lock::{self, Lock},
    manifest::{self, Blob},
    recipe::{From, Image, Rack, Root},
    verity,
};
use serde::Serialize;

use super::{
    BuildError, Inputs, Now, Scratch, additions, disks, host,
    parts::{self, Part, Parts},
    secrets, write,
};
use crate::{
    initrd,
    kernel::Kernel,
    layers::{Base, Layer, Layers, Package, files},
    parallel,
    progress::Progress,
    runtime::Runtime,
    sets,
    store::Store,
};

/// The guests' kernel command line: the console is virtio's, and a panic ends the machine at once, for the daemon to
/// see.
const CMDLINE: &str = "console=hvc0 panic=-1 oops=panic loglevel=4";
/// PID 1 of an image made of packages: systemd.
const INIT: &str = "/sbin/init";

/// Where a blob is.
pub struct BlobFile {
    /// The file.
    pub path: PathBuf,
    /// What was kept when it was hashed.
    pub kept: Option<Kept>,
}

/// The files of blobs.
pub type Blobs = BTreeMap<VerityDigest, BlobFile>;

/// Images by name, and the files that they consist of.
pub struct Images {
    /// The manifest's entries.
    pub manifests: BTreeMap<String, manifest::Image>,
    /// Every blob's file, once.
    pub files: Blobs,
    /// Some of the files are in there.
    parts: Vec<Part>,
}

/// Builds all images of the recipe: the base first, then what each adds to it at the same time.
pub fn build(
    inputs: &Inputs,
    now: &Now,
    scratch: &Scratch,
    epoch: u32,
    progress: &Progress,
) -> Result<Images, BuildError> {
    let mut images = Images { manifests: BTreeMap::new(), files: BTreeMap::new(), parts: Vec::new() };
    disks::add(&mut images, inputs, &now.parts, progress)?;
    if inputs.rack.images.values().all(|image| image.disk().is_some()) {
        return Ok(images);
    }
    let package = kernel_of(&packages_of(inputs.lock.own(), sets::KERNEL, inputs.store))
        .ok_or_else(|| BuildError::Missing { set: sets::KERNEL.to_owned(), what: "kernel" })?;
    let (made, boot) = thread::scope(|scope| {
        let boot = scope.spawn(|| boot(inputs, &now.parts, &package, epoch));
        let made = layers(inputs, &now.layers, &package, scratch, progress);
        (made, boot.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    });
    let (Made { modules, own }, boot) = (made?, boot?);

    let release = String::from_utf8_lossy(&boot.read(RELEASE)?).into_owned();
    let modules = images.add(&format!("kernel {release}"), &modules);
    let kernel = images.add_file("vmlinux", &boot.file(VMLINUX))?;
    let initrd = images.add_file("initrd", &boot.file(INITRD))?;
    let mut made = Vec::new();
    for (name, own) in own {
        let recipe = inputs.rack.images.get(&name);
        let compressed = recipe.is_some_and(|recipe| recipe.compress.is_some());
        let add = |images: &mut Images, label: &str, layer| {
            let suffix = if compressed { manifest::COMPRESSED } else { "" };
            images.add(&format!("{label}{suffix}"), layer)
        };
        let mut blobs: Vec<Blob> = own.base.iter().map(|(label, base)| add(&mut images, label, base)).collect();
        blobs.push(modules.clone());
        blobs.extend(own.layers.iter().map(|(label, layer)| add(&mut images, label, layer)));
        let secrets = recipe.map_or(Ok(Vec::new()), |recipe| secrets::of(recipe, &blobs, &images.files));
        let image = |secrets| manifest::Image {
            secrets,
            layers: blobs,
            kernel: kernel.clone(),
            initrd: initrd.clone(),
            cmdline: cmdline(recipe),
            init: own.start.init,
            process: own.start.process,
            disk: None,
        };
        made.push(secrets.map(|secrets| (name, image(secrets))));
    }
    images.manifests.extend(BuildError::all(made)?);
    images.keep(boot);
    Ok(images)
}

/// The rack's own parameters, then those of the image's recipe.
pub fn cmdline(image: Option<&Image>) -> String {
    let further = image.into_iter().flat_map(|image| &image.cmdline);
    further.fold(CMDLINE.to_owned(), |line, parameter| line + " " + parameter)
}

/// What an image has above the base or, if it does not stand on that, above the kernel's modules: an image that is not
/// made of packages may have a link where the modules' layer has folders, and what is above wins.
struct Own {
    /// With its label.
    base: Option<(String, Layer)>,
    /// Lowest first, each with its label.
    layers: Vec<(String, Layer)>,
    start: Start,
}

/// The unpacked kernel and the initrd of guests, by their names in the part that holds them.
const VMLINUX: &str = "vmlinux";
const INITRD: &str = "initrd";
const RELEASE: &str = "release";

/// What boots guests, beside the layer with the kernel's modules.
fn boot(inputs: &Inputs, parts: &Parts, package: &Package, epoch: u32) -> Result<Part, BuildError> {
    parts.get(&boot_of(package, inputs.runtime, epoch)?, |folder| {
        let kernel = Kernel::read(&package.deb)?;
        write(&folder.join(RELEASE), kernel.release.as_bytes())?;
        write(&folder.join(VMLINUX), &kernel.vmlinux()?)?;
        initrd::guest(&folder.join(INITRD), inputs.runtime, &kernel, epoch).map_err(BuildError::from)
    })
}

/// All layers of a recipe.
struct Made {
    modules: Layer,
    /// By the image's name.
    own: BTreeMap<String, Own>,
}

/// What is made above bases.
enum Job<'a> {
    Modules,
    /// Of an image: made of packages, or from a root file system.
    Image(&'a Image, Option<&'a Root>),
}

/// Makes them: the bases first, then all above it, what takes longest first: its scripts run one after the other, and
/// where CPUs are few the others give way to it. One more at once than there are threads: each waits for the disk now
/// and then.
fn layers(
    inputs: &Inputs,
    layers: &Layers,
    package: &Package,
    scratch: &Scratch,
    progress: &Progress,
) -> Result<Made, BuildError> {
    let names: Vec<&String> = inputs.lock.bases.keys().collect();
    let made = parallel::each_by(inputs.jobs, &names, |name| {
        let label = format!("layer {}", inputs.lock.told_apart(name, sets::BASE));
        let job = progress.spinner("building", &label);
        let base = layers.base(&inputs.set(name, sets::BASE), &|_| ())?;
        job.done(&label);
        Ok(((*name).clone(), base))
    });
    let bases: BTreeMap<String, Base> = made.into_iter().collect::<Result<_, BuildError>>()?;
    let base_of = |name: &String| {
        bases
            .get(name)
            .ok_or_else(|| BuildError::Missing { set: inputs.lock.told_apart(name, sets::BASE), what: "package" })
    };

    let layered = inputs.rack.images.values().filter_map(|image| match &image.from {
        None => Some(Job::Image(image, None)),
        Some(From::Root(root)) => Some(Job::Image(image, Some(root))),
        // It has none.
        Some(From::Disk(_)) => None,
    });
    let mut jobs: Vec<Job> = layered.chain([Job::Modules]).collect();
    jobs.sort_by_key(|job| match job {
        Job::Modules => Reverse(inputs.weight(&inputs.rack.base.value, sets::KERNEL)),
        Job::Image(image, _) => Reverse(inputs.weight(&inputs.rack.base_of(image).value, &sets::image(&image.name))),
    });
    let make = |job: &Job| match job {
        Job::Modules => {
            let job = progress.spinner("building", "guest kernel");
            let modules = layers.kernel(base_of(&inputs.rack.base.value)?, package, &|_| ())?;
            job.done("guest kernel");
            Ok((None, Some(modules)))
        }
        Job::Image(image, root) => {
            let own = match root {
                None => {
                    own_layer(inputs, layers, base_of(&inputs.rack.base_of(image).value)?, image, scratch, progress)?
                }
                Some(root) => foreign_layers(inputs, layers, image, root, scratch, progress)?,
            };
            Ok((Some((image.name.clone(), own.compressed_if_asked(layers, image, progress)?)), None))
        }
    };
    let (longest, others) = jobs.split_at(1);
    let (longest, others) = thread::scope(|scope| {
        let others = scope.spawn(|| parallel::each_behind(inputs.jobs, others, make));
        let longest: Vec<_> = longest.iter().map(make).collect();
        (longest, others.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    });
    let done = BuildError::all(longest.into_iter().chain(others))?;
    let (own, modules): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let missing = || BuildError::Missing { set: sets::KERNEL.to_owned(), what: "kernel" };
    Ok(Made {
        modules: modules.into_iter().flatten().next().ok_or_else(missing)?,
        own: own.into_iter().flatten().collect(),
    })
}

fn own_layer(
    inputs: &Inputs,
    layers: &Layers,
    base: &Base,
    image: &Image,
    scratch: &Scratch,
    progress: &Progress,
) -> Result<Own, BuildError> {
    let (name, base_name) = (&image.name, &inputs.rack.base_of(image).value);
    let label = format!("layer {name}");
    let job = progress.spinner("building", &label);
    let (additions, marks) = additions::of(image, inputs.set(base_name, &sets::image(name)), scratch)?;
    let layers = layers.image(name, base, &additions, &|_| ()).map_err(|error| marks.place(error))?;
    job.done(&label);
    let start = Start { init: vec![INIT.to_owned()], process: None };
    Ok(Own { base: Some((inputs.lock.told_apart(base_name, sets::BASE), base.layer.clone())), layers, start })
}

impl Own {
    /// The same image, with its own layers and the base compressed if its recipe asks for that. The layer of the
    /// kernel's modules is not: all guests have that one.
    fn compressed_if_asked(self, layers: &Layers, image: &Image, progress: &Progress) -> Result<Self, BuildError> {
        let Some(how) = image.compress else { return Ok(self) };
        let label = format!("compressed layers of {}", image.name);
        let job = progress.spinner("building", &label);
        let base = self.base.map(|(label, base)| Ok::<_, BuildError>((label, layers.compressed(&base, how)?)));
        let base = base.transpose()?;
        let own = self.layers.into_iter().map(|(label, layer)| Ok((label, layers.compressed(&layer, how)?)));
        let own = own.collect::<Result<_, BuildError>>()?;
        job.done(&label);
        Ok(Self { base, layers: own, start: self.start })
    }
}

/// The layers of an image that is not made of packages.
fn foreign_layers(
    inputs: &Inputs,
    layers: &Layers,
    image: &Image,
    root: &Root,
    scratch: &Scratch,
    progress: &Progress,
) -> Result<Own, BuildError> {
    let name = &image.name;
    let missing = || BuildError::Missing { set: sets::image(name), what: "input" };
    let locked = inputs.lock.inputs.get(name);
    let pinned = locked.and_then(|locked| Pinned::of(root, locked)).ok_or_else(missing)?;
    let label = format!("image {name} from {}", root.archive.name().value);
    let job = progress.spinner("building", &label);
    let (additions, marks) = additions::of(image, Vec::new(), scratch)?;
    let folder = tempfile::tempdir_in(scratch.0.path())
        .map_err(|source| BuildError::Write { path: scratch.0.path().to_owned(), source })?;
    let built = from::build(layers, image, pinned, &additions.files, &inputs.store.files(), folder.path());
    let built = built.map_err(|error| match error {
        FromError::Layer(error) => marks.place(error),
        FromError::Recipe { source, .. } => BuildError::Recipe(source),
        other => BuildError::from(other).of_input(root.archive.name()),
    })?;
    job.done(&label);
    for note in built.notes {
        progress.say(&format!("image {name}: {note}"));
    }
    Ok(Own { base: None, layers: built.layers, start: built.start })
}

impl Images {
    /// A layer.
    fn add(&mut self, label: &str, layer: &Layer) -> Blob {
        let file = BlobFile { path: layer.path.clone(), kept: Some(Kept { leaves: layer.leaves(), crc: layer.crc }) };
        self.files.insert(layer.digest, file);
        Blob { digest: layer.digest, size: layer.size, label: label.to_owned() }
    }

    /// Holds on to a part with files that are used.
    pub fn keep(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// Another file.
    pub fn add_file(&mut self, label: &str, path: &Path) -> Result<Blob, BuildError> {
        let failed = |source| BuildError::Write { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let digest = verity::digest(file).map_err(failed)?;
        self.files.insert(digest, BlobFile { path: path.to_owned(), kept: None });
        Ok(Blob { digest, size, label: label.to_owned() })
    }
}

impl Inputs<'_> {
    /// How long a set of a base takes to be unpacked and configured, as against others: its bytes, and as much for each
    /// package's scripts as for a MiB.
    fn weight(&self, base: &str, set: &str) -> u64 {
        let packages = self.lock.bases.get(base).into_iter().flat_map(|base| base.set(set));
        packages.map(|(_, package)| package.size + (1 << 20)).sum()
    }

    /// The packages of a set of a base, as layers take them.
    fn set(&self, base: &str, set: &str) -> Vec<Package> {
        self.lock.bases.get(base).map_or_else(Vec::new, |base| packages_of(base, set, self.store))
    }
}

/// The packages of a set, as layers take them.
fn packages_of(base: &lock::Base, set: &str, store: &Store) -> Vec<Package> {
    let package = |(name, locked): (&String, &lock::Package)| {
        let lock::Package { version, sha256, .. } = locked;
        Package { name: name.clone(), version: version.clone(), sha256: *sha256, deb: store.unpacked(*sha256) }
    };
    base.set(set).map(package).collect()
}

/// Under which keys layers and parts of a recipe are kept, once they are built. Whatever goes into a layer or part
/// decides its key.
#[derive(Serialize)]
pub struct Keys {
    /// Those of layers that are made of packages alone.
    pub layers: Vec<String>,
    /// Those of what images add to these.
    own: Vec<String>,
    /// Those of images that are made from something else, by name.
    pub from: BTreeMap<String, from::Keys>,
    /// Those of parts that are made of packages alone.
    pub parts: Vec<Sha256>,
    /// Those of whole disks.
    disks: Vec<Sha256>,
}

impl Keys {
    /// All under which the cache of layers has something.
    pub fn all_layers(&self) -> impl Iterator<Item = &String> {
        self.layers.iter().chain(&self.own).chain(self.from.values().flat_map(from::Keys::all))
    }

    /// All under which there are parts.
    pub fn all_parts(&self) -> impl Iterator<Item = &Sha256> {
        self.parts.iter().chain(&self.disks)
    }
}

/// The keys of all that a recipe needs.
pub fn keys(rack: &Rack, lock: &Lock, store: &Store, layers: &Layers, parts: &Parts) -> Result<Keys, BuildError> {
    let epoch = super::epoch(lock)?;
    let mut keys = Keys {
        layers: Vec::new(),
        own: Vec::new(),
        from: BTreeMap::new(),
        parts: vec![parts.key(&host::made_of(lock, epoch))?],
        disks: disks::keys(rack, lock, parts)?,
    };
    if rack.images.values().all(|image| image.disk().is_some()) {
        return Ok(keys);
    }
    let Some(kernel) = kernel_of(&packages_of(lock.own(), sets::KERNEL, store)) else { return Ok(keys) };
    keys.parts.push(parts.key(&boot_of(&kernel, &Runtime::find()?, epoch)?)?);
    let scratch = Scratch::new(store)?;
    for (name, base) in &lock.bases {
        let is_of = |image: &Image| image.from.is_none() && rack.base_of(image).value == *name;
        let images = rack.images.iter().filter(|(_, image)| is_of(image)).map(|(name, image)| {
            let packages = packages_of(base, &sets::image(name), store);
            additions::of(image, packages, &scratch).map(|(additions, _)| (additions, image.compress))
        });
        let images = images.collect::<Result<Vec<_>, _>>()?;
        let modules = (*name == lock.base).then_some(&kernel);
        let (of_packages, own) = layers.keys_of(&packages_of(base, sets::BASE, store), modules, &images)?;
        keys.layers.extend(of_packages);
        keys.own.extend(own);
    }
    for (name, image) in &rack.images {
        let pinned = image.root().zip(lock.inputs.get(name)).and_then(|(root, locked)| Pinned::of(root, locked));
        let Some(pinned) = pinned else { continue };
        let (_, hashes) =
            files::collect(&additions::of(image, Vec::new(), &scratch)?.0.files).map_err(FromError::File)?;
        keys.from.insert(name.clone(), from::Keys::of(layers, pinned, &hashes, image.compress)?);
    }
    Ok(keys)
}

/// What decides the part that boots guests.
fn boot_of(kernel: &Package, runtime: &Runtime, epoch: u32) -> Result<impl Serialize + use<>, BuildError> {
    Ok(("guest", epoch, kernel.sha256, parts::hash(&runtime.guest)?))
}

/// The kernel among packages.
fn kernel_of(packages: &[Package]) -> Option<Package> {
    packages.iter().find(|package| package.name.starts_with("linux-image-")).cloned()
}
