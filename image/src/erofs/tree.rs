//! What a layer holds: a tree of inodes in memory, names as bytes, several names for one inode where there are hard
//! links.

use std::collections::BTreeMap;

use crate::source::Source;

/// Longest name of a directory entry in bytes (`EROFS_NAME_LEN`).
const MAX_NAME: usize = 255;
/// Longest target of a symbolic link in bytes: the kernel's `PATH_MAX` without its NUL.
const MAX_TARGET: usize = 4095;
/// Highest device numbers that the on-disk form (`new_encode_dev`) holds.
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;

/// Why something could not be put into a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The path has an empty, `.`, `..` or too long part, or a NUL.
    #[error("`{0}` cannot be a path in a layer: every part needs 1 to 255 bytes, no NUL, and must not be `.` or `..`")]
    BadPath(String),
    /// The path is already taken.
    #[error("`{0}` is already in the layer: one of the two must go")]
    Duplicate(String),
    /// A part of the path is there, but is no directory.
    #[error("`{path}` cannot be put into the layer: `{parent}` is no directory there")]
    ParentNotDirectory {
        /// The path to be inserted.
        path: String,
        /// The part that is something else.
        parent: String,
    },
    /// A hard link's target does not exist.
    #[error("`{path}` cannot be linked to `{target}`: that is not in the layer (yet)")]
    NoTarget {
        /// The new name.
        path: String,
        /// The name that does not exist.
        target: String,
    },
    /// A hard link to a directory.
    #[error("`{path}` cannot be linked to `{target}`: that is a directory")]
    LinkToDirectory {
        /// The new name.
        path: String,
        /// The directory.
        target: String,
    },
    /// A symbolic link without target or with one that no kernel follows.
    #[error(
        "`{path}` cannot be a symbolic link: its target has {length} bytes (1 to 4095 are possible) or holds a NUL"
    )]
    BadTarget {
        /// The link.
        path: String,
        /// Length of its target in bytes.
        length: usize,
    },
    /// Device numbers outside Linux's range.
    #[error("`{path}` cannot be device {major}:{minor}: numbers go up to {MAX_MAJOR}:{MAX_MINOR}")]
    BadDevice {
        /// The device node.
        path: String,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// A modification time. The order is that of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtime {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Mtime {
    /// A whole second.
    pub fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }
}

/// Numbers of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// At most 4095.
    pub major: u32,
    /// At most 1048575.
    pub minor: u32,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File(Source),
    /// A directory; its entries are inserted by their own paths.
    Directory,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device; 0:0 is overlayfs' whiteout.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Permission bits with set-id and sticky bits, 0 to 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Mtime,
    /// Extended attributes by full name (`security.capability`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What it is.
    pub kind: Kind,
}

impl Node {
    /// An inode of root's without extended attributes.
    pub fn new(kind: Kind, mode: u16, mtime: Mtime) -> Self {
        Self { mode, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new(), kind }
    }
}

/// An inode's place in a tree.
pub(super) type Index = usize;
/// The root directory's place.
pub(super) const ROOT: Index = 0;

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) node: Node,
    pub(super) children: BTreeMap<Vec<u8>, Index>,
    /// Names that this inode has; 1 for directories.
    pub(super) names: u32,
    /// Made as somebody's parent; may still be inserted with its own attributes.
    implicit: bool,
}

/// A layer's content. Names sort by bytes; the order of insertion leaves no trace.
#[derive(Debug, Clone)]
pub struct Tree {
    entries: Vec<Entry>,
    parents_mtime: Mtime,
}

impl Tree {
    /// An empty tree. Its root, and parents that are never inserted themselves, belong to root, have mode 0755 and this
    /// mtime.
    pub fn new(parents_mtime: Mtime) -> Self {
        let mut tree = Self { entries: Vec::new(), parents_mtime };
        tree.push(Node::new(Kind::Directory, 0o755, parents_mtime), true);
        tree
    }

    /// Puts `node` at `path` (with or without a leading slash; the empty path is the root). Missing parents are made.
    pub fn insert(&mut self, path: &[u8], node: Node) -> Result<(), TreeError> {
        check(path, &node)?;
        let parts = split(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return self.replace(ROOT, path, node);
        };
        let parent = self.make_parents(path, parents)?;
        match self.entries[parent].children.get(*name) {
            Some(&existing) => self.replace(existing, path, node),
            None => {
                let index = self.push(node, false);
                self.entries[parent].children.insert(name.to_vec(), index);
                Ok(())
            }
        }
    }

