//! Guests' volumes: raw sparse files `volumes/<guest>/<name>` on the data partition. A file that is missing is made
//! with a fresh file system in it, beside its place, synced and renamed; one that is there is grown if the recipe says
//! so, and otherwise left as it is. What is in it is never read here. A guest whose image is a whole disk has that disk
//! beside them (`disk.rs`).

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use rackstick_image::{
    ext4::Ext4Error,
    manifest::{self, Guest, Manifest, Volume},
    volume,
};
use rustix::{
    fs::OFlags,
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, clock_gettime},
};

use super::{disk, process};
use crate::daemon::data;

/// Folder of all volumes on the data partition.
const FOLDER: &str = "volumes";
/// A monitor finds its own files by path, and can list nothing.
const FOLDER_MODE: u32 = 0o711;
/// Folder of a guest that the recipe no longer has: the user its files belong to may be another guest's now.
const SEALED_MODE: u32 = 0o700;
pub(super) const FILE_MODE: u32 = 0o600;
pub(super) const MIB: u64 = 1 << 20;

/// Why a volume can't be used. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A fault of the rack itself; the log has the place.
    #[error(
        "{0}'s volumes could not be prepared: the rack has a fault, which its log tells (F2 on the screen); please report it"
    )]
    Panicked(String),
    /// It could not be made.
    #[error("volume {name} of {mib} MiB can't be made on the data partition: {source}")]
    Make {
        /// The volume.
        name: String,
        /// Its size in the recipe.
        mib: u32,
        /// The cause.
        source: Ext4Error,
    },
    /// The disk of a guest.
    #[error("the guest's disk can't be made from {label} on the data partition: {source}")]
    Disk {
        /// What it is made from.
        label: String,
        /// The cause.
        source: disk::MakeError,
    },
    /// Something else is in its place.
    #[error("{} is {what}, no volume: it is left untouched; move it away, or take the volume out of the recipe", path.display())]
    Foreign {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A file or folder.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// Whether another try would only come to the same place.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Disk { source, .. } if source.lies_in_the_base())
    }
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

/// A volume that can be used.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready {
    /// Its name.
    pub name: String,
    /// Its file, which belongs to the guest's user.
    pub path: PathBuf,
    /// That it is not as the recipe says, if so.
    pub differs: Option<String>,
}

/// Where a guest's volumes are.
fn folder(base: &Path, guest: &str) -> PathBuf {
    base.join(FOLDER).join(guest)
}

/// Gives every volume that is there to the user of its guest, before any guest starts: users go by the guests' order,
/// which the recipe may have changed. Those of guests that the recipe no longer has are kept and shut.
pub fn claim(manifest: &Manifest) -> Result<(), Error> {
    claim_in(Path::new(data::MOUNT), manifest)
}

fn claim_in(base: &Path, manifest: &Manifest) -> Result<(), Error> {
    let all = base.join(FOLDER);
    let entries = match fs::read_dir(&all) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("list", &all)(error)),
    };
    for entry in entries {
        let folder = entry.map_err(failed("list", &all))?.path();
        if !fs::symlink_metadata(&folder).map_err(failed("look at", &folder))?.is_dir() {
            continue;
        }
        let name = folder.file_name().unwrap_or_default();
        let Some(index) = manifest.guests.iter().position(|guest| name == guest.name.as_str()) else {
            fs::set_permissions(&folder, Permissions::from_mode(SEALED_MODE)).map_err(failed("shut", &folder))?;
            log::info!("{} is kept, though the recipe has no such guest any more", folder.display());
            continue;
        };
        for entry in fs::read_dir(&folder).map_err(failed("list", &folder))? {
            let path = entry.map_err(failed("list", &folder))?.path();
            if fs::symlink_metadata(&path).map_err(failed("look at", &path))?.is_file() {
                let file = open(&path, false).map_err(failed("open", &path))?;
                give(&file, process::uid(index)).map_err(failed("give to its guest", &path))?;
            }
        }
    }
    Ok(())
}

