//! Loading kernel modules by name or alias with what they need, by finit_module(2) from the compressed files as the
//! kernel package ships them. Also the work of `/sbin/modprobe`, which the kernel itself calls.

use std::{
    collections::HashSet,
    ffi::CStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use rackstick_image::modules::{self as format, Index, Module, ParseError, ResolveError};
use rustix::{io::Errno, system};

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h: the kernel decompresses the file itself.
const COMPRESSED_FILE: i32 = 4;

/// The parameter by which a module is done with its own start, and does not wait for all devices that are being started
/// side by side (kernel/module/main.c, `do_init_module`).
const ALONE: &CStr = c"async_probe";
/// What aliases of devices begin with their bus and a colon; these begin with other things.
const NO_BUSES: [&str; 2] = ["cpu:", "devname:"];

/// Sees to it that a module's files are where it is loaded from, before it is loaded: those that are not in memory any
/// more are put back, and none goes before the module is in the kernel. The text says why it can't.
pub type ReadBack = Box<dyn Fn(&Module) -> Result<(), String> + Send + Sync>;

/// Loads modules. Can be used by several threads at once: the kernel lets each module be loaded by one of them.
pub struct Loader {
    directory: PathBuf,
    index: Index,
    /// Names of those that drive devices.
    drivers: HashSet<String>,
    /// Names that need no second look.
    loaded: Mutex<HashSet<String>>,
    read_back: Option<ReadBack>,
}

/// Why modules can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The index can't be read.
    #[error("can't read the module index {}: {source}; the initrd must hold the index for the kernel that runs", path.display())]
    NoIndex {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The index is damaged.
    #[error("{}: {source}", path.display())]
    BadIndex {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The name leads nowhere.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Its file is not there, and can't be had.
    #[error("kernel module {module} can't be had: {reason}")]
    Absent {
        /// The module.
        module: String,
        /// Why.
        reason: String,
    },
    /// The kernel refused it.
    #[error("can't load kernel module {module} from {}: {source}; `dmesg` says more", path.display())]
    Refused {
        /// The module.
        module: String,
        /// Its file.
        path: PathBuf,
        /// What the kernel says. ENODEV: there is no device for it.
        source: io::Error,
    },
}

impl LoadError {
    /// Whether the module's file can't be had now, and may be had later.
    pub fn is_absent(&self) -> bool {
        matches!(self, LoadError::Absent { .. })
    }

    /// Whether the module is fine and only its hardware is not there (`kvm_intel` on an AMD processor).
    pub fn is_no_device(&self) -> bool {
        matches!(self, LoadError::Refused { source, .. }
            if [Errno::NODEV, Errno::NXIO, Errno::OPNOTSUPP].contains(&Errno::from_io_error(source).unwrap_or(Errno::IO)))
    }
}

impl Loader {
    /// The loader for the kernel that runs.
    ///
    /// # Errors
    /// [`LoadError::NoIndex`], [`LoadError::BadIndex`].
    pub fn open() -> Result<Self, LoadError> {
        Self::open_release(&system::uname().release().to_string_lossy())
    }

    fn open_release(release: &str) -> Result<Self, LoadError> {
        let path = PathBuf::from(format::path(release));
        let text = fs::read_to_string(&path).map_err(|source| LoadError::NoIndex { path: path.clone(), source })?;
        let index = Index::parse(&text).map_err(|source| LoadError::BadIndex { path, source })?;
        let directory = format::directory(release).into();
        Ok(Self { directory, drivers: drivers(&index), index, loaded: Mutex::default(), read_back: None })
    }

    /// Has `read_back` called for every module before it is loaded.
    pub fn with_read_back(mut self, read_back: ReadBack) -> Self {
        self.read_back = Some(read_back);
        self
    }

    /// The index it loads by.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Loads the module `name`, or all modules with an alias that matches it, with what they need. What is loaded
    /// already or built in counts as loaded. Soft dependencies that fail are logged, not errors.
    ///
    /// # Errors
    /// [`LoadError`] if nothing is called so, or for the first that failed, after all others have been tried.
    pub fn load(&self, name: &str) -> Result<(), LoadError> {
        let targets = self.index.resolve(name)?;
        let mut first_failure = None;
        for target in targets {
            if let Err(error) = self.load_with_dependencies(target) {
                first_failure.get_or_insert(error);
            }
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// Loads what drives the device with this modalias; nothing in the index drives it: nothing to do.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn load_modalias(&self, modalias: &str) -> Result<(), LoadError> {
        match self.load(modalias) {
            Err(LoadError::Resolve(ResolveError::Unknown { .. })) => Ok(()),
            other => other,
        }
    }

    fn load_with_dependencies(&self, target: &Module) -> Result<(), LoadError> {
        let mut failures = Vec::new();
        let mut target_failed = false;
        // What drives no device brings none that somebody waits for, and must not wait for others' devices; nor for
        // those of what it only needs to be there.
        let parameters = if self.drivers.contains(&target.name) { c"" } else { ALONE };
        for module in self.index.closure(&[&target.name])? {
            let parameters = if self.drivers.contains(&module.name) { parameters } else { ALONE };
            if let Err(error) = self.load_one(module, parameters) {
                target_failed |= module.name == target.name;
                failures.push(error);
            }
        }
        if target_failed {
            // The first is the cause: what depends on it fails after it for want of its symbols.
            return failures.into_iter().next().map_or(Ok(()), Err);
        }
        for failure in failures {
            log::debug!("{failure}; {} runs without it", target.name);
        }
        Ok(())
    }

    fn load_one(&self, module: &Module, parameters: &CStr) -> Result<(), LoadError> {
        if self.known(&module.name) {
            return Ok(());
        }
        // The kernel would decompress the whole file before it says that it has the module already.
        if !is_live(&module.name) {
            let path = self.directory.join(&module.path);
            let absent = |reason| LoadError::Absent { module: module.name.clone(), reason };
            if let Some(read_back) = &self.read_back {
                read_back(module).map_err(absent)?;
            }
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(absent(format!("{} is not there", path.display())));
                }
                other => other,
            };
            let started = Instant::now();
            match file.and_then(|file| insert(&file, &path, parameters)) {
                Ok(()) => log::debug!("loaded {} in {} ms", module.name, started.elapsed().as_millis()),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {}
                Err(source) => return Err(LoadError::Refused { module: module.name.clone(), path, source }),
            }
        }
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(module.name.clone());
        Ok(())
    }

    fn known(&self, name: &str) -> bool {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

/// The names of all modules that drive devices, by their aliases.
fn drivers(index: &Index) -> HashSet<String> {
    let of_device = |alias: &str| alias.contains(':') && !NO_BUSES.iter().any(|other| alias.starts_with(other));
    let mut drivers = HashSet::new();
    for (_, module) in index.aliases().filter(|(alias, _)| of_device(alias)) {
        // A driver has up to some hundred aliases.
        if let Some(module) = module.filter(|module| !drivers.contains(&module.name)) {
            drivers.insert(module.name.clone());
        }
    }
    drivers
}

/// Whether the module has finished loading. Without `/sys` the answer is no, and the kernel decides.
fn is_live(name: &str) -> bool {
    fs::read(Path::new("/sys/module").join(name).join("initstate")).is_ok_and(|state| state.starts_with(b"live"))
}

fn insert(file: &File, path: &Path, parameters: &CStr) -> io::Result<()> {
    let flags = match path.extension() {
        Some(extension) if extension == "ko" => 0,
        _ => COMPRESSED_FILE,
    };
    Ok(system::finit_module(file, parameters, flags)?)
}

/// What `/sbin/modprobe` does when the kernel calls it: `modprobe -q -- NAME`. `arguments` are those after the
/// program's name. Says what failed in the kernel's log, as nobody reads its output.
pub fn modprobe(arguments: impl Iterator<Item = String>) -> ExitCode {
    let names: Vec<String> = arguments.filter(|argument| !argument.starts_with('-')).collect();
    let loader = match Loader::open() {
        Ok(loader) => loader,
        Err(error) => {
            log::error!("modprobe: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match loader.load(&name) {
            Ok(()) => {}
            // The kernel asks for many names that nobody has (`net-pf-10-proto-0-type-2`): not worth a line.
            Err(LoadError::Resolve(ResolveError::Unknown { .. })) => code = ExitCode::FAILURE,
            Err(error) => {
                log::warn!("modprobe {name}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use rackstick_image::modules::ModuleInfo;

    use super::*;

    #[test]
    fn what_drives_no_device_waits_for_none() {
        let info = |name: &str, aliases: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let module = Module {
                name: name.into(),
                path: format!("{name}.ko.xz"),
                depends: Vec::new(),
                soft_before: Vec::new(),
                soft_after: Vec::new(),
                weak: Vec::new(),
                firmware: Vec::new(),
            };
            ModuleInfo { module, aliases: names(aliases), release: "6".into() }
        };
        // As the kernel has them.
        let index = Index::new(
            vec![
                info("ahci", &["pci:v00008086d00002922sv*sd*bc*sc*i*", "pci:v*d*sv*sd*bc01sc06i01*"]),
                info("virtio_net", &["virtio:d00000001v*"]),
                info("sd_mod", &["block-major-8-*", "scsi:t-0x00*"]),
                info("libata", &[]),
                info("kvm_amd", &["cpu:type:x86,ven*fam*mod*:feature:*00C2*"]),
                info("tun", &["devname:net/tun", "char-major-10-200"]),
                info("ext4", &["fs-ext4", "crypto-crc32c"]),
            ],
            "",
            b"",
        );
        let mut found: Vec<String> = drivers(&index).into_iter().collect();
        found.sort();
        assert_eq!(found, ["ahci", "sd_mod", "virtio_net"]);
    }
}
