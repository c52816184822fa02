//! The subcommands, one file each: an `Args` for clap and a `run`.

mod build;
mod check;
mod completions;
mod diff;
mod flash;
mod inspect;
mod lock;
mod man;
mod new;
mod run;
mod schema;
mod secrets;
mod store;
mod vendor;
mod verify;

use std::{fmt, process::ExitCode};

use rackstick_image::lock::Lock;

use crate::{
    archive::{MirrorError, Mirrors},
    report,
};

/// Where packages come from.
#[derive(clap::Args)]
struct MirrorArgs {
    /// Where packages come from, in place of the mirrors of this machine's apt: the root of a Debian archive, like
    /// http://HOST/debian, or a folder that `rackstick vendor` filled (packages only: no lock is made from it
    /// alone). If repeated, they are tried one after the other. Security updates come from `debian-security` beside `debian`, unless that is given too. REPOSITORY=URL says
    /// where a repository of the recipe is, in place of its own URL
    #[arg(long, value_name = "URL|DIR|REPOSITORY=URL")]
    mirror: Vec<String>,
}

impl MirrorArgs {
    fn mirrors(&self, lock: &Lock) -> Result<Mirrors, MirrorError> {
        Mirrors::choose(&self.mirror, &lock.repositories)
    }
}

/// What is told in words only.
#[derive(serde::Serialize)]
struct Text {
    text: String,
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.trim_end_matches('\n'))
    }
}

/// What to do.
#[derive(clap::Subcommand)]
pub enum Command {
    New(new::Args),
    Build(build::Args),
    Check(check::Args),
    Diff(diff::Args),
    Flash(flash::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Lock(lock::Args),
    Run(run::Args),
    Secrets(secrets::Args),
    Store(store::Args),
    Vendor(vendor::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Command {
    /// What it exits with if it fails.
    pub fn failure(&self) -> ExitCode {
        match self {
            Self::Diff(_) => ExitCode::from(diff::TROUBLE),
            _ => ExitCode::FAILURE,
        }
    }

    /// Does it: what the command exits with, if it is not clear from whether it succeeded.
    pub fn run(self) -> Result<ExitCode, report::Error> {
        match self {
            Self::New(args) => new::run(&args)?,
            Self::Build(args) => build::run(args)?,
            Self::Check(args) => check::run(&args)?,
            Self::Diff(args) => return diff::run(args),
            Self::Flash(args) => flash::run(args)?,
            Self::Inspect(args) => return inspect::run(args),
            Self::Lock(args) => lock::run(&args)?,
            Self::Run(args) => run::run(args)?,
            Self::Secrets(args) => secrets::run(&args)?,
            Self::Store(args) => return store::run(args),
            Self::Vendor(args) => vendor::run(&args)?,
            Self::Schema(args) => schema::run(&args)?,
            Self::Completions(args) => completions::run(&args)?,
            Self::Man(args) => man::run(&args)?,
            Self::Verify(args) => return verify::run(args),
        }
        Ok(ExitCode::SUCCESS)
    }
}
