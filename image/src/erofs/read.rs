//! Reader of layers that somebody else may have written: what the kernel would find in them. Knows the form that the
//! writer beside it gives them, no other. Every number is checked; nothing is in memory but the directories on the way
//! to a file.

mod content;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BLOCK_SIZE,
    format::{
        self, ALGORITHMS, CLUSTER_SIZE, COMPRESSED_FULL, DIRENT_SIZE, FLAT_INLINE, FLAT_PLAIN, INCOMPAT_COMPRESSED,
        INODE_SIZE, MAP_HEADER, SLOT_SIZE, SUPER_OFFSET, SUPER_SIZE, XATTR_HEADER_SIZE, ZSTD_CONFIG,
    },
    tree::{Device, Mtime},
    xattr,
};
use crate::{
    guid::Guid,
    view::{ReadError, View, ensure},
};

use content::Place;
pub use content::{Content, Pieces};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Most bytes of a directory: half a million names.
const MAX_DIRECTORY: u64 = 16 << 20;
/// Most names in a layer: directories that share their blocks would be walked without end.
const MAX_NAMES: u32 = 1 << 21;
/// Deepest path, in directories: longer ones than `PATH_MAX` can't be named.
const MAX_DEPTH: usize = 2048;
/// Longest target of a link, as the writer has it.
pub(super) const MAX_TARGET: u64 = 4095;
const OUTSIDE: &str = "its data lie outside of the layer";

/// A layer.
#[derive(Debug)]
pub struct Layer<'a> {
    view: View<'a>,
    root: u64,
    /// How many inodes it says that it has.
    pub inodes: u64,
    /// UUID of the file system.
    pub uuid: Guid,
    /// Whether its files may be compressed.
    pub compressed: bool,
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Its place in units of 32 bytes.
    pub(super) nid: u64,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Mtime,
    /// How many names it has; of a directory, two and one for each in it.
    pub links: u32,
    /// Bytes of its data.
    pub size: u64,
    form: Form,
    /// First block of its data or, if they are compressed, how many they have.
    block: u32,
    xattrs: u16,
}

/// How an inode's data lie in the layer (`i_format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    /// The last, partial block follows the inode.
    Inline,
    Compressed,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    name: Vec<u8>,
    nid: u64,
    file_type: u8,
}

