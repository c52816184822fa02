//! What the builder and its stage say to each other: one request as JSON on the stage's stdin, messages as JSON lines on
//! its stdout.

use std::path::PathBuf;

use rackstick_image::digest::VerityDigest;
use serde::{Deserialize, Serialize};

/// What a stage shall do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// The work.
    pub task: Task,
    /// `SOURCE_DATE_EPOCH`, seconds since 1970.
    pub epoch: i64,
    /// Threads for unpacking, at least 1.
    pub threads: usize,
}

/// The kinds of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Task {
    /// Unpack and configure packages in a new tree.
    Base {
        /// The tree to make; does not exist yet.
        root: PathBuf,
        /// What goes in.
        packages: Vec<Package>,
        /// The layer to write.
        out: PathBuf,
    },
    /// Add packages, files and services to a base.
    Image {
        /// The base's tree.
        base: PathBuf,
        /// A folder to work in; does not exist yet, is gone afterwards.
        work: PathBuf,
        /// Packages that the base does not have.
        packages: Vec<Package>,
        /// Files of the recipe.
        files: Vec<PlacedFile>,
        /// systemd units to enable.
        services: Vec<String>,
        /// The layer to write.
        out: PathBuf,
    },
    /// Take a kernel's modules and index them with the base's depmod.
    Kernel {
        /// The base's tree.
        base: PathBuf,
        /// A folder to work in; does not exist yet, is gone afterwards.
        work: PathBuf,
        /// The linux-image package.
        package: Package,
        /// The layer to write.
        out: PathBuf,
    },
    /// Remove trees whose files belong to ids that only a stage may touch.
    Remove {
        /// Trees; those that don't exist are fine.
        trees: Vec<PathBuf>,
    },
}

/// One verified package file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Package {
    /// Its name, for messages.
    pub name: String,
    /// The .deb.
    pub deb: PathBuf,
}

/// Something that a recipe puts into an image, of root's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedFile {
    /// Absolute path in the image.
    pub path: PathBuf,
    /// What it is.
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
}

/// What a placed file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A folder.
    Folder,
    /// A copy of a file of this machine.
    Copy(PathBuf),
    /// A symlink to this.
    Symlink(PathBuf),
}

/// What a stage says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The namespaces exist: their ids must be mapped now, then the request is awaited.
    Unshared,
    /// What it does now, for people.
    Step(String),
    /// The layer is written, or the trees are removed.
    Done(Option<Written>),
    /// It failed; nothing was left behind.
    Failed(Failure),
}

/// A written layer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Written {
    /// Its fs-verity digest.
    pub digest: VerityDigest,
    /// Its size in bytes.
    pub size: u64,
}

/// Why a stage failed, in the words for people: errors of its inside can't cross the process boundary as types.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Failure {
    /// The kernel refused the namespaces.
    Namespaces(String),
    /// A program of the image failed.
    Script {
        /// What ran: `the scripts of package bind9`, `systemctl enable nginx`.
        what: String,
        /// How it ended.
        how: String,
        /// The end of what it printed.
        output: String,
    },
    /// No room on the disk.
    NoSpace(String),
    /// Anything else.
    Other(String),
}
