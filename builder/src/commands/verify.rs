//! `rackstick verify IMAGE`: whether an image is whole.

use std::{path::PathBuf, process::ExitCode};

use super::Text;
use crate::{
    image::{Disk, describe::UNSIGNED, verify},
    output,
    progress::Progress,
    report,
};

/// What its help ends with.
const EXAMPLES: &str = concat!("Examples:\n", "  rackstick verify out/lab_2026.11.1.img\n");

/// Check that an image is whole
///
/// Both partition tables, the ESP with its UKI, and every file that the manifest names: its bytes, its Merkle tree and
/// its file system; whether the secrets in it can be read, and their names. Of the boot loader only that it is there:
/// Debian's carries no checksum. Reads the image and nothing else.
///
/// A disk is judged by the same rules: one that is larger than the image has its second table in the wrong place until
/// a rack has started from it. What `rackstick flash` wrote, it has compared already.
///
/// The exit status is 0 if the image is whole, and 1 if something is wrong with it: what, where, and what to do.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The image
    image: PathBuf,
}

/// Looks at all of it.
pub fn run(args: Args) -> Result<ExitCode, report::Error> {
    let disk = Disk::open(&args.image)?;
    let verified = verify::verify(&disk, &Progress::stderr())?;
    if !verified.faults.is_empty() {
        if output::manner().json {
            let faults: Vec<String> = verified.faults.iter().map(ToString::to_string).collect();
            output::answer(&Text { text: faults.join("\n") })?;
        } else {
            verified.faults.iter().for_each(|fault| report::print(fault));
        }
        return Ok(ExitCode::FAILURE);
    }
    let mut text = format!("{} is whole: {}\n", args.image.display(), verified.looked_at.join(", "));
    if !verified.secrets.is_empty() {
        text.push_str(&format!("secrets: it holds {}, so pass it on to nobody\n", verified.secrets));
    }
    text.push_str(&format!("signatures: {UNSIGNED}, only that it is what was built"));
    output::answer(&Text { text })?;
    Ok(ExitCode::SUCCESS)
}