impl<'a> Layer<'a> {
    /// Reads the superblock, whose checksum must be right.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(view: View<'a>) -> Result<Self, ReadError> {
        const AT: u64 = SUPER_OFFSET as u64;
        let block: [u8; BLOCK_SIZE] = view.array(0)?;
        let require = |holds, what| ensure(holds, AT, what);
        let sb = &block[SUPER_OFFSET..SUPER_OFFSET + SUPER_SIZE];
        require(word(sb, 0) == format::MAGIC, "it has no superblock of EROFS")?;
        let checked =
            word(sb, 8) == format::COMPAT_SB_CHKSUM | format::COMPAT_MTIME && format::checksum(&block) == word(sb, 4);
        require(checked, "its superblock's checksum is wrong")?;
        require(usize::from(sb[12]) == BLOCK_SIZE.trailing_zeros() as usize, "its blocks are not of 4096 bytes")?;
        let config = &block[SUPER_OFFSET + SUPER_SIZE..][..ZSTD_CONFIG.len()];
        let compressed = word(sb, 80) == INCOMPAT_COMPRESSED && short(sb, 84) == ALGORITHMS && *config == ZSTD_CONFIG;
        // meta_blkaddr, xattr_blkaddr, then what newer features need.
        let features = if compressed { &sb[86..] } else { &sb[80..] };
        let plain = sb[40..48].iter().chain(features).chain(&sb[13..14]).all(|byte| *byte == 0);
        require(plain, "it has features that Rackstick's layers have not")?;
        require(u64::from(word(sb, 36)) * BLOCK == view.length(), "it has another size than its superblock says")?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&sb[48..64]);
        Ok(Self { root: u64::from(short(sb, 14)), inodes: long(sb, 16), uuid: Guid(uuid), compressed, view })
    }

    /// The root directory.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn root(&self) -> Result<Inode, ReadError> {
        self.inode(self.root)
    }

    /// The inode at `path`, none if it is not in this layer; links are not followed.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn find(&self, path: &str) -> Result<Option<Inode>, ReadError> {
        let mut inode = self.root()?;
        for part in path.split('/') {
            if inode.kind != Kind::Directory {
                return Ok(None);
            }
            let names = self.names(&inode)?;
            let Ok(found) = names.binary_search_by(|name| name.name.as_slice().cmp(part.as_bytes())) else {
                return Ok(None);
            };
            inode = self.inode(names[found].nid)?;
        }
        Ok(Some(inode))
    }

    /// An inode's data: a file's bytes, a link's target.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn content(&self, inode: &Inode) -> Result<Content<'a>, ReadError> {
        let place = match inode.form {
            Form::Compressed => {
                Place::Compressed { layer: self.view.clone(), index: self.index(inode)?, blocks: inode.block }
            }
            Form::Plain | Form::Inline => Place::Plain(self.plain(inode)?),
        };
        Ok(Content { length: inode.size, place })
    }

    /// Data that are not compressed.
    fn plain(&self, inode: &Inode) -> Result<View<'a>, ReadError> {
        let outside = || ReadError::Damaged { at: inode.at(), what: OUTSIDE };
        let mut content = self.view.nothing();
        let inlined = if inode.form == Form::Inline { inode.size % BLOCK } else { 0 };
        let whole = inode.size - inlined;
        if whole > 0 {
            let part = self.view.part(u64::from(inode.block) * BLOCK, whole);
            content.append(&part.ok_or_else(outside)?)?;
        }
        if inlined > 0 {
            let at = inode.at() + INODE_SIZE as u64 + inode.xattr_area();
            ensure(at % BLOCK + inlined <= BLOCK, at, "the end of its data crosses a block")?;
            content.append(&self.view.part(at, inlined).ok_or_else(outside)?)?;
        }
        Ok(content)
    }

    /// Where the index of a compressed file's blocks begins, which lies in the layer then.
    fn index(&self, inode: &Inode) -> Result<u64, ReadError> {
        let at = (inode.at() + INODE_SIZE as u64 + inode.xattr_area()).next_multiple_of(CLUSTER_SIZE as u64);
        let header: [u8; MAP_HEADER.len()] = self.view.array(at)?;
        ensure(header == MAP_HEADER, at, "a file is compressed in a way that Rackstick's layers have not")?;
        let start = at + header.len() as u64;
        let end = inode.size.div_ceil(BLOCK).checked_mul(CLUSTER_SIZE as u64).and_then(|size| start.checked_add(size));
        ensure(end.is_some_and(|end| end <= self.view.length()), at, OUTSIDE)?;
        Ok(start)
    }

    /// An inode's extended attributes by full name.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn xattrs(&self, inode: &Inode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ReadError> {
        let at = inode.at() + INODE_SIZE as u64;
        // At most a quarter of a MiB.
        let mut area = vec![0; inode.xattr_area() as usize];
        self.view.read_at(&mut area, at)?;
        xattr::decode(&area).ok_or(ReadError::Damaged { at, what: "its extended attributes are damaged" })
    }

    /// All inodes by path, each directory before what is in it, names in order of their bytes. Structure is checked on
    /// the way: after an error nothing follows.
    pub fn walk(&self) -> Walk<'_, 'a> {
        Walk { layer: self, path: Vec::new(), folders: Vec::new(), state: State::Begin, left: MAX_NAMES }
    }

    /// Bytes of all its files, as guests see them.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn file_bytes(&self) -> Result<u64, ReadError> {
        let (mut linked, mut bytes) = (BTreeSet::new(), 0_u64);
        for step in self.walk() {
            let (_, inode) = step?;
            if inode.kind == Kind::File && (inode.links == 1 || linked.insert(inode.nid)) {
                bytes = bytes.saturating_add(inode.size);
            }
        }
        Ok(bytes)
    }

    fn inode(&self, nid: u64) -> Result<Inode, ReadError> {
        let place = nid.checked_mul(SLOT_SIZE).filter(|at| *at >= (SUPER_OFFSET + SUPER_SIZE) as u64);
        let at = place.ok_or(ReadError::Damaged { at: 0, what: "it names an inode that is not there" })?;
        let raw: [u8; INODE_SIZE] = self.view.array(at)?;
        let require = |holds, what| ensure(holds, at, what);
        let (form, mode) = (short(&raw, 0), short(&raw, 4));
        let form = match form {
            FLAT_PLAIN => Some(Form::Plain),
            FLAT_INLINE => Some(Form::Inline),
            COMPRESSED_FULL if self.compressed => Some(Form::Compressed),
            _ => None,
        };
        let what = "an inode has a form that Rackstick's layers have not";
        let form = form.ok_or(ReadError::Damaged { at, what })?;
        let unused = [6..8, 48..INODE_SIZE].into_iter().all(|range| raw[range].iter().all(|byte| *byte == 0));
        require(unused, "an inode has something where nothing may be")?;
        let size = long(&raw, 8);
        let device = || format::decode_device(word(&raw, 16));
        let kind = match mode & 0o170_000 {
            0o010_000 => Kind::Fifo,
            0o020_000 => Kind::CharDevice(device()),
            0o040_000 => Kind::Directory,
            0o060_000 => Kind::BlockDevice(device()),
            0o100_000 => Kind::File,
            0o120_000 => Kind::Symlink,
            0o140_000 => Kind::Socket,
            _ => return Err(ReadError::Damaged { at, what: "an inode is of no kind" }),
        };
        require(kind == Kind::File || form != Form::Compressed, "what is no file is compressed")?;
        match kind {
            Kind::File => require(
                self.compressed || form != Form::Inline,
                "the end of a file is inlined, which takes it off DAX",
            )?,
            Kind::Directory => {
                require((1..=MAX_DIRECTORY).contains(&size), "a directory has no size that it can have")?
            }
            Kind::Symlink => {
                require((1..=MAX_TARGET).contains(&size), "a link's target has no length that it can have")?
            }
            _ => require(size == 0 && form == Form::Plain, "a device, pipe or socket has data")?,
        }
        let inode = Inode {
            nid,
            kind,
            mode: mode & 0o7777,
            uid: word(&raw, 24),
            gid: word(&raw, 28),
            mtime: Mtime { seconds: long(&raw, 32) as i64, nanoseconds: word(&raw, 40) },
            links: word(&raw, 44),
            size,
            form,
            block: word(&raw, 16),
            xattrs: short(&raw, 2),
        };
        // What can't be a place is an error now, whoever asks for what.
        match form {
            Form::Compressed => self.index(&inode).map(|_| inode),
            Form::Plain | Form::Inline => self.plain(&inode).map(|_| inode),
        }
    }

    /// A directory's names in order, without `.` and `..`, which are checked as far as they can be.
    fn names(&self, directory: &Inode) -> Result<Vec<Name>, ReadError> {
        self.names_below(directory, None)
    }

    /// The same of a directory that lies in `parent`, if that is known.
    fn names_below(&self, directory: &Inode, parent: Option<u64>) -> Result<Vec<Name>, ReadError> {
        let content = self.plain(directory)?;
        let at = directory.at();
        let require = |holds, what| ensure(holds, at, what);
        let mut names: Vec<Name> = Vec::new();
        let mut dots = 0;
        let mut last = Vec::new();
        for start in (0..directory.size).step_by(BLOCK_SIZE) {
            let mut block = vec![0; (directory.size - start).min(BLOCK) as usize];
            content.read_at(&mut block, start)?;
            // The first name follows the last entry.
            let entries_end = usize::from(short(&block, 8));
            let sane =
                entries_end >= DIRENT_SIZE && entries_end.is_multiple_of(DIRENT_SIZE) && entries_end <= block.len();
            require(sane, "a directory's entries are damaged")?;
            let entries: Vec<&[u8]> = block[..entries_end].chunks_exact(DIRENT_SIZE).collect();
            for (index, entry) in entries.iter().enumerate() {
                let from = usize::from(short(entry, 8));
                let to = entries.get(index + 1).map(|next| usize::from(short(next, 8)));
                let name = block.get(from..to.unwrap_or(block.len())).filter(|_| from >= entries_end);
                let name = name.ok_or(ReadError::Damaged { at, what: "a directory's names are damaged" })?;
                // Behind the last name of a whole block there may be zeroes.
                let name = if to.is_none() { name.split(|byte| *byte == 0).next().unwrap_or_default() } else { name };
                let proper = (1..=255).contains(&name.len()) && !name.contains(&b'/') && !name.contains(&0);
                require(proper && entry[11] == 0, "a directory has a name that can't be")?;
                require(last.is_empty() || last.as_slice() < name, "a directory's names are not in order")?;
                last = name.to_vec();
                let (nid, file_type) = (long(entry, 0), entry[10]);
                match name {
                    b"." => {
                        require(nid == directory.nid, "a directory's `.` is another one")?;
                        dots += 1;
                    }
                    b".." => {
                        require(
                            parent.is_none_or(|parent| parent == nid),
                            "a directory's `..` is not the one it is in",
                        )?;
                        dots += 1;
                    }
                    _ => names.push(Name { name: name.to_vec(), nid, file_type }),
                }
            }
        }
        require(dots == 2, "a directory lacks `.` or `..`")?;
        Ok(names)
    }
}

