//! `rackstick verify IMAGE`: whether an image is whole.

use std::{io::Write, path::PathBuf, process::ExitCode};

use crate::{
    image::{Disk, describe::UNSIGNED, verify},
    progress::Progress,
    report,
};

/// Check that an image is whole
///
/// Both partition tables, the ESP with its UKI, and every file that the manifest names: its bytes, its Merkle tree and its
/// file system. Of the boot loader only that it is there: Debian's carries no checksum. Reads the image and nothing else.
///
/// The exit status is 0 if the image is whole, and 1 if something is wrong with it: what, where, and what to do.
#[derive(clap::Args)]
pub struct Args {
    /// The image
    image: PathBuf,
}

/// Looks at all of it.
pub fn run(args: Args) -> Result<ExitCode, report::Error> {
    let disk = Disk::open(&args.image)?;
    let verified = verify::verify(&disk, &Progress::stderr())?;
    for fault in &verified.faults {
        report::print(fault);
    }
    if !verified.faults.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} is whole: {}", args.image.display(), verified.looked_at.join(", "))?;
    writeln!(out, "signatures: {UNSIGNED}, only that it is what was built")?;
    Ok(ExitCode::SUCCESS)
}
