//! The spare files of the initramfs (`image::spares`): dropped from memory once the devices have drivers, read back
//! from the UKI on the ESP when a driver is wanted. The ESP is anybody's to write: it is mounted read-only and only
//! while it is read, and what is taken from it must have the digest that the initrd's list says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rackstick_image::{
    cpio::read::{Entries, Entry},
    digest::Sha256,
    modules::{self, Module},
    spares::{self, ParseError, Spares},
    uki,
};
use rackstick_linux::mount::{self, MountFlags};
use rustix::system;

use super::data::find;

/// Where an ESP is mounted while it is read.
const ESP: &str = "/run/rackstick/esp";
/// Where the UKIs are on it.
const UKIS: &str = "EFI/Linux";
const FIRMWARE: &str = "/lib/firmware/";
/// What the kernel unpacked of the microcode, which the processor has by now.
const MICROCODE: &str = "/kernel";

/// Why spare files can't be dropped, or one can't be read back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list.
    #[error("{}: {source}", spares::PATH)]
    NoList {
        /// The cause.
        source: io::Error,
    },
    /// What is in it.
    #[error(transparent)]
    BadList(#[from] ParseError),
    /// No disk holds them.
    #[error(
        "it was dropped from memory, and no disk holds the rack's own UKI to read it from; plug in the disk that the rack was started from{said}"
    )]
    NoUki {
        /// What is wrong with each place that was looked at.
        said: String,
    },
    /// A file of the initramfs.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The spare files of the generation that runs.
pub struct Store {
    list: Spares,
    version: String,
    /// Below which the files are.
    root: PathBuf,
    /// One looks at disks at a time: they are mounted at the same place.
    reading: Mutex<()>,
    /// Modules that somebody loads or has loaded: nothing of theirs is dropped before they are in the kernel, and their
    /// firmware never. Held while files are dropped, never while a disk is read.
    wanted: Mutex<BTreeSet<String>>,
}

impl Store {
    /// Those of this version.
    pub fn open(version: &str) -> Result<Self, Error> {
        let text = fs::read_to_string(spares::PATH).map_err(|source| Error::NoList { source })?;
        Ok(Self::below("/".into(), Spares::parse(&text)?, version))
    }

