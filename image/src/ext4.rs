//! The data partition: ext4 with a journal and the `verity` feature, made from a list of files.
//! [`read`] reads it.
//! On-disk format: Linux, Documentation/filesystems/ext4/ ("Super Block", "Block Groups").

pub mod read;
mod share;
mod verity;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use mkext4::{FsBuilder, InodeCount, InodeHandle, Layout, Meta, Options, ROOT, RegionSink};

use self::share::Origin;
use crate::{
    digest::VerityDigest,
    guid::Guid,
    source::{Source, SourceError},
};

/// Free space of a new data partition, in bytes, of which the kernel keeps 2 % to itself: the rack writes state and
/// logs there before it has grown the partition to its disk. Sparse in the image.
pub const SLACK: u64 = 192 << 20;
/// Blocks of the journal: 32 MiB, which stays when the file system grows to the whole disk.
const JOURNAL_BLOCKS: u32 = 8192;
/// One inode for so many bytes. Layers, volumes and logs are few and large, and what is spared here is spared on every
/// block group of the grown disk.
const BYTES_PER_INODE: u64 = 64 << 10;
/// Sizes are multiples of this, as partitions are.
const UNIT: u64 = 1 << 20;
const BLOCK_SIZE: u64 = 4096;
/// `s_log_blocks_per_group` of 4 KiB blocks.
const BLOCKS_PER_GROUP: u64 = 32768;
/// `s_inode_size`.
const INODE_SIZE: u64 = 256;

/// Why a file system could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// mkext4 could not store it.
    #[error("cannot make the file system: {0}")]
    Make(#[from] mkext4::Error),
    /// One file could not be stored.
    #[error("cannot write `{path}` to the data partition: {source}")]
    File {
        /// Path in the file system.
        path: String,
        /// Why.
        source: mkext4::Error,
    },
    /// A source could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file is not what it should be.
    #[error(
        "cannot write `{path}` to the data partition: its fs-verity digest is {found} instead of {expected}: it was damaged after it was made"
    )]
    Digest {
        /// Path in the file system.
        path: String,
        /// The digest it should have.
        expected: VerityDigest,
        /// The one it has.
        found: VerityDigest,
    },
    /// A superblock is not what mkext4 is known to write.
    #[error("the data partition has no valid ext4 superblock at byte {0}: this is a bug, report it with the recipe")]
    SuperBlock(u64),
    /// The file system could not be written.
    #[error("cannot write the file system: {0}")]
    Io(#[from] io::Error),
}

/// What the file system holds. Everything belongs to root; parents that are not named have mode 0755.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// UUID of the file system.
    pub uuid: Guid,
    /// Volume label, at most 16 bytes.
    pub label: String,
    /// Time of everything in it, in seconds since 1970, 0 to 4294967295.
    pub epoch: i64,
    /// Directories by path, with permission bits.
    pub directories: BTreeMap<String, u16>,
    /// Regular files by path.
    pub files: BTreeMap<String, DataFile>,
}

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Permission bits.
    pub mode: u16,
    /// Its bytes.
    pub source: Source,
    /// Whether fs-verity is on for this file, as if `FS_IOC_ENABLE_VERITY` had been called.
    pub verity: Option<Measured>,
}

/// What is known of a file with fs-verity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The digest that it must have.
    pub digest: VerityDigest,
    /// What else was kept, by which its bytes are copied without being hashed again.
    pub kept: Option<Kept>,
}

/// What was kept of a file when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// A file with the hashes of its blocks ([`crate::verity::Tree::leaves`]). Used only if they are those of the
    /// digest.
    pub leaves: PathBuf,
    /// CRC-32C of the file, which what is copied must have: the tree would not fit it else.
    pub crc: u32,
}

impl From<VerityDigest> for Measured {
    fn from(digest: VerityDigest) -> Self {
        Self { digest, kept: None }
    }
}

impl DataFile {
    /// Bytes that it takes in the file system.
    fn stored_size(&self) -> u64 {
        let size = self.source.size();
        if self.verity.is_some() { verity::stored_size(size) } else { size }
    }
}

impl Data {
    /// Size in bytes that the file system needs: contents, their Merkle trees, its own tables, and [`SLACK`].
    pub fn size(&self) -> u64 {
        let content = self.content_size();
        // Inode tables take 256 bytes of every BYTES_PER_INODE (1/256), bitmaps and descriptors far less.
        let journal = u64::from(JOURNAL_BLOCKS) * BLOCK_SIZE;
        (content + content / 128 + journal + SLACK).next_multiple_of(UNIT)
    }