/// Makes or grows the guest's volumes on the data partition, which is mounted at `base`, and gives them to `uid`; first
/// of them its own copy of `disk`, if its image is one. The guest does not run, and nobody else prepares them. Takes as
/// long as the disk takes to write them.
pub fn prepare(base: &Path, spec: &Guest, disk: Option<&manifest::Disk>, uid: u32) -> Result<Vec<Ready>, Error> {
    if spec.volumes.is_empty() && disk.is_none() {
        return Ok(Vec::new());
    }
    let all = base.join(FOLDER);
    let own = folder(base, &spec.name);
    for folder in [&all, &own] {
        match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make", folder)(error)),
            _ => {}
        }
        // The builder makes the first one shut, and a guest may have come back into the recipe.
        if fs::metadata(folder).map_err(failed("look at", folder))?.mode() & 0o7777 != FOLDER_MODE {
            fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE)).map_err(failed("open", folder))?;
        }
    }
    let disk = disk.map(|disk| disk::prepare(base, &own, disk, spec.disk_mib, uid));
    let volumes = spec.volumes.iter().map(|volume| prepare_one(&own, volume, uid));
    let ready = disk.into_iter().chain(volumes).collect::<Result<_, _>>()?;
    // Whoever made or renamed something here may have been killed before this: what a guest relies on is synced each
    // time.
    for folder in [own.as_path(), &all, base] {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))?;
    }
    Ok(ready)
}

fn prepare_one(folder: &Path, volume: &Volume, uid: u32) -> Result<Ready, Error> {
    let path = folder.join(&volume.name);
    let (name, wanted) = (volume.name.clone(), u64::from(volume.size_mib) * MIB);
    match open(&path, true) {
        Ok(file) => {
            let length = length(&file, &path, volume::is_length)?;
            if length < wanted {
                // A hole; the guest's file system grows into it when it is mounted.
                file.set_len(wanted).map_err(failed("grow", &path))?;
                log::info!("{} was grown from {} to {} MiB", path.display(), length / MIB, volume.size_mib);
            }
            give(&file, uid).map_err(failed("give to its guest", &path))?;
            // Also what an earlier daemon was killed over.
            file.sync_all().map_err(failed("sync", &path))?;
            let differs = (length > wanted).then(|| too_large(&path, length, volume.size_mib));
            Ok(Ready { name, path, differs })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(folder, volume, uid)?;
            log::info!("{} was made, {} MiB", path.display(), volume.size_mib);
            Ok(Ready { name, path, differs: None })
        }
        Err(error) => Err(unopened(path, error)),
    }
}

/// Why a file could not be opened.
pub(super) fn unopened(path: PathBuf, error: io::Error) -> Error {
    // A symbolic link gives ELOOP, a folder EISDIR, a socket ENXIO.
    match fs::symlink_metadata(&path) {
        Ok(metadata) if !metadata.is_file() => {
            Error::Foreign { path, what: format!("a {}", kind(metadata.file_type())) }
        }
        _ => failed("open", &path)(error),
    }
}

/// The length of a volume's file. Only a file that this rack may have made is one: `is_length` says which lengths it
/// makes.
pub(super) fn length(file: &File, path: &Path, is_length: fn(u64) -> bool) -> Result<u64, Error> {
    let metadata = file.metadata().map_err(failed("look at", path))?;
    let what = if !metadata.is_file() {
        format!("a {}", kind(metadata.file_type()))
    } else if metadata.nlink() != 1 {
        format!("a file with {} names", metadata.nlink())
    } else if !is_length(metadata.len()) {
        format!("a file of {} bytes", metadata.len())
    } else {
        return Ok(metadata.len());
    };
    Err(Error::Foreign { path: path.to_owned(), what })
}

fn kind(kind: fs::FileType) -> &'static str {
    match (kind.is_dir(), kind.is_symlink()) {
        (true, _) => "folder",
        (_, true) => "symbolic link",
        _ => "special file",
    }
}

