//! From a tree to bytes: one pass, file contents streamed from where they lie, holes skipped. What precedes compressed
//! files is written after them.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    num::NonZero,
    os::unix::fs::FileExt,
    path::Path,
};

use super::{
    BLOCK_SIZE, compress,
    format::{self, CLUSTER_SIZE, Cluster, DIRENT_SIZE, EXTENT_SIZE, INODE_SIZE, Inode, MAP_HEADER, SuperBlock},
    layout::{Layout, LayoutError, Placed, Target, directory_blocks},
    tree::{Kind, Mtime, ROOT, Tree},
    xattr,
};
use crate::{
    guid::{self, Guid},
    holes::next_data,
    source::{Source, SourceError, open, open_part, read_error},
};

/// Bytes gathered before they are written: most files are far smaller, and a system call each would double the time.
const BUFFER_SIZE: usize = 1 << 20;

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The tree cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A source file could not be read, or changed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file could not be compressed.
    #[error("cannot compress a file: {0}")]
    Compress(io::Error),
    /// The layer could not be written.
    #[error("cannot write the layer: {0}")]
    Output(#[from] io::Error),
}

/// What the tree does not say.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// UUID of the file system; without one it is derived from the metadata (names, attributes, sizes, places).
    pub uuid: Option<Guid>,
    /// Time in the superblock.
    pub build_time: Mtime,
    /// So many threads compress the files, which changes no byte; none: files are not compressed, so that guests can
    /// read them from the host's memory.
    pub compress: Option<NonZero<usize>>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Size in bytes, a multiple of 4096.
    pub size: u64,
    /// UUID of the file system.
    pub uuid: Guid,
}

/// Writes `tree` to `out`, which must be empty: holes are skipped, not written. Nothing is synced.
pub fn write(tree: &Tree, out: impl Write + Seek + Send, options: &WriteOptions) -> Result<Summary, WriteError> {
    let mut layout = Layout::new(tree, options.compress.is_some())?;
    let mut out = Output { out, buffer: Vec::with_capacity(BUFFER_SIZE), skipped: false };
    let uuid = if let Some(threads) = options.compress {
        out.skip(layout.head_size)?;
        layout.blocks = compress::write_files(tree, &mut layout, &mut out, threads)?;
        let (head, uuid) = finished_head(tree, &layout, options)?;
        out.rewind()?;
        out.put(&head)?;
        uuid
    } else {
        let (head, uuid) = finished_head(tree, &layout, options)?;
        out.put(&head)?;
        for placed in &layout.placed {
            if let Kind::File(source) = &tree.entry(placed.index).node.kind {
                copy(source, &mut out)?;
            }
        }
        uuid
    };
    out.finish()?;
    Ok(Summary { size: u64::from(layout.blocks) * BLOCK_SIZE as u64, uuid })
}

/// Everything before the contents of files that have blocks, and the UUID in it.
fn finished_head(tree: &Tree, layout: &Layout, options: &WriteOptions) -> Result<(Vec<u8>, Guid), SourceError> {
    let mut head = encode_head(tree, layout)?;
    let uuid = options.uuid.unwrap_or_else(|| guid::derive(&[b"erofs", &head]));
    let superblock = SuperBlock {
        root_nid: layout.of(ROOT).nid() as u16, // right behind the superblock: 36 or 37
        inodes: layout.placed.len() as u64,
        build_time: options.build_time,
        blocks: layout.blocks,
        uuid: uuid.0,
        volume_name: [0; 16],
        compressed: options.compress.is_some(),
    };
    if let Some(block) = head.first_chunk_mut() {
        superblock.put(block);
    }
    Ok((head, uuid))
}

/// Everything before the contents of files that have blocks, without the superblock.
fn encode_head(tree: &Tree, layout: &Layout) -> Result<Vec<u8>, SourceError> {
    let mut head = vec![0; layout.head_size as usize];
    for (number, placed) in layout.placed.iter().enumerate() {
        let entry = tree.entry(placed.index);
        let node = &entry.node;
        let at = placed.offset as usize;
        let inode = Inode {
            format: match placed.extents {
                Some(_) => format::COMPRESSED_FULL,
                None if placed.inline => format::FLAT_INLINE,
                None => format::FLAT_PLAIN,
            },
            xattr_icount: xattr::icount(&placed.xattrs),
            mode: format::type_bits(&node.kind) | node.mode & 0o7777,
            size: placed.size,
            block_or_device: match node.kind {
                Kind::CharDevice(device) | Kind::BlockDevice(device) => format::encode_device(device),
                _ => placed.extents.as_ref().map_or(placed.block, |all| all.iter().map(|it| u32::from(*it)).sum()),
            },
            number: number as u32 + 1,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            nlink: if node.kind == Kind::Directory { 2 + placed.subdirectories } else { entry.names },
        };
        inode.put(&mut head[at..at + INODE_SIZE]);
        let after = at + INODE_SIZE + placed.xattrs.len();
        head[at + INODE_SIZE..after].copy_from_slice(&placed.xattrs);
        if let Some(extents) = &placed.extents {
            encode_index(placed, extents, &mut head);
        }
        let data = match &node.kind {
            Kind::Symlink(target) => target.clone(),
            Kind::Directory => encode_directory(tree, layout, placed),
            Kind::File(source) if placed.inline => {
                let mut data = vec![0; placed.size as usize];
                source.read_at(&mut data, 0)?;
                data
            }
            _ => continue,
        };
        let tail = if placed.inline { data.len() % BLOCK_SIZE } else { 0 };
        let (whole, inline) = data.split_at(data.len() - tail);
        let start = placed.block as usize * BLOCK_SIZE;
        head[start..start + whole.len()].copy_from_slice(whole);
        head[after..after + inline.len()].copy_from_slice(inline);
    }
    Ok(head)
}

