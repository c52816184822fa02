//! A tree of files, read whole, and what is different between two.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// One file. Its times are left out: they are clamped to the lock's day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: char,
    pub mode: u32,
    /// User and group.
    pub ids: (u32, u32),
    /// The same by name, or the number where there is none.
    pub owner: (String, String),
    /// Of a file with several names the first.
    pub twin: Option<PathBuf>,
    /// A symlink's target.
    pub target: Option<PathBuf>,
    /// By name.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Of a device.
    pub device: u64,
}

/// A tree.
pub struct Tree {
    pub root: PathBuf,
    /// By path from the root, `etc/passwd`.
    pub entries: BTreeMap<PathBuf, Entry>,
}

/// How two files of one path are different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    OnlyOurs,
    OnlyTheirs,
    Kind,
    Mode,
    Owner,
    Links,
    Target,
    Xattrs,
    Content,
}

impl Tree {
    /// Reads it.
    pub fn read(root: &Path) -> Self {
        let mut new = Self { root: root.to_owned(), entries: BTreeMap::new() };
        let (users, groups) = (new.ids("etc/passwd"), new.ids("etc/group"));
        let mut folders = vec![PathBuf::new()];
        let mut named: BTreeMap<u64, BTreeSet<PathBuf>> = BTreeMap::new();
        while let Some(folder) = folders.pop() {
            for found in fs::read_dir(root.join(&folder)).unwrap() {
                let path = folder.join(found.unwrap().file_name());
                let metadata = fs::symlink_metadata(root.join(&path)).unwrap();
                if metadata.is_dir() {
                    folders.push(path.clone());
                } else {
                    named.entry(metadata.ino()).or_default().insert(path.clone());
                }
                let entry = entry(&root.join(&path), &metadata, &users, &groups);
                new.entries.insert(path, entry);
            }
        }
        for names in named.into_values().filter(|names| names.len() > 1) {
            for name in &names {
                new.entries.get_mut(name).unwrap().twin = names.first().cloned();
            }
        }
        new
    }

    /// Names by number, of passwd(5) or group(5).
    pub fn ids(&self, file: &str) -> BTreeMap<u32, String> {
        let line = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next().unwrap().to_owned();
            (fields.nth(1).unwrap().parse().unwrap(), name)
        };
        self.text(Path::new(file)).lines().map(line).collect()
    }

    /// A file's bytes.
    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        fs::read(self.root.join(path)).unwrap()
    }

    /// A file's text; what is not UTF-8 in it is replaced.
    pub fn text(&self, path: &Path) -> String {
        String::from_utf8_lossy(&self.bytes(path)).into_owned()
    }
}

/// All that is different, by path.
pub fn compare(ours: &Tree, theirs: &Tree) -> Vec<(PathBuf, How)> {
    let paths: BTreeSet<&PathBuf> = ours.entries.keys().chain(theirs.entries.keys()).collect();
    let mut all: Vec<(PathBuf, How)> = Vec::new();
    for path in paths {
        let mut note = |how| all.push((path.clone(), how));
        match (ours.entries.get(path), theirs.entries.get(path)) {
            (Some(_), None) => note(How::OnlyOurs),
            (None, Some(_)) => note(How::OnlyTheirs),
            (Some(one), Some(other)) if one.kind != other.kind => note(How::Kind),
            (Some(one), Some(other)) => {
                for (how, same) in [
                    (How::Mode, one.mode == other.mode),
                    (How::Owner, one.ids == other.ids),
                    (How::Links, one.twin == other.twin),
                    (How::Target, one.target == other.target && one.device == other.device),
                    (How::Xattrs, one.xattrs == other.xattrs),
                    (How::Content, one.kind != 'f' || ours.bytes(path) == theirs.bytes(path)),
                ] {
                    if !same {
                        note(how);
                    }
                }
            }
            (None, None) => unreachable!("it stands in one of them"),
        }
    }
    all
}

fn entry(path: &Path, metadata: &fs::Metadata, users: &BTreeMap<u32, String>, groups: &BTreeMap<u32, String>) -> Entry {
    let kinds = metadata.file_type();
    let kind = match () {
        () if kinds.is_dir() => 'd',
        () if kinds.is_file() => 'f',
        () if kinds.is_symlink() => 'l',
        () if kinds.is_fifo() => 'p',
        () if kinds.is_char_device() => 'c',
        () if kinds.is_block_device() => 'b',
        () => 's',
    };
    let name = |id: u32, names: &BTreeMap<u32, String>| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
    Entry {
        kind,
        mode: if kind == 'l' { 0 } else { metadata.mode() & 0o7777 },
        ids: (metadata.uid(), metadata.gid()),
        twin: None,
        owner: (name(metadata.uid(), users), name(metadata.gid(), groups)),
        target: (kind == 'l').then(|| fs::read_link(path).unwrap()),
        xattrs: xattrs(path),
        device: metadata.rdev(),
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).map_err(io::Error::from).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let name = String::from_utf8(name.to_owned()).unwrap();
        let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).map_err(io::Error::from).unwrap();
        value.truncate(length);
        (name, value)
    };
    names.map(value).collect()
}