/// What is said of a volume that is larger than the recipe says.
pub(super) fn too_large(path: &Path, length: u64, says: u32) -> String {
    let has = length / MIB;
    format!("{} has {has} MiB, the recipe says {says}: volumes are never shrunk, it is kept as it is", path.display())
}

fn make(folder: &Path, volume: &Volume, uid: u32) -> Result<(), Error> {
    let partial = folder.join(format!(".{}.new", volume.name));
    let (name, mib) = (volume.name.clone(), volume.size_mib);
    let made = write(&partial, volume, uid).and_then(|()| {
        fs::rename(&partial, folder.join(&volume.name))?;
        Ok(())
    });
    if let Err(source) = made {
        // It may not be there; if it stays, the next try begins with it.
        let _ = fs::remove_file(&partial);
        return Err(Error::Make { name, mib, source });
    }
    Ok(())
}

fn write(partial: &Path, volume: &Volume, uid: u32) -> Result<(), Ext4Error> {
    let file = begin(partial)?;
    volume::write(&file, u64::from(volume.size_mib) * MIB, uuid()?, clock_gettime(ClockId::Realtime).tv_sec)?;
    give(&file, uid)?;
    Ok(file.sync_all()?)
}

/// A new empty file in place of what a cut left behind.
pub(super) fn begin(partial: &Path) -> io::Result<File> {
    match fs::remove_file(partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().read(true).write(true).create_new(true).mode(FILE_MODE).open(partial)
}

/// A random one, RFC 9562, section 5.4.
fn uuid() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let length = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if length != bytes.len() {
        return Err(io::Error::other("the kernel gave too few random bytes"));
    }
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

pub(super) fn open(path: &Path, write: bool) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    File::options().read(true).write(write).custom_flags(flags).open(path)
}

