//! The command `rackstick`: from a recipe to a lock, to layers, to a disk image, to a rack.

mod archive;
mod artifacts;
mod clock;
mod commands;
mod flash;
mod generation;
mod hardware;
mod image;
mod initrd;
mod kernel;
mod lock;
mod output;
mod package;
mod parallel;
mod progress;
mod qemu;
mod registry;
mod report;
mod runtime;
mod secrets;
mod sets;
mod store;
mod vmlinux;

use std::process::ExitCode;

use clap::Parser;
use output::Manner;
use rackstick::layers;

/// What the help ends with.
const EXAMPLES: &str = "\
Examples:
  rackstick new home
  rackstick check home/home.toml
  rackstick build home/home.toml
  rackstick run out/home_1.img

Exit status:
  0  done
  1  failed; stderr says why and what to do
  2  wrong usage
  3  of `inspect --hardware`: it depends on the device's class";

/// Turns a recipe into a bootable server rack
#[derive(Parser)]
#[command(name = "rackstick", version, max_term_width = 100, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
    /// Say what came of it, or what is wrong, in one JSON document on stdout (docs/json.md)
    #[arg(long, global = true)]
    json: bool,
    /// Say only what was asked for, warnings and errors
    #[arg(short, long, global = true)]
    quiet: bool,
}

/// 0: done; 1: failed, and stderr says why; 2: wrong usage (clap's own exit code); more as a command's help says.
fn main() -> ExitCode {
    if let Some(code) = layers::stage::part_of_stage() {
        return code;
    }
    let Cli { command, json, quiet } = Cli::parse();
    output::begin(Manner { json, quiet });
    let failure = command.failure();
    let code = command.run().unwrap_or_else(|error| {
        report::print(error.as_ref());
        failure
    });
    match output::end() {
        Ok(()) => code,
        Err(error) => {
            output::tell(format!("error: {error}"));
            failure
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_teaches_by_examples_that_it_understands() {
        let command = Cli::command();
        command.clone().debug_assert();
        for taught in command.get_subcommands().chain([&command]) {
            let help = taught.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help
                .lines()
                .filter_map(|line| line.strip_prefix("  "))
                .filter(|line| line.starts_with("rackstick "))
                .collect();
            assert!(!examples.is_empty(), "no examples of {}", taught.get_name());
            for example in examples {
                // Without what the shell does with the words.
                let words = example.split(['|', '>']).next().unwrap_or_default().split_whitespace();
                let understood = Cli::try_parse_from(words);
                assert!(understood.is_ok(), "{example}: {}", understood.err().unwrap());
            }
        }
    }
}
