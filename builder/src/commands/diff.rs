//! `rackstick diff A B`: what is different between two images.

use std::{path::PathBuf, process::ExitCode};

use super::Text;
use crate::{
    image::{Disk, ImageError, Opened, diff},
    output, report,
};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick diff out/lab_2026.11.1.img out/lab_2026.11.2.img\n",
    "  rackstick diff --all old.img new.img\n"
);

/// Show what is different between two images
///
/// Rack, networks, guests, the names of secrets, sizes, the host's files, packages of each image, files of each layer.
/// `-` stands before what only the first has, `+` before what only the second has, `~` before what differs. Times are
/// not compared, and no value of a secret is shown.
///
/// The exit status is that of diff(1): 0 if both are the same, 1 if they differ, 2 if one can't be read
/// or what was found can't be written.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The first image
    a: PathBuf,
    /// The second image
    b: PathBuf,
    /// List all files of layers that differ, not only the first
    #[arg(long)]
    all: bool,
}

/// What diff(1) exits with where it can't compare, or can't say what it found.
pub const TROUBLE: u8 = 2;

/// Compares.
pub fn run(args: Args) -> Result<ExitCode, report::Error> {
    let text = compare(&args)?;
    let code = if text.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    output::answer(&Text { text })?;
    Ok(code)
}

fn compare(args: &Args) -> Result<String, ImageError> {
    let (a, b) = (Disk::open(&args.a)?, Disk::open(&args.b)?);
    diff::diff(&Opened::new(&a)?, &Opened::new(&b)?, args.all)
}
