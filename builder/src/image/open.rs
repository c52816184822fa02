//! The parts of an image, each found in the one around it: disk, partitions, the ESP's UKI, the UKI's manifest, layers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rackstick_image::{
    cpio::read::Entries,
    digest::VerityDigest,
    erofs::read::Layer,
    esp::read::{Fat, File as EspFile},
    ext4::read::{Fs, UNCLEAN},
    gpt::read::{self as gpt, Found},
    manifest::{self, Blob, FORMAT, Image, Manifest},
    sector::SectorSize,
    uki::read::{self as uki, Section},
    view::{ReadError, View},
};

use super::text::printable;
use crate::sets::BASE;

/// The partition types of an ESP and of Linux data (UEFI specification 2.10, section 5.3.3; UAPI.2).
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const LINUX_DATA: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
/// Where the ESP has its UKIs.
const HOSTS: &str = "EFI/Linux/";
/// Largest manifest; that of a rack with 1000 guests has about 1 MiB.
const MAX_MANIFEST: u64 = 16 << 20;
/// Largest of a UKI's sections that are text.
const MAX_TEXT: u64 = 64 << 10;

/// Why an image can't be looked into.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file.
    #[error("can't read {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither a file nor a disk.
    #[error("{} is neither a file nor a disk; name an image that `rackstick build` made", .0.display())]
    Kind(PathBuf),
    /// It has no partition table.
    #[error("{} is no disk image: it has no partition table (GPT); name one that `rackstick build` made, and unpack an `.img.zst` \
         before, with `zstd -d`", .0.display())]
    NoTable(PathBuf),
    /// A part of the image is damaged.
    #[error("{}: {part}: {what}; `rackstick verify` says what else is wrong", .path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// Which part of it.
        part: String,
        /// What is wrong, and where.
        what: String,
    },
}

/// What is wrong with a part of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}; {remedy}", printable(.part), printable(.what))]
pub struct Fault {
    /// The part: `data partition, layers/…`.
    pub part: String,
    /// What is wrong, and where.
    pub what: String,
    /// What to do.
    remedy: &'static str,
}

impl Fault {
    pub fn new(part: impl Into<String>, what: impl Into<String>) -> Self {
        let remedy = "copy the image anew from where it is whole, or build it again";
        Self { part: part.into(), what: what.into(), remedy }
    }

    pub fn remedy(self, remedy: &'static str) -> Self {
        Self { remedy, ..self }
    }

    /// A reader's error, which counts from the view's begin, with its place in the image.
    pub fn read(part: impl Into<String>, view: &View<'_>, error: &ReadError) -> Self {
        let at = error.at();
        let place = view.place(at).map_or_else(String::new, |place| format!(", byte {place} of the image"));
        let fault = Self::new(part, format!("{error} (at byte {at} of it{place})"));
        match error {
            ReadError::Damaged { what, .. } if *what == UNCLEAN => {
                fault.remedy("nothing is lost: start the rack on it once more, and switch it off")
            }
            _ => fault,
        }
    }
}

/// An image's file.
#[derive(Debug)]
pub struct Disk {
    pub path: PathBuf,
    file: File,
    /// What it takes where it lies, in bytes.
    pub allocated: u64,
    pub sector: SectorSize,
}

impl Disk {
    /// Opens an image.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        use std::os::unix::fs::OpenOptionsExt;
        let failed = |source| ImageError::File { path: path.to_owned(), source };
        // A pipe is not waited for.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
        Self::of(path, file)
    }

    /// An image that is open already.
    pub fn of(path: &Path, file: File) -> Result<Self, ImageError> {
        use std::os::unix::fs::FileTypeExt;
        let failed = |source| ImageError::File { path: path.to_owned(), source };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(ImageError::Kind(path.to_owned()));
        }
        let sector = SectorSize::of_image(&file).map_err(failed)?;
        let sector = sector.ok_or_else(|| ImageError::NoTable(path.to_owned()))?;
        Ok(Self { path: path.to_owned(), file, allocated: metadata.blocks().saturating_mul(512), sector })
    }

    /// As its partition table has it.
    pub fn gpt(&self) -> Result<gpt::Disk<'_>, ImageError> {
        let failed = |source| ImageError::File { path: self.path.clone(), source };
        let disk = gpt::Disk::new(&self.file, self.sector.bytes()).map_err(failed)?;
        disk.ok_or_else(|| ImageError::NoTable(self.path.clone()))
    }

    /// Its bytes.
    pub fn view(&self) -> Result<View<'_>, ImageError> {
        View::whole(&self.file).map_err(|source| ImageError::File { path: self.path.clone(), source })
    }

    /// What a fault is for a command that needs what is at fault.
    pub fn damaged(&self, fault: Fault) -> ImageError {
        ImageError::Damaged { path: self.path.clone(), part: printable(&fault.part), what: printable(&fault.what) }
    }
}

