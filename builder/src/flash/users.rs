//! Who uses a disk: mounts and swap, of it, its partitions, and all that is made of them (LVM, RAID, encryption, loop
//! devices). proc_pid_mountinfo(5), proc_swaps(5); `holders` in sysfs.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::disks::{Disk, DisksError, System};

/// A use of a disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A mounted file system.
    Mounted {
        /// The device, by the kernel's name.
        device: String,
        /// Where.
        at: String,
    },
    /// Swap space that is on.
    Swap(String),
    /// A part of something else.
    Held {
        /// The device.
        device: String,
        /// What is made of it: `dm-0 (vg-root)`.
        by: String,
    },
}

/// A device: the disk, a partition, or what is made of them.
struct Node {
    name: String,
    number: String,
    /// Name below `/dev/mapper`.
    mapped: Option<String>,
}

/// All uses of a disk.
pub fn of(system: &System, disk: &Disk) -> Result<Vec<Use>, DisksError> {
    let mut uses = BTreeSet::new();
    let mut nodes: Vec<Node> = Vec::new();
    let mut open: Vec<String> = disk.parts.iter().map(|part| part.name.clone()).chain([disk.name.clone()]).collect();
    let loops = loops(system)?;
    while let Some(name) = open.pop() {
        if nodes.iter().any(|node| node.name == name) {
            continue;
        }
        let folder = system.path("sys/class/block").join(&name);
        let attribute = |file: &str| fs::read_to_string(folder.join(file)).map(|text| text.trim().to_owned()).ok();
        let node = Node { number: attribute("dev").unwrap_or_default(), mapped: attribute("dm/name"), name };
        let held = list(&folder.join("holders"))?.into_iter();
        let looped = loops.iter().filter(|(_, file)| node.is_at(system, file)).map(|(name, _)| name.clone());
        for holder in held.chain(looped) {
            let mapped = fs::read_to_string(system.path("sys/class/block").join(&holder).join("dm/name"));
            let by = match mapped {
                Ok(mapped) => format!("{holder} ({})", mapped.trim()),
                Err(_) => holder.clone(),
            };
            uses.insert(Use::Held { device: node.name.clone(), by });
            // What is made of it may have partitions of its own.
            let partitions = list(&system.path("sys/class/block").join(&holder))?;
            open.extend(partitions.into_iter().filter(|part| part.starts_with(&holder)));
            open.push(holder);
        }
        nodes.push(node);
    }
    let known = |path: &str, number: Option<&str>| {
        nodes.iter().find(|node| number == Some(node.number.as_str()) || node.is_at(system, Path::new(path)))
    };
    for line in read(&system.path("proc/self/mountinfo"))?.lines() {
        let Some(mount) = mount(line) else { continue };
        if let Some(node) = known(&mount.source, Some(mount.number)) {
            uses.insert(Use::Mounted { device: node.name.clone(), at: mount.at });
        }
    }
    for line in read(&system.path("proc/swaps"))?.lines().skip(1) {
        if let Some(node) = line.split_ascii_whitespace().next().and_then(|path| known(&unescaped(path), None)) {
            uses.insert(Use::Swap(node.name.clone()));
        }
    }
    Ok(uses.into_iter().collect())
}

impl Node {
    /// Whether a path below `/dev` leads to it.
    fn is_at(&self, system: &System, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix("/dev") else { return false };
        let mapped = self.mapped.as_ref().is_some_and(|mapped| below == Path::new("mapper").join(mapped));
        let linked = || fs::canonicalize(system.path("dev").join(below)).ok();
        let leads_here = |path: PathBuf| path.file_name().is_some_and(|name| name == self.name.as_str());
        mapped || below == Path::new(&self.name) || linked().is_some_and(leads_here)
    }
}

/// Loop devices, and the file or disk behind each.
fn loops(system: &System) -> Result<Vec<(String, PathBuf)>, DisksError> {
    let names = list(&system.path("sys/block"))?.into_iter().filter(|name| name.starts_with("loop"));
    let behind = |name: String| {
        let file = system.path("sys/block").join(&name).join("loop/backing_file");
        // Most have none.
        fs::read_to_string(file).ok().map(|file| (name, PathBuf::from(file.trim())))
    };
    Ok(names.filter_map(behind).collect())
}

/// The names in a folder; none if it is not there.
fn list(folder: &Path) -> Result<Vec<String>, DisksError> {
    let failed = |source| DisksError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let names: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.file_name())).collect();
    Ok(names.map_err(failed)?.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

fn read(path: &Path) -> Result<String, DisksError> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        // A kernel without swap.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(DisksError::Read { path: path.to_owned(), source }),
    }
}

struct Mount<'a> {
    number: &'a str,
    at: String,
    /// Btrfs has a number that is no device's, and tells by this where it is.
    source: String,
}

/// A line of mountinfo.
fn mount(line: &str) -> Option<Mount<'_>> {
    let (first, second) = line.split_once(" - ")?;
    let mut fields = first.split(' ').skip(2);
    let (number, _, at) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Mount { number, at: unescaped(at), source: unescaped(second.split(' ').nth(1)?) })
}

/// Blanks and the like stand there as `\040`.
fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let octal =
            behind.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &behind[3..];
            }
            None => {
                out.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