    /// Makes `path` another name of the inode at `target`.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let index = match self.find(target) {
            Some(index) => index,
            None => return Err(TreeError::NoTarget { path: show(path), target: show(target) }),
        };
        if self.entries[index].node.kind == Kind::Directory {
            return Err(TreeError::LinkToDirectory { path: show(path), target: show(target) });
        }
        let parts = split(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return Err(TreeError::Duplicate(show(path)));
        };
        let parent = self.make_parents(path, parents)?;
        if self.entries[parent].children.contains_key(*name) {
            return Err(TreeError::Duplicate(show(path)));
        }
        self.entries[parent].children.insert(name.to_vec(), index);
        self.entries[index].names += 1;
        Ok(())
    }

    /// The inode at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.find(path).map(|index| &self.entries[index].node)
    }

    /// Names in the directory at `path`, sorted; none if there is no such directory.
    pub fn children(&self, path: &[u8]) -> impl Iterator<Item = &[u8]> {
        self.find(path).into_iter().flat_map(|index| self.entries[index].children.keys().map(Vec::as_slice))
    }

    /// Number of inodes, the root's among them.
    pub fn inodes(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn entry(&self, index: Index) -> &Entry {
        &self.entries[index]
    }

    fn find(&self, path: &[u8]) -> Option<Index> {
        let mut index = ROOT;
        for part in split(path).ok()? {
            index = *self.entries[index].children.get(part)?;
        }
        Some(index)
    }

    fn push(&mut self, node: Node, implicit: bool) -> Index {
        self.entries.push(Entry { node, children: BTreeMap::new(), names: 1, implicit });
        self.entries.len() - 1
    }

    /// Gives an implicit directory its own attributes; whatever else is there already is a duplicate.
    fn replace(&mut self, index: Index, path: &[u8], node: Node) -> Result<(), TreeError> {
        let entry = &mut self.entries[index];
        if !entry.implicit || node.kind != Kind::Directory {
            return Err(TreeError::Duplicate(show(path)));
        }
        entry.node = node;
        entry.implicit = false;
        Ok(())
    }

    fn make_parents(&mut self, path: &[u8], parents: &[&[u8]]) -> Result<Index, TreeError> {
        let mut at = ROOT;
        for (depth, part) in parents.iter().enumerate() {
            at = match self.entries[at].children.get(*part) {
                Some(&next) if self.entries[next].node.kind == Kind::Directory => next,
                Some(_) => {
                    let parent = parents[..=depth].join(&b'/');
                    return Err(TreeError::ParentNotDirectory { path: show(path), parent: show(&parent) });
                }
                None => {
                    let next = self.push(Node::new(Kind::Directory, 0o755, self.parents_mtime), true);
                    self.entries[at].children.insert(part.to_vec(), next);
                    next
                }
            };
        }
        Ok(at)
    }
}

fn check(path: &[u8], node: &Node) -> Result<(), TreeError> {
    match &node.kind {
        Kind::Symlink(target) if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) => {
            Err(TreeError::BadTarget { path: show(path), length: target.len() })
        }
        Kind::CharDevice(Device { major, minor }) | Kind::BlockDevice(Device { major, minor })
            if *major > MAX_MAJOR || *minor > MAX_MINOR =>
        {
            Err(TreeError::BadDevice { path: show(path), major: *major, minor: *minor })
        }
        _ => Ok(()),
    }
}

fn split(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    if relative.is_empty() {
        return Ok(Vec::new());
    }
    let proper = |part: &&[u8]| {
        !part.is_empty() && part.len() <= MAX_NAME && !part.contains(&0) && *part != b"." && *part != b".."
    };
    let parts: Vec<&[u8]> = relative.split(|&byte| byte == b'/').collect();
    if parts.iter().all(proper) { Ok(parts) } else { Err(TreeError::BadPath(show(path))) }
}

/// A path for messages.
pub(super) fn show(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Node {
        Node::new(Kind::File(Source::Bytes(Vec::new())), 0o644, Mtime::default())
    }

    fn directory(mode: u16) -> Node {
        Node::new(Kind::Directory, mode, Mtime::default())
    }

    #[test]
    fn a_parent_made_on_the_way_takes_its_attributes_once() {
        let mut tree = Tree::new(Mtime::from_seconds(7));
        tree.insert(b"/var/log/syslog", file()).unwrap();
        assert_eq!(tree.get(b"var/log").unwrap().mtime.seconds, 7);
        tree.insert(b"var/log", directory(0o2775)).unwrap();
        assert_eq!(tree.get(b"/var/log").unwrap().mode, 0o2775);
        assert_eq!(tree.insert(b"var/log", directory(0o755)), Err(TreeError::Duplicate("var/log".into())));
        tree.insert(b"", directory(0o700)).unwrap();
        assert_eq!(tree.get(b"/").unwrap().mode, 0o700);
        assert_eq!(tree.children(b"var").collect::<Vec<_>>(), [b"log"]);
    }

    #[test]
    fn duplicates_bad_paths_and_bad_links_are_errors() {
        let mut tree = Tree::new(Mtime::default());
        tree.insert(b"a", file()).unwrap();
        assert_eq!(tree.insert(b"a", file()), Err(TreeError::Duplicate("a".into())));
        assert!(matches!(tree.insert(b"a/b", file()), Err(TreeError::ParentNotDirectory { .. })));
        for bad in [&b"a//b"[..], b"..", b"x/./y", b"x/", b"nul\0", &[b'n'; 256]] {
            assert!(matches!(tree.insert(bad, file()), Err(TreeError::BadPath(_))), "{}", show(bad));
        }
        tree.link(b"d/b", b"a").unwrap();
        assert_eq!(tree.link(b"d/b", b"a"), Err(TreeError::Duplicate("d/b".into())));
        assert!(matches!(tree.link(b"e", b"d"), Err(TreeError::LinkToDirectory { .. })));
        assert!(matches!(tree.link(b"e", b"gone"), Err(TreeError::NoTarget { .. })));
        for length in [0, 4096] {
            let link = Node::new(Kind::Symlink(vec![b'x'; length]), 0o777, Mtime::default());
            assert!(matches!(tree.insert(b"l", link), Err(TreeError::BadTarget { .. })));
        }
        let device = Node::new(Kind::BlockDevice(Device { major: 4096, minor: 0 }), 0o600, Mtime::default());
        assert!(matches!(tree.insert(b"dev", device), Err(TreeError::BadDevice { .. })));
    }
}
