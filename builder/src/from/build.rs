//! From an input to what a guest boots: the layer of the image itself, one with the recipe's files above it, and what
//! is started.

use std::{
    fs::File,
    io::{self, BufReader},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rackstick_image::{
    digest::Sha256,
    erofs::{self, Device, Kind, Mtime, Node, TreeError, WriteError, XattrError},
    recipe::{Compression, Diagnostics, Image, Owner, Root},
    source::{Source, SourceError},
};
use serde::Serialize;

use super::{
    notes::Notes,
    oci::{self, OciError},
    pin::{OciPlace, Pinned, PinnedArchive},
    process::{self, Start},
    spool::{self, SpoolError, Spooled},
    tar::{self, Entries, TarError},
    tree::{Files, PlaceError, show},
    users::{self, UserError},
};
use crate::layers::{
    self, Layer, Layers, RecipeFile, files,
    paths::inside,
    stage::{
        self,
        protocol::{Content, Marked, Mistake, PlacedFile, Written},
    },
    sum,
};

/// Bytes of all extended attributes of an image at most: stops archives that fill the memory with them.
const MAX_XATTR_BYTES: usize = 256 << 20;

/// Why an image can't be made.
#[derive(Debug, thiserror::Error)]
pub enum FromError {
    /// The input is not there any more.
    #[error("can't read {}: {source}", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The input is not what was locked.
    #[error(
        "{what} has changed since the rack was locked: it is {found} now, the lock says {locked}; run `rackstick lock` on the rack's \
         recipe to take it as it is now"
    )]
    Changed {
        /// Which.
        what: String,
        /// Its hash.
        found: Sha256,
        /// The lock's.
        locked: Sha256,
    },
    /// An archive can't be unpacked.
    #[error("{what} {source}")]
    Spool {
        /// Which.
        what: String,
        /// Why.
        source: SpoolError,
    },
    /// What stands in an archive.
    #[error("{what} {source}")]
    Archive {
        /// Which.
        what: String,
        /// What is wrong.
        source: ArchiveError,
    },
    /// An OCI image.
    #[error("{what} {source}")]
    Oci {
        /// Where.
        what: String,
        /// What is wrong.
        source: OciError,
    },
    /// The recipe asks for what the image does not have.
    #[error("image `{image}` can't be started")]
    Recipe {
        /// The image.
        image: String,
        /// What and where.
        source: Diagnostics,
    },
    /// A file of the recipe has no place.
    #[error("a file of image `{image}` has no place: {source}")]
    Place {
        /// The image.
        image: String,
        /// Why.
        source: PlaceError,
    },
    /// The recipe's files can't be had.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A file of it can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The cache.
    #[error(transparent)]
    Layer(#[from] layers::Error),
    /// The layer can't hold it.
    #[error("{what} can't become a layer: {source}")]
    Tree {
        /// The input.
        what: String,
        /// Why.
        source: TreeError,
    },
    /// The layer can't be written.
    #[error("the layer of {what} can't be written: {source}")]
    Write {
        /// The input.
        what: String,
        /// Why.
        source: WriteError,
    },
}

impl FromError {
    /// Whether what the image is made from is at fault, and not the machine that builds it.
    pub fn is_of_the_input(&self) -> bool {
        match self {
            Self::Open { .. } | Self::Changed { .. } | Self::Archive { .. } | Self::Tree { .. } => true,
            Self::Spool { source, .. } => !matches!(source, SpoolError::Write { .. }),
            Self::Oci { source, .. } => !source.is_of_our_disk(),
            Self::Recipe { .. }
            | Self::Place { .. }
            | Self::File(_)
            | Self::Source(_)
            | Self::Layer(_)
            | Self::Write { .. } => false,
        }
    }
}