impl Inode {
    /// Where it stands.
    fn at(&self) -> u64 {
        // The number came from a place in the layer.
        self.nid.saturating_mul(SLOT_SIZE)
    }

    fn xattr_area(&self) -> u64 {
        match self.xattrs {
            0 => 0,
            count => XATTR_HEADER_SIZE as u64 + 4 * (u64::from(count) - 1),
        }
    }

    /// Whether it hides what lower layers have of its name.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice(Device { major: 0, minor: 0 })
    }

    /// `file_type` of names that lead here.
    fn file_type(&self) -> u8 {
        match self.kind {
            Kind::File => 1,
            Kind::Directory => 2,
            Kind::CharDevice(_) => 3,
            Kind::BlockDevice(_) => 4,
            Kind::Fifo => 5,
            Kind::Socket => 6,
            Kind::Symlink => 7,
        }
    }
}

/// See [`Layer::walk`].
#[derive(Debug)]
pub struct Walk<'w, 'a> {
    layer: &'w Layer<'a>,
    /// Of the directory whose names are next.
    path: Vec<u8>,
    folders: Vec<Folder>,
    state: State,
    /// How many more names are read.
    left: u32,
}

#[derive(Debug, PartialEq)]
enum State {
    Begin,
    Within,
    Over,
}

