//! Firmware: files that drivers load into their devices. A module names what it may ask for in its `.modinfo`; Debian
//! packages what linux-firmware has, with the links that its WHENCE file asks for. The kernel looks for `NAME` and then
//! `NAME.xz` below `/lib/firmware` (Linux, drivers/base/firmware_loader/main.c); the image has the latter.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::Path,
};

use lzma_rust2::{CheckType, XzOptions, XzWriter};
use rackstick_image::modules::{self, Index};

use crate::{
    package::{self, Contents, PackageError},
    parallel,
};

/// Where packages have firmware; older ones without `usr/`.
const FOLDER: &str = "lib/firmware/";
/// How many links may lead from one to the next, as for the kernel.
const MAX_LINKS: usize = 40;
/// What the kernel's own unpacker can check (Documentation/staging/xz.rst).
const CHECK: CheckType = CheckType::Crc32;
const PRESET: u32 = 9;
/// The dictionary is no larger than what is to be packed: the kernel allocates it to unpack.
const DICTIONARY: std::ops::RangeInclusive<u32> = 4096..=8 << 20;

/// All firmware of some packages. Paths are below `/lib/firmware`.
#[derive(Default)]
pub struct Firmware {
    /// Each with the package that has it.
    files: BTreeMap<String, (String, Vec<u8>)>,
    /// Links and what they lead to, both from `/lib/firmware`.
    links: BTreeMap<String, String>,
}

/// The firmware that an index's modules name.
#[derive(Default)]
pub struct Chosen<'a> {
    /// By the name that modules ask for: the package that has it and its content.
    pub files: BTreeMap<String, (&'a str, &'a [u8])>,
    /// What no package has, each with the modules that name it.
    pub missing: BTreeMap<String, BTreeSet<String>>,
}

impl Firmware {
    /// Reads packages, each given with its name, as many at once as there are CPUs.
    pub fn read<'p>(packages: impl Iterator<Item = (&'p str, &'p Path)>) -> Result<Self, PackageError> {
        let packages: Vec<_> = packages.collect();
        let read = |(_, path): &(&str, &Path)| package::contents(path, |file| below_firmware(file).is_some());
        let mut new = Self::default();
        for ((name, _), found) in packages.iter().zip(parallel::each(&packages, read)) {
            new.add(name, found?);
        }
        Ok(new)
    }

    fn add(&mut self, package: &str, found: Contents) {
        for (path, content) in found.files {
            let path = below_firmware(&path).unwrap_or_default().to_owned();
            self.files.insert(path, (package.to_owned(), content));
        }
        for (link, target) in found.links {
            let link = below_firmware(&link).unwrap_or_default();
            // A link that leads out of the folder leads nowhere.
            if let Some(target) = follow(link, &target) {
                self.links.insert(link.to_owned(), target);
            }
        }
    }

    /// What the modules of an index name.
    pub fn choose(&self, index: &Index) -> Chosen<'_> {
        let mut chosen = Chosen::default();
        for module in index.modules() {
            for pattern in &module.firmware {
                let found = self.find(pattern);
                if found.is_empty() {
                    chosen.missing.entry(pattern.clone()).or_default().insert(module.name.clone());
                }
                chosen.files.extend(found);
            }
        }
        chosen
    }

    /// The firmware with this name, or whose names match it as an fnmatch(3) pattern.
    pub fn find(&self, pattern: &str) -> Vec<(String, (&str, &[u8]))> {
        let get = |name: &str| Some((name.to_owned(), self.get(name)?));
        if !pattern.contains(['*', '?', '[']) {
            return get(pattern).into_iter().collect();
        }
        let names = self.files.keys().chain(self.links.keys());
        names.filter(|name| modules::matches(pattern, name)).filter_map(|name| get(name)).collect()
    }

    fn get(&self, name: &str) -> Option<(&str, &[u8])> {
        let mut path = name.to_owned();
        for _ in 0..MAX_LINKS {
            if let Some((package, content)) = self.files.get(&path) {
                return Some((package, content));
            }
            // The first part of the path that is a link: the file's own name, or a folder.
            let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
            let (end, target) = ends.into_iter().find_map(|end| Some((end, self.links.get(&path[..end])?)))?;
            path = format!("{target}{}", &path[end..]);
        }
        None
    }
}

