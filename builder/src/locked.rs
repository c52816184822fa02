//! Lock files: held by a process as long as it works on what they stand for, and gone with it, however it ends
//! (flock(2)).

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::{
    fs::{AtFlags, Timespec, Timestamps, UTIME_NOW},
    io::Errno,
};

/// Opens a file, creates it if need be, and locks it; waits while another process has it. Whoever has the lock may
/// rename or remove the file: then the next one gets a fresh file.
pub fn open(path: &Path) -> io::Result<File> {
    loop {
        let file = create(path)?;
        file.lock()?;
        if is_there(&file, path)? {
            return Ok(file);
        }
    }
}

/// As [`open`], but others may have it too.
pub fn open_shared(path: &Path) -> io::Result<File> {
    loop {
        let file = create(path)?;
        file.lock_shared()?;
        if is_there(&file, path)? {
            return Ok(file);
        }
    }
}

/// As [`open`], but nothing if another process has the lock.
pub fn try_open(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = create(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if is_there(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// Opens a file for reading and writing; a new one is empty.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Whether the file still bears its name.
fn is_there(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Notes in a file's time of modification that it is used now.
pub fn touch(file: &File) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &NOW)?)
}

/// As [`touch`], by name; nothing happens if there is no such file.
pub fn touch_if_there(path: &Path) -> io::Result<()> {
    match rustix::fs::utimensat(rustix::fs::CWD, path, &NOW, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

const NOW: Timestamps = {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Timestamps { last_access: now, last_modification: now }
};