/// What is wrong with an archive's entries.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The format.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A path that leads out.
    #[error("has an entry with the path `{0}`: it leads out of the file system")]
    Outside(String),
    /// No place for an entry.
    #[error("can't be unpacked: {0}")]
    Place(#[from] PlaceError),
    /// An attribute.
    #[error("can't be unpacked, `{path}`: {source}")]
    Xattr {
        /// Whose.
        path: String,
        /// Why.
        source: XattrError,
    },
    /// Too many attributes.
    #[error("has more than {MAX_XATTR_BYTES} bytes of extended attributes")]
    Xattrs,
    /// Nothing in it.
    #[error("holds no files: it is no archive of a root file system")]
    Empty,
}

/// What a guest boots of an image.
#[derive(Debug)]
pub struct Built {
    /// Its layers, lowest first, each with its label.
    pub layers: Vec<(String, Layer)>,
    /// What is started.
    pub start: Start,
    /// What was left out, one line each; only when it was unpacked now.
    pub notes: Vec<String>,
}

/// The keys under which the cache holds what is made of an image.
#[derive(Debug, Serialize)]
pub struct Keys {
    /// The layer of the image itself.
    base: String,
    /// The layer of the recipe's files, if it has any.
    own: Option<String>,
    /// What is started.
    start: String,
    /// The layers once more, if they are compressed.
    compressed: Vec<String>,
}

impl Keys {
    /// Those of what is made of this. `hashes` is what of the recipe's files decides a layer, `compress` says how
    /// layers are compressed.
    pub fn of(
        layers: &Layers,
        pinned: Pinned,
        hashes: &[PlacedFile],
        compress: Option<Compression>,
    ) -> Result<Self, FromError> {
        let identity = identity(pinned.archive);
        let own = (&identity, hashes);
        let start = layers.key(&start_of(&own, pinned.root))?;
        let own = (!hashes.is_empty()).then(|| layers.key(&own)).transpose()?;
        let base = layers.key(&identity)?;
        let compressed = compress
            .into_iter()
            .flat_map(|how| [&base].into_iter().chain(&own).map(move |plain| layers.compressed_key(plain, how)));
        Ok(Self { compressed: compressed.collect::<Result<_, _>>()?, base, own, start })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        [&self.base, &self.start].into_iter().chain(&self.own).chain(&self.compressed)
    }

    /// Whether the cache lacks anything of it, so that what the image is made from is needed.
    pub fn lack_anything(&self, layers: &Layers) -> Result<bool, FromError> {
        Ok(self.kept(layers)?.is_none())
    }

    /// The layers of image and recipe, and what is started, if the cache has all of it.
    fn kept(&self, layers: &Layers) -> Result<Option<(Layer, Option<Layer>, Start)>, FromError> {
        let own = self.own.as_ref().map(|key| layers.kept(key)).transpose()?;
        Ok(match (layers.kept(&self.base)?, own, layers.recall(&self.start)?) {
            (_, Some(None), _) => None,
            (base, own, start) => base.zip(start).map(|(base, start)| (base, own.flatten(), start)),
        })
    }
}

/// What decides the layer of the image itself. Where the input lies decides nothing.
fn identity(archive: PinnedArchive) -> impl Serialize + use<> {
    match archive {
        PinnedArchive::Rootfs(_, sha256) => ("rootfs", sha256),
        // The same image, wherever it is.
        PinnedArchive::Oci(_, sha256) => ("oci", sha256),
    }
}

/// What decides how the image is started, beside what is in it.
fn start_of<'a, T: Serialize>(own: &'a T, root: &'a Root) -> impl Serialize + use<'a, T> {
    let command = root.command.as_ref().map(|command| &command.value);
    let user = root.user.as_ref().map(|user| &user.value);
    (own, command, &root.env, &root.workdir, user)
}

