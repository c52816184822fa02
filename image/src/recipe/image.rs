//! What an image recipe says.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    error::{Place, Placed, Source},
    vars::Var,
};

/// An image recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name: the file's stem.
    pub name: String,
    /// The recipe file.
    pub source: Arc<Source>,
    /// What it is made from in place of packages; then it has neither packages nor services.
    pub from: Option<From>,
    /// The base that its packages are of, if not the rack's.
    pub base: Option<Placed<String>>,
    /// Packages it adds to the base, in the recipe's order, each once. Their names are well-formed; whether they exist
    /// is for the lock to say.
    pub packages: Vec<Placed<String>>,
    /// systemd units to enable, with their suffix (`nginx.service`), in the recipe's order, each once.
    pub services: Vec<Placed<String>>,
    /// Files and directories put into it after the packages, in the recipe's order; no path twice.
    pub files: Vec<File>,
    /// What templates of this image may name as `vars`, beside the rack's.
    pub vars: BTreeMap<String, Var>,
    /// Groups that it adds, by name.
    pub groups: BTreeMap<String, Group>,
    /// Users that it adds, and more groups and keys for those that packages made, by name.
    pub users: BTreeMap<String, User>,
    /// Its time zone; UTC if none.
    pub timezone: Option<Placed<String>>,
    /// Its locale; none is the C locale.
    pub locale: Option<Placed<String>>,
    /// Commands that are run in it after all that, each a program with its arguments, in the recipe's order.
    pub commands: Vec<Placed<Vec<String>>>,
    /// Further parameters of the guests' kernel.
    pub cmdline: Vec<String>,
    /// How the files in its layers are compressed; none: not at all, so that guests read them from the host's memory.
    pub compress: Option<Compression>,
    /// What its guests are given at deploy time, by name.
    pub secrets: BTreeMap<String, Secret>,
}

/// How files in layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// By Zstandard.
    Zstd,
}

/// What an image is made from that is not made of packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// A root file system, in which something is started.
    Root(Root),
    /// A whole disk with a system of its own.
    Disk(Disk),
}

/// A root file system, and what is started in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Where it is, and in which format.
    pub archive: Archive,
    /// The program that it runs, with its arguments; none: what the image itself says.
    pub command: Option<Placed<Vec<String>>>,
    /// Variables beside the image's own, and before them.
    pub env: BTreeMap<String, String>,
    /// The absolute path of the folder that the program is started in, if not the image's own.
    pub workdir: Option<String>,
    /// The user, `name` or `uid`, and after a colon the group, if not the image's own.
    pub user: Option<Placed<String>>,
}

/// What holds a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archive {
    /// A tarball of it.
    Rootfs(Named),
    /// An OCI archive or layout folder, or an archive of `docker save`.
    Oci(Named),
    /// The same in a registry, by its [`crate::reference::Reference`].
    Registry(Placed<String>),
}

/// A whole disk, and what boots it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The disk, raw or qcow2.
    pub disk: Named,
    /// Its kernel.
    pub kernel: Named,
    /// Its initrd.
    pub initrd: Named,
}

/// A file or folder that an image recipe names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// As the recipe names it, relative to the recipe.
    pub path: Placed<String>,
    /// The same, openable from where the command runs.
    pub file: PathBuf,
}

impl Image {
    /// The root file system that it is made from, if it is made from one.
    pub fn root(&self) -> Option<&Root> {
        match self.from.as_ref()? {
            From::Root(root) => Some(root),
            From::Disk(_) => None,
        }
    }

    /// The disk, if it is a whole one.
    pub fn disk(&self) -> Option<&Disk> {
        match self.from.as_ref()? {
            From::Root(_) => None,
            From::Disk(disk) => Some(disk),
        }
    }
}

impl From {
    /// What the recipe calls it.
    pub fn name(&self) -> &Placed<String> {
        match self {
            Self::Root(root) => root.archive.name(),
            Self::Disk(disk) => &disk.disk.path,
        }
    }
}

impl Archive {
    /// What the recipe calls it.
    pub fn name(&self) -> &Placed<String> {
        match self {
            Self::Rootfs(named) | Self::Oci(named) => &named.path,
            Self::Registry(reference) => reference,
        }
    }
}

/// One file or directory of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it stands in the image: absolute, without `.` and `..`, not the root.
    pub path: Placed<String>,
    /// What is put there.
    pub content: Content,
    /// Permission bits of the file, or of all files in the directory, at most 0o7777; 0o644 if none. Never the source's
    /// own, which depend on the umask of whoever cloned it.
    pub mode: Option<u32>,
    /// The user that it belongs to, with everything in it; root if none.
    pub owner: Option<Placed<Owner>>,
    /// The group that it belongs to, with everything in it; root's if none.
    pub group: Option<Placed<Owner>>,
}

/// A file that a guest of the image finds in its memory; what is in it, no recipe and no image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Where it stands: an absolute path below `/run`.
    pub path: String,
    /// Permission bits, at most 0o777.
    pub mode: u32,
    /// The user that it belongs to; root if none.
    pub owner: Option<Placed<Owner>>,
    /// The group that it belongs to; root's if none.
    pub group: Option<Placed<Owner>>,
}

/// A user or a group that a file belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// By name, which only the image itself knows.
    Name(String),
    /// By number, at most [`super::ID_MAX`].
    Id(u32),
}

/// A group of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Where its name stands.
    pub place: Place,
    /// Its number; the builder takes a free one if none.
    pub gid: Option<u32>,
    /// Whether it is one of the system's, with a number below 1000.
    pub system: bool,
}

/// A user of an image. Of one that a package made, only `groups` and `authorized_keys` may be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Where its name stands.
    pub place: Place,
    /// Its number; the builder takes a free one if none.
    pub uid: Option<u32>,
    /// Its first group; one of its own if none.
    pub group: Option<Placed<String>>,
    /// Further groups, each once.
    pub groups: Vec<Placed<String>>,
    /// Its home, an absolute path.
    pub home: Option<String>,
    /// Its shell, an absolute path.
    pub shell: Option<Placed<String>>,
    /// Who it is, for people.
    pub comment: Option<String>,
    /// Whether it is one of the system's, with a number below 1000, without home and login.
    pub system: bool,
    /// Lines of its `authorized_keys`.
    pub authorized_keys: Vec<String>,
}

/// What a file consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text from the recipe, or of a template that is filled in.
    Inline(String),
    /// A file beside the recipe: its path, openable from where the command runs.
    File(PathBuf),
    /// A directory beside the recipe, copied with everything in it.
    Directory(PathBuf),
}
