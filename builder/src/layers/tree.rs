//! A folder that stands for `/`: every path is resolved inside it, whatever symlinks and `..` say. Follows openat2(2),
//! `RESOLVE_IN_ROOT`. What packages unpack and scripts leave behind is only ever touched through this.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid},
    io::Errno,
};

/// Bytes of a file that is read whole at most: dpkg's status file of a very large system has 20 MiB.
const MAX_READ_BYTES: u64 = 256 << 20;
/// How often a lookup is repeated that the kernel gave up because something was renamed meanwhile.
const MAX_LOOKUPS: usize = 64;

/// Whom a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// A folder that stands for `/`.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Opens the folder `path` of this machine.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::openat(CWD, path, flags, Mode::empty())? })
    }

    /// A path by which system calls that take no descriptor reach the folder `path`, as long as the descriptor lives.
    pub fn handle(&self, path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
        let fd = self.dir(path)?;
        let name = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok((fd, name))
    }

    /// Like [`Tree::handle`], for a file; symlinks are followed.
    pub fn file_handle(&self, path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
        let fd = self.lookup(path, OFlags::PATH)?;
        let name = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok((fd, name))
    }

    /// Opens a folder.
    pub fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(self.lookup(path, OFlags::PATH | OFlags::DIRECTORY)?)
    }

    fn lookup(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..MAX_LOOKUPS {
            match rustix::fs::openat2(&self.root, inside, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a folder after creating what is missing of it, with mode 0755; `created` is called for each new one.
    pub fn create_dirs(&self, path: &Path, created: &mut dyn FnMut(&Path)) -> io::Result<OwnedFd> {
        match self.lookup(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            result => return Ok(result?),
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::NOENT.into());
        };
        let parent = self.create_dirs(parent, created)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                created(path);
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.dir(path)
    }

    /// The folder that holds `path`, created if missing, and the last component.
    fn place<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = self.create_dirs(path.parent().unwrap_or(Path::new("/")), &mut |_| ())?;
        Ok((parent, name))
    }

    /// A file's content, or none if there is no such file. Symlinks are followed.
    pub fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let fd = match self.lookup(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            result => result?,
        };
        let mut bytes = Vec::new();
        File::from(fd).take(MAX_READ_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_READ_BYTES { Err(Errno::FBIG.into()) } else { Ok(Some(bytes)) }
    }

    /// What stands at `path`, symlinks not followed; none if nothing does.
    pub fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        let parent = match self.lookup(path.parent().unwrap_or(Path::new("/")), OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            result => result?,
        };
        match rustix::fs::statat(&parent, path.file_name().unwrap_or(OsStr::new(".")), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a regular file stands at `path`, symlinks followed.
    pub fn is_file(&self, path: &Path) -> io::Result<bool> {
        match self.lookup(path, OFlags::PATH) {
            Ok(fd) => Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_file()),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a file of root's in place of whatever file stood there.
    pub fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        self.write_from(path, &mut &*bytes, mode)
    }

    /// Like [`Tree::write`], from a reader.
    pub fn write_from(&self, path: &Path, source: &mut dyn Read, mode: u32) -> io::Result<()> {
        let (parent, name) = self.place(path)?;
        unlink(parent.as_fd(), name)?;
        let mut file = create(parent.as_fd(), name)?;
        io::copy(source, &mut file)?;
        file.flush()?;
        rustix::fs::fchown(&file, Some(Uid::ROOT), Some(Gid::ROOT))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(())
    }

    /// Gives a file or folder to somebody; a symlink is refused.
    pub fn own(&self, path: &Path, ids: Ids, mode: u32) -> io::Result<()> {
        let fd = self.lookup(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
        rustix::fs::fchown(&fd, Some(Uid::from_raw(ids.uid)), Some(Gid::from_raw(ids.gid)))?;
        // Afterwards: a new owner takes set-user-id bits away.
        Ok(rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?)
    }

    /// Gives a symlink to somebody.
    pub fn own_link(&self, path: &Path, ids: Ids) -> io::Result<()> {
        let (parent, name) = self.place(path)?;
        let (uid, gid) = (Some(Uid::from_raw(ids.uid)), Some(Gid::from_raw(ids.gid)));
        Ok(rustix::fs::chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Adds to the end of a file, creating it with mode 0644.
    pub fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut content = self.read(path)?.unwrap_or_default();
        content.extend_from_slice(bytes);
        self.write(path, &content, 0o644)
    }

    /// Makes a symlink in place of whatever file stood there.
    pub fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        let (parent, name) = self.place(path)?;
        unlink(parent.as_fd(), name)?;
        Ok(rustix::fs::symlinkat(target, &parent, name)?)
    }

    /// Removes a file; nothing there is fine.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match self.lookup(path.parent().unwrap_or(Path::new("/")), OFlags::PATH | OFlags::DIRECTORY) {
            Ok(parent) => unlink(parent.as_fd(), path.file_name().ok_or(Errno::INVAL)?),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a folder with all that is in it.
    pub fn remove_all(&self, path: &Path) -> io::Result<()> {
        for (name, kind) in self.entries(path)? {
            let child = path.join(name);
            if kind.is_dir() { self.remove_all(&child)? } else { self.remove(&child)? }
        }
        let (parent, name) = self.place(path)?;
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
    }

    /// Names and types of what a folder holds, sorted; nothing if there is no such folder.
    pub fn entries(&self, path: &Path) -> io::Result<Vec<(OsString, FileType)>> {
        let fd = match self.lookup(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            result => result?,
        };
        let mut found = Vec::new();
        for entry in Dir::read_from(fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                found.push((name.to_owned(), entry.file_type()));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Calls `visit` with every path below `path` that is no folder, sorted, with its type.
    pub fn walk(&self, path: &Path, visit: &mut dyn FnMut(&Path, FileType) -> io::Result<()>) -> io::Result<()> {
        for (name, kind) in self.entries(path)? {
            let child = path.join(name);
            if kind.is_dir() { self.walk(&child, visit)? } else { visit(&child, kind)? }
        }
        Ok(())
    }
}

/// Creates a file that must not exist yet, readable by nobody else until its mode is set.
pub fn create(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?))
}

/// Removes a file or symlink; nothing there is fine.
pub fn unlink(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
