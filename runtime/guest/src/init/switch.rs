//! Out of the initrd: its files are deleted, as they are memory; the mounts move along; the agent starts; then the
//! image's own init takes over as PID 1, or ours stays for one that has none. What switch_root(8) does.

use std::{
    convert::Infallible,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

use rackstick_api::guest::GuestConfig;
use rackstick_linux::mount;
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, FsWord, Mode, OFlags, fstat, fstatfs, mkdirat, openat, unlinkat},
    io::Errno,
    mount::{MoveMountFlags, move_mount},
};

use super::{CONFIG_KEPT, InitError, command, file_error};
use crate::agent;

/// Mounts that the image's init wants to find.
const MOVED: [&str; 4] = ["dev", "proc", "sys", "run"];
/// What an initramfs is (linux/magic.h); nothing else is ever deleted.
const RAMFS_MAGIC: FsWord = 0x8584_58f6;
const TMPFS_MAGIC: FsWord = 0x0102_1994;
/// Deeper directories than these stay: no initrd has them.
const MAX_DEPTH: u32 = 32;

/// Keeps the configuration where the agent finds it.
pub(super) fn keep(config: &GuestConfig) -> Result<(), InitError> {
    let path = Path::new(CONFIG_KEPT);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(file_error("create", folder))?;
    }
    let text = serde_json::to_vec(config).map_err(|source| InitError::Config { path: path.to_owned(), source })?;
    fs::write(path, text).map_err(file_error("write", path))
}

/// Makes `root` the root and becomes the image's init.
pub(super) fn into(root: &Path, config: &GuestConfig) -> Result<Infallible, InitError> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let old = openat(CWD, "/", flags, Mode::empty()).map_err(|error| file_error("open", "/")(error.into()))?;
    let new = openat(CWD, root, flags, Mode::empty()).map_err(|error| file_error("open", root)(error.into()))?;
    for name in MOVED {
        let path = Path::new("/").join(name);
        move_into(&path, &new, name).map_err(file_error("move into the new root:", &path))?;
    }
    delete_initrd(old).map_err(file_error("delete the initrd below", "/"))?;
    mount::enter_root(root)?;
    agent(config)?;

    if let Some(process) = &config.process {
        return command::run(config, process);
    }
    let (program, arguments) =
        config.init.split_first().ok_or_else(|| InitError::BadConfig("names no init".to_owned()))?;
    let source = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/")
        .env("TERM", "linux")
        .exec();
    Err(InitError::Exec { program: program.clone(), source })
}

/// By file descriptor, so that a symlink in the image can't lead it elsewhere.
fn move_into(from: &Path, root: &OwnedFd, name: &str) -> io::Result<()> {
    match mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let target =
        openat(root, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    Ok(move_mount(CWD, from, &target, "", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)?)
}

fn delete_initrd(root: OwnedFd) -> io::Result<()> {
    let kind = fstatfs(&root)?.f_type;
    if kind != RAMFS_MAGIC && kind != TMPFS_MAGIC {
        log::warn!("/ is no initramfs (file system {kind:#x}): nothing is deleted");
        return Ok(());
    }
    let device = fstat(&root)?.st_dev;
    delete_below(root, device, 0)
}

/// Deletes everything below `directory` that is on `device`; what is mounted in it stays.
fn delete_below(directory: OwnedFd, device: u64, depth: u32) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            unlinkat(&directory, name, AtFlags::empty())?;
            continue;
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let below = openat(directory.as_fd(), name, flags, Mode::empty())?;
        if fstat(&below)?.st_dev == device {
            delete_below(below, device, depth + 1)?;
            match unlinkat(&directory, name, AtFlags::REMOVEDIR) {
                // It holds a mount.
                Ok(()) | Err(Errno::NOTEMPTY | Errno::BUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Starts this program again as the agent. Its file is deleted by now; the kernel keeps it for whoever runs it.
fn agent(config: &GuestConfig) -> Result<(), InitError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(agent::ARGV0).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0);
    let child = command.spawn().map_err(InitError::Agent)?;
    log::debug!("{}: agent is process {}", config.hostname, child.id());
    Ok(())
}
