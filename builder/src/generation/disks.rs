//! Images that are whole disks: the disk packed, its kernel unpacked, its initrd as it is. They have no layers, and
//! nothing of the rack's own is put into them.

use std::{
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use rackstick::{
    from::{
        self, FromError,
        disk::{self, DiskError},
    },
    hashed::Hashed,
    stamp::Stamp,
};
use rackstick_image::{
    digest::Sha256,
    lock::{Input, InputFile, Lock},
    manifest::{self, Blob},
    packed::{self, PackedError},
    recipe::{self, Image, Rack},
};
use serde::Serialize;
use thiserror::Error;

use super::{
    BuildError, Inputs,
    images::{self, Images},
    parts::{Part, Parts},
    write,
};
use crate::{
    progress::Progress,
    sets,
    vmlinux::{self, VmlinuxError},
};

/// The files of the part of such an image.
const DISK: &str = "disk";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
const MIB: u64 = 1 << 20;

/// Why an image can't be made of a whole disk.
#[derive(Debug, Error)]
pub enum WholeDiskError {
    /// The disk.
    #[error("{} {source}", .path.display())]
    Disk {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        source: DiskError,
    },
    /// The packed disk.
    #[error("{} can't be packed: {source}", .path.display())]
    Packed {
        /// The disk's file.
        path: PathBuf,
        /// Why.
        source: PackedError,
    },
    /// The kernel.
    #[error("the kernel {} {source}", .path.display())]
    Kernel {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        source: VmlinuxError,
    },
    /// A guest's disk would be smaller than its image's.
    #[error(
        "the disk of guest `{guest}` has {mib} MiB in the recipe, but that of image `{image}` has {bytes} bytes: it can be no smaller"
    )]
    Small {
        /// The guest.
        guest: String,
        /// Its size in the recipe.
        mib: u32,
        /// Its image.
        image: String,
        /// Size of the image's disk.
        bytes: u64,
    },
}

impl WholeDiskError {
    /// Whether a file that the recipe names is at fault, and not the machine that builds.
    pub fn is_of_the_input(&self) -> bool {
        match self {
            Self::Disk { source, .. } => !source.is_of_our_disk(),
            Self::Kernel { .. } => true,
            Self::Packed { .. } | Self::Small { .. } => false,
        }
    }
}

/// The images of a recipe that are whole disks, by name.
fn of(rack: &Rack) -> impl Iterator<Item = (&str, &Image, &recipe::Disk)> {
    rack.images.iter().filter_map(|(name, image)| Some((name.as_str(), image, image.disk()?)))
}

/// What decides the part of such an image.
fn made_of(locked: &Input) -> impl Serialize + use<> {
    let hashes: Vec<Sha256> = locked.files().into_iter().map(|(_, sha256)| sha256).collect();
    ("disk", hashes)
}

/// The keys of all their parts.
pub fn keys(rack: &Rack, lock: &Lock, parts: &Parts) -> Result<Vec<Sha256>, BuildError> {
    let locked = of(rack).filter_map(|(name, ..)| lock.inputs.get(name));
    locked.map(|locked| Ok(parts.key(&made_of(locked))?)).collect()
}

