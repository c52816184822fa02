//! From a layer that is not compressed back to a tree, to be written in another form.

use std::{collections::HashMap, path::Path};

use super::{
    TreeError,
    read::{self, Inode, Layer},
    tree::{Kind, Node, Tree},
};
use crate::{source::Source, view::ReadError};

/// Why a layer can't become a tree.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The tree refused it.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// The tree of a layer that is all of the file `path`. Contents stay there until the tree is written.
///
/// # Errors
/// [`CopyError`], also of a layer with compressed files.
pub fn tree_of(layer: &Layer<'_>, path: &Path) -> Result<Tree, CopyError> {
    let mut tree = Tree::new(layer.root()?.mtime);
    let mut names: HashMap<u64, Vec<u8>> = HashMap::new();
    for step in layer.walk() {
        let (name, inode) = step?;
        if inode.links > 1 && inode.kind != read::Kind::Directory {
            if let Some(first) = names.get(&inode.nid) {
                tree.link(&name, first)?;
                continue;
            }
            names.insert(inode.nid, name.clone());
        }
        let Inode { mode, uid, gid, mtime, .. } = inode;
        let (kind, xattrs) = (kind(layer, &inode, path)?, layer.xattrs(&inode)?);
        tree.insert(&name, Node { mode, uid, gid, mtime, xattrs, kind })?;
    }
    Ok(tree)
}

fn kind(layer: &Layer<'_>, inode: &Inode, path: &Path) -> Result<Kind, ReadError> {
    Ok(match inode.kind {
        read::Kind::File => {
            let content = layer.content(inode)?;
            let compressed = ReadError::Damaged { at: 0, what: "a file is compressed already" };
            let view = content.plain().ok_or(compressed)?;
            Kind::File(match view.place(0) {
                Some(offset) => Source::Part { path: path.to_owned(), offset, size: view.length() },
                None => Source::Bytes(Vec::new()),
            })
        }
        read::Kind::Directory => Kind::Directory,
        read::Kind::Symlink => Kind::Symlink(layer.content(inode)?.bytes(read::MAX_TARGET)?),
        read::Kind::CharDevice(device) => Kind::CharDevice(device),
        read::Kind::BlockDevice(device) => Kind::BlockDevice(device),
        read::Kind::Fifo => Kind::Fifo,
        read::Kind::Socket => Kind::Socket,
    })
}