/// Both partitions.
#[derive(Debug)]
pub struct Parts<'a> {
    pub table: Vec<Found>,
    pub esp: View<'a>,
    pub data: View<'a>,
    /// GUID of the data partition.
    pub data_guid: String,
}

impl<'a> Parts<'a> {
    pub fn find(disk: &'a Disk) -> Result<Result<Self, Fault>, ImageError> {
        let failed = |source| ImageError::File { path: disk.path.clone(), source };
        let Some(table) = disk.gpt()?.table().map_err(failed)? else {
            return Ok(Err(Fault::new("partition table", "neither the first nor the second is whole")));
        };
        let (table, whole) = (table.partitions(disk.sector), disk.view()?);
        let find = |kind: &str, name: &str| {
            let mut found = table.iter().filter(|found| found.kind.to_string() == kind);
            let (Some(only), None) = (found.next(), found.next()) else {
                return Err(Fault::new("partition table", format!("it must have one {name} partition")));
            };
            let view = whole.part(only.start, only.size);
            let view =
                view.ok_or_else(|| Fault::new(format!("{name} partition"), "it does not lie within the disk"))?;
            Ok((view, only.guid.to_string()))
        };
        let both = find(ESP, "ESP").and_then(|esp| Ok((esp.0, find(LINUX_DATA, "data")?)));
        Ok(both.map(|(esp, (data, data_guid))| Self { table, esp, data, data_guid }))
    }

    /// The ESP's files.
    pub fn files(&self) -> Result<(Fat<'a>, Vec<EspFile<'a>>), Fault> {
        let failed = |error: ReadError| Fault::read("ESP", &self.esp, &error);
        let fat = Fat::open(self.esp.clone()).map_err(failed)?;
        let files = fat.files().map_err(failed)?;
        Ok((fat, files))
    }

    /// The data partition's file system.
    pub fn fs(&self) -> Result<Fs<'a>, Fault> {
        Fs::open(self.data.clone()).map_err(|error| Fault::read("data partition", &self.data, &error))
    }
}

/// The only UKI among the ESP's files.
pub fn only_host<'f, 'a>(files: &'f [EspFile<'a>]) -> Result<&'f EspFile<'a>, Fault> {
    let mut hosts = files.iter().filter(|file| file.path.starts_with(HOSTS) && file.path.ends_with(".efi"));
    match (hosts.next(), hosts.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Fault::new("ESP", format!("there is no UKI in {HOSTS}, so nothing boots"))),
        (Some(_), Some(_)) => {
            Err(Fault::new("ESP", format!("there is more than one UKI in {HOSTS}: a new image has one")))
        }
    }
}

/// A UKI, with what is in its initrd.
#[derive(Debug)]
pub struct Host<'a> {
    /// Its path on the ESP.
    pub path: String,
    pub file: View<'a>,
    pub sections: Vec<Section>,
    /// The text of its sections `.osrel`, `.cmdline` and `.uname`.
    pub os_release: String,
    pub cmdline: String,
    pub release: String,
    /// Files in the initrd by path, without a slash before it.
    pub initrd: BTreeMap<String, View<'a>>,
    /// The manifest as it stands there.
    pub json: Vec<u8>,
    pub manifest: Manifest,
}

impl<'a> Host<'a> {
    pub fn read(uki: &EspFile<'a>) -> Result<Self, Fault> {
        let part = || format!("ESP, {}", uki.path);
        let (file, path) = (uki.content.clone(), uki.path.clone());
        let sections = uki::sections(file.reader()).map_err(|error| Fault::new(part(), error.to_string()))?;
        let section = |name: &str| {
            let found = sections.iter().find(|section| section.name == name);
            let view = found.and_then(|Section { content, .. }| file.part(content.start, content.end - content.start));
            view.ok_or_else(|| Fault::new(part(), format!("it has no section {name}")))
        };
        let text = |name: &str| {
            let section = section(name)?;
            let bytes = section.bytes(MAX_TEXT).map_err(|error| Fault::read(part(), &section, &error))?;
            String::from_utf8(bytes).map_err(|_| Fault::new(part(), format!("its section {name} is no text")))
        };
        let (os_release, cmdline, release) = (text(".osrel")?, text(".cmdline")?, text(".uname")?);
        let archive = section(".initrd")?;
        let mut initrd = BTreeMap::new();
        for entry in Entries::new(archive.reader(), 0..archive.length()) {
            let entry = entry.map_err(|error| Fault::new(format!("{}, .initrd", part()), error.to_string()))?;
            let content = archive.part(entry.content.start, entry.content.end - entry.content.start);
            if let (true, Some(content)) = (entry.is_file(), content) {
                initrd.insert(entry.path, content);
            }
        }
        let inside = format!("{}, .initrd, {}", part(), manifest::PATH);
        let json = initrd.get(manifest::PATH.trim_start_matches('/'));
        let json = json.ok_or_else(|| Fault::new(&inside, "it is not there"))?;
        let json = json.bytes(MAX_MANIFEST).map_err(|error| Fault::read(&inside, json, &error))?;
        let manifest: Manifest = serde_json::from_slice(&json)
            .map_err(|error| Fault::new(&inside, format!("it is no manifest: {error}")))?;
        if manifest.format != FORMAT {
            let what = format!("it is of format {}, and this version knows {FORMAT}", manifest.format);
            return Err(Fault::new(&inside, what));
        }
        Ok(Self { path, file, sections, os_release, cmdline, release, initrd, json, manifest })
    }

