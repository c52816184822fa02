//! Mounts, and the way out of the initramfs, on which `pivot_root` and user namespaces do not work.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

pub use rustix::mount::MountFlags;
use rustix::{
    fs::CWD,
    mount::{self as sys, UnmountFlags},
    process::{chdir, chroot},
};

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Mounting.
    #[error("can't mount {kind} `{source_name}` on {} with options `{options}`: {source}; `dmesg` says more", target.display())]
    Mount {
        /// Kind of file system, or `bind`, `move`.
        kind: String,
        /// Device or other source.
        source_name: String,
        /// Where.
        target: PathBuf,
        /// Options as given.
        options: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The directory to mount on.
    #[error("can't create {} to mount on it: {source}", path.display())]
    Target {
        /// The directory.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Taking a mount away.
    #[error("can't unmount {}: {source}", path.display())]
    Unmount {
        /// The mount.
        path: PathBuf,
        /// What the kernel says. EBUSY: files of it are open.
        source: io::Error,
    },
    /// Moving into the new root.
    #[error("can't make {} the root: {source}", path.display())]
    Root {
        /// The new root.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Mounts `source` of file system `kind` on `target`, which is created if it is not there.
///
/// # Errors
/// [`MountError::Mount`], [`MountError::Target`].
pub fn mount(
    kind: &str,
    source: impl AsRef<Path>,
    target: impl AsRef<Path>,
    flags: MountFlags,
    options: &str,
) -> Result<(), MountError> {
    let (source_path, target) = (source.as_ref(), target.as_ref());
    let failed = |error: io::Error| MountError::Mount {
        kind: kind.to_owned(),
        source_name: source_path.display().to_string(),
        target: target.to_owned(),
        options: options.to_owned(),
        source: error,
    };
    if !target.exists() {
        fs::create_dir_all(target).map_err(|source| MountError::Target { path: target.to_owned(), source })?;
    }
    let data = CString::new(options).map_err(|error| failed(error.into()))?;
    sys::mount(source_path, target, kind, flags, data.as_c_str()).map_err(|error| failed(error.into()))
}

/// Moves the mount `from` to `to`.
///
/// # Errors
/// [`MountError::Mount`].
pub fn move_mount(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), MountError> {
    let (from, to) = (from.as_ref(), to.as_ref());
    sys::mount_move(from, to).map_err(|error| MountError::Mount {
        kind: "move".to_owned(),
        source_name: from.display().to_string(),
        target: to.to_owned(),
        options: String::new(),
        source: error.into(),
    })
}

/// Takes the mount `path` away; `lazily`: from the tree at once, for good when its last file is closed.
///
/// # Errors
/// [`MountError::Unmount`].
pub fn unmount(path: impl AsRef<Path>, lazily: bool) -> Result<(), MountError> {
    let path = path.as_ref();
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    sys::unmount(path, flags).map_err(|error| MountError::Unmount { path: path.to_owned(), source: error.into() })
}

/// Mounts what every Linux userland expects: `/proc`, `/sys`, `/dev` with `pts` and `shm`, `/run`.
/// What is mounted there already stays.
///
/// # Errors
/// [`MountError`].
pub fn api_file_systems() -> Result<(), MountError> {
    let secure = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let table = [
        ("proc", "/proc", secure, ""),
        ("sysfs", "/sys", secure, ""),
        ("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, "ptmxmode=0666,mode=0620,gid=5"),
        ("tmpfs", "/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777"),
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, "mode=0755"),
    ];
    for (kind, target, flags, options) in table {
        if !is_mount_point(Path::new(target)) {
            mount(kind, kind, target, flags, options)?;
        }
    }
    Ok(())
}

/// Mounts cgroup2 on `target` so that making cgroups does not wait for RCU grace periods: `KVM_CREATE_VM` then takes
/// 0.35 ms instead of 27.
///
/// # Errors
/// [`MountError`].
pub fn cgroup2(target: impl AsRef<Path>) -> Result<(), MountError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cgroup2", "cgroup2", target, flags, "nsdelegate,favordynmods")
}

/// Whether something is mounted on exactly `path`.
pub fn is_mount_point(path: &Path) -> bool {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Turns the initramfs, which can be neither unmounted nor pivoted away from, into a mount like any other: binds it
/// onto `/x`, moves that over `/` and enters it. Nothing is copied. Must be the first act of PID 1, before other
/// mounts.
///
/// # Errors
/// [`MountError`].
pub fn leave_rootfs() -> Result<(), MountError> {
    let inner = Path::new("/.root");
    fs::create_dir_all(inner).map_err(|source| MountError::Target { path: inner.to_owned(), source })?;
    sys::mount_bind_recursive("/", inner).map_err(|error| MountError::Mount {
        kind: "bind".to_owned(),
        source_name: "/".to_owned(),
        target: inner.to_owned(),
        options: String::new(),
        source: error.into(),
    })?;
    enter_root(inner)?;
    // Seen from outside it would be the mount below; from inside it is an empty directory.
    fs::remove_dir(inner).map_err(|source| MountError::Target { path: inner.to_owned(), source })
}

/// Moves the mount `new_root` over `/` and enters it: the end of switch_root(8).
///
/// # Errors
/// [`MountError::Root`].
pub fn enter_root(new_root: &Path) -> Result<(), MountError> {
    let failed = |error: rustix::io::Errno| MountError::Root { path: new_root.to_owned(), source: error.into() };
    chdir(new_root).map_err(failed)?;
    sys::mount_move(".", "/").map_err(failed)?;
    chroot(".").map_err(failed)?;
    chdir("/").map_err(failed)
}