/// Makes the image: its layers and what is started in it. `pinned` is what it is made from, `added` are the recipe's
/// files, in the folder `blobs` is what came from a registry, by its hash, `scratch` is a folder for what is needed
/// meanwhile.
pub fn build(
    layers: &Layers,
    image: &Image,
    pinned: Pinned,
    added: &[RecipeFile],
    blobs: &Path,
    scratch: &Path,
) -> Result<Built, FromError> {
    let (placed, hashes) = files::collect(added)?;
    let keys = Keys::of(layers, pinned, &hashes, image.compress)?;
    if let Some((base, own, start)) = keys.kept(layers)? {
        return Ok(Built { layers: labelled(image, pinned.root, base, own), start, notes: Vec::new() });
    }
    let mut notes = Notes::default();
    let (mut files, config) = unpack(pinned.archive, blobs, scratch, layers.epoch(), &mut notes)?;
    let base = layers.written(&keys.base, |out| write(&files, 0, layers.epoch(), pinned.archive, out))?;
    files.next_layer();
    let top = files.layer();
    let mut mistakes = Vec::new();
    for (number, file) in placed.iter().enumerate() {
        let copy = scratch.join(format!("file-{number}"));
        place(&mut files, image, file, &copy, layers.epoch(), &mut mistakes)?;
    }
    if !mistakes.is_empty() {
        // As a stage would give them.
        let source = stage::Error::Recipe(mistakes);
        return Err(layers::Error::Stage { label: image.name.clone(), source }.into());
    }
    let own = match &keys.own {
        None => None,
        Some(key) => Some(layers.written(key, |out| write(&files, top, layers.epoch(), pinned.archive, out))?),
    };
    let started = process::start(&files, pinned.root, config.as_ref())
        .map_err(|wrong| FromError::Recipe { image: image.name.clone(), source: wrong.into() })?;
    layers.remember(&keys.start, &started)?;
    Ok(Built { layers: labelled(image, pinned.root, base, own), start: started, notes: notes.lines() })
}

fn labelled(image: &Image, root: &Root, base: Layer, own: Option<Layer>) -> Vec<(String, Layer)> {
    let own = own.map(|layer| (image.name.clone(), layer));
    [(root.archive.name().value.clone(), base)].into_iter().chain(own).collect()
}

/// The image's files, and what it says of itself.
fn unpack(
    archive: PinnedArchive,
    blobs: &Path,
    scratch: &Path,
    epoch: i64,
    notes: &mut Notes,
) -> Result<(Files, Option<oci::Config>), FromError> {
    let in_archive = |source| FromError::Archive { what: archive.shown(), source };
    let mut files = Files::new(Mtime::from_seconds(epoch));
    let mut xattr_bytes = 0;
    let config = match archive {
        PinnedArchive::Rootfs(path, sha256) => {
            let file = File::open(path).map_err(|source| FromError::Open { path: path.to_owned(), source })?;
            let spooled = spool::spool(file, scratch.join("rootfs"))
                .map_err(|source| FromError::Spool { what: archive.shown(), source })?;
            unchanged(archive.shown(), spooled.packed, sha256)?;
            apply(&mut files, &spooled, false, epoch, notes, &mut xattr_bytes).map_err(in_archive)?;
            None
        }
        PinnedArchive::Oci(place, sha256) => {
            let in_image = |source| FromError::Oci { what: archive.shown(), source };
            let place = match place {
                OciPlace::File(path) => oci::Place::open(path, scratch),
                OciPlace::Registry(_) => oci::Place::of_blobs(blobs, sha256, scratch),
            };
            let place = place.map_err(in_image)?;
            let found = oci::find(&place).map_err(in_image)?;
            unchanged(archive.shown(), found.digest(), sha256)?;
            let mut plain_bytes = 0_u64;
            for number in 0..found.layers() {
                let spooled = found.spool(&place, number, scratch).map_err(in_image)?;
                plain_bytes = plain_bytes.saturating_add(spooled.plain_size);
                if plain_bytes > spool::MAX_PLAIN_BYTES {
                    return Err(in_image(OciError::TooLarge {
                        what: "its layers, unpacked,".to_owned(),
                        most: spool::MAX_PLAIN_BYTES,
                    }));
                }
                apply(&mut files, &spooled, true, epoch, notes, &mut xattr_bytes)
                    .map_err(|source| in_image(OciError::Layer { number, source: Box::new(source) }))?;
                files.next_layer();
            }
            Some(found.into_config())
        }
    };
    if files.is_empty() {
        return Err(in_archive(ArchiveError::Empty));
    }
    let (count, last) = &files.repeated;
    notes.add_many("stands there more than once, the last counts", *count, show(last));
    link_modules(&mut files, epoch).map_err(|error| in_archive(error.into()))?;
    Ok((files, config))
}