impl Chosen<'_> {
    /// The files as they go into an initrd, by name: packed, as many at once as there are CPUs.
    pub fn packed(&self) -> io::Result<Vec<(&str, Vec<u8>)>> {
        let files: Vec<(&str, &[u8])> =
            self.files.iter().map(|(name, (_, content))| (name.as_str(), *content)).collect();
        parallel::each(&files, |(name, content)| Ok((*name, pack(content)?))).into_iter().collect()
    }
}

fn pack(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut options = XzOptions::with_preset(PRESET);
    options.set_check_sum_type(CHECK);
    let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let (least, most) = DICTIONARY.into_inner();
    options.lzma_options.dict_size = size.clamp(least, most).next_power_of_two();
    let mut writer = XzWriter::new(Vec::new(), options)?;
    writer.write_all(content)?;
    writer.finish()
}

/// A package's path as seen from the folder of firmware, if it is in there.
fn below_firmware(path: &str) -> Option<&str> {
    path.strip_prefix("usr/").unwrap_or(path).strip_prefix(FOLDER)
}

/// Where a link leads to, both seen from the folder of firmware.
fn follow(link: &str, target: &str) -> Option<String> {
    if let Some(absolute) = target.strip_prefix('/') {
        return below_firmware(absolute).map(str::to_owned);
    }
    let mut parts: Vec<&str> = link.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firmware(files: &[&str], links: &[(&str, &str)]) -> Firmware {
        let file = |path: &&str| ((*path).to_owned(), ("package".to_owned(), path.as_bytes().to_vec()));
        let link = |(link, target): &(&str, &str)| Some(((*link).to_owned(), follow(link, target)?));
        Firmware { files: files.iter().map(file).collect(), links: links.iter().filter_map(link).collect() }
    }

    fn found(firmware: &Firmware, pattern: &str) -> Vec<(String, String)> {
        let text = |content: &[u8]| String::from_utf8(content.to_vec()).unwrap();
        firmware.find(pattern).into_iter().map(|(name, (_, content))| (name, text(content))).collect()
    }

    #[test]
    fn firmware_is_found_through_links_and_under_the_name_that_was_asked_for() {
        let firmware = firmware(
            &["intel/ice/ddp/ice-1.3.41.0.pkg", "nic/v2/a.bin"],
            &[
                ("intel/ice/ddp/ice.pkg", "ice-1.3.41.0.pkg"),
                ("nic/latest", "v2"),
                ("old.bin", "/usr/lib/firmware/nic/latest/a.bin"),
                ("up/there", "../nic/./v2/a.bin"),
            ],
        );
        for (name, content) in [
            ("intel/ice/ddp/ice.pkg", "intel/ice/ddp/ice-1.3.41.0.pkg"),
            ("nic/latest/a.bin", "nic/v2/a.bin"),
            ("old.bin", "nic/v2/a.bin"),
            ("up/there", "nic/v2/a.bin"),
        ] {
            assert_eq!(found(&firmware, name), [(name.to_owned(), content.to_owned())]);
        }
        assert!(found(&firmware, "nic/latest").is_empty(), "a folder is no firmware");
        assert_eq!(found(&firmware, "intel/ice/ddp/*").len(), 2, "a wildcard takes files and links");
    }

    #[test]
    fn links_that_lead_out_or_in_a_circle_lead_nowhere() {
        let firmware = firmware(
            &["a"],
            &[("out", "../../etc/passwd"), ("abs", "/etc/passwd"), ("x", "y"), ("y", "x"), ("z", "z/z")],
        );
        for name in ["out", "abs", "x", "z", ""] {
            assert!(found(&firmware, name).is_empty(), "{name}");
        }
    }

    #[test]
    fn what_is_packed_is_whole_for_xz_with_the_check_that_the_kernel_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.xz");
        for content in [Vec::new(), b"short".to_vec(), b"0123456789abcdef".repeat(20_000)] {
            std::fs::write(&path, pack(&content).unwrap()).unwrap();
            let xz = |argument| std::process::Command::new("xz").arg(argument).arg(&path).output().unwrap();
            assert_eq!(xz("-dc").stdout, content);
            let list = String::from_utf8(xz("-lv").stdout).unwrap();
            assert!(list.contains("CRC32") || content.is_empty(), "{list}");
        }
    }
}
