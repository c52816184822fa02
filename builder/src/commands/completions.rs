//! `rackstick completions SHELL`: what lets a shell complete this command's words.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Cli, output, report};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  mkdir -p ~/.local/share/bash-completion/completions ~/.config/fish/completions\n",
    "  rackstick completions bash > ~/.local/share/bash-completion/completions/rackstick\n",
    "  rackstick completions fish > ~/.config/fish/completions/rackstick.fish\n",
);

/// Print what lets a shell complete the words of this command
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints it.
pub fn run(args: &Args) -> Result<(), report::Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), env!("CARGO_BIN_NAME"), &mut script);
    output::write(&script)?;
    Ok(())
}
