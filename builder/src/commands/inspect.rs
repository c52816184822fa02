//! `rackstick inspect IMAGE`: what is in an image. `rackstick inspect --hardware ID RECIPE`, `rackstick inspect
//! --drivers RECIPE`: what hardware the racks of a recipe drive.

mod hardware;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use self::hardware::{Named, Question};
use super::{MirrorArgs, Text};
use crate::{
    image::{Disk, Opened, describe},
    output, report,
};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick inspect out/lab_2026.11.1.img\n",
    "  rackstick inspect --hardware 10ec:8168 recipes/lab.toml\n",
    "  rackstick inspect --hardware 144d:a808:0108 recipes/lab.toml\n",
    "  lspci -nn | rackstick inspect --hardware - recipes/lab.toml\n",
    "  rackstick inspect --drivers recipes/lab.toml\n",
);

/// Say what is in an image, or what hardware the racks of a recipe drive
///
/// Without options, what is in an image: partitions, generation, networks, guests, layers, packages, signatures.
///
/// The exit status of --hardware is 0 if the device is driven, 1 if not, and 3 if that depends on its class, which was
/// not given. Of several devices it is the worst: 1, then 3, then 0; what a rack needs of them is counted at the end.
#[derive(clap::Args)]
#[command(
    after_long_help = EXAMPLES,
    group(clap::ArgGroup::new("question")),
    override_usage = "rackstick inspect IMAGE\n       rackstick inspect --hardware ID RECIPE\n       rackstick inspect --drivers RECIPE"
)]
pub struct Args {
    /// Whether a rack drives this device, and with what: VENDOR:DEVICE as `lspci -nn` or `lsusb` shows it, like
    /// 8086:10d3; with its class after it, like 144d:a808:0108, also drivers for the whole class count (two digits are
    /// a class of USB, four or six of PCI). Or a whole line of theirs; `-` reads such lines from standard input and
    /// answers each
    #[arg(long, value_name = "ID", group = "question")]
    hardware: Option<Named>,
    /// All that a rack drives, as a document
    #[arg(long, group = "question")]
    drivers: bool,
    /// The image; with --hardware or --drivers the rack recipe
    #[arg(value_name = "IMAGE|RECIPE")]
    file: PathBuf,
    #[command(flatten)]
    from: MirrorArgs,
}

/// A recipe instead of an image.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is a recipe, not an image; ask --hardware ID or --drivers of it, or name the image that `rackstick build` made of it",
    .0.display()
)]
struct IsRecipe(PathBuf);

/// Answers.
pub fn run(args: Args) -> Result<ExitCode, report::Error> {
    let Args { hardware, drivers, file, from } = args;
    match (hardware, drivers) {
        (Some(device), _) => hardware::run(Question::Hardware(device), &file, &from),
        (None, true) => hardware::run(Question::Drivers, &file, &from),
        (None, false) => image(&file),
    }
}

fn image(path: &Path) -> Result<ExitCode, report::Error> {
    if path.extension().is_some_and(|extension| extension == "toml") {
        return Err(IsRecipe(path.to_owned()).into());
    }
    let disk = Disk::open(path)?;
    output::answer(&Text { text: describe::describe(&Opened::new(&disk)?)? })?;
    Ok(ExitCode::SUCCESS)
}
