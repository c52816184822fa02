//! What the daemon must not forget about a guest when it is restarted: its monitor, and whether it was stopped or
//! failed. Kept in memory only, since a reboot starts everything anew.

use std::{fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Readable and writable by root only: a monitor that was taken over can't make the daemon believe anything.
const FOLDER: &str = "/run/rackstick/state";

/// What is remembered of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Process id and start time of its monitor.
    pub monitor: Option<(u32, u64)>,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether it was stopped on request, or is being stopped.
    pub stopped: bool,
    /// Why it failed for good.
    pub failed: Option<String>,
}

impl Record {
    /// What is remembered of this guest; nothing at first.
    pub fn load(guest: &str) -> io::Result<Self> {
        match fs::read(path(guest)) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Remembers this; a daemon killed meanwhile leaves the old or the new.
    pub fn save(&self, guest: &str) -> io::Result<()> {
        let path = path(guest);
        let new = path.with_extension("new");
        fs::create_dir_all(FOLDER)?;
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, &path)
    }
}

pub(super) fn path(guest: &str) -> PathBuf {
    PathBuf::from(FOLDER).join(format!("{guest}.json"))
}