/// An error unless the input is what was locked.
pub fn unchanged(what: String, found: Sha256, locked: Sha256) -> Result<(), FromError> {
    if found == locked { Ok(()) } else { Err(FromError::Changed { what, found, locked }) }
}

/// The guest's kernel has its modules in /usr/lib: an image whose /lib is another folder finds them by a link.
fn link_modules(files: &mut Files, epoch: i64) -> Result<(), PlaceError> {
    let own_lib = files.get_link(b"lib").is_some_and(|lib| lib.kind == Kind::Directory);
    if !own_lib || files.get_link(b"lib/modules").is_some() {
        return Ok(());
    }
    let link = Kind::Symlink(b"../usr/lib/modules".to_vec());
    files.put(b"lib/modules", Node::new(link, 0o777, Mtime::from_seconds(epoch)))
}

/// Puts an archive's entries over what is there. `oci`: with whiteouts and without devices, as OCI's Image Layer
/// Filesystem Changeset says.
pub(super) fn apply(
    files: &mut Files,
    archive: &Spooled,
    oci: bool,
    epoch: i64,
    notes: &mut Notes,
    xattr_bytes: &mut usize,
) -> Result<(), ArchiveError> {
    let file = File::open(&archive.path).map_err(TarError::Read)?;
    let mut entries = Entries::new(BufReader::new(file)).map_err(TarError::Read)?;
    while let Some(entry) = entries.next()? {
        let path = inside(&entry.path).ok_or_else(|| ArchiveError::Outside(show(&entry.path)))?;
        if oci && whiteout(files, &path) {
            continue;
        }
        let path = path.as_os_str().as_bytes();
        let kind = match entry.kind {
            tar::Kind::File { offset, size } => Kind::File(Source::Part { path: archive.path.clone(), offset, size }),
            tar::Kind::Folder => Kind::Directory,
            tar::Kind::Symlink => Kind::Symlink(entry.link.clone()),
            tar::Kind::HardLink => {
                let target = inside(&entry.link).ok_or_else(|| ArchiveError::Outside(show(&entry.link)))?;
                files.link(path, target.as_os_str().as_bytes())?;
                continue;
            }
            tar::Kind::CharDevice(Device { major: 0, minor: 0 }) => {
                notes.add("a device 0:0 is left out, it would hide files of other layers", show(path));
                continue;
            }
            tar::Kind::CharDevice(_) | tar::Kind::BlockDevice(_) if oci => {
                notes.add("a device is left out, the guest's kernel makes its own", show(path));
                continue;
            }
            tar::Kind::CharDevice(device) => Kind::CharDevice(device),
            tar::Kind::BlockDevice(device) => Kind::BlockDevice(device),
            tar::Kind::Fifo => Kind::Fifo,
        };
        let latest = Mtime::from_seconds(epoch);
        let mtime = entry.mtime.min(latest).max(Mtime::default());
        let mut node = Node { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime, ..Node::new(kind, 0, latest) };
        for (name, value) in entry.xattrs {
            let kept = erofs::xattr_from_archive(&name, value)
                .map_err(|source| ArchiveError::Xattr { path: show(path), source })?;
            match kept {
                Some(value) => {
                    *xattr_bytes += name.len() + value.len();
                    node.xattrs.insert(name, value);
                }
                None => notes.add("an extended attribute is left out, it means nothing in a guest", show(&name)),
            }
        }
        if *xattr_bytes > MAX_XATTR_BYTES {
            return Err(ArchiveError::Xattrs);
        }
        files.put(path, node)?;
    }
    Ok(())
}