/// A compressed file's index: what is in which of its blocks.
fn encode_index(placed: &Placed, extents: &[u8], head: &mut [u8]) {
    let mut at = placed.index() as usize;
    head[at..at + MAP_HEADER.len()].copy_from_slice(&MAP_HEADER);
    at += MAP_HEADER.len();
    let (mut block, mut left) = (placed.block, placed.size);
    for &blocks in extents {
        let length = left.min(EXTENT_SIZE as u64);
        for cluster in Cluster::of_extent(length as usize, block, blocks) {
            head[at..at + CLUSTER_SIZE].copy_from_slice(&cluster.bytes());
            at += CLUSTER_SIZE;
        }
        block += u32::from(blocks);
        left -= length;
    }
}

/// A directory's data: in each block all entries, then all names.
fn encode_directory(tree: &Tree, layout: &Layout, placed: &Placed) -> Vec<u8> {
    let mut data = Vec::with_capacity(placed.size as usize);
    for block in directory_blocks(tree.entry(placed.index)) {
        data.resize(data.len().next_multiple_of(BLOCK_SIZE), 0);
        let start = data.len();
        data.resize(start + block.len() * DIRENT_SIZE, 0);
        for (position, (name, target)) in block.iter().enumerate() {
            let index = match *target {
                Target::This => placed.index,
                Target::Above => placed.parent,
                Target::Child(child) => child,
            };
            let name_offset = (data.len() - start) as u16; // within one block
            data.extend_from_slice(name);
            let file_type = format::file_type(&tree.entry(index).node.kind);
            let at = start + position * DIRENT_SIZE;
            format::put_dirent(&mut data[at..at + DIRENT_SIZE], layout.of(index).nid(), name_offset, file_type);
        }
    }
    data
}

fn copy<W: Write + Seek>(source: &Source, out: &mut Output<W>) -> Result<(), WriteError> {
    match source {
        Source::Bytes(bytes) => out.put(bytes)?,
        Source::Path { path, size: 0 } => drop(open(path, 0)?),
        Source::Path { path, size } => copy_file(&open(path, *size)?, path, 0, *size, out)?,
        Source::Part { path, offset, size } => copy_file(&open_part(path, *offset, *size)?, path, *offset, *size, out)?,
    }
    Ok(out.fill(source.size())?)
}

/// Copies `size` bytes of `file` from `offset` on; the file is long enough.
fn copy_file<W: Write + Seek>(
    file: &File,
    path: &Path,
    offset: u64,
    size: u64,
    out: &mut Output<W>,
) -> Result<(), WriteError> {
    let (mut at, whole) = (offset, offset + size);
    while at < whole {
        let (data, end) = next_data(file, at, whole).map_err(read_error(path))?;
        out.skip(data - at)?;
        at = data;
        while at < end {
            let read = out.take(file, at, end - at).map_err(|error| match error {
                TakeError::Read(error) => WriteError::Source(read_error(path)(error)),
                TakeError::Write(error) => WriteError::Output(error),
            })?;
            if read == 0 {
                return Err(SourceError::Changed { path: path.to_path_buf(), size }.into());
            }
            at += read;
        }
    }
    Ok(())
}

/// The output with a buffer that source files are read straight into.
pub(super) struct Output<W> {
    out: W,
    buffer: Vec<u8>,
    /// Whether the last bytes were skipped, so that the output is too short.
    skipped: bool,
}

enum TakeError {
    Read(io::Error),
    Write(io::Error),
}

impl<W: Write + Seek> Output<W> {
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.skipped = false;
        if bytes.len() > BUFFER_SIZE - self.buffer.len() {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_SIZE {
            return self.out.write_all(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Moves up to `length` bytes of `file` at `offset` to the output; 0 at the file's end.
    fn take(&mut self, file: &File, offset: u64, length: u64) -> Result<u64, TakeError> {
        if self.buffer.len() == BUFFER_SIZE {
            self.flush().map_err(TakeError::Write)?;
        }
        self.skipped = false;
        let used = self.buffer.len();
        let wanted = length.min((BUFFER_SIZE - used) as u64) as usize;
        self.buffer.resize(used + wanted, 0);
        let read = loop {
            match file.read_at(&mut self.buffer[used..], offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(used + read.as_ref().copied().unwrap_or(0));
        read.map(|read| read as u64).map_err(TakeError::Read)
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        if length < BUFFER_SIZE as u64 {
            return self.put(&vec![0; length as usize]);
        }
        self.flush()?;
        self.skipped = true;
        self.out.seek(SeekFrom::Current(i64::try_from(length).map_err(io::Error::other)?))?;
        Ok(())
    }

    /// Completes the last block of a file of `size` bytes.
    fn fill(&mut self, size: u64) -> io::Result<()> {
        let missing = size.next_multiple_of(BLOCK_SIZE as u64) - size;
        self.skip(missing)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Goes back to the begin, where more than was skipped last is to be written.
    fn rewind(&mut self) -> io::Result<()> {
        self.flush()?;
        self.out.seek(SeekFrom::Start(0)).map(|_| ())
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        if self.skipped {
            self.out.seek(SeekFrom::Current(-1))?;
            self.out.write_all(&[0])?;
        }
        self.out.flush()
    }
}
