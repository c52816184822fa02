//! Whether an image is whole: every table, and every byte that has a digest or a checksum, is what it was when it was
//! built. What is at fault is told with its place; what depends on nothing that is at fault is looked at nevertheless.

use std::collections::BTreeSet;

use rackstick_image::{
    erofs::read::Layer,
    esp::read::File as EspFile,
    ext4::read::Fs,
    gpt::check,
    manifest::{Blob, Manifest},
    spares::{self, Spares},
    uki::read as uki,
    verity::stored::{self, StoredFault},
    view::View,
};
use sha2::{Digest, Sha256};

use super::{
    open::{self, Disk, Fault, Host, ImageError, Parts},
    secrets::{Held, names},
    text::{count, printable, size},
};
use crate::progress::Progress;

const LOADER: &str = "EFI/BOOT/BOOTX64.EFI";
/// Largest list of spare files; that of all modules and firmware has 150 KiB.
const MAX_SPARES: u64 = 16 << 20;
/// Bytes hashed at once.
const PIECE: u64 = 1 << 18;

const REPAIR: &str = "if the disk is larger than the image that was put onto it nothing is wrong, and its rack makes it fit when it starts; \
                      else gdisk(8) makes one table from the other, or copy the image anew from where it is whole";
const REBUILD: &str = "it is not the work of one build: build it again";

/// What was found.
#[derive(Debug, Default)]
pub struct Verified {
    /// What is wrong; nothing if the image is whole.
    pub faults: Vec<Fault>,
    /// What was looked at.
    pub looked_at: Vec<String>,
    /// The names of the secrets whose values are in the image; empty if there are none.
    pub secrets: String,
}

/// Looks at all of an image.
pub fn verify(disk: &Disk, progress: &Progress) -> Result<Verified, ImageError> {
    let mut verified = Verified::default();
    let tables = check::faults(&disk.gpt()?);
    let tables = tables.map_err(|source| ImageError::File { path: disk.path.clone(), source })?;
    for check::Fault { part, at, what } in tables {
        verified.faults.push(Fault::new(part, format!("{what} (byte {at} of the image)")).remedy(REPAIR));
    }
    verified.looked_at.push("both partition tables".to_owned());
    match Parts::find(disk)? {
        Ok(parts) => verified.parts(&parts, progress),
        Err(fault) => verified.faults.push(fault),
    }
    Ok(verified)
}

impl Verified {
    fn parts(&mut self, parts: &Parts<'_>, progress: &Progress) {
        let job = progress.spinner("verifying", "ESP");
        let host = self.esp(parts);
        job.done("ESP");
        let fs = self.keep(parts.fs());
        if let Some(fs) = &fs
            && let Err(error) = fs.check()
        {
            self.faults.push(Fault::read("data partition", &parts.data, &error));
        }
        let mut held = Held::of(parts, fs.as_ref());
        held.faults.retain(|fault| !self.faults.contains(fault));
        self.faults.append(&mut held.faults);
        self.secrets = names(held.values().keys());
        let Some(host) = host else { return };
        self.names(&host, parts);
        let Some(fs) = fs else { return };
        self.copy_of_manifest(&host, &fs, parts);
        let blobs = open::blobs(&host.manifest);
        let (mut files, mut bytes) = (0, 0_u64);
        for used in &blobs {
            let job = progress.spinner("verifying", &printable(&used.blob.label));
            let content = self.blob(&fs, parts, used.blob);
            job.done(&printable(&used.blob.label));
            if let (true, Some(content)) = (used.layer, &content) {
                files += self.layer(content, used.blob);
            }
            bytes = bytes.saturating_add(used.blob.size);
        }
        let layers = count(blobs.len(), "file");
        self.looked_at.push(format!("{layers} of layers and guest kernels ({}) with their Merkle trees", size(bytes)));
        self.looked_at.push(format!("{} in layers", count(files, "name")));
    }

    fn keep<T>(&mut self, found: Result<T, Fault>) -> Option<T> {
        found.map_err(|fault| self.faults.push(fault)).ok()
    }

