//! Volumes: block devices found by their serial number, each with an ext4 that is grown to its device and mounted where
//! the recipe says before anything of the image runs.
//!
//! The guest sees the folder `data` of the file system, not its root: nothing of ours and no `lost+found` is in its
//! way. That folder is also what tells a volume in use from a fresh one. A fresh one is filled with what the image has
//! at that place under another name, synced and renamed, so that a cut at any moment leaves nothing half-made.

use std::{
    fs,
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use rackstick_api::guest::Volume;
use rackstick_linux::{
    ext4,
    mount::{self, MountError, MountFlags},
    uevent::{UeventError, Uevents},
};
use rustix::{
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, syncfs},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{
    InitError,
    seed::{self, SeedError},
};

/// Where the file systems are until the root holds their `data`.
const HELD: &str = "/volumes";
/// What the guest sees of a volume.
const DATA: &str = "data";
/// `data` as long as it is being filled.
const NEW: &str = "new";
/// What a volume holds outlives its image: no program on it gets rights, no file on it is a device.
const FLAGS: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID);
/// - `errors=remount-ro`: an error found in it keeps what is there; the agent reports it.
/// - `discard`: deleted files give their space back to the host.
const OPTIONS: &str = "errors=remount-ro,discard";
const SECTOR: u64 = 512;

/// Why a volume can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Device(#[from] UeventError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("the image's files can't be copied to it: {0}")]
    Seed(#[from] SeedError),
    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

fn failed(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.as_ref().to_owned();
    move |source| VolumeError::Io { what, path, source }
}

/// Mounts all volumes in `root`.
pub(super) fn mount(events: &Uevents, volumes: &[Volume], root: &Path, deadline: Instant) -> Result<(), InitError> {
    for volume in volumes {
        mount_one(events, volume, root, deadline)
            .map_err(|source| InitError::Volume { name: volume.name.clone(), source: source.into() })?;
    }
    Ok(())
}

fn mount_one(events: &Uevents, volume: &Volume, root: &Path, deadline: Instant) -> Result<(), VolumeError> {
    let what = format!("the disk of volume `{}`", volume.name);
    let device = events.wait_for(&what, deadline, || find(Path::new("/sys/block"), &volume.name))?;
    let held = Path::new(HELD).join(&volume.name);
    mount::mount("ext4", Path::new("/dev").join(&device), &held, FLAGS, OPTIONS)?;
    grow(&held, &device, &volume.name)?;
    let target = target(root, &volume.mount).map_err(failed("can't open the folder", &volume.mount))?;
    fill(&held, &root.join(volume.mount.trim_start_matches('/')))?;
    let data = held.join(DATA);
    let tree = open_tree(CWD, &data, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let tree = tree.map_err(|error| failed("can't open", &data)(error.into()))?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &target, "", whole)
        .map_err(|error| failed("can't mount it on", &volume.mount)(error.into()))?;
    Ok(mount::unmount(&held, true)?)
}

/// Name of the virtio disk with this serial number, once it has a node.
fn find(sys_block: &Path, serial: &str) -> Option<String> {
    fs::read_dir(sys_block).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("vd"))?;
        // A disk that has just come may not answer yet; its event follows.
        let found = fs::read_to_string(entry.path().join("serial")).ok()?;
        (found.trim_end() == serial && Path::new("/dev").join(&name).exists()).then_some(name)
    })
}

/// Grows the file system to its device. Where that can't be done the guest goes on with what there is.
fn grow(held: &Path, device: &str, name: &str) -> Result<(), VolumeError> {
    let path = Path::new("/sys/class/block").join(device).join("size");
    let sectors = fs::read_to_string(&path).and_then(|text| text.trim().parse::<u64>().map_err(io::Error::other));
    let blocks = sectors.map_err(failed("can't read", &path))? * SECTOR / ext4::BLOCK;
    let root = File::open(held).map_err(failed("can't open", held))?;
    let before = blocks_of(&root);
    match ext4::grow(&root, blocks) {
        Err(error) => log::error!("volume `{name}` can't be grown to {} MiB: {error}", (blocks * ext4::BLOCK) >> 20),
        Ok(()) if blocks_of(&root) != before => {
            log::info!("volume `{name}` was grown to {} MiB", (blocks * ext4::BLOCK) >> 20);
        }
        Ok(()) => {}
    }
    Ok(())
}

