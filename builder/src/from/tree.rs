//! Files of an image in memory, as archives laid over each other leave them: later entries replace earlier ones,
//! whiteouts remove what lower archives brought. Every path is resolved inside, whatever symlinks say: what openat2(2),
//! `RESOLVE_IN_ROOT`, does on disk.

use std::collections::{BTreeMap, VecDeque};

use rackstick_image::erofs::{self, Kind, Mtime, Node, TreeError};

/// Symbolic links followed in one path at most (`MAXSYMLINKS` of Linux): stops those that lead in a circle.
const MAX_LINKS: usize = 40;
/// Folders within each other at most: no program's path reaches deeper.
const MAX_DEPTH: usize = 1024;
/// Files, folders and links of one image at most: stops archives that fill the memory. The largest images have 500,000.
const MAX_NODES: usize = 4_000_000;
const ROOT: usize = 0;

/// Why an entry has no place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Something else than a folder is on the way.
    #[error("`{path}` can't be put into the image: `{part}` on the way to it is no folder")]
    NotFolder {
        /// The path.
        path: String,
        /// The part.
        part: String,
    },
    /// Links in a circle.
    #[error("`{0}` leads through more than {MAX_LINKS} symbolic links, in a circle perhaps")]
    Circle(String),
    /// A hard link to what is not there.
    #[error("`{path}` is a hard link to `{target}`, which the image does not have before it, or which is a folder")]
    NoTarget {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// The root itself.
    #[error("the image's root folder would be replaced by something else")]
    Root,
    /// Too deep.
    #[error("`{0}` lies in more than {MAX_DEPTH} folders within each other")]
    Depth(String),
    /// Too many.
    #[error("the image has more than {MAX_NODES} files")]
    TooMany,
}

/// A name in a folder.
#[derive(Debug, Clone, Copy)]
struct Slot {
    node: usize,
    /// The archive that put it there.
    layer: u32,
}

#[derive(Debug)]
struct Item {
    node: Node,
    children: BTreeMap<Vec<u8>, Slot>,
}

/// An image's files.
#[derive(Debug)]
pub struct Files {
    items: Vec<Item>,
    layer: u32,
    epoch: Mtime,
    /// Names that one archive gave twice: how many, and the last of them.
    pub repeated: (usize, Vec<u8>),
}

impl Files {
    /// Nothing but a root folder. Folders that no archive names have mode 0755 and this time.
    pub fn new(epoch: Mtime) -> Self {
        let root = Item { node: Node::new(Kind::Directory, 0o755, epoch), children: BTreeMap::new() };
        Self { items: vec![root], layer: 0, epoch, repeated: (0, Vec::new()) }
    }

    /// From here on, entries belong to the next archive.
    pub fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// The archive that entries belong to now.
    pub fn layer(&self) -> u32 {
        self.layer
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.items[ROOT].children.is_empty()
    }

    /// Puts `node` at `path` in place of whatever is there; only a folder in place of a folder keeps what is in it.
    pub fn put(&mut self, path: &[u8], node: Node) -> Result<(), PlaceError> {
        let Some((folder, name)) = self.place(path)? else {
            if node.kind != Kind::Directory {
                return Err(PlaceError::Root);
            }
            self.items[ROOT].node = node;
            return Ok(());
        };
        let layer = self.layer;
        let old = self.items[folder].children.get(&name).copied();
        if let Some(old) = old {
            let both_folders = node.kind == Kind::Directory && self.is_folder(old.node);
            if both_folders {
                self.items[old.node].node = node;
                self.items[folder].children.insert(name, Slot { layer, ..old });
                return Ok(());
            }
            if old.layer == layer {
                self.repeated = (self.repeated.0 + 1, path.to_vec());
            }
        }
        let node = self.push(node)?;
        self.items[folder].children.insert(name, Slot { node, layer });
        Ok(())
    }

