//! `rackstick man DIR`: the manual pages of this command, made from its help.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::CommandFactory;
use clap_mangen::Man;

use crate::{Cli, report};

/// A page is the same whenever it is made. If there were nothing at all, what stands behind it would be taken for the
/// date.
const NO_DATE: &str = " ";

/// What its help ends with.
const EXAMPLES: &str = concat!("Examples:\n", "  rackstick man ~/.local/share/man/man1\n",);

/// Write the manual pages of this command
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Where they go, like ~/.local/share/man/man1; it is made if need be
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// A page can't be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write {}: {source}", path.display())]
struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Writes them.
pub fn run(args: &Args) -> Result<(), report::Error> {
    let folder = &args.folder;
    fs::create_dir_all(folder).map_err(|source| WriteError { path: folder.clone(), source })?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    Ok(write(folder, &command)?)
}

/// Writes the page of a command, and those of the commands below it.
fn write(folder: &Path, command: &clap::Command) -> Result<(), WriteError> {
    let version = concat!("rackstick ", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command.clone()).date(NO_DATE).source(version).manual("Rackstick");
    let path = folder.join(page.get_filename());
    let mut text = Vec::new();
    let written = page.render(&mut text).and_then(|()| fs::write(&path, text));
    written.map_err(|source| WriteError { path, source })?;
    command.get_subcommands().filter(|below| !below.is_hide_set()).try_for_each(|below| write(folder, below))
}