/// Writes nothing where it belongs to that user already.
pub(super) fn give(file: &File, uid: u32) -> io::Result<()> {
    let metadata = file.metadata()?;
    if (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777) == (uid, 0, FILE_MODE) {
        return Ok(());
    }
    fchown(file, Some(uid), Some(0))?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::daemon::network::firewall::tests as sample;

    fn guest(volumes: &[(&str, u32)]) -> Guest {
        let mut guest = sample::manifest().guests.remove(0);
        let volume = |(name, size_mib): &(&str, u32)| Volume {
            name: (*name).into(),
            mount: format!("/srv/{name}"),
            size_mib: *size_mib,
        };
        guest.volumes = volumes.iter().map(volume).collect();
        guest
    }

    fn e2fsck(path: &Path) {
        let output = Command::new("e2fsck").arg("-fn").arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_volume_is_made_once_grown_when_the_recipe_grows_it_and_never_shrunk() {
        let base = tempfile::tempdir().unwrap();
        let ready = prepare(base.path(), &guest(&[("a", 32), ("b", 64)]), None, 2007).unwrap();
        let path = ready[0].path.clone();
        assert_eq!(
            ready.iter().map(|ready| (&*ready.name, &ready.differs)).collect::<Vec<_>>(),
            [("a", &None), ("b", &None)]
        );
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.uid(), metadata.mode() & 0o7777), (32 * MIB, 2007, 0o600));
        e2fsck(&path);
        let text = fs::read(&path).unwrap();

        let grown = prepare(base.path(), &guest(&[("a", 4096)]), None, 2008).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.uid(), &grown[0].differs), (4096 * MIB, 2008, &None));
        assert!(metadata.blocks() * 512 < MIB, "{} blocks", metadata.blocks());

        let kept = prepare(base.path(), &guest(&[("a", 32)]), None, 2007).unwrap();
        let said = kept[0].differs.as_deref().unwrap();
        assert!(said.contains("has 4096 MiB, the recipe says 32") && said.contains("never shrunk"), "{said}");
        let mut now = vec![0; text.len()];
        std::os::unix::fs::FileExt::read_exact_at(&File::open(&path).unwrap(), &mut now, 0).unwrap();
        assert!(now == text, "the file system was touched");
        assert_eq!(names(path.parent().unwrap()), ["a", "b"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(path.parent().unwrap()), mode(&base.path().join(FOLDER))), (0o711, 0o711));
    }

    #[test]
    fn what_is_no_volume_is_never_touched() {
        let base = tempfile::tempdir().unwrap();
        let own = folder(base.path(), &guest(&[]).name);
        fs::create_dir_all(&own).unwrap();
        fs::write(base.path().join("target"), "target").unwrap();
        std::os::unix::fs::symlink(base.path().join("target"), own.join("link")).unwrap();
        fs::create_dir(own.join("folder")).unwrap();
        fs::write(own.join("text"), "a text").unwrap();
        fs::write(own.join("two"), "").unwrap();
        File::options().write(true).open(own.join("two")).unwrap().set_len(64 * MIB).unwrap();
        fs::hard_link(own.join("two"), own.join("second")).unwrap();
        for (name, what) in [
            ("link", "a symbolic link"),
            ("folder", "a folder"),
            ("text", "a file of 6 bytes"),
            ("two", "a file with 2 names"),
        ] {
            let error = prepare(base.path(), &guest(&[(name, 128)]), None, 2007).unwrap_err();
            assert!(matches!(&error, Error::Foreign { .. }) && error.to_string().contains(what), "{error}");
        }
        assert_eq!(fs::read_to_string(base.path().join("target")).unwrap(), "target");
        assert_eq!(fs::read_to_string(own.join("text")).unwrap(), "a text");
        assert_eq!(
            (fs::metadata(own.join("two")).unwrap().len(), fs::metadata(own.join("two")).unwrap().uid()),
            (64 * MIB, 0)
        );
        assert_eq!(names(&own), ["folder", "link", "second", "text", "two"]);
    }

    /// Needs root, as all of CI has: mounts a file system of 16 KiB.
    #[test]
    fn a_full_data_partition_leaves_no_half_made_volume() {
        let base = tempfile::tempdir().unwrap();
        let mount = |arguments: &[&str]| {
            assert!(Command::new(arguments[0]).args(&arguments[1..]).arg(base.path()).status().unwrap().success());
        };
        mount(&["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs"]);
        let result = prepare(base.path(), &guest(&[("a", 256)]), None, 2007);
        let left = names(&folder(base.path(), &guest(&[]).name));
        mount(&["umount"]);
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains("volume a of 256 MiB can't be made on the data partition")
                && error.contains("No space left"),
            "{error}"
        );
        assert_eq!(left, [""; 0]);
    }

    #[test]
    fn what_a_cut_left_behind_is_made_anew() {
        let base = tempfile::tempdir().unwrap();
        let own = folder(base.path(), &guest(&[]).name);
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join(".a.new"), vec![7; 100_000]).unwrap();
        let ready = prepare(base.path(), &guest(&[("a", 32)]), None, 2007).unwrap();
        e2fsck(&ready[0].path);
        assert_eq!(names(&own), ["a"]);
    }

    #[test]
    fn volumes_follow_their_guest_when_its_user_changes_and_are_shut_when_it_is_gone() {
        let base = tempfile::tempdir().unwrap();
        let spec = guest(&[("a", 32)]);
        let path = prepare(base.path(), &spec, None, 2990).unwrap().remove(0).path;
        let mut manifest = sample::manifest();
        claim_in(base.path(), &manifest).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), process::uid(0));
        let mut other = spec.clone();
        other.name = "first".into();
        manifest.guests.insert(0, other);
        claim_in(base.path(), &manifest).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), process::uid(1));
        manifest.guests.clear();
        claim_in(base.path(), &manifest).unwrap();
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, SEALED_MODE);
        assert_eq!(fs::metadata(&path).unwrap().len(), 32 * MIB);
        claim_in(&base.path().join("nowhere"), &manifest).unwrap();
    }
}