    fn below(root: PathBuf, list: Spares, version: &str) -> Self {
        Self { list, version: version.to_owned(), root, reading: Mutex::default(), wanted: Mutex::default() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the module's file and its firmware where they are looked for, until it is in the kernel: puts back what was
    /// dropped, and what is still there is not dropped now.
    pub fn read_back(&self, module: &Module) -> Result<(), Error> {
        let missing = self.want(module);
        if missing.is_empty() {
            return Ok(());
        }
        self.in_any_uki(|uki| restore(uki, &self.root, &missing))
    }

    /// The module is wanted; gives what is missing for that.
    fn want(&self, module: &Module) -> Vec<(&str, Sha256)> {
        let mut wanted = self.wanted();
        wanted.insert(module.name.clone());
        let file = file_of(module);
        self.list
            .paths()
            .filter(|path| *path == file || is_firmware_of(module, path))
            .filter(|path| !self.path(path).exists())
            .filter_map(|path| Some((path, self.list.digest(path)?)))
            .collect()
    }

    /// Drops what no driver in the kernel needs, if it can be read back. Gives how many bytes that were.
    pub fn drop_unneeded(&self, all: &[Module]) -> Result<u64, Error> {
        let sizes: BTreeMap<&str, u64> =
            self.list.paths().filter_map(|path| Some((path, fs::metadata(self.path(path)).ok()?.len()))).collect();
        if sizes.is_empty() {
            return Ok(0);
        }
        self.in_any_uki(|uki| holds(uki, &sizes))?;
        let dropped = self.remove(all, &sizes)?;
        match fs::remove_dir_all(MICROCODE) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { path: MICROCODE.into(), source })
            }
            _ => Ok(dropped),
        }
    }

    fn remove(&self, all: &[Module], sizes: &BTreeMap<&str, u64>) -> Result<u64, Error> {
        let wanted = self.wanted();
        let loaded = |module: &&Module| is_loaded(&module.name);
        let (loaded, others): (Vec<&Module>, Vec<&Module>) = all.iter().partition(loaded);
        let coming: Vec<&Module> = others.into_iter().filter(|module| wanted.contains(&module.name)).collect();
        let files: BTreeSet<String> = coming.iter().map(|module| file_of(module)).collect();
        let mut dropped = 0;
        for (path, size) in sizes {
            // A driver may ask for its firmware again when its link goes up or its device was reset.
            if files.contains(*path) || loaded.iter().chain(&coming).any(|module| is_firmware_of(module, path)) {
                continue;
            }
            let path = self.path(path);
            fs::remove_file(&path).map_err(|source| Error::File { path, source })?;
            dropped += size;
        }
        Ok(dropped)
    }

    /// Has `take` try each UKI of this version on each ESP until it is content with one.
    fn in_any_uki(&self, take: impl Fn(&File) -> Result<(), String>) -> Result<(), Error> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut said = String::new();
        let mut complain = |place: &Path, what: String| {
            // Writing to a String can't fail.
            let _ = write!(said, "; {}: {what}", place.display());
        };
        for partition in find::esps() {
            let mounted = match Mounted::new(&partition) {
                Ok(mounted) => mounted,
                Err(error) => {
                    complain(&partition, error.to_string());
                    continue;
                }
            };
            for path in mounted.ukis(&self.version) {
                let taken = File::open(&path).map_err(|error| error.to_string()).and_then(|uki| take(&uki));
                match taken {
                    Ok(()) => return Ok(()),
                    Err(what) => complain(&partition.join(path.file_name().unwrap_or_default()), what),
                }
            }
        }
        Err(Error::NoUki { said })
    }
}

/// Where the module is in the initramfs.
fn file_of(module: &Module) -> String {
    format!("{}/{}", modules::directory(&system::uname().release().to_string_lossy()), module.path)
}

/// Whether the file at `path` is firmware that the module may ask for.
fn is_firmware_of(module: &Module, path: &str) -> bool {
    let Some(name) = path.strip_prefix(FIRMWARE) else { return false };
    let name = name.strip_suffix(".xz").unwrap_or(name);
    module.firmware.iter().any(|pattern| modules::matches(pattern, name))
}

/// Whether the module is in the kernel; what is built in has no such file.
fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).join("initstate").exists()
}

/// An ESP, mounted until dropped.
struct Mounted;

impl Mounted {
    fn new(partition: &Path) -> Result<Self, mount::MountError> {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount::mount("vfat", partition, ESP, flags, "")?;
        Ok(Self)
    }

    /// The UKIs of this version, whatever tries they have left.
    fn ukis(&self, version: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(Path::new(ESP).join(UKIS)).into_iter().flatten().flatten();
        files
            .filter(|file| file.file_name().to_str().is_some_and(|name| is_of(name, version)))
            .map(|file| file.path())
            .collect()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = mount::unmount(ESP, false) {
            log::warn!("{error}");
        }
    }
}

/// `rackstick_<version>.efi`, or with a counter: `rackstick_<version>+3-1.efi`.
fn is_of(name: &str, version: &str) -> bool {
    name.strip_prefix("rackstick_")
        .and_then(|rest| rest.strip_prefix(version)?.strip_suffix(".efi"))
        .is_some_and(|counter| counter.is_empty() || counter.starts_with('+'))
}

