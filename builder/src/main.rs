//! The command `rackstick`: from a recipe to a lock, to layers, to a disk image, to a rack.

mod archive;
mod clock;
mod commands;
mod generation;
mod hardware;
mod image;
mod initrd;
mod kernel;
mod lock;
mod package;
mod parallel;
mod progress;
mod qemu;
mod report;
mod runtime;
mod sets;
mod store;
mod vmlinux;

use std::process::ExitCode;

use clap::Parser;
use rackstick::layers;

/// Turns a recipe into a bootable server rack.
#[derive(Parser)]
#[command(name = "rackstick", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

/// 0: done; 1: failed, and stderr says why; 2: wrong usage (clap's own exit code); more as a command's help says.
fn main() -> ExitCode {
    if let Some(code) = layers::stage::part_of_stage() {
        return code;
    }
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(error) => {
            report::print(error.as_ref());
            ExitCode::FAILURE
        }
    }
}
