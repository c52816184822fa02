//! The work of a stage, done as root of its own user namespace and as PID 1 of its own PID namespace: whatever a script
//! leaves running ends with it.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
};

use rackstick_image::{
    erofs::{self, Origin, ScanOptions, WriteOptions},
    full,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{
    super::{
        accounts, clean,
        configure::{Configure, failed},
        database,
        deb::{self, Control},
        generators, guest,
        order::{self, Wave},
        paths::MERGED,
        place::place,
        region, sum,
        tree::Tree,
        unpack::{self, Existing, Listing, Opened},
    },
    again::{self, Diary},
    namespaces,
    protocol::{Failure, Mistakes, Package, Request, Task, Written},
};

/// Where a kernel's modules live in its package and in its layer.
const MODULES: &str = "usr/lib/modules";
/// The folder in a stage's own one where what it changes is left.
const UPPER: &str = "upper";
/// Folders that programs need and that the package base-files ships.
const MOUNT_POINTS: [&str; 4] = ["dev", "proc", "run", "tmp"];

/// A task that is being done.
pub struct Work<'a> {
    /// The whole request.
    pub request: &'a Request,
    /// What is told about progress.
    pub step: &'a dyn Fn(String),
    /// What was told, and when.
    pub diary: &'a Diary,
}

