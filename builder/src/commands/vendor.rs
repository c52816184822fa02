//! `rackstick vendor DIR RECIPE`: copies a lock's packages, and its images of registries, into a folder, from which the
//! rack can be built for ever: archives drop old versions.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Seek},
    path::{Path, PathBuf},
};

use rackstick_image::{digest::Sha256, recipe};
use serde::Serialize;

use super::MirrorArgs;
use crate::{
    archive, lock, output,
    parallel::each,
    progress::Progress,
    registry, report,
    store::{Store, Want},
};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick vendor vendor recipes/lab.toml\n",
    "  rackstick vendor /srv/debs recipes/lab.toml --mirror http://HOST/archive/debian/20261121T091544Z\n",
);

/// Copy a lock's packages, and its images of registries, into a folder, to build from it later
///
/// The folder gets the layout of Debian's archives, with `registry` beside them, and may serve several recipes. What is
/// in it already is checked and kept.
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
    #[error("can't copy {name} to {}: {source}", .path.display())]
    Io { name: String, path: PathBuf, source: io::Error },
    #[error("{name} changed in the store while it was copied; run this again")]
    Changed { name: String },
}

/// Copies.
pub fn run(args: &Args) -> Result<(), report::Error> {
    let progress = Progress::stderr();
    let rack = recipe::load(&args.recipe)?;
    let store = Store::open()?;
    let lock = lock::for_build(&args.recipe, &rack, &args.from.mirror, &store, &progress)?;
    archive::obtain(&lock, &args.from.mirrors(&lock)?, &store, &progress)?;
    registry::obtain(lock.inputs.values(), &args.from.mirror, &store, &progress)?;
    let mut wanted: Vec<Want> = archive::wants(&lock);
    let packages = wanted.len();
    wanted.extend(lock.inputs.values().flat_map(registry::wants));
    let what = format!("{} files", wanted.len());
    let job = progress.bytes("copying", &what, wanted.iter().map(|want| want.size).sum());
    let copied = each(&wanted, |want| {
        let copied = copy(&args.folder, want, &store.path(want.sha256));
        job.advance(want.size);
        copied
    });
    let copied = copied.into_iter().collect::<Result<Vec<bool>, _>>()?.into_iter().filter(|copied| *copied).count();
    job.done(&what);
    let files = wanted.len();
    output::result(&Vendored { folder: &args.folder, recipe: &args.recipe, packages, files, copied })?;
    Ok(())
}

/// What is in the folder now.
#[derive(Serialize)]
struct Vendored<'a> {
    folder: &'a Path,
    recipe: &'a Path,
    packages: usize,
    /// The packages, and the files of images of registries.
    files: usize,
    /// How many of the files were not there yet.
    copied: usize,
}

impl fmt::Display for Vendored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (folder, recipe) = (self.folder.display(), self.recipe.display());
        match self.files - self.packages {
            0 => write!(f, "{folder}: {} packages, of which", self.packages)?,
            others => write!(f, "{folder}: {} packages and {others} files of registries, of which", self.packages)?,
        }
        writeln!(f, " {} are new", self.copied)?;
        write!(f, "Build from it with: rackstick build --mirror {folder} {recipe}")
    }
}

/// Copies one file, unless it is there; whether it had to. The lock's paths were checked when it was read.
fn copy(folder: &Path, want: &Want, stored: &Path) -> Result<bool, VendorError> {
    let path = folder.join(&want.archive).join(&want.path);
    let failed = |source| VendorError::Io { name: want.name.clone(), path: path.clone(), source };
    let there = match File::open(&path) {
        Ok(file) => Sha256::of_reader(file).map_err(failed)? == want.sha256,
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
        io::copy(&mut File::open(stored)?, beside.as_file_mut())?;
        beside.rewind()?;
        let right = Sha256::of_reader(beside.as_file())? == want.sha256;
        if right {
            beside.as_file().sync_all()?;
            beside.persist(&path)?;
        }
        Ok(right)
    };
    if write().map_err(failed)? { Ok(true) } else { Err(VendorError::Changed { name: want.name.clone() }) }
}