    /// Bytes that contents and their Merkle trees take: nearly all that is no hole.
    pub fn content_size(&self) -> u64 {
        self.files.values().map(|file| file.stored_size().next_multiple_of(BLOCK_SIZE)).sum()
    }
}

/// Makes the file system in [`Data::size`] bytes of `disk` from byte `start` on, which must be holes or zeroes. First
/// come all tables, then the files in the order of their place: `settle` is told before which byte of `disk` nothing
/// will change any more.
pub fn write(disk: &File, start: u64, data: &Data, settle: &dyn Fn(u64)) -> Result<(), Ext4Error> {
    let size = data.size();
    let mut options = Options::new(size, data.uuid.0, data.epoch);
    options.label = Some(data.label.clone());
    options.journal_blocks = Some(JOURNAL_BLOCKS);
    options.inodes = InodeCount::Exact(u32::try_from(size / BYTES_PER_INODE).unwrap_or(u32::MAX));
    // Nobody but root writes here.
    options.reserved_percent = 0;
    let mut builder = FsBuilder::new(options)?;
    let handles = declare(&mut builder, data)?;
    let layout: Layout = builder.seal()?;
    let settling = Cell::new(false);
    let written = |end| {
        if settling.get() {
            settle(end);
        }
    };
    let origin = RefCell::new(None);
    let mut writer = layout.writer(Sink { disk, start, origin: &origin, written: &written })?;
    verity::switch_on(disk, start, data)?;
    verity::add_feature(disk, start, size)?;
    settling.set(true);
    let can_share = share::can_share(disk);
    for (path, handle) in handles {
        let DataFile { source, verity, .. } = &data.files[path];
        origin.replace(if can_share { Origin::of(source) } else { None });
        let failed = |source| Ext4Error::File { path: path.into(), source };
        match verity {
            None if source.size() == 0 => {}
            None => writer.fill(handle, &mut source.reader()?).map_err(failed)?,
            Some(measured) => {
                let mut stored = verity::Stored::new(source.reader()?, measured.known(source.size()));
                let expected = measured.digest;
                writer.fill(handle, &mut stored).map_err(failed)?;
                let found = stored.digest();
                if found != Some(expected) {
                    let found = found.unwrap_or(VerityDigest([0; 32]));
                    return Err(Ext4Error::Digest { path: path.into(), expected, found });
                }
            }
        }
    }
    writer.finish()?;
    Ok(())
}

/// Tells the builder the whole namespace; gives the files' handles in the order of their paths.
fn declare<'a>(builder: &mut FsBuilder, data: &'a Data) -> Result<Vec<(&'a str, InodeHandle)>, Ext4Error> {
    let meta = |mode| Meta::new(mode, 0, 0, (data.epoch, 0));
    let mut known: BTreeMap<&str, InodeHandle> = BTreeMap::new();
    let mut parent = |builder: &mut FsBuilder, path: &'a str| -> Result<InodeHandle, Ext4Error> {
        let mut at = ROOT;
        let mut from = 0;
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let directory = &path[..end];
            at = match known.get(directory) {
                Some(handle) => *handle,
                None => {
                    let mode = data.directories.get(directory).copied().unwrap_or(0o755);
                    let handle = builder.mkdir(at, &path[from..end], meta(mode))?;
                    known.insert(directory, handle);
                    handle
                }
            };
            from = end + 1;
        }
        Ok(at)
    };
    for path in data.directories.keys() {
        parent(builder, path)?;
    }
    let mut handles = Vec::with_capacity(data.files.len());
    for (path, file) in &data.files {
        let (above, name) = match path.rsplit_once('/') {
            Some((above, name)) => (parent(builder, above)?, name),
            None => (ROOT, path.as_str()),
        };
        let failed = |source| Ext4Error::File { path: path.clone(), source };
        let handle = builder.file(above, name, meta(file.mode), file.stored_size()).map_err(failed)?;
        handles.push((path.as_str(), handle));
    }
    Ok(handles)
}

/// Part of a file as mkext4 writes it; the file reads as zeroes there.
pub(crate) struct Sink<'a> {
    /// The file.
    pub disk: &'a File,
    /// Where the part begins, in bytes.
    pub start: u64,
    /// The file that the next bytes are of, if they can be shared with it.
    pub origin: &'a RefCell<Option<Origin>>,
    /// Is told where in the file each piece ends that was written.
    pub written: &'a dyn Fn(u64),
}

