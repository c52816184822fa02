//! What is taken out of a Debian kernel package (`linux-image-*`): the `vmlinuz`, the modules as they are, still compressed,
//! and an index of those that are wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rackstick_image::modules::{self, Index, InfoError, ModuleInfo, ResolveError};
use thiserror::Error;

use crate::{layers::deb, vmlinux::VmlinuxError};

/// The most one file of a kernel package may hold; Debian's largest is below 16 MiB. Stops a package that would fill memory.
const MAX_FILE: u64 = 256 << 20;
/// The most a module may unpack to: stops a decompression bomb.
const MAX_MODULE: u64 = 256 << 20;

const MODULES: &str = "usr/lib/modules/";
const VMLINUZ: &str = "boot/vmlinuz-";

/// Why a kernel package can't be used.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The .deb can't be opened.
    #[error("the package {} can't be read: {source}", .package.display())]
    Read {
        /// The package's file.
        package: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The .deb's content.
    #[error("the package {} {source}", .package.display())]
    Deb {
        /// The package's file.
        package: PathBuf,
        /// What is wrong with it.
        source: deb::Error,
    },
    /// No kernel in it.
    #[error("the package {} holds no {VMLINUZ}* or no {MODULES}*: it is no kernel package", .0.display())]
    NoKernel(PathBuf),
    /// A file that no kernel package has.
    #[error("the package {} holds {file} with {size} bytes, more than {MAX_FILE}", .package.display())]
    TooLarge {
        /// The package's file.
        package: PathBuf,
        /// The file in it.
        file: String,
        /// Its size in bytes.
        size: u64,
    },
    /// A module that does not decompress.
    #[error("the kernel module {path} does not decompress: {reason}")]
    Decompress {
        /// Path below `/lib/modules/<release>`.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A module without sound `.modinfo`.
    #[error(transparent)]
    Info(#[from] InfoError),
    /// A module is wanted that is not there.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The kernel image.
    #[error("{VMLINUZ}{release} {source}")]
    Vmlinuz {
        /// The kernel's release.
        release: String,
        /// What is wrong.
        source: VmlinuxError,
    },
}

/// A kernel package's content.
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// The bzImage.
    pub vmlinuz: Vec<u8>,
    /// Everything below `/lib/modules/<release>`, by path.
    files: BTreeMap<String, Vec<u8>>,
}

/// Modules chosen for one initrd.
pub struct Modules<'a> {
    /// Their index.
    pub index: Index,
    /// Their files as the package ships them, by path below `/lib/modules/<release>`.
    pub files: BTreeMap<&'a str, &'a [u8]>,
}

impl Kernel {
    /// Reads a `linux-image-*` package.
    pub fn read(package: &Path) -> Result<Self, KernelError> {
        let mut found = extract(package, |path| path.starts_with(VMLINUZ) || path.starts_with(MODULES))?;
        let none = || KernelError::NoKernel(package.to_owned());
        let image = found.keys().find(|path| path.starts_with(VMLINUZ)).cloned().ok_or_else(none)?;
        let release = image[VMLINUZ.len()..].to_owned();
        let vmlinuz = found.remove(&image).ok_or_else(none)?;
        let folder = format!("{MODULES}{release}/");
        let files: BTreeMap<_, _> = found
            .into_iter()
            .filter_map(|(path, content)| Some((path.strip_prefix(&folder)?.to_owned(), content)))
            .collect();
        if files.is_empty() { Err(none()) } else { Ok(Self { release, vmlinuz, files }) }
    }

    /// The unpacked `vmlinux`.
    pub fn vmlinux(&self) -> Result<Vec<u8>, KernelError> {
        crate::vmlinux::unpack(&self.vmlinuz)
            .map_err(|source| KernelError::Vmlinuz { release: self.release.clone(), source })
    }

    /// Chooses `wanted` and all that they need. Only those are decompressed: a package holds thousands.
    pub fn modules(&self, wanted: &[&str]) -> Result<Modules<'_>, KernelError> {
        let by_name: BTreeMap<String, &str> = self
            .files
            .keys()
            .filter_map(|path| {
                let (stem, _) = path.rsplit('/').next()?.split_once(".ko")?;
                Some((modules::normalise(stem).into_owned(), path.as_str()))
            })
            .collect();
        let mut infos = Vec::new();
        let mut seen = BTreeSet::new();
        let mut queue: Vec<String> = wanted.iter().map(|name| modules::normalise(name).into_owned()).collect();
        while let Some(name) = queue.pop() {
            let Some(path) = by_name.get(&name) else { continue };
            if !seen.insert(name) {
                continue;
            }
            let info = ModuleInfo::read(path, &decompress(path, &self.files[*path])?)?;
            let module = &info.module;
            let needs = [&module.depends, &module.soft_before, &module.soft_after, &module.weak];
            queue.extend(needs.into_iter().flatten().map(|name| modules::normalise(name).into_owned()));
            infos.push(info);
        }
        let text = |name: &str| self.files.get(name).map(Vec::as_slice).unwrap_or_default();
        let builtin = String::from_utf8_lossy(text("modules.builtin"));
        let index = Index::new(infos, &builtin, text("modules.builtin.modinfo")).select(wanted)?;
        let files = index
            .modules()
            .iter()
            .filter_map(|module| self.files.get_key_value(&module.path))
            .map(|(path, content)| (path.as_str(), content.as_slice()))
            .collect();
        Ok(Modules { index, files })
    }
}

fn decompress<'a>(path: &str, file: &'a [u8]) -> Result<std::borrow::Cow<'a, [u8]>, KernelError> {
    if !path.ends_with(".xz") {
        return Ok(file.into());
    }
    let failed = |reason: String| KernelError::Decompress { path: path.to_owned(), reason };
    let mut out = Vec::new();
    lzma_rust2::XzReader::new(file, false)
        .take(MAX_MODULE + 1)
        .read_to_end(&mut out)
        .map_err(|error| failed(error.to_string()))?;
    if out.len() as u64 > MAX_MODULE {
        return Err(failed(format!("it unpacks to more than {MAX_MODULE} bytes")));
    }
    Ok(out.into())
}

/// The regular files of a package whose path `wanted` accepts, by path without the leading `./`.
pub fn extract(package: &Path, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>, KernelError> {
    let read = |source| KernelError::Read { package: package.to_owned(), source };
    let broken = |source| KernelError::Deb { package: package.to_owned(), source };
    let file = File::open(package).map_err(read)?;
    let mut found = BTreeMap::new();
    let mut too_large = None;
    deb::data(&file, |archive| {
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let path = path.trim_start_matches("./");
            if !wanted(path) || !entry.header().entry_type().is_file() {
                continue;
            }
            let size = entry.size();
            if size > MAX_FILE {
                too_large = Some((path.to_owned(), size));
                break;
            }
            let mut content = Vec::with_capacity(size as usize);
            entry.read_to_end(&mut content)?;
            found.insert(path.to_owned(), content);
        }
        Ok(())
    })
    .map_err(broken)?;
    match too_large {
        Some((file, size)) => Err(KernelError::TooLarge { package: package.to_owned(), file, size }),
        None => Ok(found),
    }
}
