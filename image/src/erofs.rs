//! Writer of EROFS layers: 4 KiB blocks, file contents never inlined, because an inlined tail silently takes the whole
//! file off DAX. Compression does so too; only where it is asked for, files are compressed, and small ones inlined.
//! On-disk format: Linux, fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst.
//!
//! A [`Tree`] says what the layer holds; it is made by hand or by [`scan`] of a directory, and [`write`](write()) turns
//! it into bytes that depend on nothing but the tree and the options. [`read`] reads them.

mod compress;
mod copy;
mod format;
mod layout;
pub mod read;
mod scan;
#[cfg(test)]
mod tests;
mod tree;
mod write;
mod xattr;

pub use copy::{CopyError, tree_of};
pub use layout::LayoutError;
pub use scan::{Origin, ScanError, ScanOptions, scan};
pub use tree::{Device, Kind, Mtime, Node, Tree, TreeError};
pub use write::{Summary, WriteError, WriteOptions, write};
pub use xattr::{XattrError, from_archive as xattr_from_archive};

/// Size of every block in bytes.
pub const BLOCK_SIZE: usize = 4096;