/// Does what an entry says that stands for the absence of something; whether it is one.
fn whiteout(files: &mut Files, path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.as_bytes().strip_prefix(b".wh.")) else { return false };
    let parent = path.parent().unwrap_or(Path::new("")).as_os_str().as_bytes();
    match name {
        b".wh..opq" => files.empty(parent),
        // What aufs kept for itself.
        b"" => {}
        name if name.starts_with(b".wh.") => {}
        name => files.remove(&[parent, b"/", name].concat()),
    }
    true
}

/// Puts a file of the recipe into the image; `copy` is where its bytes may stay until they are in the layer.
fn place(
    files: &mut Files,
    image: &Image,
    file: &PlacedFile,
    copy: &Path,
    epoch: i64,
    mistakes: &mut Vec<Mistake>,
) -> Result<(), FromError> {
    let kind = match &file.content {
        Content::Folder => Kind::Directory,
        Content::Copy { source, sha256 } => {
            let copied =
                files::copy(source, *sha256, &mut |bytes| io::copy(bytes, &mut File::create_new(copy)?).map(|_| ()));
            copied.map_err(|error| files::Error::Read { path: source.clone(), source: error })?;
            Kind::File(Source::file(copy)?)
        }
        Content::Symlink(target) => Kind::Symlink(target.as_os_str().as_bytes().to_vec()),
    };
    let path = file.path.as_os_str().as_bytes();
    let owned = file.owner.is_some() || file.group.is_some();
    // A folder that the image has keeps its owner and mode.
    if kind == Kind::Directory && !owned && files.get(path).is_some_and(|there| there.kind == Kind::Directory) {
        return Ok(());
    }
    let uid = id(&file.owner, |name| Ok(users::find(files, name)?.uid), mistakes);
    let gid = id(&file.group, |name| users::group(files, name), mistakes);
    let mode = (file.mode & 0o7777) as u16;
    let node = Node { uid, gid, ..Node::new(kind, mode, Mtime::from_seconds(epoch)) };
    files.put(path, node).map_err(|source| FromError::Place { image: image.name.clone(), source })
}

/// The number of whom a file of the recipe belongs to, root if it does not say. One that the image does not have is a
/// mistake with the mark of its place in the recipe.
fn id(
    owner: &Option<Marked<Owner>>,
    find: impl Fn(&str) -> Result<u32, UserError>,
    mistakes: &mut Vec<Mistake>,
) -> u32 {
    match owner {
        None => 0,
        Some(Marked { value: Owner::Id(id), .. }) => *id,
        Some(Marked { value: Owner::Name(name), mark }) => find(name).unwrap_or_else(|error| {
            let hint = "give the number, or the name of one that the image has".to_owned();
            mistakes.push(Mistake { mark: *mark, message: error.to_string(), hint });
            0
        }),
    }
}

/// Writes all that archives from `layer` on put there.
fn write(files: &Files, layer: u32, epoch: i64, archive: PinnedArchive, out: &Path) -> Result<Written, FromError> {
    let failed = |source: io::Error| FromError::Write { what: archive.shown(), source: source.into() };
    let tree = files.export(layer).map_err(|source| FromError::Tree { what: archive.shown(), source })?;
    let file = File::create_new(out).map_err(failed)?;
    let options = erofs::WriteOptions { build_time: Mtime::from_seconds(epoch), ..Default::default() };
    erofs::write(&tree, &file, &options).map_err(|source| FromError::Write { what: archive.shown(), source })?;
    sum::of(out).map_err(failed)
}