    /// How many of its initrd's files are kernel modules, and how many are firmware.
    pub fn drivers(&self) -> (usize, usize) {
        let below = |folder: &str| self.initrd.keys().filter(|path| path.starts_with(folder)).count();
        let modules =
            self.initrd.keys().filter(|path| path.starts_with("lib/modules/") && path.contains(".ko")).count();
        (modules, below("lib/firmware/"))
    }
}

/// A blob of the manifest, with who uses it.
#[derive(Debug)]
pub struct Used<'m> {
    pub blob: &'m Blob,
    /// Whether it is a layer, not a kernel, an initrd or a packed disk.
    pub layer: bool,
    /// Names of guests.
    pub guests: BTreeSet<&'m str>,
}

/// The name of the base of an image that is made of packages; empty for the base of the rack itself.
pub fn base(image: &Image) -> Option<&str> {
    base_of_label(&image.layers.first()?.label)
}

/// The same by a layer's label, if it is that of a base.
pub fn base_of_label(label: &str) -> Option<&str> {
    let name = label.strip_suffix(manifest::COMPRESSED).unwrap_or(label).strip_prefix(BASE)?;
    if name.is_empty() { Some(name) } else { name.strip_prefix(' ') }
}

/// All blobs of a manifest, each once, layers first and in the order in which images stack them, base by base.
pub fn blobs(manifest: &Manifest) -> Vec<Used<'_>> {
    let mut order: Vec<VerityDigest> = Vec::new();
    let mut all: BTreeMap<VerityDigest, Used<'_>> = BTreeMap::new();
    let mut images: Vec<(&String, &Image)> = manifest.images.iter().collect();
    images.sort_by_key(|&(_, image)| (base(image).is_none(), base(image)));
    let of_layers = images.iter().flat_map(|&(name, image)| image.layers.iter().map(move |blob| (name, blob, true)));
    let others = manifest.images.iter().flat_map(|(name, image)| {
        let disk = image.disk.iter().map(|disk| &disk.blob);
        [&image.kernel, &image.initrd].into_iter().chain(disk).map(move |blob| (name, blob, false))
    });
    for (image, blob, layer) in of_layers.chain(others) {
        let guests = manifest.guests.iter().filter(|guest| guest.image == *image).map(|guest| guest.name.as_str());
        let used = all.entry(blob.digest).or_insert_with(|| {
            order.push(blob.digest);
            Used { blob, layer, guests: BTreeSet::new() }
        });
        used.guests.extend(guests);
    }
    order.iter().filter_map(|digest| all.remove(digest)).collect()
}

/// A layer on the data partition; its bytes are not checked.
pub fn layer<'a>(fs: &Fs<'a>, parts: &Parts<'a>, digest: VerityDigest) -> Result<Layer<'a>, Fault> {
    let part = || format!("data partition, layers/{digest}");
    let file = fs.file(&format!("layers/{digest}")).map_err(|error| Fault::read(part(), &parts.data, &error))?;
    let file = file.ok_or_else(|| Fault::new(part(), "it is not there, and the manifest names it"))?;
    Layer::open(file.content.clone()).map_err(|error| Fault::read(part(), &file.content, &error))
}

/// All that `inspect` and `diff` need, which must be sound for them.
#[derive(Debug)]
pub struct Opened<'a> {
    pub disk: &'a Disk,
    pub parts: Parts<'a>,
    pub host: Host<'a>,
    pub fs: Fs<'a>,
}

impl<'a> Opened<'a> {
    pub fn new(disk: &'a Disk) -> Result<Self, ImageError> {
        let damaged = |fault| disk.damaged(fault);
        let parts = Parts::find(disk)?.map_err(damaged)?;
        let (_, files) = parts.files().map_err(damaged)?;
        let host = only_host(&files).and_then(Host::read).map_err(damaged)?;
        let fs = parts.fs().map_err(damaged)?;
        Ok(Self { disk, parts, host, fs })
    }

    /// A layer.
    pub fn layer(&self, digest: VerityDigest) -> Result<Layer<'a>, ImageError> {
        layer(&self.fs, &self.parts, digest).map_err(|fault| self.disk.damaged(fault))
    }

    /// What a reader's error in a layer is.
    pub fn in_layer(&self, blob: &Blob, error: &ReadError) -> ImageError {
        self.disk
            .damaged(Fault::new(format!("data partition, layers/{} ({})", blob.digest, blob.label), error.to_string()))
    }
}