impl Work<'_> {
    /// Does the task. If it fails, what it made is removed.
    pub fn run(&self) -> Result<Option<Written>, Failure> {
        let (result, useless): (Result<Written, Failure>, Vec<&Path>) = match &self.request.task {
            Task::Base { root, packages, out } => match self.base(root, packages, out) {
                Ok(written) if self.request.again.is_none() => (Ok(written), vec![]),
                result => (result, vec![root, out]),
            },
            Task::Packages { base, tree, work, packages, out } => {
                let fill = |configure: &Configure<'_>| {
                    self.install(configure, packages, false)?;
                    clean::clean(configure.tree, &BTreeSet::new()).map_err(failed("cleaning"))
                };
                match self.above(&[base], tree, work, out, &fill) {
                    Ok(written) if self.request.again.is_none() => (Ok(written), vec![work]),
                    result => (result, vec![tree, work, out]),
                }
            }
            Task::Image { below, work, files, changes, out, .. } => {
                let fill = |configure: &Configure<'_>| {
                    let mut mistakes = Mistakes::default();
                    mistakes.note(accounts::add(configure.tree, changes, self.request.epoch))?;
                    if let Some(zone) = &changes.timezone {
                        mistakes.note(region::set_timezone(configure.tree, zone))?;
                    }
                    if let Some(locale) = &changes.locale {
                        mistakes.note(configure.set_locale(locale))?;
                    }
                    // Before the recipe's own files come: what it asks for stays, whatever it is.
                    clean::clean(configure.tree, &BTreeSet::new()).map_err(failed("cleaning"))?;
                    mistakes.note(place(configure.tree, files))?;
                    if !changes.commands.is_empty() {
                        // They stand on all that.
                        mistakes.tell()?;
                        changes.commands.iter().try_for_each(|command| configure.command(command))?;
                        let asked = files.iter().map(|file| file.path.as_path()).collect();
                        clean::clean(configure.tree, &asked).map_err(failed("cleaning"))?;
                    }
                    mistakes.note(configure.enable(&changes.services))?;
                    mistakes.tell()
                };
                let below: Vec<&Path> = below.iter().map(PathBuf::as_path).collect();
                match self.above(&below, &work.join(UPPER), work, out, &fill) {
                    Ok(written) if self.request.again.is_none() => (Ok(written), vec![work]),
                    result => (result, vec![work, out]),
                }
            }
            Task::Kernel { base, work, package, out } => match self.kernel(base, work, package, out) {
                Ok(written) if self.request.again.is_none() => (Ok(written), vec![work]),
                result => (result, vec![work, out]),
            },
            Task::Remove { trees } => {
                trees.iter().try_for_each(|tree| remove(tree))?;
                return Ok(None);
            }
        };
        let removed = useless.into_iter().try_for_each(remove);
        // The first failure is the one that matters.
        let written = result?;
        removed.map(|()| Some(written))
    }

    fn base(&self, root: &Path, packages: &[Package], out: &Path) -> Result<Written, Failure> {
        make_folder(root)?;
        let tree = Tree::open(root).map_err(failed(&shown(root)))?;
        for name in MERGED {
            let made = tree.create_dirs(&Path::new("/usr").join(name), &mut |_| ());
            made.map_err(failed("/usr"))?;
            tree.symlink(&Path::new("usr").join(name), &Path::new("/").join(name)).map_err(failed(name))?;
        }
        let configure = self.configure(&tree, root);
        self.install(&configure, packages, true)?;
        guest::prepare(&tree).map_err(failed("the base's own files"))?;
        clean::clean(&tree, &BTreeSet::new()).map_err(failed("cleaning"))?;
        guest::mark_updated(&tree, self.request.epoch).map_err(failed("/etc/.updated"))?;
        namespaces::end_all_others().map_err(failed("ending what the scripts left running"))?;
        self.write(root, Origin::Plain, out, &[root])
    }

    /// Writes what `fill` changes in an overlay of the trees `below`, highest first; that is left in `upper`.
    fn above(
        &self,
        below: &[&Path],
        upper: &Path,
        work: &Path,
        out: &Path,
        fill: &dyn Fn(&Configure<'_>) -> Result<(), Failure>,
    ) -> Result<Written, Failure> {
        let merged = self.overlay(below, upper, work)?;
        let filled = || -> Result<(), Failure> {
            let tree = Tree::open(&merged).map_err(failed(&shown(&merged)))?;
            fill(&self.configure(&tree, &merged))
        };
        let result = filled();
        namespaces::end_all_others().map_err(failed("ending what the scripts left running"))?;
        // Else nothing of it can be removed.
        unmount(&merged, UnmountFlags::empty()).map_err(|error| failed("unmounting the overlay")(error.into()))?;
        result?;
        let trees = [&[upper], below].concat();
        self.write(upper, Origin::OverlayUpper, out, &trees)
    }

    fn kernel(&self, base: &Path, work: &Path, package: &Package, out: &Path) -> Result<Written, Failure> {
        // Unpacked before the overlay is mounted: folders made under it would be opaque and hide those of other layers.
        let folder = work.join(UPPER);
        make_folder(&folder)?;
        let upper = Tree::open(&folder).map_err(failed(UPPER))?;
        (self.step)(format!("unpacking {}", package.name));
        let opened = open(std::slice::from_ref(package))?;
        let existing = Existing { diversions: Default::default(), owners: &|| Ok(Default::default()) };
        let modules = |path: &Path| path.starts_with(MODULES);
        unpack::unpack(&upper, &opened, &existing, 1, &modules).map_err(|error| full_or_other(&error))?;
        let versions = upper.entries(Path::new(MODULES)).map_err(failed(MODULES))?;
        let [(version, _)] = versions.as_slice() else {
            return Err(Failure::Other(format!(
                "package {} holds modules of {} kernels, not of one",
                package.name,
                versions.len()
            )));
        };
        let version = version.to_string_lossy().into_owned();
        self.above(&[base], &folder, work, out, &|configure| configure.depmod(&version))
    }

    fn configure<'a>(&'a self, tree: &'a Tree, root: &'a Path) -> Configure<'a> {
        let packages: Vec<&str> = match &self.request.task {
            Task::Base { packages, .. } | Task::Packages { packages, .. } => {
                packages.iter().map(|package| package.name.as_str()).collect()
            }
            Task::Image { packages, .. } => packages.iter().map(String::as_str).collect(),
            Task::Kernel { .. } | Task::Remove { .. } => Vec::new(),
        };
        let generators = generators::of(packages.iter().copied());
        let clock = self.request.again.as_ref().map(|again| again.clock.as_path());
        Configure { tree, root, epoch: self.request.epoch, clock, generators, step: self.step }
    }

    /// Mounts the trees `below`, highest first, below the folder `upper`.
    fn overlay(&self, below: &[&Path], upper: &Path, work: &Path) -> Result<PathBuf, Failure> {
        let (overlay, merged) = (work.join("overlay"), work.join("merged"));
        [upper, &overlay, &merged].into_iter().try_for_each(make_folder)?;
        // By descriptors: mount options have no sure way to hold a path with a comma or a colon.
        let open = |path: &Path| File::open(path).map_err(failed(&shown(path)));
        let below = below.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
        let (upper, overlay) = (open(upper)?, open(&overlay)?);
        let name = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        let options = format!(
            "lowerdir={},upperdir={},workdir={},userxattr,volatile",
            below.iter().map(name).collect::<Vec<_>>().join(":"),
            name(&upper),
            name(&overlay)
        );
        let options = CString::new(options).map_err(|error| failed("overlay")(error.into()))?;
        mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str()).map_err(|error| {
            Failure::Other(format!(
                "an overlay can't be mounted in {} ({error}): layers need an ext4, xfs, btrfs or tmpfs folder and Linux 5.11; \
                 XDG_CACHE_HOME names another one",
                work.display()
            ))
        })?;
        Ok(merged)
    }

    fn install(&self, configure: &Configure<'_>, packages: &[Package], bootstrap: bool) -> Result<(), Failure> {
        let mut opened: Vec<Option<Opened>> = open(packages)?.into_iter().map(Some).collect();
        database::create(configure.tree).map_err(failed(database::ADMIN))?;
        let waves = if bootstrap {
            // Nothing on an empty system can run a script before all is unpacked.
            vec![Wave { unpack: (0..opened.len()).collect(), configure: Vec::new() }]
        } else {
            order::waves(&opened.iter().flatten().map(|package| &package.control).collect::<Vec<_>>())
        };
        let last = waves.len().saturating_sub(1);
        for (number, wave) in waves.into_iter().enumerate() {
            let now: Vec<Opened> = wave.unpack.iter().filter_map(|index| opened[*index].take()).collect();
            self.unpack(configure, &now, bootstrap)?;
            let named: Vec<&str> = wave.configure.iter().map(|index| packages[*index].name.as_str()).collect();
            if bootstrap {
                configure.configure_first(now.iter().map(|package| &package.control))?;
            }
            configure.configure(if number == last { &["-a"] } else { named.as_slice() })?;
        }
        configure.defer_generators()
    }

    fn unpack(&self, configure: &Configure<'_>, packages: &[Opened], bootstrap: bool) -> Result<(), Failure> {
        let tree = configure.tree;
        let controls = || packages.iter().map(|package| &package.control);
        let database = failed(database::ADMIN);
        // On a running system the preinst comes first: it may divert what is in the way.
        if !bootstrap {
            configure.preinst(controls())?;
        }
        (self.step)(format!("unpacking {} packages", packages.len()));
        let existing =
            Existing { diversions: database::diversions(tree).map_err(&database)?, owners: &|| database::owners(tree) };
        let listings = unpack::unpack(tree, packages, &existing, self.request.threads, &|_| true);
        let listings: Vec<Listing> = listings.map_err(|error| full_or_other(&error))?;
        for point in MOUNT_POINTS {
            tree.create_dirs(Path::new(point), &mut |_| ()).map_err(failed(point))?;
        }
        let unpacked: Vec<(&Control, &Listing)> = controls().zip(&listings).collect();
        database::add_unpacked(tree, &unpacked).map_err(&database)?;
        if bootstrap { configure.preinst(controls()) } else { Ok(()) }
    }

    /// Writes what is in a folder. `trees` are that and those below it, by which files' owners are found.
    fn write(&self, folder: &Path, origin: Origin, out: &Path, trees: &[&Path]) -> Result<Written, Failure> {
        (self.step)("writing the layer".to_owned());
        let said = |error: &(dyn std::error::Error + 'static)| full_or_other(error);
        let options = ScanOptions { clamp_mtime: Some(self.request.epoch), origin };
        let tree = erofs::scan(folder, &options).map_err(|error| said(&error))?;
        let file = File::create_new(out).map_err(failed(&shown(out)))?;
        let build_time = erofs::Mtime::from_seconds(self.request.epoch);
        erofs::write(&tree, &file, &WriteOptions { build_time, ..WriteOptions::default() })
            .map_err(|error| said(&error))?;
        let written = sum::of(out).map_err(failed(&shown(out)))?;
        if let Some(again) = &self.request.again {
            again::judge(&again.first, out, trees, self.diary)?;
        }
        Ok(written)
    }
}

fn open(packages: &[Package]) -> Result<Vec<Opened>, Failure> {
    packages
        .iter()
        .map(|package| {
            let file = File::open(&package.deb).map_err(failed(&shown(&package.deb)))?;
            let control = deb::control(&file).map_err(|error| {
                Failure::Other(format!("package {} ({}) {error}", package.name, package.deb.display()))
            })?;
            Ok(Opened { deb: file, control })
        })
        .collect()
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    let make = || {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
    };
    make().map_err(failed(&shown(path)))
}

fn remove(path: &Path) -> Result<(), Failure> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&shown(path))(error)),
        _ => Ok(()),
    }
}

/// An error that says of what it is.
fn full_or_other(error: &(dyn std::error::Error + 'static)) -> Failure {
    if full::is_behind(error) { Failure::NoSpace(error.to_string()) } else { Failure::Other(error.to_string()) }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
