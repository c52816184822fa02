//! What is taken out of a Debian kernel package (`linux-image-*`): the `vmlinuz`, the modules as they are, still
//! compressed, and an index of those that are wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
};

use rackstick_image::modules::{self, Index, InfoError, ModuleInfo, ResolveError};
use thiserror::Error;

use crate::{
    package::{self, PackageError},
    parallel,
    vmlinux::VmlinuxError,
};

/// The most a module may unpack to: stops a decompression bomb.
const MAX_MODULE: u64 = 256 << 20;

const MODULES: &str = "usr/lib/modules/";
const VMLINUZ: &str = "boot/vmlinuz-";

/// Why a kernel package can't be used.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The .deb can't be read.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// No kernel in it.
    #[error("the package {} holds no {VMLINUZ}* or no {MODULES}*: it is no kernel package", .0.display())]
    NoKernel(PathBuf),
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
        let mut found = package::files(package, |path| path.starts_with(VMLINUZ) || path.starts_with(MODULES))?;
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

    /// The paths of everything below `/lib/modules/<release>`.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Chooses `wanted` and all that they need. Only those are decompressed: a package holds thousands.
    pub fn modules<S: AsRef<str>>(&self, wanted: &[S]) -> Result<Modules<'_>, KernelError> {
        let by_name: BTreeMap<String, &str> =
            self.paths().filter_map(|path| Some((modules::name_of_path(path)?, path))).collect();
        let mut infos = Vec::new();
        let mut seen = BTreeSet::new();
        let mut next: BTreeSet<String> =
            wanted.iter().map(|name| modules::normalise(name.as_ref()).into_owned()).collect();
        // Each round reads what the one before needs: as many as the longest chain of dependencies.
        while !next.is_empty() {
            let paths: Vec<&str> = next.iter().filter_map(|name| by_name.get(name).copied()).collect();
            seen.append(&mut next);
            for info in self.infos(&paths)? {
                let module = &info.module;
                let needs = [&module.depends, &module.soft_before, &module.soft_after, &module.weak];
                let needs = needs.into_iter().flatten().map(|name| modules::normalise(name).into_owned());
                next.extend(needs.filter(|name| !seen.contains(name)));
                infos.push(info);
            }
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

    /// The index of all modules of the package. Takes seconds.
    pub fn all_modules(&self) -> Result<Index, KernelError> {
        let paths: Vec<&str> = self.paths().filter(|path| modules::name_of_path(path).is_some()).collect();
        Ok(Index::new(self.infos(&paths)?, "", &[]))
    }

    /// Reads modules, as many at once as there are CPUs.
    fn infos(&self, paths: &[&str]) -> Result<Vec<ModuleInfo>, KernelError> {
        parallel::each(paths, |path| Ok(ModuleInfo::read(path, &decompress(path, &self.files[*path])?)?))
            .into_iter()
            .collect()
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
