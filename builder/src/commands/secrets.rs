//! `rackstick secrets DIR DISK`: gives secrets to a rack that is there already, on a disk or in an image.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    artifacts,
    flash::{self, Refusal, System, Target},
    image, output, report,
    secrets::{Filling, SecretsError, Wanted},
};

/// What its help ends with.
const EXAMPLES: &str =
    concat!("Examples:\n", "  rackstick secrets secrets sdb\n", "  rackstick secrets secrets out/lab_2026.11.1.img\n",);

/// Give secrets to a rack that is there already
///
/// Nothing else on the disk is changed: its guests' volumes stay, and so do secrets that are not given again. The rack,
/// which must be switched off, takes them over at its next start.
///
/// An image that was given secrets is no longer what was built: its block map, its compressed form, SBOM and provenance
/// are removed, and the next build replaces it by one without any.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// A folder with the secrets that guests want, as files `<guest>/<secret>`
    folder: PathBuf,
    /// The disk, like sdb or /dev/sdb, or an image that is run with --persist
    disk: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum GiveError {
    #[error("{disk} can't be written to: {source}")]
    Refused { disk: String, source: Refusal },
}

/// What was given.
#[derive(Serialize)]
struct Given<'a> {
    disk: &'a Path,
    /// As `guest/secret`.
    secrets: Vec<String>,
}

impl fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the rack on it takes over {} at its next start", self.disk.display(), self.secrets.join(", "))
    }
}

/// Gives them.
pub fn run(args: &Args) -> Result<(), report::Error> {
    let secrets = if args.disk.is_file() {
        let (filling, names) = filling(&args.disk, &args.folder)?;
        artifacts::clear(&args.disk)?;
        filling.write(&args.disk)?;
        names
    } else {
        let system = System::this();
        let disk = system.find(&args.disk)?;
        // From here on nobody mounts it.
        let target = Target::open(&disk);
        if let Some(source) = flash::refusal(&system, &disk, None)? {
            return Err(GiveError::Refused { disk: disk.name, source }.into());
        }
        let (filling, names) = filling(&disk.node, &args.folder)?;
        flash::give(&filling, &target?)?;
        names
    };
    output::result(&Given { disk: &args.disk, secrets })?;
    Ok(())
}

/// What goes into the slot of an image or a disk, and what of that is new, as `guest/secret`.
fn filling(disk: &Path, folder: &Path) -> Result<(Filling, Vec<String>), SecretsError> {
    let wanted = Wanted::of(&image::Disk::open(disk)?)?.ok_or_else(|| SecretsError::NoSlot(disk.to_owned()))?;
    let values = wanted.read(folder)?;
    let names = values.keys().map(|(guest, name)| format!("{guest}/{name}")).collect();
    Ok((Filling::new(wanted, values)?, names))
}
