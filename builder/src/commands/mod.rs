//! The subcommands, one file each: an `Args` for clap and a `run`.

mod build;
mod check;
mod diff;
mod inspect;
mod lock;
mod run;
mod verify;

use std::process::ExitCode;

use crate::report;

/// What to do.
#[derive(clap::Subcommand)]
pub enum Command {
    Build(build::Args),
    Check(check::Args),
    Diff(diff::Args),
    Inspect(inspect::Args),
    Lock(lock::Args),
    Run(run::Args),
    Verify(verify::Args),
}

impl Command {
    /// Does it: what the command exits with, if it is not clear from whether it succeeded.
    pub fn run(self) -> Result<ExitCode, report::Error> {
        match self {
            Self::Build(args) => build::run(args)?,
            Self::Check(args) => check::run(args)?,
            Self::Diff(args) => return diff::run(args),
            Self::Inspect(args) => return inspect::run(args),
            Self::Lock(args) => lock::run(args)?,
            Self::Run(args) => run::run(args)?,
            Self::Verify(args) => return verify::run(args),
        }
        Ok(ExitCode::SUCCESS)
    }
}
