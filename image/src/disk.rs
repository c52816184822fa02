//! The whole disk image: partition table, ESP and data partition, straight into one sparse file.

mod growing;

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    panic,
    path::{Path, PathBuf},
    thread::{self, ScopedJoinHandle},
};

use growing::Writer;

pub use growing::Growing;

use crate::{
    esp::{self, EspError, EspFile},
    ext4::{self, Data, Ext4Error},
    full,
    gpt::{self, ALIGNMENT, GptError, Partition, Type},
    guid::Guid,
    nice,
    sector::SectorSize,
};

/// Why an image could not be written. Nothing is left behind under either name.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image file itself.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full.
    #[error("no space for {path}: it takes {needed} MiB, and {free} MiB are free: {source}")]
    Full {
        /// The image.
        path: PathBuf,
        /// MiB of its content: what is no hole takes a little more.
        needed: u64,
        /// MiB that are free without it.
        free: u64,
        /// Where it ended.
        source: Box<Self>,
    },
    /// The path names no file in a folder.
    #[error("{0} cannot be the name of an image: give a file name")]
    Name(PathBuf),
    /// The partition table.
    #[error(transparent)]
    Gpt(#[from] GptError),
    /// The ESP.
    #[error(transparent)]
    Esp(#[from] EspError),
    /// The data partition.
    #[error(transparent)]
    Data(#[from] Ext4Error),
}

/// What goes onto the disk. All GUIDs come from the caller, see [`crate::guid::derive`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The logical blocks of the disks that it is for.
    pub sector: SectorSize,
    /// GUID of the disk.
    pub guid: Guid,
    /// GUID of the ESP.
    pub esp_guid: Guid,
    /// Volume id of the ESP's file system.
    pub esp_volume_id: u32,
    /// Files of the ESP.
    pub esp: Vec<EspFile>,
    /// GUID of the data partition, by which the rack finds it.
    pub data_guid: Guid,
    /// Content of the data partition.
    pub data: Data,
}

/// Bytes of the data partition that are synced at once: enough for any disk to be busy with.
const SYNC_STEP: u64 = 128 << 20;

/// Where things lie on the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extents {
    /// Start and size of the ESP.
    pub esp: (u64, u64),
    /// Start and size of the data partition.
    pub data: (u64, u64),
    /// Size of the disk.
    pub disk: u64,
}

/// An image that was written.
#[derive(Debug)]
pub struct Written {
    /// Where things lie.
    pub extents: Extents,
    /// It.
    pub file: File,
}

/// The place of an image that will be written: `<name>.partial` beside it, locked, so that of two builds only one
/// writes. If it is dropped, nothing is left of it.
#[derive(Debug)]
pub struct Place {
    image: PathBuf,
    partial: Partial,
    file: File,
}

impl Place {
    /// Takes the place of the image `path`. While another build has it, that is waited for, after `waiting` was called.
    pub fn take(path: &Path, waiting: impl FnOnce()) -> Result<Self, DiskError> {
        let name = path.file_name().ok_or_else(|| DiskError::Name(path.to_path_buf()))?;
        let mut partial_name = name.to_os_string();
        partial_name.push(".partial");
        let mut waiting = Some(waiting);
        let mut waiting = || waiting.take().into_iter().for_each(|say| say());
        let (partial, file) = Partial::create(path.with_file_name(partial_name), &mut waiting)?;
        // A build that has given its image the final name may still make what lies beside it.
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            image => image.and_then(|image| lock(&image, &mut waiting)).map_err(failed("lock", path))?,
        }
        Ok(Self { image: path.to_path_buf(), partial, file })
    }

    /// Path of the image that will be there.
    pub fn path(&self) -> &Path {
        &self.image
    }

    /// Writes the image. It is made under the other name, synced and renamed, so that what has the final name is whole.
    /// `follow` reads it while it grows; what it returns is passed on.
    pub fn write<T: Send>(
        self,
        disk: &Disk,
        follow: impl FnOnce(&Growing) -> T + Send,
    ) -> Result<(Written, T), DiskError> {
        let path = self.image.clone();
        // What was written of it is gone by then.
        write(self, disk, follow).map_err(|error| match rustix::fs::statvfs(folder_of(&path)) {
            Ok(there) if full::is_behind(&error) => DiskError::Full {
                needed: disk.content_size().div_ceil(MIB),
                free: there.f_bavail * there.f_frsize / MIB,
                path,
                source: Box::new(error),
            },
            _ => error,
        })
    }
}

