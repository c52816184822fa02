//! The project's own recipes, copied so that a test can change them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{place, tool};

/// A copy of a folder of recipes, gone when dropped.
#[derive(Debug)]
pub struct Recipes {
    folder: TempDir,
}

impl Recipes {
    /// Copies `recipes/`, with their locks, into a folder with a name of its own.
    pub fn copy() -> Self {
        Self::copy_of("recipes")
    }

    /// The same of `tests/recipes/`.
    pub fn of_tests() -> Self {
        Self::copy_of("tests/recipes")
    }

    fn copy_of(folder: &str) -> Self {
        let source = place::clone().join(folder).join(".");
        let folder = tempfile::Builder::new().prefix("recipes-").tempdir().expect("a temporary folder can be made");
        tool::ask("cp", [Path::new("-r"), &source, folder.path()]);
        Self { folder }
    }

    /// A file of the copy.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces `old`, which must stand there once, in a file of the copy.
    pub fn edit(&self, name: &str, old: &str, new: &str) -> &Self {
        let path = self.path(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("can't read {}: {error}", path.display()));
        assert_eq!(text.matches(old).count(), 1, "`{old}` must stand once in {name}:\n{text}");
        fs::write(&path, text.replace(old, new)).expect("a copy can be written");
        self
    }
}
