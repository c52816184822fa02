//! The lock: every package that goes into a rack, by name, version, hash, size and pool path. One per rack recipe,
//! `<rack recipe>.lock`, TOML, in git. Of Debian's archive it holds no host names, so any mirror serves it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256;

/// The only format this version reads.
pub const FORMAT: u32 = 2;

/// A rack's lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the builder that wrote it.
    pub builder: String,
    /// `SOURCE_DATE_EPOCH` of every build from this lock, seconds since 1970: the newest date of the archives' indexes.
    pub epoch: i64,
    /// The rack's base as the recipe names it, `debian:trixie`: that of host and guests' kernel.
    pub base: String,
    /// What is taken of each base, the rack's and those of images, by its name.
    pub bases: BTreeMap<String, Base>,
    /// Where packages came from beside their base, by name: what the recipe said.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repositories: BTreeMap<String, Repository>,
    /// What images are made from that are not made of packages, by the image's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Input>,
}

/// What is taken of one base.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// What each set was resolved from: set name (`base`, `image:<name>`, and of the rack's base `host` and `kernel`)
    /// to the packages asked for, sorted. If the recipe asks for others, the lock no longer fits it.
    pub roots: BTreeMap<String, Vec<String>>,
    /// What each set consists of, by package name, sorted; an image's set does not repeat `base`.
    pub sets: BTreeMap<String, Vec<String>>,
    /// The archive's indexes that the packages came from.
    pub indexes: Vec<Index>,
    /// All packages, by name.
    pub packages: BTreeMap<String, Package>,
}

impl Base {
    /// The packages of a set, by name; none if there is no such set.
    pub fn set(&self, set: &str) -> impl Iterator<Item = (&String, &Package)> {
        self.sets.get(set).into_iter().flatten().filter_map(|name| Some((name, self.packages.get(name)?)))
    }
}

impl Lock {
    /// What is taken of the rack's own base.
    pub fn own(&self) -> &Base {
        static NOTHING: Base =
            Base { roots: BTreeMap::new(), sets: BTreeMap::new(), indexes: Vec::new(), packages: BTreeMap::new() };
        self.bases.get(&self.base).unwrap_or(&NOTHING)
    }

    /// All packages, each with its base and name.
    pub fn packages(&self) -> impl Iterator<Item = (&String, &String, &Package)> {
        self.bases.iter().flat_map(|(base, of)| of.packages.iter().map(move |(name, package)| (base, name, package)))
    }

    /// What a set or package of a base is called: of another base than the rack's with that, since both may have it.
    /// Neither sets nor packages have blanks in their names.
    pub fn told_apart(&self, base: &str, name: &str) -> String {
        if base == self.base { name.to_owned() } else { format!("{name} {base}") }
    }
}

/// What an image is made from, in place of packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Input {
    /// A tarball of a root file system.
    Rootfs {
        /// As the image recipe names it: relative to it.
        path: String,
        /// Size in bytes.
        size: u64,
        /// SHA-256 of the file.
        sha256: Sha256,
    },
    /// An OCI image in an archive or a layout folder.
    Oci {
        /// As the image recipe names it: relative to it.
        path: String,
        /// SHA-256 of the image's manifest, which names everything else by its hash: what registries call its digest.
        /// Of an archive in the older format of `docker save`, which has no manifest, that of the configuration: the
        /// image's id.
        sha256: Sha256,
    },
    /// An OCI image in a registry.
    Registry {
        /// As the image recipe names it.
        reference: String,
        /// The image's manifest; its hash is what registries call the image's digest.
        manifest: Blob,
        /// What the manifest names: the configuration and the layers, lowest first.
        blobs: Vec<Blob>,
    },
    /// A whole disk with its kernel and initrd.
    Disk {
        /// The disk.
        disk: InputFile,
        /// The kernel.
        kernel: InputFile,
        /// The initrd.
        initrd: InputFile,
    },
}

impl Input {
    /// As the image recipe names it.
    pub fn path(&self) -> &str {
        match self {
            Self::Rootfs { path, .. } | Self::Oci { path, .. } => path,
            Self::Registry { reference, .. } => reference,
            Self::Disk { disk, .. } => &disk.path,
        }
    }

    /// What identifies its content, by its format's measure.
    pub fn sha256(&self) -> Sha256 {
        match self {
            Self::Rootfs { sha256, .. } | Self::Oci { sha256, .. } => *sha256,
            Self::Registry { manifest, .. } => manifest.sha256,
            Self::Disk { disk, .. } => disk.sha256,
        }
    }

    /// What of it is in a registry: the manifest and all that it names.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        let (manifest, blobs) = match self {
            Self::Registry { manifest, blobs, .. } => (Some(manifest), blobs.as_slice()),
            Self::Rootfs { .. } | Self::Oci { .. } | Self::Disk { .. } => (None, [].as_slice()),
        };
        manifest.into_iter().chain(blobs)
    }

    /// All files that it consists of: each by its path as the image recipe names it, and its SHA-256. Of an OCI image,
    /// whose files may be many, the hash is that of its manifest.
    pub fn files(&self) -> Vec<(&str, Sha256)> {
        match self {
            Self::Rootfs { .. } | Self::Oci { .. } | Self::Registry { .. } => vec![(self.path(), self.sha256())],
            Self::Disk { disk, kernel, initrd } => {
                [disk, kernel, initrd].map(|file| (file.path.as_str(), file.sha256)).into()
            }
        }
    }
}

/// One file of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// As the image recipe names it: relative to it.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: Sha256,
}

/// A file that a registry has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// SHA-256 of its bytes, by which it is asked for.
    pub sha256: Sha256,
    /// Size in bytes.
    pub size: u64,
}

/// A repository beside a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// The base that it stands beside.
    pub base: String,
    /// The root of its archive, without a slash at the end; none if that is Debian's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The suite; one that ends with `/` is a plain folder.
    pub suite: String,
    /// The suite's components, sorted; none of a plain folder.
    pub components: Vec<String>,
    /// Fingerprints of the keys that may sign it, sorted; none of Debian's own archive, whose keys the builder knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Packages that are taken from here whatever the base has, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
}

/// One signed index of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// The archive: `debian`, `debian-security` or the name of a repository.
    pub archive: String,
    /// The suite: `trixie`, `trixie-updates`, `trixie-security`.
    pub suite: String,
    /// Date of the InRelease file, as it stands there.
    pub date: String,
    /// SHA-256 of the InRelease file.
    pub sha256: Sha256,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Version.
    pub version: String,
    /// Architecture: `amd64` or `all`.
    pub architecture: String,
    /// The archive that it came from, as in [`Index::archive`].
    pub archive: String,
    /// Path below the archive's root: in Debian's `pool/main/...`.
    pub path: String,
    /// Size of the .deb in bytes.
    pub size: u64,
    /// SHA-256 of the .deb.
    pub sha256: Sha256,
}
