//! A cgroup for each guest (Linux, Documentation/admin-guide/cgroup-v2.rst): its monitor's memory and processes are
//! bounded, so that a fault in one guest's monitor does not take the rack.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rackstick_image::manifest::Guest;

const ROOT: &str = "/sys/fs/cgroup";
const PARENT: &str = "/sys/fs/cgroup/guests";
const CONTROLLERS: &str = "+cpu +memory +pids";

/// What a monitor may use beside the guest's own memory: its own few MiB, page tables, and the layers' pages, which
/// are charged to the guest that touches them first and are given back under pressure.
const OVERHEAD_MIB: u64 = 192;
/// A monitor is one process with a thread for each vCPU and device.
const MOST_TASKS: u64 = 64;

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
#[error("the cgroup {path} can't be set up: {source}")]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Makes the guest's cgroup, or takes the one that is there, and sets its limits.
pub fn prepare(spec: &Guest) -> Result<PathBuf, Error> {
    let group = Path::new(PARENT).join(&spec.name);
    fs::create_dir_all(&group).map_err(|source| Error { path: group.clone(), source })?;
    for parent in [ROOT, PARENT] {
        set(&Path::new(parent).join("cgroup.subtree_control"), CONTROLLERS)?;
    }
    let most = (u64::from(spec.memory_mib) + OVERHEAD_MIB) << 20;
    set(&group.join("memory.max"), &most.to_string())?;
    set(&group.join("memory.oom.group"), "1")?;
    set(&group.join("pids.max"), &MOST_TASKS.to_string())?;
    Ok(group)
}

/// Moves a process into the cgroup.
pub fn enter(group: &Path, pid: u32) -> Result<(), Error> {
    set(&group.join("cgroup.procs"), &pid.to_string())
}

fn set(path: &Path, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(|source| Error { path: path.to_owned(), source })
}