    /// Makes `path` another name of what is at `target`.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), PlaceError> {
        let none = || PlaceError::NoTarget { path: show(path), target: show(target) };
        let node = self.find(target, false).filter(|node| !self.is_folder(*node)).ok_or_else(none)?;
        let (folder, name) = self.place(path)?.ok_or(PlaceError::Root)?;
        let layer = self.layer;
        let old = self.items[folder].children.insert(name, Slot { node, layer });
        if old.is_some_and(|old| old.layer == layer && old.node != node) {
            self.repeated = (self.repeated.0 + 1, path.to_vec());
        }
        Ok(())
    }

    /// Removes what lower archives put at `path`, and below it.
    pub fn remove(&mut self, path: &[u8]) {
        let (parent, name) = split(path);
        let Some(folder) = self.find(parent, true) else { return };
        let Some(slot) = self.items[folder].children.get(name).copied() else { return };
        if !self.prune(slot.node) && slot.layer != self.layer {
            self.items[folder].children.remove(name);
        }
    }

    /// Removes what lower archives put below the folder at `path`.
    pub fn empty(&mut self, path: &[u8]) {
        if let Some(folder) = self.find(path, true) {
            self.prune(folder);
        }
    }

    /// Removes what is below a folder, but for what the present archive put there; whether there is any of that. Depth
    /// is limited by [`MAX_DEPTH`].
    fn prune(&mut self, folder: usize) -> bool {
        let children = std::mem::take(&mut self.items[folder].children);
        let mut kept = BTreeMap::new();
        for (name, slot) in children {
            let newer_below = self.is_folder(slot.node) && self.prune(slot.node);
            if slot.layer == self.layer || newer_below {
                kept.insert(name, slot);
            }
        }
        self.items[folder].children = kept;
        !self.items[folder].children.is_empty()
    }

    /// What is at `path`, links followed.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.find(path, true).map(|node| &self.items[node].node)
    }

    /// What is at `path`, which may be a link itself.
    pub fn get_link(&self, path: &[u8]) -> Option<&Node> {
        self.find(path, false).map(|node| &self.items[node].node)
    }

    /// All that the archives from `layer` on put there, with the folders above it, as a layer's tree.
    pub fn export(&self, layer: u32) -> Result<erofs::Tree, TreeError> {
        let mut tree = erofs::Tree::new(self.epoch);
        let mut links = BTreeMap::new();
        tree.insert(b"", self.items[ROOT].node.clone())?;
        self.export_folder(ROOT, &mut Vec::new(), layer, &mut tree, &mut links)?;
        Ok(tree)
    }

    fn export_folder(
        &self,
        folder: usize,
        path: &mut Vec<u8>,
        layer: u32,
        tree: &mut erofs::Tree,
        links: &mut BTreeMap<usize, Vec<u8>>,
    ) -> Result<(), TreeError> {
        let length = path.len();
        for (name, slot) in &self.items[folder].children {
            path.push(b'/');
            path.extend_from_slice(name);
            if self.is_folder(slot.node) {
                if slot.layer >= layer || self.has_newer(slot.node, layer) {
                    tree.insert(path, self.items[slot.node].node.clone())?;
                    self.export_folder(slot.node, path, layer, tree, links)?;
                }
            } else if slot.layer >= layer {
                match links.get(&slot.node) {
                    Some(first) => tree.link(path, first)?,
                    None => {
                        tree.insert(path, self.items[slot.node].node.clone())?;
                        links.insert(slot.node, path.clone());
                    }
                }
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn has_newer(&self, folder: usize, layer: u32) -> bool {
        let newer = |slot: &Slot| slot.layer >= layer || self.has_newer(slot.node, layer);
        self.items[folder].children.values().any(newer)
    }

    fn is_folder(&self, node: usize) -> bool {
        self.items[node].node.kind == Kind::Directory
    }

    fn push(&mut self, node: Node) -> Result<usize, PlaceError> {
        if self.items.len() >= MAX_NODES {
            return Err(PlaceError::TooMany);
        }
        self.items.push(Item { node, children: BTreeMap::new() });
        Ok(self.items.len() - 1)
    }

    /// The folder that holds `path`, made if need be, and the name in it; none for the root.
    fn place(&mut self, path: &[u8]) -> Result<Option<(usize, Vec<u8>)>, PlaceError> {
        let (parent, name) = split(path);
        if name.is_empty() {
            return Ok(None);
        }
        let mut walk = Walk::new(parent);
        while let Some(part) = walk.parts.pop_front() {
            match self.step(&mut walk, &part) {
                Step::Done => {}
                Step::Missing => {
                    let node = self.push(Node::new(Kind::Directory, 0o755, self.epoch))?;
                    let layer = self.layer;
                    self.items[walk.here()].children.insert(part, Slot { node, layer });
                    walk.above.push(node);
                }
                Step::NotFolder => return Err(PlaceError::NotFolder { path: show(path), part: show(&part) }),
                Step::Circle => return Err(PlaceError::Circle(show(path))),
            }
            if walk.above.len() > MAX_DEPTH {
                return Err(PlaceError::Depth(show(path)));
            }
        }
        Ok(Some((walk.here(), name.to_vec())))
    }

    /// What is at `path`; whether a link at its end is `followed`.
    fn find(&self, path: &[u8], followed: bool) -> Option<usize> {
        let mut walk = Walk::new(path);
        while let Some(part) = walk.parts.pop_front() {
            if walk.parts.is_empty() && !matches!(part.as_slice(), b"" | b"." | b"..") {
                let node = self.items[walk.here()].children.get(&part)?.node;
                if !followed || !matches!(self.items[node].node.kind, Kind::Symlink(_) | Kind::Directory) {
                    return Some(node);
                }
            }
            if !matches!(self.step(&mut walk, &part), Step::Done) {
                return None;
            }
        }
        Some(walk.here())
    }

    /// Goes one part further.
    fn step(&self, walk: &mut Walk, part: &[u8]) -> Step {
        match part {
            b"" | b"." => return Step::Done,
            b".." => {
                if walk.above.len() > 1 {
                    walk.above.pop();
                }
                return Step::Done;
            }
            _ => {}
        }
        let Some(slot) = self.items[walk.here()].children.get(part) else { return Step::Missing };
        match &self.items[slot.node].node.kind {
            Kind::Directory => walk.above.push(slot.node),
            Kind::Symlink(_) if walk.links >= MAX_LINKS => return Step::Circle,
            Kind::Symlink(target) => {
                walk.links += 1;
                if target.first() == Some(&b'/') {
                    walk.above.truncate(1);
                }
                for part in target.split(|byte| *byte == b'/').rev() {
                    walk.parts.push_front(part.to_vec());
                }
            }
            _ => return Step::NotFolder,
        }
        Step::Done
    }
}

/// A path on which we are.
struct Walk {
    /// The folders from the root to here; never empty.
    above: Vec<usize>,
    /// Where to go.
    parts: VecDeque<Vec<u8>>,
    /// Links followed so far.
    links: usize,
}

enum Step {
    Done,
    Missing,
    NotFolder,
    Circle,
}

impl Walk {
    fn new(path: &[u8]) -> Self {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect();
        Self { above: vec![ROOT], parts, links: 0 }
    }

    fn here(&self) -> usize {
        self.above.last().copied().unwrap_or(ROOT)
    }
}

/// A path's folder and last part.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// A path for messages.
pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}
