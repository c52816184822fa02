//! Where the rack's own binaries are: beside the builder, installed (`../lib/rackstick/`) or built (cargo's target
//! folder).

use std::{
    env, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// The static binaries that go onto a rack.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// PID 1, module loader and daemon of the host.
    pub host: PathBuf,
    /// The virtual machine monitor.
    pub vmm: PathBuf,
    /// Init and agent of a guest.
    pub guest: PathBuf,
}

/// Why they can't be had.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// Where we are is not known.
    #[error("can't find out where this program stands: {0}")]
    Unknown(io::Error),
    /// One is missing.
    #[error("`{name}` is neither in {} nor in {}; build it with `ci/build`, or install all of Rackstick", .searched[0].display(), .searched[1].display())]
    Missing {
        /// The binary.
        name: &'static str,
        /// Where it was looked for.
        searched: [PathBuf; 2],
    },
}

impl Runtime {
    /// Finds them beside the running program.
    pub fn find() -> Result<Self, RuntimeError> {
        let program = env::current_exe().map_err(RuntimeError::Unknown)?;
        let folder = program.parent().unwrap_or(Path::new("/"));
        let searched = [folder.join("../lib/rackstick"), folder.to_owned()];
        let find = |name: &'static str| {
            let candidates = searched.iter().map(|folder| folder.join(name));
            let found = candidates.into_iter().find(|path| path.is_file());
            found.ok_or_else(|| RuntimeError::Missing { name, searched: searched.clone() })
        };
        Ok(Self { host: find("rackstick-host")?, vmm: find("rackstick-vmm")?, guest: find("rackstick-guest")? })
    }
}
