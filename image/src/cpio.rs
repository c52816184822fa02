//! Writer of the kernel's initramfs format, "newc" cpio; [`read`] reads it. Follows Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst.
//! Entries come out in the order of the calls, inodes are numbered from 1, everything belongs to root.

pub mod read;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use crate::{
    pieces::Pieces,
    source::{Source, SourceError},
};

/// Longest path the kernel's unpacker takes, without the NUL (`PATH_MAX` is 4096); longer ones would be skipped
/// silently.
const MAX_PATH: usize = 4095;
/// Largest file: the size field has eight hexadecimal digits.
const MAX_FILE: u64 = u32::MAX as u64;
/// Bytes of a header, before the name.
const HEADER_SIZE: u64 = 110;
/// Entries and file contents start at multiples of this.
const ALIGN: u64 = 4;

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is empty, absolute, too long or has an empty, `.` or `..` part.
    #[error(
        "`{0}` cannot be a path in an initramfs: give a relative path of at most 4095 bytes without `.`, `..` or NUL"
    )]
    BadPath(String),
    /// The path is already in the archive.
    #[error("`{0}` is already in the initramfs: one of the two must go")]
    Duplicate(String),
    /// A file stands where a directory is needed.
    #[error("`{path}` cannot be put into the initramfs: `{parent}` is no directory there")]
    ParentNotDirectory {
        /// The path to be written.
        path: String,
        /// Its parent that exists already, as something else.
        parent: String,
    },
    /// The file is larger than the format can say.
    #[error("`{path}` has {size} bytes, but a file in an initramfs can have at most {MAX_FILE}")]
    TooLarge {
        /// Path in the archive.
        path: String,
        /// Its size in bytes.
        size: u64,
    },
    /// A source file could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The archive could not be written.
    #[error("cannot write the initramfs: {0}")]
    Output(#[from] io::Error),
}

/// An archive being written. Parents that were not named are made as directories of mode 0755.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    position: u64,
    mtime: u32,
    inode: u32,
    /// Paths written so far, and whether each is a directory.
    paths: BTreeMap<String, bool>,
}