    /// The ESP's file system, boot loader and UKI.
    fn esp<'a>(&mut self, parts: &Parts<'a>) -> Option<Host<'a>> {
        let (fat, files) = self.keep(parts.files())?;
        if let Err(error) = fat.check(&files) {
            self.faults.push(Fault::read("ESP", &parts.esp, &error));
        }
        match files.iter().find(|file| file.path == LOADER) {
            // Debian's carries no checksum; one that is there must be right.
            Some(loader) => self.checksum(loader, false),
            None => self.faults.push(Fault::new("ESP", format!("there is no boot loader {LOADER}"))),
        }
        let uki = self.keep(open::only_host(&files))?;
        self.checksum(uki, true);
        let host = self.keep(Host::read(uki))?;
        self.spares(&host);
        self.looked_at.push(format!("the ESP with its UKI ({})", size(host.file.length())));
        Some(host)
    }

    /// The checksum that a PE file has of itself; 0 stands for none.
    fn checksum(&mut self, file: &EspFile<'_>, needed: bool) {
        let part = format!("ESP, {}", file.path);
        match uki::checksums(file.content.reader()) {
            Err(error) => self.faults.push(Fault::new(part, error.to_string())),
            Ok((0, _)) if !needed => {}
            Ok((0, _)) => {
                let what = "it carries no checksum: it is damaged, or an older version of this program built it";
                self.faults.push(Fault::new(part, what));
            }
            Ok((held, sum)) if held != sum => {
                let place =
                    file.content.place(0).map_or_else(String::new, |at| format!(", from byte {at} of the image on"));
                let what = format!("its bytes have the checksum {sum:#010x}, and its header says {held:#010x}{place}");
                self.faults.push(Fault::new(part, what));
            }
            Ok(_) => {}
        }
    }

    /// Modules and firmware in the initrd, by the list of their digests there.
    fn spares(&mut self, host: &Host<'_>) {
        let part = |path: &str| format!("ESP, {}, .initrd, {path}", host.path);
        let Some(list) = host.initrd.get(spares::PATH.trim_start_matches('/')) else {
            self.faults.push(Fault::new(part(spares::PATH), "it is not there"));
            return;
        };
        let text = list.bytes(MAX_SPARES).map_err(|error| error.to_string());
        let text = text.and_then(|bytes| String::from_utf8(bytes).map_err(|error| error.to_string()));
        let spares = text.and_then(|text| Spares::parse(&text).map_err(|error| error.to_string()));
        let spares = match spares {
            Ok(spares) => spares,
            Err(what) => return self.faults.push(Fault::new(part(spares::PATH), what)),
        };
        for path in spares.paths() {
            let Some(file) = host.initrd.get(path.trim_start_matches('/')) else {
                self.faults.push(Fault::new(part(path), "it is not there, and the initrd's list names it"));
                continue;
            };
            match sha256(file) {
                Ok(digest) if spares.digest(path).is_some_and(|expected| expected.0 == digest) => {}
                Ok(_) => {
                    let at = file.place(0).unwrap_or(0);
                    let what = format!("its bytes are not those that the initrd's list says (byte {at} of the image)");
                    self.faults.push(Fault::new(part(path), what));
                }
                Err(error) => self.faults.push(Fault::read(part(path), file, &error)),
            }
        }
    }

    /// What UKI and manifest say of each other, and the manifest's parts of each other.
    fn names(&mut self, host: &Host<'_>, parts: &Parts<'_>) {
        let Manifest { rack, version, data_partition, images, guests, networks, .. } = &host.manifest;
        let uki = format!("ESP, {}", host.path);
        let mut differ = |part: &str, what: String| self.faults.push(Fault::new(part, what).remedy(REBUILD));
        let stem = host.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".efi");
        let (stem, _tries) = stem.split_once('+').unwrap_or((stem, ""));
        if stem != format!("rackstick_{version}") {
            differ(&uki, format!("its name is not that of version {version}, which its manifest is of"));
        }
        let says = |key: &str| host.os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        for (key, expected) in [("IMAGE_ID", rack), ("VERSION_ID", version)] {
            if says(key) != Some(expected.as_str()) {
                differ(&uki, format!("{key} in its .osrel is not {expected}, as its manifest says"));
            }
        }
        let modules = format!("lib/modules/{}/", host.release);
        if !host.initrd.keys().any(|path| path.starts_with(&modules)) {
            differ(&uki, format!("its initrd has no modules for its kernel, Linux {}", host.release));
        }
        if *data_partition != parts.data_guid {
            let what = format!("its GUID is {}, and the manifest names {data_partition}", parts.data_guid);
            differ("data partition", what);
        }
        let known: BTreeSet<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
        for guest in guests {
            let lacks = |what: &str, name: &str| {
                format!("guest {} has the {what} {name}, of which it says nothing", guest.name)
            };
            if !images.contains_key(&guest.image) {
                differ("manifest", lacks("image", &guest.image));
            }
            let of_interfaces = guest.interfaces.iter().map(|interface| &interface.network);
            let of_forwards = guest.forwards.iter().map(|forward| &forward.network);
            for name in of_interfaces.chain(of_forwards).filter(|name| !networks.contains_key(*name)) {
                differ("manifest", lacks("network", name));
            }
            for name in guest.after.iter().filter(|name| !known.contains(name.as_str())) {
                differ("manifest", lacks("predecessor", name));
            }
        }
    }

    /// The data partition's copy of the manifest.
    fn copy_of_manifest(&mut self, host: &Host<'_>, fs: &Fs<'_>, parts: &Parts<'_>) {
        let path = format!("generations/{}/manifest.json", host.manifest.version);
        let part = format!("data partition, {path}");
        let bytes = fs.file(&path).map(|file| file.map(|file| file.content.bytes(host.json.len() as u64)));
        match bytes {
            Err(error) => self.faults.push(Fault::read(part, &parts.data, &error)),
            Ok(None) => self.faults.push(Fault::new(part, "it is not there")),
            Ok(Some(Ok(bytes))) if bytes == host.json => {}
            Ok(Some(_)) => self.faults.push(Fault::new(part, "it is not the manifest that is in the UKI")),
        }
    }

    /// A file that the manifest names: its bytes, if they are as they should be.
    fn blob<'a>(&mut self, fs: &Fs<'a>, parts: &Parts<'a>, blob: &Blob) -> Option<View<'a>> {
        let part = format!("data partition, layers/{} ({})", blob.digest, blob.label);
        let file = fs.file(&format!("layers/{}", blob.digest));
        let file = self.keep(file.map_err(|error| Fault::read(&part, &parts.data, &error)))?;
        let mut fault = |what: String| self.faults.push(Fault::new(&part, what));
        let Some(file) = file else {
            fault("it is not there, and the manifest names it".to_owned());
            return None;
        };
        if file.content.length() != blob.size {
            fault(format!("it has {} bytes, and the manifest says {}", file.content.length(), blob.size));
        }
        let Some(verity) = file.verity else {
            fault("fs-verity is not on for it, so a rack would not take it".to_owned());
            return None;
        };
        let checked = match stored::check(&file.content, &verity, blob.digest) {
            Ok(checked) => checked,
            Err(error) => {
                self.faults.push(Fault::read(&part, &file.content, &error));
                return None;
            }
        };
        let place = |view: &View<'_>, at: u64| {
            view.place(at).map_or_else(String::new, |at| format!(", byte {at} of the image"))
        };
        match checked.stored {
            Some(StoredFault::Descriptor) => {
                let place = place(&verity.descriptor, 0);
                fault(format!("its fs-verity descriptor is not the one that its name is the digest of{place}"));
            }
            Some(StoredFault::Tree(block)) => {
                let place = place(&verity.tree, block * BLOCK);
                fault(format!("block {block} of its Merkle tree is not what its name says{place}"));
            }
            None => {}
        }
        if checked.digest != blob.digest {
            fault(format!(
                "its bytes have the fs-verity digest {}{}",
                checked.digest,
                blocks(&checked.blocks, &file.content)
            ));
            return None;
        }
        Some(file.content)
    }

    /// A layer's structure; gives how many names are in it.
    fn layer(&mut self, content: &View<'_>, blob: &Blob) -> usize {
        let part = format!("data partition, layers/{} ({})", blob.digest, blob.label);
        let walked = Layer::open(content.clone()).and_then(|layer| {
            layer.walk().try_fold(0, |count, step| {
                let (_, inode) = step?;
                layer.xattrs(&inode).map(|_| count + 1)
            })
        });
        // Its bytes are what its name says, so it was built like that.
        let fault = |error| Fault::read(part, content, &error).remedy(REBUILD);
        walked.map_err(|error| self.faults.push(fault(error))).unwrap_or(0)
    }
}

/// Of fs-verity.
const BLOCK: u64 = 4096;

/// Which blocks are damaged, as far as that is known.
fn blocks(blocks: &[u64], content: &View<'_>) -> String {
    let Some(first) = blocks.first() else { return String::new() };
    let numbers: Vec<String> = blocks.iter().map(u64::to_string).collect();
    let more = if blocks.len() == stored::MAX_BLOCKS { " and perhaps more" } else { "" };
    let place =
        content.place(first * BLOCK).map_or_else(String::new, |at| format!(", the first at byte {at} of the image"));
    format!(": blocks of 4096 bytes that are damaged: {}{more}{place}", numbers.join(", "))
}

fn sha256(view: &View<'_>) -> Result<[u8; 32], rackstick_image::view::ReadError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; view.length().min(PIECE) as usize];
    let mut at = 0;
    while at < view.length() {
        let here = &mut buffer[..(view.length() - at).min(PIECE) as usize];
        view.read_at(here, at)?;
        hash.update(&*here);
        at += here.len() as u64;
    }
    Ok(hash.finalize().into())
}