impl RegionSink for Sink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Empty inode tables and bitmaps come as data too.
        let (at, mut origin) = (self.start + offset, self.origin.borrow_mut());
        if bytes.iter().any(|&byte| byte != 0) {
            let shared = origin.as_mut().map_or(0, |origin| origin.share(bytes.len(), self.disk, at));
            self.disk.write_all_at(&bytes[shared..], at + shared as u64)?;
        } else if let Some(origin) = &mut *origin {
            origin.skip(bytes.len());
        }
        (self.written)(at + bytes.len() as u64);
        Ok(())
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(()) // the disk reads as zeroes where nothing was written
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        guid,
        testing::{Mount, assert_same, run},
    };

    fn sample(folder: &std::path::Path) -> Data {
        let large = folder.join("large");
        fs::write(&large, (0..9_000_001_u32).map(|at| (at >> 4) as u8).collect::<Vec<_>>()).unwrap();
        let file = |mode, source| DataFile { mode, source, verity: None };
        Data {
            uuid: guid::derive(&[b"test"]),
            label: "rackstick".into(),
            epoch: 1_700_000_000,
            directories: [("volumes".to_string(), 0o700), ("state".into(), 0o711), ("log/old".into(), 0o750)].into(),
            files: [
                ("layers/large".to_string(), file(0o444, Source::file(&large).unwrap())),
                ("layers/small".into(), file(0o444, Source::Bytes(b"small".to_vec()))),
                ("generations/1/empty".into(), file(0o644, Source::Bytes(Vec::new()))),
            ]
            .into(),
        }
    }

    fn make(folder: &std::path::Path, data: &Data) -> std::path::PathBuf {
        let path = folder.join("data");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(data.size()).unwrap();
        write(&file, 0, data, &|_| ()).unwrap();
        path
    }

    #[test]
    fn e2fsck_and_the_kernel_accept_it_and_read_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let data = sample(folder.path());
        let image = make(folder.path(), &data);
        let name = image.to_str().unwrap();
        run("e2fsck", ["-fn", name]);
        // A repair would use the copy in the second group.
        for options in [&["-h", name][..], &["-h", "-o", "superblock=32768", "-o", "blocksize=4096", name]] {
            let header = run("dumpe2fs", options);
            let features = header.lines().find(|line| line.starts_with("Filesystem features")).unwrap();
            assert!(features.contains(" verity") && features.contains("metadata_csum"), "{features}");
            assert!(header.contains(&data.uuid.to_string()) && header.contains("rackstick"), "{header}");
        }
        let mounted = Mount::new("ext4", "rw", &image, folder.path().join("mounted"));
        let at = |path: &str| mounted.path().join(path);
        assert!(fs::read(at("layers/large")).unwrap() == fs::read(folder.path().join("large")).unwrap());
        assert_eq!(fs::read(at("layers/small")).unwrap(), b"small");
        assert_eq!(fs::read(at("generations/1/empty")).unwrap(), b"");
        let modes = run(
            "stat",
            ["-c", "%a %u:%g %Y"].map(Into::into).iter().chain(&[
                at("volumes"),
                at("log/old"),
                at("log"),
                at("layers/small"),
            ]),
        );
        let times = " 0:0 1700000000\n";
        assert_eq!(modes, ["700", "750", "755", "444"].map(|mode| format!("{mode}{times}")).concat());
        let room = run("df", ["-B1", "--output=avail"].map(Into::into).iter().chain(&[at("")]));
        let room: u64 = room.lines().last().unwrap().trim().parse().unwrap();
        // The kernel keeps 2 % to itself, for delayed allocation.
        assert!(room.abs_diff(SLACK) < 8 << 20, "{room} bytes free");
        fs::write(at("state/new"), b"the rack writes here").unwrap();
        drop(mounted);
        run("e2fsck", ["-fn", name]);
    }

    #[test]
    fn the_same_list_gives_the_same_sparse_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let data = sample(folder.path());
        let first = make(folder.path(), &data);
        let used = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&first).unwrap()) * 512;
        assert!(used < 16 << 20, "{used} bytes used");
        let kept = folder.path().join("first");
        fs::rename(&first, &kept).unwrap();
        assert_same(&make(folder.path(), &data), &kept);
    }

    #[test]
    fn a_file_in_the_place_of_a_directory_and_bad_names_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        for (path, other) in [("layers", "layers/x"), ("a//b", "c"), ("../x", "c"), ("/a", "c"), ("", "c")] {
            let mut data = sample(folder.path());
            for path in [path, other] {
                data.files
                    .insert(path.into(), DataFile { mode: 0o644, source: Source::Bytes(Vec::new()), verity: None });
            }
            let file = tempfile::tempfile().unwrap();
            file.set_len(data.size()).unwrap();
            assert!(write(&file, 0, &data, &|_| ()).is_err(), "{path}");
        }
    }
}