struct Entry<'a> {
    path: &'a str,
    mode: u32,
    nlink: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> Writer<W> {
    /// Starts an archive; every entry gets `mtime`, in seconds since 1970.
    pub fn new(out: W, mtime: u32) -> Self {
        Self { out, position: 0, mtime, inode: 0, paths: BTreeMap::new() }
    }

    /// Adds a directory with permission bits `mode`.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), Error> {
        self.claim(path, true)?;
        self.header(&Entry { path, mode: S_IFDIR | mode & 0o7777, nlink: 2, size: 0, device: (0, 0) })
    }

    /// Adds a regular file from memory.
    pub fn bytes(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), Error> {
        self.file_header(path, mode, content.len() as u64)?;
        self.put(content)?;
        self.pad()
    }

    /// Adds a regular file from memory whose content starts at a multiple of `align` bytes, a power of two of at most
    /// 16.
    pub fn aligned(&mut self, path: &str, mode: u32, content: &[u8], align: u64) -> Result<(), Error> {
        let Ok(size) = u32::try_from(content.len()) else {
            return Err(Error::TooLarge { path: path.into(), size: content.len() as u64 });
        };
        self.claim(path, false)?;
        let entry = Entry { path, mode: S_IFREG | mode & 0o7777, nlink: 1, size, device: (0, 0) };
        let name_ends = self.position + HEADER_SIZE + path.len() as u64 + 1;
        // More than one NUL at the end of the name, as iucode_tool does it: the kernel's readers take it as one.
        self.padded_header(&entry, name_ends.next_multiple_of(align) - name_ends)?;
        self.put(content)?;
        self.pad()
    }

    /// Adds a symbolic link to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), Error> {
        if target.is_empty() || target.len() > MAX_PATH || target.contains('\0') {
            return Err(Error::BadPath(target.into()));
        }
        self.claim(path, false)?;
        // The kernel takes the whole data of a link as its target: no NUL at the end.
        self.header(&Entry { path, mode: S_IFLNK | 0o777, nlink: 1, size: target.len() as u32, device: (0, 0) })?;
        self.put(target.as_bytes())?;
        self.pad()
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<(), Error> {
        self.claim(path, false)?;
        self.header(&Entry { path, mode: S_IFCHR | mode & 0o7777, nlink: 1, size: 0, device: (major, minor) })
    }

    /// Ends what is not an archive by itself, but a part of one, and gives the output back.
    pub fn piece(mut self) -> Result<W, Error> {
        self.out.flush()?;
        Ok(self.out)
    }

    /// Ends the archive and gives the output back.
    pub fn finish(mut self) -> Result<W, Error> {
        self.inode = 0;
        self.mtime = 0;
        self.raw_header(&Entry { path: "TRAILER!!!", mode: 0, nlink: 1, size: 0, device: (0, 0) }, 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Checks that `path` is new and well-formed, and makes its parents: the kernel drops entries without a parent
    /// silently.
    fn claim(&mut self, path: &str, directory: bool) -> Result<(), Error> {
        let proper = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        if path.len() > MAX_PATH || path == "TRAILER!!!" || !path.split('/').all(proper) {
            return Err(Error::BadPath(path.into()));
        }
        if self.paths.contains_key(path) {
            return Err(Error::Duplicate(path.into()));
        }
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            match self.paths.get(parent) {
                Some(true) => {}
                Some(false) => return Err(Error::ParentNotDirectory { path: path.into(), parent: parent.into() }),
                None => {
                    self.paths.insert(parent.into(), true);
                    self.header(&Entry { path: parent, mode: S_IFDIR | 0o755, nlink: 2, size: 0, device: (0, 0) })?;
                }
            }
        }
        self.paths.insert(path.into(), directory);
        Ok(())
    }

    fn file_header(&mut self, path: &str, mode: u32, size: u64) -> Result<(), Error> {
        let Ok(size) = u32::try_from(size) else { return Err(Error::TooLarge { path: path.into(), size }) };
        self.claim(path, false)?;
        self.header(&Entry { path, mode: S_IFREG | mode & 0o7777, nlink: 1, size, device: (0, 0) })
    }

    fn header(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        self.padded_header(entry, 0)
    }

    fn padded_header(&mut self, entry: &Entry<'_>, padding: u64) -> Result<(), Error> {
        self.inode += 1;
        self.raw_header(entry, padding)
    }

    /// `padding`: how many bytes to add to the name.
    fn raw_header(&mut self, entry: &Entry<'_>, padding: u64) -> Result<(), Error> {
        let (major, minor) = entry.device;
        // A path has at most 4095 bytes, and the padding 15.
        let name_size = entry.path.len() as u32 + 1 + padding as u32;
        let fields = [
            self.inode,
            entry.mode,
            0,
            0,
            entry.nlink,
            self.mtime,
            entry.size,
            0,
            0,
            major,
            minor,
            name_size,
            0, /* check */
        ];
        let mut header = String::from("070701");
        fields.iter().for_each(|field| header.push_str(&format!("{field:08X}")));
        header.push_str(entry.path);
        header.extend(std::iter::repeat_n('\0', padding as usize + 1));
        self.put(header.as_bytes())?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> Result<(), Error> {
        let missing = self.position.next_multiple_of(ALIGN) - self.position;
        self.put(&[0; ALIGN as usize][..missing as usize])
    }
}

impl Writer<Pieces> {
    /// Adds the entries of a [`Writer::piece`], which has no path in common with what is here but directories, and
    /// stays where it is.
    pub fn append(&mut self, piece: &Path) -> Result<(), Error> {
        let content = Source::file(piece)?;
        self.position += content.size();
        self.out.push(content);
        self.pad()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
        process::{Command, Stdio},
    };

    use super::*;

    fn cpio(arguments: &[&str], archive: &[u8], folder: &Path) -> String {
        let mut child = Command::new("cpio")
            .args(arguments)
            .env("TZ", "UTC")
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn sample(source: &Path) -> Vec<u8> {
        let mut writer = Writer::new(Pieces::default(), 1_700_000_000);
        writer.directory("dev", 0o755).unwrap();
        writer.char_device("dev/console", 0o600, 5, 1).unwrap();
        writer.bytes("init", 0o755, b"#!/bin/true\n").unwrap();
        writer.bytes("empty", 0o644, b"").unwrap();
        writer.bytes("lib/modules/6.12/kernel/odd.ko", 0o644, &fs::read(source).unwrap()).unwrap();
        writer.symlink("bin", "usr/bin").unwrap();
        writer.directory("tmp", 0o1777).unwrap();
        writer.finish().unwrap().read().unwrap()
    }

    #[test]
    fn gnu_cpio_lists_and_unpacks_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let content: Vec<u8> = (0..1_234_567_u32).map(|at| (at >> 3) as u8).collect();
        fs::write(&source, &content).unwrap();
        let archive = sample(&source);

        let list = cpio(&["-itvn", "--quiet"], &archive, folder.path());
        assert_eq!(list.lines().count(), 11, "{list}");
        assert!(list.contains("crw-------   1 0        0          5,   1 Nov 14  2023 dev/console"), "{list}");
        assert!(list.contains("bin -> usr/bin"), "{list}");

        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        cpio(&["-idm", "--quiet"], &archive, &out);
        assert_eq!(fs::read(out.join("lib/modules/6.12/kernel/odd.ko")).unwrap(), content);
        assert_eq!(fs::read(out.join("init")).unwrap(), b"#!/bin/true\n");
        assert_eq!(fs::read(out.join("empty")).unwrap(), b"");
        assert_eq!(fs::read_link(out.join("bin")).unwrap(), Path::new("usr/bin"));
        assert_eq!(fs::metadata(out.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
        assert_eq!(fs::metadata(out.join("init")).unwrap().mtime(), 1_700_000_000);
        let console = fs::symlink_metadata(out.join("dev/console")).unwrap();
        assert!(console.file_type().is_char_device());
        assert_eq!(console.rdev(), 0x501);
    }

    #[test]
    fn gnu_cpio_finds_the_entries_of_a_piece_among_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let piece = folder.path().join("piece");
        let mut writer = Writer::new(Vec::new(), 0);
        writer.bytes("lib/one", 0o644, b"1").unwrap();
        fs::write(&piece, writer.piece().unwrap()).unwrap();

        let mut writer = Writer::new(Pieces::default(), 0);
        writer.bytes("lib/zero", 0o644, b"seventeen bytes!!").unwrap();
        writer.append(&piece).unwrap();
        writer.bytes("two", 0o644, b"2").unwrap();
        cpio(&["-id", "--quiet"], &writer.finish().unwrap().read().unwrap(), folder.path());
        for (path, content) in [("lib/zero", &b"seventeen bytes!!"[..]), ("lib/one", b"1"), ("two", b"2")] {
            assert_eq!(fs::read(folder.path().join(path)).unwrap(), content);
        }
    }

    #[test]
    fn the_same_calls_give_the_same_aligned_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, b"seventeen bytes!!").unwrap();
        let archive = sample(&source);
        assert_eq!(archive, sample(&source));
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn an_aligned_file_starts_where_it_should_and_is_whole_for_gnu_cpio() {
        for length in 1..40 {
            let (folder, path) = (tempfile::tempdir().unwrap(), "a".repeat(length));
            let mut writer = Writer::new(Vec::new(), 0);
            writer.aligned(&path, 0o644, b"<content>", 16).unwrap();
            writer.bytes("next", 0o644, b"after it").unwrap();
            let archive = writer.finish().unwrap();
            assert_eq!(archive.windows(9).position(|window| window == b"<content>").unwrap() % 16, 0);
            cpio(&["-id", "--quiet"], &archive, folder.path());
            assert_eq!(fs::read(folder.path().join(path)).unwrap(), b"<content>");
            assert_eq!(fs::read(folder.path().join("next")).unwrap(), b"after it");
        }
    }

    #[test]
    fn paths_that_the_kernel_would_drop_or_that_escape_are_refused() {
        let mut writer = Writer::new(io::sink(), 0);
        for bad in ["", "/etc", "a//b", "../x", "a/./b", "a/", "nul\0", "TRAILER!!!", &"x/".repeat(2048)] {
            assert!(matches!(writer.bytes(bad, 0o644, b""), Err(Error::BadPath(_))), "{bad:?}");
        }
        writer.bytes("a/b", 0o644, b"").unwrap();
        assert!(matches!(writer.bytes("a/b", 0o644, b""), Err(Error::Duplicate(_))));
        assert!(matches!(writer.directory("a", 0o755), Err(Error::Duplicate(_))));
        assert!(matches!(writer.bytes("a/b/c", 0o644, b""), Err(Error::ParentNotDirectory { .. })));
    }
}