/// Builds them all.
pub fn add(images: &mut Images, inputs: &Inputs, parts: &Parts, progress: &Progress) -> Result<(), BuildError> {
    for (name, image, recipe::Disk { disk, kernel, initrd }) in of(inputs.rack) {
        let missing = || BuildError::Missing { set: sets::image(name), what: "input" };
        let locked = inputs.lock.inputs.get(name).ok_or_else(missing)?;
        let Input::Disk { disk: locked_disk, kernel: locked_kernel, initrd: locked_initrd } = locked else {
            return Err(missing());
        };
        let what = format!("image {name} from {}", disk.path.value);
        let job = progress.spinner("building", &what);
        let part = parts.get(&made_of(locked), |folder| -> Result<(), BuildError> {
            unchanged(&disk.file, locked_disk, |file| pack(&disk.file, file, &folder.join(DISK)))
                .map_err(|error| error.of_input(&disk.path))?;
            unchanged(&kernel.file, locked_kernel, |file| unpack(&kernel.file, file, &folder.join(KERNEL)))
                .map_err(|error| error.of_input(&kernel.path))?;
            copy(&initrd.file, locked_initrd, &folder.join(INITRD)).map_err(|error| error.of_input(&initrd.path))
        })?;
        // Two images may name files alike, and who compares generations goes by labels.
        let label = |file: &str| format!("{file} of {name}");
        let blob = images.add_file(&label(&disk.path.value), &part.file(DISK))?;
        let image = manifest::Image {
            layers: Vec::new(),
            kernel: images.add_file(&label(&kernel.path.value), &part.file(KERNEL))?,
            initrd: images.add_file(&label(&initrd.path.value), &part.file(INITRD))?,
            cmdline: images::cmdline(Some(image)),
            init: Vec::new(),
            process: None,
            secrets: Vec::new(),
            disk: Some(packed_disk(blob, &part, &disk.file)?),
        };
        large_enough(inputs.rack, name, &image)?;
        images.manifests.insert(name.to_owned(), image);
        images.keep(part);
        job.done(&what);
    }
    Ok(())
}

fn packed_disk(blob: Blob, part: &Part, path: &Path) -> Result<manifest::Disk, BuildError> {
    let open = || File::open(part.file(DISK)).map_err(PackedError::Io);
    let size = open().and_then(|file| packed::size(&file));
    let size = size.map_err(|source| WholeDiskError::Packed { path: path.to_owned(), source })?;
    Ok(manifest::Disk { blob, size })
}

/// No guest's disk may be smaller than what is copied to it.
fn large_enough(rack: &Rack, image: &str, built: &manifest::Image) -> Result<(), WholeDiskError> {
    let bytes = built.disk.as_ref().map_or(0, |disk| disk.size);
    let mut guests = rack.guests.iter().filter(|(_, guest)| guest.image == image);
    let small = guests
        .find_map(|(name, guest)| guest.disk_mib.filter(|mib| u64::from(*mib) * MIB < bytes).map(|mib| (name, mib)));
    match small {
        None => Ok(()),
        Some((guest, mib)) => Err(WholeDiskError::Small { guest: guest.clone(), mib, image: image.to_owned(), bytes }),
    }
}

/// Uses a file that is what the lock says, before and after.
fn unchanged(
    path: &Path,
    locked: &InputFile,
    with: impl FnOnce(&File) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let failed = |source: io::Error| FromError::Open { path: path.to_owned(), source };
    let check = |file: &File| {
        let found = Sha256::of_open(file).map_err(failed)?;
        from::unchanged(path.display().to_string(), found, locked.sha256)
    };
    let file = File::open(path).map_err(failed)?;
    let stamp = |file: &File| file.metadata().map(Stamp::from).map_err(failed);
    let before = stamp(&file)?;
    check(&file)?;
    with(&file)?;
    if stamp(&file)? != before {
        check(&file)?;
    }
    Ok(())
}

fn pack(path: &Path, file: &File, to: &Path) -> Result<(), BuildError> {
    let out = File::create_new(to).map_err(|source| BuildError::Write { path: to.to_owned(), source })?;
    let packed = disk::pack(file, BufWriter::with_capacity(1 << 20, out));
    packed.map_err(|source| WholeDiskError::Disk { path: path.to_owned(), source })?;
    Ok(())
}

fn unpack(path: &Path, file: &File, to: &Path) -> Result<(), BuildError> {
    let kernel = vmlinux::bootable(file).map_err(|source| WholeDiskError::Kernel { path: path.to_owned(), source })?;
    write(to, &kernel)
}

/// Copies a file that is what the lock says.
fn copy(path: &Path, locked: &InputFile, to: &Path) -> Result<(), BuildError> {
    let failed = |source| BuildError::Write { path: to.to_owned(), source };
    let mut file = Hashed::new(File::open(path).map_err(|source| FromError::Open { path: path.to_owned(), source })?);
    let mut out = File::create_new(to).map_err(failed)?;
    io::copy(&mut file, &mut out).map_err(failed)?;
    Ok(from::unchanged(path.display().to_string(), file.finish(), locked.sha256)?)
}
