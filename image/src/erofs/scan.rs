//! From a directory to a tree. Runs where the builder unpacked it, inside its user namespace, so owners are already
//! right.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use super::{
    TreeError,
    tree::{Device, Kind, Mtime, Node, Tree},
    xattr::{self, XattrError},
};
use crate::source::Source;

/// Linux gives no more than this for all names, and for one value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 65536;

/// Why a directory could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An extended attribute that cannot be carried over.
    #[error("{path}: {source}")]
    Xattr {
        /// The file.
        path: PathBuf,
        /// Why.
        source: XattrError,
    },
    /// The tree refused it.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// What kind of directory is scanned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// An ordinary one. Attributes of overlayfs in it are ordinary attributes.
    #[default]
    Plain,
    /// The upper directory of an overlay: its marks become those of a layer, `user.overlay.*` -> `trusted.overlay.*`.
    OverlayUpper,
}

/// How to scan.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScanOptions {
    /// Later mtimes become this one, in seconds since 1970; `None` keeps all.
    pub clamp_mtime: Option<i64>,
    /// What the directory is.
    pub origin: Origin,
}

/// Reads the directory `root` and everything below it, without following links; file contents stay where they are until
/// the tree is written. Two names of one inode become a hard link.
pub fn scan(root: &Path, options: &ScanOptions) -> Result<Tree, ScanError> {
    let mut tree = Tree::new(Mtime::default());
    let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut directories = vec![Vec::new()];
    let metadata = fs::symlink_metadata(root).map_err(failed("read", root))?;
    tree.insert(b"", node(root, &metadata, options)?)?;
    while let Some(directory) = directories.pop() {
        let folder = root.join(OsStr::from_bytes(&directory));
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed("list", &folder))? {
            names.push(entry.map_err(failed("list", &folder))?.file_name().into_vec());
        }
        names.sort_unstable();
        for name in names {
            let source = folder.join(OsStr::from_bytes(&name));
            let slash = if directory.is_empty() { &b""[..] } else { b"/" };
            let path = [&directory, slash, &name].concat();
            let metadata = fs::symlink_metadata(&source).map_err(failed("read", &source))?;
            if !metadata.is_dir() && metadata.nlink() > 1 {
                match links.entry((metadata.dev(), metadata.ino())) {
                    std::collections::hash_map::Entry::Occupied(first) => {
                        tree.link(&path, first.get())?;
                        continue;
                    }
                    std::collections::hash_map::Entry::Vacant(vacant) => {
                        vacant.insert(path.clone());
                    }
                }
            }
            tree.insert(&path, node(&source, &metadata, options)?)?;
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    Ok(tree)
}

fn node(path: &Path, metadata: &fs::Metadata, options: &ScanOptions) -> Result<Node, ScanError> {
    let file_type = metadata.file_type();
    let kind = if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        Kind::Symlink(fs::read_link(path).map_err(failed("read", path))?.into_os_string().into_vec())
    } else if file_type.is_char_device() {
        Kind::CharDevice(device(metadata.rdev()))
    } else if file_type.is_block_device() {
        Kind::BlockDevice(device(metadata.rdev()))
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else if file_type.is_socket() {
        Kind::Socket
    } else {
        Kind::File(Source::Path { path: path.to_path_buf(), size: metadata.len() })
    };
    let mtime = Mtime { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 };
    let latest = options.clamp_mtime.map_or(mtime, Mtime::from_seconds);
    Ok(Node {
        mode: (metadata.mode() & 0o7777) as u16,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: mtime.min(latest),
        xattrs: xattrs(path, options.origin)?,
        kind,
    })
}

fn device(number: u64) -> Device {
    Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) }
}

fn xattrs(path: &Path, origin: Origin) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ScanError> {
    use rustix::io::Errno;
    let io_error = |error: Errno| failed("read extended attributes of", path)(error.into());
    let refused = |source| ScanError::Xattr { path: path.to_path_buf(), source };
    let mut list = [0_u8; 1024];
    let names = match rustix::fs::llistxattr(path, &mut list) {
        Ok(length) => list[..length].to_vec(),
        Err(Errno::RANGE) => {
            let mut list = vec![0; XATTR_MAX];
            let length = rustix::fs::llistxattr(path, list.as_mut_slice()).map_err(io_error)?;
            list.truncate(length);
            list
        }
        Err(Errno::NOTSUP) => Vec::new(), // a file system without extended attributes has none
        Err(error) => return Err(io_error(error)),
    };
    let mut xattrs = BTreeMap::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if xattr::is_machine_label(name) {
            continue;
        }
        let mut value = vec![0; XATTR_MAX];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice()).map_err(io_error)?;
        value.truncate(length);
        let value = xattr::without_root_id(name, value).map_err(refused)?;
        let kept = match origin {
            Origin::Plain => Some((name.to_vec(), value)),
            Origin::OverlayUpper => xattr::from_overlay(name.to_vec(), value).map_err(refused)?,
        };
        xattrs.extend(kept);
    }
    Ok(xattrs)
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ScanError + use<'a> {
    move |source| ScanError::Io { what, path: path.to_path_buf(), source }
}
