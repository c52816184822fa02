//! `rackstick vendor DIR RECIPE`: copies a lock's packages into a folder, from which the rack can be built for ever: archives drop
//! old versions.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Seek},
    path::{Path, PathBuf},
};

use rackstick_image::{digest::Sha256, lock::Package, recipe};
use serde::Serialize;

use super::MirrorArgs;
use crate::{archive, lock, output, parallel::each, progress::Progress, report, store::Store};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick vendor vendor recipes/lab.toml\n",
    "  rackstick vendor /srv/debs recipes/lab.toml --mirror http://HOST/archive/debian/20261121T091544Z\n",
);

/// Copy a lock's packages into a folder, to build from it later
///
/// The folder gets the layout of Debian's archives, and may serve several recipes. What is in it already is checked and kept.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The folder; it is made if need be
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The rack recipe
    recipe: PathBuf,
    #[command(flatten)]
    from: MirrorArgs,
}

/// A package that can't be copied.
#[derive(Debug, thiserror::Error)]
enum VendorError {
    #[error("can't copy the package {name} to {}: {source}", .path.display())]
    Io { name: String, path: PathBuf, source: io::Error },
    #[error("the package {name} changed in the store while it was copied; run this again")]
    Changed { name: String },
}

/// Copies.
pub fn run(args: &Args) -> Result<(), report::Error> {
    let progress = Progress::stderr();
    let rack = recipe::load(&args.recipe)?;
    let store = Store::open()?;
    let lock = lock::for_build(&args.recipe, &rack, &args.from.mirror, &store, &progress)?;
    archive::obtain(&lock, &args.from.mirrors(&lock)?, &store, &progress)?;
    let packages = archive::places(&lock, &store);
    let wanted: Vec<(&String, &Package, &PathBuf)> =
        packages.iter().filter_map(|(name, deb)| Some((name, lock.packages.get(name)?, deb))).collect();
    let job =
        progress.bytes("copying", &format!("{} packages", wanted.len()), wanted.iter().map(|(_, p, _)| p.size).sum());
    let copied = each(&wanted, |(name, package, deb)| {
        let copied = copy(&args.folder, name, package, deb);
        job.advance(package.size);
        copied
    });
    let copied = copied.into_iter().collect::<Result<Vec<bool>, _>>()?.into_iter().filter(|copied| *copied).count();
    job.done(&format!("{} packages", wanted.len()));
    output::result(&Vendored { folder: &args.folder, recipe: &args.recipe, packages: wanted.len(), copied })?;
    Ok(())
}

/// What is in the folder now.
#[derive(Serialize)]
struct Vendored<'a> {
    folder: &'a Path,
    recipe: &'a Path,
    packages: usize,
    copied: usize,
}

impl fmt::Display for Vendored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (folder, recipe) = (self.folder.display(), self.recipe.display());
        writeln!(f, "{folder}: {} packages, of which {} are new", self.packages, self.copied)?;
        write!(f, "Build from it with: rackstick build --mirror {folder} {recipe}")
    }
}

/// Copies one package, unless it is there; whether it had to. The lock's paths were checked when it was read.
fn copy(folder: &Path, name: &str, package: &Package, deb: &Path) -> Result<bool, VendorError> {
    let path = folder.join(&package.archive).join(&package.path);
    let failed = |source| VendorError::Io { name: name.to_owned(), path: path.clone(), source };
    let there = match File::open(&path) {
        Ok(file) => Sha256::of_reader(file).map_err(failed)? == package.sha256,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(failed(error)),
    };
    if there {
        return Ok(false);
    }
    let write = || -> io::Result<bool> {
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)?;
        let mut beside = tempfile::Builder::new()
            .prefix(".rackstick-vendor-")
            // As for any new file, the umask has the last word.
            .permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666))
            .tempfile_in(parent)?;
        // The kernel copies, or shares the blocks where the file system can; what is there then is what counts.
        io::copy(&mut File::open(deb)?, beside.as_file_mut())?;
        beside.rewind()?;
        let right = Sha256::of_reader(beside.as_file())? == package.sha256;
        if right {
            beside.as_file().sync_all()?;
            beside.persist(&path)?;
        }
        Ok(right)
    };
    if write().map_err(failed)? { Ok(true) } else { Err(VendorError::Changed { name: name.to_owned() }) }
}