#[derive(Debug)]
struct Folder {
    nid: u64,
    names: std::vec::IntoIter<Name>,
    /// Length of its path.
    path: usize,
    /// Directories in it that were seen.
    seen: BTreeSet<u64>,
    links: u32,
}

impl Walk<'_, '_> {
    fn step(&mut self) -> Result<Option<(Vec<u8>, Inode)>, ReadError> {
        if self.state == State::Begin {
            self.state = State::Within;
            let root = self.layer.root()?;
            ensure(root.kind == Kind::Directory, root.at(), "its root is no directory")?;
            self.enter(&root, root.nid)?;
            return Ok(Some((Vec::new(), root)));
        }
        loop {
            let Some(folder) = self.folders.last_mut() else { return Ok(None) };
            self.path.truncate(folder.path);
            let Some(Name { name, nid, file_type }) = folder.names.next() else {
                let at = folder.nid.saturating_mul(SLOT_SIZE);
                let links = folder.seen.len() as u64 + 2;
                ensure(u64::from(folder.links) == links, at, "a directory has not as many links as directories in it")?;
                self.folders.pop();
                continue;
            };
            let inode = self.layer.inode(nid)?;
            ensure(inode.file_type() == file_type, inode.at(), "a directory says that an inode is of another kind")?;
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            let path = self.path.clone();
            if inode.kind == Kind::Directory {
                let parent = folder.nid;
                ensure(folder.seen.insert(nid), inode.at(), "a directory has two names")?;
                self.enter(&inode, parent)?;
            }
            return Ok(Some((path, inode)));
        }
    }

    /// The next names are those in `directory`.
    fn enter(&mut self, directory: &Inode, parent: u64) -> Result<(), ReadError> {
        ensure(self.folders.len() < MAX_DEPTH, directory.at(), "directories are nested too deep")?;
        let names = self.layer.names_below(directory, Some(parent))?;
        let left = u32::try_from(names.len()).ok().and_then(|count| self.left.checked_sub(count));
        let many = ReadError::Damaged { at: directory.at(), what: "it has more names than a layer can have" };
        self.left = left.ok_or(many)?;
        self.folders.push(Folder {
            nid: directory.nid,
            names: names.into_iter(),
            path: self.path.len(),
            seen: BTreeSet::new(),
            links: directory.links,
        });
        Ok(())
    }
}

impl Iterator for Walk<'_, '_> {
    type Item = Result<(Vec<u8>, Inode), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Over {
            return None;
        }
        let step = self.step().transpose();
        if !matches!(step, Some(Ok(_))) {
            self.state = State::Over;
        }
        step
    }
}

/// The number at `at`; 0 behind the end, where no caller looks.
fn short(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).map_or(0, u16::from_le_bytes)
}

/// As [`short`].
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).map_or(0, u32::from_le_bytes)
}

/// As [`short`].
fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