const MIB: u64 = 1 << 20;

impl Disk {
    /// Bytes of all files on it.
    fn content_size(&self) -> u64 {
        self.esp.iter().map(|file| file.content.size()).sum::<u64>() + self.data.content_size()
    }
}

fn write<T: Send>(
    Place { image, partial, file }: Place,
    disk: &Disk,
    follow: impl FnOnce(&Growing) -> T + Send,
) -> Result<(Written, T), DiskError> {
    let esp = (ALIGNMENT, esp::SIZE);
    let data = (esp.0 + esp.1, disk.data.size());
    let extents = Extents { esp, data, disk: data.0 + data.1 + ALIGNMENT };
    file.set_len(extents.disk).map_err(failed("extend", &partial.path))?;
    let growing = Growing::new(file, extents);
    let (followed, synced) = thread::scope(|scope| {
        // Before anybody waits for it: if a thread can't be started, all are told.
        let writer = Writer(&growing);
        let followed = scope.spawn(|| follow(&growing));
        let synced = scope.spawn(|| sync(&growing));
        let written = scope.spawn(move || fill(writer, disk));
        let (written, synced, followed) = (join(written), join(synced), join(followed));
        written.map(|()| (followed, synced))
    })?;
    synced.map_err(failed("sync", &partial.path))?;
    partial.rename(&image).map_err(failed("create", &image))?;
    Ok((Written { extents, file: growing.file }, followed))
}