/// The files in a UKI's initrd.
fn files(uki: &File) -> Result<Vec<Entry>, String> {
    let place = uki::read::section(uki, ".initrd").map_err(|error| error.to_string())?;
    let entries = Entries::new(uki, place).filter(|entry| entry.as_ref().map_or(true, Entry::is_file));
    entries.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Whether files of these sizes are in a UKI's initrd. Only what is read back is hashed.
fn holds(uki: &File, sizes: &BTreeMap<&str, u64>) -> Result<(), String> {
    let found: BTreeSet<(String, u64)> = files(uki)?
        .into_iter()
        .map(|entry| (format!("/{}", entry.path), entry.content.end - entry.content.start))
        .collect();
    match sizes.iter().find(|(path, size)| !found.contains(&((**path).to_owned(), **size))) {
        Some((path, _)) => Err(format!("it holds no {path} of the same size")),
        None => Ok(()),
    }
}

/// Writes the wanted files from a UKI's initrd below `root`.
fn restore(mut uki: &File, root: &Path, wanted: &[(&str, Sha256)]) -> Result<(), String> {
    let files = files(uki)?;
    for (path, digest) in wanted {
        let relative = path.trim_start_matches('/');
        let entry = files.iter().find(|entry| entry.path == relative).ok_or_else(|| format!("it holds no {path}"))?;
        let size = entry.content.end.saturating_sub(entry.content.start);
        if size > spares::MAX_FILE {
            return Err(format!("its {path} has {size} bytes, more than any real one"));
        }
        let mut content = Vec::new();
        uki.seek(SeekFrom::Start(entry.content.start))
            .and_then(|_| uki.take(size).read_to_end(&mut content))
            .map_err(|error| format!("its {path} can't be read: {error}"))?;
        if spares::digest(&content) != *digest {
            return Err(format!("its {path} is not the one that the rack was started with"));
        }
        write_whole(&root.join(relative), &content).map_err(|error| format!("{path} can't be written: {error}"))?;
    }
    Ok(())
}

/// Writes beside and renames, so that nobody loads half of it.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    fs::write(&beside, content)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rackstick_image::{
        cpio::Writer,
        source::{Source, SourceError},
    };

    use super::*;

    const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

    fn uki(folder: &Path, module: &[u8]) -> File {
        let mut initrd = Writer::new(Vec::new(), 0);
        initrd.bytes("lib/modules/6/a.ko.xz", 0o644, module).unwrap();
        initrd.bytes("lib/firmware/b.bin.xz", 0o644, b"firmware").unwrap();
        let uki = uki::Uki {
            stub: fs::read(STUB).unwrap_or_else(|error| panic!("{STUB}: {error}: run ci/setup")),
            os_release: "ID=rackstick\n".into(),
            cmdline: String::new(),
            uname: "6".into(),
            microcode: None,
            initrd: Source::Bytes(initrd.finish().unwrap()).into(),
            linux: Source::Bytes(vec![1]),
        };
        let path = folder.join("uki.efi");
        let mut file = File::create(&path).unwrap();
        let write = |bytes: &[u8]| {
            file.write_all(bytes).unwrap();
            Ok::<_, SourceError>(())
        };
        uki::make(&uki).unwrap().each(write).unwrap();
        File::open(path).unwrap()
    }

    #[test]
    fn a_dropped_module_comes_back_from_the_uki_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let uki = uki(folder.path(), b"a driver");
        let wanted = [
            ("/lib/modules/6/a.ko.xz", spares::digest(b"a driver")),
            ("/lib/firmware/b.bin.xz", spares::digest(b"firmware")),
        ];
        restore(&uki, folder.path(), &wanted).unwrap();
        assert_eq!(fs::read(folder.path().join("lib/modules/6/a.ko.xz")).unwrap(), b"a driver");
        assert_eq!(fs::read(folder.path().join("lib/firmware/b.bin.xz")).unwrap(), b"firmware");
    }

    #[test]
    fn what_is_not_the_driver_that_the_rack_was_started_with_is_never_written() {
        let folder = tempfile::tempdir().unwrap();
        let uki = uki(folder.path(), b"malware!");
        let error =
            restore(&uki, folder.path(), &[("/lib/modules/6/a.ko.xz", spares::digest(b"a driver"))]).unwrap_err();
        assert!(error.contains("is not the one that the rack was started with"), "{error}");
        assert!(!folder.path().join("lib").exists());
    }

    #[test]
    fn nothing_is_dropped_that_the_uki_does_not_hold() {
        let folder = tempfile::tempdir().unwrap();
        let uki = uki(folder.path(), b"a driver");
        assert_eq!(
            holds(&uki, &BTreeMap::from([("/lib/modules/6/a.ko.xz", 8), ("/lib/firmware/b.bin.xz", 8)])),
            Ok(())
        );
        for missing in [("/lib/modules/6/a.ko.xz", 9), ("/lib/modules/6/c.ko.xz", 8)] {
            assert!(holds(&uki, &BTreeMap::from([missing])).unwrap_err().contains(missing.0));
        }
    }

    #[test]
    fn a_uki_is_known_by_its_version_whatever_tries_it_has_left() {
        for name in ["rackstick_1.2.efi", "rackstick_1.2+3.efi", "rackstick_1.2+2-1.efi"] {
            assert!(is_of(name, "1.2"), "{name}");
        }
        for name in ["rackstick_1.20.efi", "rackstick_1.efi", "rackstick_1.2.efi.new", "other_1.2.efi"] {
            assert!(!is_of(name, "1.2"), "{name}");
        }
    }

    fn module(name: &str, firmware: &[&str]) -> Module {
        Module {
            name: name.into(),
            path: format!("kernel/{name}.ko.xz"),
            depends: Vec::new(),
            soft_before: Vec::new(),
            soft_after: Vec::new(),
            weak: Vec::new(),
            firmware: firmware.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn what_is_dropped_is_nothing_of_a_driver_that_is_being_loaded() {
        let root = tempfile::tempdir().unwrap();
        let [comes, spare] = [module("test_comes", &["comes.bin"]), module("test_spare", &["spare.bin", "comes.bin"])];
        let files = [file_of(&comes), file_of(&spare)].into_iter();
        let firmware = ["comes.bin", "spare.bin"].map(|name| format!("{FIRMWARE}{name}.xz"));
        let mut list = Spares::default();
        files.chain(firmware).for_each(|path| list.add(path, b"content"));
        let store = Store::below(root.path().into(), list, "1");
        for path in store.list.paths() {
            write_whole(&store.path(path), b"content").unwrap();
        }
        let sizes: BTreeMap<&str, u64> = store.list.paths().map(|path| (path, 7)).collect();
        // Between the moment when a driver is wanted and that when the kernel has it, and asks for its firmware.
        assert_eq!(store.want(&comes), []);
        assert_eq!(store.remove(&[comes.clone(), spare.clone()], &sizes).unwrap(), 14);
        assert_eq!(store.want(&comes), []);
        // Another that is wanted now has to be read back, with all that it may ask for.
        let missing: Vec<String> = store.want(&spare).into_iter().map(|(path, _)| path.to_owned()).collect();
        assert_eq!(missing, [format!("{FIRMWARE}spare.bin.xz"), file_of(&spare)]);
    }

    #[test]
    fn a_driver_keeps_its_own_firmware_only() {
        let module = module("r8169", &["rtl_nic/rtl8168h-2.fw", "rtl_nic/rtl81??a-*.fw"]);
        for path in ["/lib/firmware/rtl_nic/rtl8168h-2.fw.xz", "/lib/firmware/rtl_nic/rtl8125a-3.fw"] {
            assert!(is_firmware_of(&module, path), "{path}");
        }
        for path in ["/lib/firmware/tigon/tg3.bin.xz", "/lib/modules/rtl_nic/rtl8168h-2.fw"] {
            assert!(!is_firmware_of(&module, path), "{path}");
        }
    }
}
