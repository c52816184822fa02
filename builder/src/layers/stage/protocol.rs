//! What the builder and its stage say to each other: one request as JSON on the stage's stdin, messages as JSON lines
//! on its stdout.

use std::{collections::BTreeMap, path::PathBuf};

use rackstick_image::{
    digest::{Sha256, VerityDigest},
    recipe::Owner,
};
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
    /// If the layer was made before.
    pub again: Option<Again>,
}

/// What is made a second time, to see whether it becomes the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Again {
    /// The layer that was made first.
    pub first: PathBuf,
    /// The library that gives programs another clock.
    pub clock: PathBuf,
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
    /// Add packages to a base.
    Packages {
        /// The base's tree.
        base: PathBuf,
        /// What differs from it when all is done, with the marks of an overlay; does not exist yet.
        tree: PathBuf,
        /// A folder to work in, on the same file system; does not exist yet, is gone afterwards.
        work: PathBuf,
        /// Packages that the base does not have.
        packages: Vec<Package>,
        /// The layer to write.
        out: PathBuf,
    },
    /// Add files, users, services and whatever else a recipe asks for.
    Image {
        /// The trees that it is added to, highest first.
        below: Vec<PathBuf>,
        /// A folder to work in; does not exist yet, is gone afterwards.
        work: PathBuf,
        /// Names of the packages that the base does not have.
        packages: Vec<String>,
        /// Files of the recipe.
        files: Vec<PlacedFile>,
        /// What else the recipe changes.
        changes: Changes,
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

/// A value of the recipe, with a mark by which the builder finds its place again when the stage refuses it. The place
/// itself would give the layer another key whenever a line is added above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked<T> {
    /// The value.
    pub value: T,
    /// Its mark.
    pub mark: usize,
}

/// What an image's recipe changes beside packages and files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Groups to make, by name.
    pub groups: BTreeMap<String, Marked<NewGroup>>,
    /// Users to make, or to put into groups, by name.
    pub users: BTreeMap<String, Marked<NewUser>>,
    /// The time zone; UTC if none.
    pub timezone: Option<Marked<String>>,
    /// The locale.
    pub locale: Option<Marked<String>>,
    /// Commands to run, each a program with its arguments.
    pub commands: Vec<Marked<Vec<String>>>,
    /// systemd units to enable.
    pub services: Vec<Marked<String>>,
}

/// A group to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewGroup {
    /// Its number, or a free one.
    pub gid: Option<u32>,
    /// Whether a free one is the system's.
    pub system: bool,
}

/// A user to make, or, with `groups` and `authorized_keys` only, one that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewUser {
    /// Its number, or a free one.
    pub uid: Option<u32>,
    /// Its first group; its own if none.
    pub group: Option<Marked<String>>,
    /// Further groups.
    pub groups: Vec<Marked<String>>,
    /// Its home, which is made; without one, the system's users have none.
    pub home: Option<PathBuf>,
    /// Its shell.
    pub shell: Option<Marked<String>>,
    /// Who it is.
    pub comment: Option<String>,
    /// Whether it is one of the system's.
    pub system: bool,
    /// Lines of its `authorized_keys`.
    pub authorized_keys: Vec<String>,
}

/// Something that a recipe puts into an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedFile {
    /// Absolute path in the image.
    pub path: PathBuf,
    /// What it is.
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
    /// The user that it belongs to; root if none.
    pub owner: Option<Marked<Owner>>,
    /// The group that it belongs to; root's if none.
    pub group: Option<Marked<Owner>>,
}

/// What a placed file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A folder.
    Folder,
    /// A copy of a file of this machine, as it was when it was hashed.
    Copy {
        /// The file.
        source: PathBuf,
        /// Its hash.
        sha256: Sha256,
    },
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
    /// Its CRC-32C.
    pub crc: u32,
}

/// Something of the recipe that does not fit what is in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mistake {
    /// Of what is wrong.
    pub mark: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// The mistakes that were found so far: all of a recipe's are told at once.
#[derive(Debug, Default)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// What was done; nothing if the recipe was at fault, which is noted. Any other failure ends the work, and if there
    /// are mistakes these are told: they may be why.
    pub fn note<T>(&mut self, result: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(Failure::Recipe(mistakes)) => {
                self.0.extend(mistakes);
                Ok(None)
            }
            Err(other) => self.tell().and(Err(other)),
        }
    }

    /// Fails if there are any.
    pub fn tell(&mut self) -> Result<(), Failure> {
        if self.0.is_empty() { Ok(()) } else { Err(Failure::Recipe(std::mem::take(&mut self.0))) }
    }
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
    /// The recipe does not fit what is in the image.
    Recipe(Vec<Mistake>),
    /// It was made again, and became another: a line for each file.
    Differs(Vec<String>),
    /// No room on the disk.
    NoSpace(String),
    /// Anything else.
    Other(String),
}

impl Failure {
    /// One mistake of the recipe.
    pub fn mistake(mark: usize, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Recipe(vec![Mistake { mark, message: message.into(), hint: hint.into() }])
    }
}