/// Blocks of the file system, less what its own tables take; for a comparison only.
fn blocks_of(root: &File) -> Option<u64> {
    rustix::fs::fstatfs(root).ok().map(|stat| stat.f_blocks)
}

/// The folder `mount` of `root`, made if the image does not have it. A symbolic link on the way could lead to where
/// something else is mounted later, so there may be none.
fn target(root: &Path, mount: &str) -> io::Result<OwnedFd> {
    let mut at = openat(CWD, root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for part in mount.split('/').filter(|part| !part.is_empty()) {
        match mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        at = openat2(&at, part, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    }
    Ok(at)
}

/// Gives a fresh volume its `data`: a copy of `image`.
fn fill(held: &Path, image: &Path) -> Result<(), VolumeError> {
    let (data, new) = (held.join(DATA), held.join(NEW));
    match fs::symlink_metadata(&data) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => return Err(failed("there is no folder", &data)(io::ErrorKind::NotADirectory.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("can't look at", &data)(error)),
    }
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("can't remove", &new)(error)),
        _ => {}
    }
    let files = seed::copy(image, &new)?;
    let root = File::open(held).map_err(failed("can't open", held))?;
    syncfs(&root).map_err(|error| failed("can't sync", held)(error.into()))?;
    fs::rename(&new, &data).map_err(failed("can't rename", &new))?;
    root.sync_all().map_err(failed("can't sync", held))?;
    log::info!("a fresh volume begins with the image's {} ({files} files)", image.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_disk_is_found_by_its_serial_number_whatever_its_place() {
        let sys = tempfile::tempdir().unwrap();
        // Nodes that exist on every machine stand for those of virtio disks.
        for (name, serial) in [("vda", "other"), ("vdb", "zones\n"), ("sda", "zones")] {
            fs::create_dir(sys.path().join(name)).unwrap();
            fs::write(sys.path().join(name).join("serial"), serial).unwrap();
        }
        let there = Path::new("/dev/vdb").exists().then(|| "vdb".to_owned());
        assert_eq!(find(sys.path(), "zones"), there);
        assert_eq!(find(sys.path(), "zone"), None);
    }

    #[test]
    fn a_fresh_volume_begins_with_the_images_files_and_a_used_one_keeps_its_own() {
        let (held, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(image.path().join("zone"), "of the image").unwrap();
        // What a cut left behind.
        fs::create_dir_all(held.path().join(NEW).join("half")).unwrap();
        fill(held.path(), image.path()).unwrap();
        let zone = held.path().join(DATA).join("zone");
        assert_eq!(fs::read_to_string(&zone).unwrap(), "of the image");
        assert!(!held.path().join(NEW).exists() && !held.path().join(DATA).join("half").exists());

        fs::write(&zone, "the guest's own").unwrap();
        fs::write(image.path().join("zone"), "of a newer image").unwrap();
        fill(held.path(), image.path()).unwrap();
        assert_eq!(fs::read_to_string(&zone).unwrap(), "the guest's own");
    }

    #[test]
    fn a_volume_whose_data_is_no_folder_is_left_as_it_is() {
        let (held, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(held.path().join(DATA), "strange").unwrap();
        assert!(fill(held.path(), image.path()).is_err());
        assert_eq!(fs::read_to_string(held.path().join(DATA)).unwrap(), "strange");
    }

    #[test]
    fn a_volume_is_mounted_on_no_symbolic_link() {
        let root = tempfile::tempdir().unwrap();
        target(root.path(), "/var/lib/bind").unwrap();
        assert!(root.path().join("var/lib/bind").is_dir());
        symlink("lib", root.path().join("var/link")).unwrap();
        symlink("/tmp", root.path().join("var/out")).unwrap();
        for path in ["/var/link/bind", "/var/link", "/var/out/x"] {
            assert!(target(root.path(), path).is_err(), "{path}");
        }
    }
}
