//! What an image recipe says.

use std::{path::PathBuf, sync::Arc};

use super::error::{Placed, Source};

/// An image recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name: the file's stem.
    pub name: String,
    /// The recipe file.
    pub source: Arc<Source>,
    /// Packages it adds to the base, in the recipe's order, each once. Their names are well-formed; whether they exist
    /// is for the lock to say.
    pub packages: Vec<Placed<String>>,
    /// systemd units to enable, with their suffix (`nginx.service`), in the recipe's order, each once.
    pub services: Vec<Placed<String>>,
    /// Files and directories put into it after the packages, in the recipe's order; no path twice.
    pub files: Vec<File>,
}

/// One file or directory of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it stands in the image: absolute, without `.` and `..`, not the root. All files belong to root.
    pub path: Placed<String>,
    /// What is put there.
    pub content: Content,
    /// Permission bits of the file, or of all files in the directory, at most 0o7777; 0o644 if none. Never the source's
    /// own, which depend on the umask of whoever cloned it.
    pub mode: Option<u32>,
}

/// What a file consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text from the recipe.
    Inline(String),
    /// A file beside the recipe: its path, openable from where the command runs.
    File(PathBuf),
    /// A directory beside the recipe, copied with everything in it.
    Directory(PathBuf),
}
