//! Loading kernel modules by name or alias with what they need, by finit_module(2) from the compressed files as the
//! kernel package ships them. Also the work of `/sbin/modprobe`, which the kernel itself calls.

use std::{
    collections::HashSet,
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

/// Puts the files of a module that is not in memory any more back to where they were; the text says why it can't.
pub type ReadBack = Box<dyn Fn(&Module) -> Result<(), String> + Send + Sync>;

/// Loads modules. Can be used by several threads at once: the kernel lets each module be loaded by one of them.
pub struct Loader {
    directory: PathBuf,
    index: Index,
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
        Ok(Self { directory: format::directory(release).into(), index, loaded: Mutex::default(), read_back: None })
    }

    /// Has `read_back` called for every module whose file is gone, before it is loaded.
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
        for module in self.index.closure(&[&target.name])? {
            if let Err(error) = self.load_one(module) {
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

    fn load_one(&self, module: &Module) -> Result<(), LoadError> {
        if self.known(&module.name) {
            return Ok(());
        }
        // The kernel would decompress the whole file before it says that it has the module already.
        if !is_live(&module.name) {
            let path = self.directory.join(&module.path);
            if let Some(read_back) = self.read_back.as_ref().filter(|_| !path.exists()) {
                read_back(module).map_err(|reason| LoadError::Absent { module: module.name.clone(), reason })?;
            }
            let started = Instant::now();
            match insert(&path) {
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

/// Whether the module has finished loading. Without `/sys` the answer is no, and the kernel decides.
fn is_live(name: &str) -> bool {
    fs::read(Path::new("/sys/module").join(name).join("initstate")).is_ok_and(|state| state.starts_with(b"live"))
}

fn insert(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let flags = match path.extension() {
        Some(extension) if extension == "ko" => 0,
        _ => COMPRESSED_FILE,
    };
    Ok(system::finit_module(&file, c"", flags)?)
}

/// What `/sbin/modprobe` does when the kernel calls it: `modprobe -q -- NAME`. `arguments` are those after the program's
/// name. Says what failed in the kernel's log, as nobody reads its output.
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
