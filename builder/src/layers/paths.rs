//! Paths as they stand in archives, and what they become in a tree: inside of it, below a merged /usr (DEP 17).

use std::{
    ffi::OsString,
    io::Read,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Component, Path, PathBuf},
};

use super::deb;

/// Bytes of a path at most: what Linux takes (`PATH_MAX`).
const MAX_NAME_BYTES: u64 = 4096;
/// Folders at the root that are symlinks into /usr on a merged system; packages of older releases still fill them.
pub const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Names that are too long for a header, which GNU tar writes before it; read here, since the library would take as
/// much of them into memory as the archive holds.
#[derive(Default)]
pub struct LongNames {
    /// Path of the next entry.
    pub name: Option<Vec<u8>>,
    /// What the next entry links to.
    pub link: Option<Vec<u8>>,
}

impl LongNames {
    /// Takes such a name; false if this is any other entry.
    pub fn take(&mut self, entry: &mut tar::Entry<'_, &mut dyn Read>) -> Result<bool, deb::Error> {
        let kind = entry.header().entry_type();
        let slot = if kind.is_gnu_longname() {
            &mut self.name
        } else if kind.is_gnu_longlink() {
            &mut self.link
        } else {
            return Ok(false);
        };
        let mut bytes = Vec::new();
        entry.take(MAX_NAME_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_NAME_BYTES {
            return Err(deb::Error::NameTooLong);
        }
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        *slot = Some(bytes);
        Ok(true)
    }
}

/// A path of an archive without its leading `./` or `/`; none if it has `..` or a NUL in it. The root is the empty
/// path.
pub fn inside(raw: &[u8]) -> Option<PathBuf> {
    if raw.contains(&0) {
        return None;
    }
    let mut path = PathBuf::new();
    for component in Path::new(&OsString::from_vec(raw.to_vec())).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// Where a path lives on a system with merged /usr: `lib/x` is `usr/lib/x`.
pub fn merged(path: &Path) -> PathBuf {
    match path.components().next() {
        Some(Component::Normal(first)) if MERGED.iter().any(|name| first == *name) => Path::new("usr").join(path),
        _ => path.to_owned(),
    }
}

/// `./bin -> usr/bin`, as base-files ships it: the stage made it before anything was unpacked.
pub fn is_merged_link(path: &Path, target: &[u8]) -> bool {
    MERGED.iter().any(|name| path == Path::new(name) && target == format!("usr/{name}").as_bytes())
}

/// `x.dpkg-new` of `x`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A path as dpkg's `.list` files hold it; the root is `/.`.
pub fn listed(path: &Path) -> Vec<u8> {
    if path.as_os_str().is_empty() {
        return b"/.".to_vec();
    }
    [b"/", path.as_os_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_inside_the_tree_are_taken() {
        for (raw, path) in [("./usr/bin/x", "usr/bin/x"), ("/etc//x", "etc/x"), ("./", ""), ("a/./b", "a/b")] {
            assert_eq!(inside(raw.as_bytes()), Some(PathBuf::from(path)), "{raw}");
        }
        for raw in ["../x", "./usr/../../x", "usr/..", "a\0b"] {
            assert_eq!(inside(raw.as_bytes()), None, "{raw}");
        }
    }

    #[test]
    fn folders_of_the_old_root_move_below_usr() {
        assert_eq!(merged(Path::new("lib/x/y")), Path::new("usr/lib/x/y"));
        assert_eq!(merged(Path::new("sbin")), Path::new("usr/sbin"));
        assert_eq!(merged(Path::new("library/x")), Path::new("library/x"));
    }
}