fn join<T>(thread: ScopedJoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// Writes the table and both partitions, front to back.
fn fill(writer: Writer, disk: &Disk) -> Result<(), DiskError> {
    // Who hashes it has more to do: also its holes, and one after the other.
    nice::give_way();
    let Growing { file, extents: Extents { esp, data, disk: end }, .. } = writer.0;
    let partitions = [
        Partition { kind: Type::Esp, guid: disk.esp_guid, name: "ESP", start: esp.0, size: esp.1 },
        Partition { kind: Type::LinuxData, guid: disk.data_guid, name: "data", start: data.0, size: data.1 },
    ];
    gpt::write(file, disk.sector, disk.guid, &partitions)?;
    esp::write(file, disk.sector, esp.0, disk.esp_volume_id, &disk.esp)?;
    writer.0.settle(data.0);
    ext4::write(file, data.0, &disk.data, &|at| writer.0.settle(at))?;
    writer.0.settle(*end);
    Ok(())
}

/// Syncs the image as it grows: the disk need not wait until all is there.
fn sync(growing: &Growing) -> io::Result<()> {
    nice::give_way();
    let (start, end) = (growing.extents.data.0, growing.extents.disk);
    for at in (start..end).step_by(SYNC_STEP as usize) {
        growing.wait_for(at)?;
        growing.file.sync_data()?;
    }
    growing.wait_for(end)?;
    growing.file.sync_all()
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DiskError + use<'a> {
    move |source| DiskError::Io { what, path: path.to_path_buf(), source }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Locks a file until it is closed; `waiting` is called if another process has to close it first.
fn lock(file: &File, mut waiting: impl FnMut()) -> io::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            waiting();
            file.lock()
        }
        Err(TryLockError::Error(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

/// The unfinished image, deleted if it stays so.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    done: bool,
    /// The same open file as the one that is written, so that it stays locked until it has no name: who waits for it
    /// would take that name.
    _lock: File,
}

impl Partial {
    /// Opens or creates the file and locks it. What a killed build left is overwritten.
    fn create(path: PathBuf, mut waiting: impl FnMut()) -> Result<(Self, File), DiskError> {
        loop {
            let mut options = File::options();
            // Not truncated before the lock is ours: it may be another build's.
            let options = options.read(true).write(true).create(true).truncate(false);
            let file = options.open(&path).map_err(failed("create", &path))?;
            lock(&file, &mut waiting).map_err(failed("lock", &path))?;
            let locked = file.metadata().map_err(failed("read", &path))?;
            let named = match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                other => Some(other.map_err(failed("read", &path))?),
            };
            // Otherwise another build finished in between and renamed this very file.
            if named.is_some_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
                file.set_len(0).map_err(failed("truncate", &path))?;
                let lock = file.try_clone().map_err(failed("open", &path))?;
                return Ok((Self { path, done: false, _lock: lock }, file));
            }
        }
    }

    fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.done = true;
        File::open(folder_of(to))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            // The error that led here is what the caller hears of; that a file stays behind adds nothing to it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::mpsc};

    use super::*;
    use crate::{
        ext4::DataFile,
        guid,
        source::Source,
        testing::{Mount, assert_same, run},
        verity,
    };

    fn write<T: Send>(
        path: &Path,
        disk: &Disk,
        follow: impl FnOnce(&Growing) -> T + Send,
    ) -> Result<(Written, T), DiskError> {
        Place::take(path, || panic!("nobody else writes it"))?.write(disk, follow)
    }

    fn sample(layer: Source) -> Disk {
        let guid = |name: &str| guid::derive(&[b"lab", name.as_bytes()]);
        Disk {
            sector: SectorSize::B512,
            guid: guid("disk"),
            esp_guid: guid("esp"),
            esp_volume_id: 7,
            esp: vec![EspFile { path: "EFI/BOOT/BOOTX64.EFI".into(), content: Source::Bytes(vec![1; 90_000]).into() }],
            data_guid: guid("data"),
            data: Data {
                uuid: guid("file system"),
                label: "rackstick-data".into(),
                epoch: 1_700_000_000,
                directories: BTreeMap::from([("volumes".into(), 0o700)]),
                files: BTreeMap::from([("layers/x".into(), DataFile { mode: 0o444, source: layer, verity: None })]),
            },
        }
    }

    #[test]
    fn every_tool_accepts_the_disk_and_it_costs_only_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lab.img");
        let mut disk = sample(Source::Bytes(vec![9; 3_000_000]));
        // Their inodes are changed after they were made, and they are written in several pieces.
        for byte in 1..4 {
            let layer = vec![byte; 6_000_000];
            let verity = Some(verity::digest(layer.as_slice()).unwrap().into());
            let file = DataFile { mode: 0o444, source: Source::Bytes(layer), verity };
            disk.data.files.insert(format!("layers/{byte}"), file);
        }
        let (Written { extents, .. }, hash) = write(&path, &disk, |image| image.sha256().unwrap()).unwrap();
        let name = path.to_str().unwrap();
        assert_eq!(hash.to_string(), run("sha256sum", [name])[..64]);
        assert!(run("sgdisk", ["-v", name]).contains("No problems found"));
        for (number, kind, guid) in [
            ("1", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", disk.esp_guid),
            ("2", "0FC63DAF-8483-4772-8E79-3D69D8477DE4", disk.data_guid),
        ] {
            let shown = run("sgdisk", ["-i", number, name]);
            assert!(shown.contains(kind) && shown.contains(&guid.to_string().to_uppercase()), "{shown}");
        }
        let table = run("sgdisk", ["-p", name]);
        assert!(table.contains(&disk.guid.to_string().to_uppercase()), "{table}");
        let esp = format!("{name}@@{}", extents.esp.0);
        assert!(run("mdir", ["-i", &esp, "-/", "-b", "::"]).contains("BOOTX64.EFI"));
        run("e2fsck", ["-fn", &format!("{name}?offset={}", extents.data.0)]);
        let options = format!("ro,offset={},sizelimit={}", extents.data.0, extents.data.1);
        let mounted = Mount::new("ext4", &options, &path, folder.path().join("mounted"));
        assert_eq!(fs::read(mounted.path().join("layers/x")).unwrap(), [9; 3_000_000]);
        drop(mounted);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), extents.disk);
        assert!(metadata.blocks() * 512 < 26 << 20, "{} bytes used", metadata.blocks() * 512);

        let again = folder.path().join("again.img");
        write(&again, &disk, |_| ()).unwrap();
        assert_same(&path, &again);
    }

    /// A loop device with 4096-byte blocks, until dropped (needs root).
    struct Loop(String);

    impl Loop {
        fn new(options: &[&str], image: &Path) -> Self {
            let image = image.to_str().unwrap();
            let options = options.iter().copied().chain(["--sector-size", "4096", "--show", "-f", image]);
            Self(run("losetup", options).trim().to_owned())
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            run("losetup", ["-d", &self.0]);
        }
    }

    #[test]
    fn every_tool_accepts_a_disk_with_4096_byte_sectors_and_finds_everything_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lab.img");
        let disk = Disk { sector: SectorSize::B4096, ..sample(Source::Bytes(vec![9; 3_000_000])) };
        let (Written { extents, .. }, ()) = write(&path, &disk, |_| ()).unwrap();
        assert_eq!(SectorSize::of_image(&File::open(&path).unwrap()).unwrap(), Some(SectorSize::B4096));
        let device = Loop::new(&[], &path);
        assert!(run("sgdisk", ["-v", &device.0]).contains("No problems found"));
        for (number, guid, (start, size)) in [("1", disk.esp_guid, extents.esp), ("2", disk.data_guid, extents.data)] {
            let shown = run("sgdisk", ["-i", number, &device.0]);
            let place = format!("First sector: {} ", start / 4096);
            let length = format!("Partition size: {} sectors", size / 4096);
            assert!(shown.contains(&guid.to_string().to_uppercase()), "{shown}");
            assert!(shown.contains(&place) && shown.contains(&length), "{shown}");
        }
        let part = |(start, size): (u64, u64)| {
            let (start, size) = (start.to_string(), size.to_string());
            Loop::new(&["--offset", &start, "--sizelimit", &size], &path)
        };
        let esp = part(extents.esp);
        let checked = run("fsck.fat", ["-n", "-v", &esp.0]);
        assert!(
            checked.contains("4096 bytes per logical sector") && checked.contains("4096 bytes per cluster"),
            "{checked}"
        );
        assert!(run("mdir", ["-i", &esp.0, "-/", "-b", "::"]).contains("BOOTX64.EFI"));
        let data = part(extents.data);
        run("e2fsck", ["-fn", &data.0]);
        let at = folder.path().join("mounted");
        fs::create_dir(&at).unwrap();
        run("mount", ["-t", "ext4", "-o", "ro", &data.0, at.to_str().unwrap()]);
        let layer = fs::read(at.join("layers/x"));
        run("umount", [&at]);
        assert_eq!(layer.unwrap(), [9; 3_000_000]);
    }

    #[test]
    fn a_failed_build_leaves_the_old_image_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let small = folder.path().join("small");
        fs::create_dir(&small).unwrap();
        run("mount", ["-t", "tmpfs", "-o", "size=2m", "none", small.to_str().unwrap()]);
        let path = small.join("lab.img");
        fs::write(&path, b"the old image").unwrap();
        let gone = Source::Path { path: folder.path().join("gone"), size: 5 };
        let mut followed = None;
        let missing = write(&path, &sample(gone), |image| followed = Some(image.sha256()));
        let full = write(&path, &sample(Source::Bytes(vec![9; 3_000_000])), |_| ());
        let (old, files) = (fs::read(&path), fs::read_dir(&small).unwrap().count());
        run("umount", [&small]);
        assert!(matches!(missing, Err(DiskError::Data(_))), "{missing:?}");
        assert!(matches!(followed, Some(Err(_))), "who follows it is told: {followed:?}");
        let full = full.unwrap_err().to_string();
        for part in ["no space for", "it takes 3 MiB, and 1 MiB are free", "No space left on device"] {
            assert!(full.contains(part), "no `{part}`: {full}");
        }
        assert_eq!((old.unwrap().as_slice(), files), (&b"the old image"[..], 1));
    }

    #[test]
    fn of_two_builds_of_one_image_the_second_waits_and_a_dead_ones_rest_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lab.img");
        let partial = folder.path().join("lab.img.partial");
        fs::write(&partial, b"of a build that was killed").unwrap();
        for how_the_first_ends in ["it fails", "it writes"] {
            let disk = sample(Source::Bytes(b"layer".to_vec()));
            let first = Place::take(&path, || panic!("nobody else writes it")).unwrap();
            assert_eq!(fs::metadata(&partial).unwrap().len(), 0);
            let (said, heard) = mpsc::channel();
            let second = thread::spawn({
                let (path, disk) = (path.clone(), disk.clone());
                move || Place::take(&path, || said.send(()).unwrap()).unwrap().write(&disk, |_| ()).unwrap()
            });
            heard.recv().unwrap();
            match how_the_first_ends {
                "it fails" => drop(first),
                _ => drop(first.write(&disk, |_| ()).unwrap()),
            }
            second.join().unwrap();
            assert!(path.exists() && !partial.exists(), "{how_the_first_ends}");
        }
    }

    #[test]
    fn who_comes_when_an_image_is_written_but_still_held_waits_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lab.img");
        let (written, ()) = write(&path, &sample(Source::Bytes(b"layer".to_vec())), |_| ()).unwrap();
        let (said, heard) = mpsc::channel();
        let second = thread::spawn(move || Place::take(&path, || said.send(()).unwrap()).map(drop));
        heard.recv().unwrap();
        drop(written);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn where_the_file_system_shares_blocks_a_layer_is_on_the_disk_once_and_the_image_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        // Not of whole blocks, and with zeroes within.
        let layer: Vec<u8> = (0..30_000_007_u32)
            .map(|at| if at >> 23 == 1 { 0 } else { (at.wrapping_mul(0x9e37_79b9) >> 24) as u8 })
            .collect();
        let digest = verity::digest(layer.as_slice()).unwrap();
        let with = |path: &Path| {
            let mut disk = sample(Source::file(path).unwrap());
            disk.data.files.values_mut().for_each(|file| file.verity = Some(digest.into()));
            disk
        };
        let path = folder.path().join("layer");
        fs::write(&path, &layer).unwrap();
        let written = folder.path().join("written.img");
        write(&written, &with(&path), |_| ()).unwrap();
        for kind in ["xfs", "btrfs"] {
            let device = folder.path().join(kind);
            File::create(&device).unwrap().set_len(400 << 20).unwrap();
            run(&format!("mkfs.{kind}"), ["-q".as_ref(), device.as_os_str()]);
            let mounted = Mount::new(kind, "rw", &device, folder.path().join(format!("{kind}-mounted")));
            let path = mounted.path().join("layer");
            fs::write(&path, &layer).unwrap();
            let free = || {
                run("sync", ["-f".as_ref(), mounted.path().as_os_str()]);
                let found = rustix::fs::statvfs(mounted.path()).unwrap();
                found.f_bfree * found.f_frsize
            };
            let before = free();
            let shared = mounted.path().join("shared.img");
            let (_, hash) = write(&shared, &with(&path), |image| image.sha256().unwrap()).unwrap();
            let taken = before.saturating_sub(free());
            assert!(taken < 6 << 20, "{kind}: {taken} bytes");
            assert_eq!(hash.to_string(), run("sha256sum", [&written])[..64], "{kind}");
            assert_same(&shared, &written);
        }
    }
}
