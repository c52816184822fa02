//! Stops a process of the runtime from running, as a hang would, so that tests see who notices (Linux,
//! Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze"). Even PID 1 can be frozen so, which no signal can stop.

use std::{fs, io, path::Path};

use rustix::process::Pid;

/// The control group of what is frozen.
const GROUP: &str = "/sys/fs/cgroup/frozen";

/// Freezes a process, until it is killed or the machine is reset.
pub fn freeze(process: Pid) -> io::Result<()> {
    let group = Path::new(GROUP);
    match fs::create_dir(group) {
        Ok(()) => {}
        // One was frozen before; what is in it has been killed.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::write(group.join("cgroup.freeze"), "0")?,
        Err(error) => return Err(error),
    }
    fs::write(group.join("cgroup.procs"), process.as_raw_pid().to_string())?;
    fs::write(group.join("cgroup.freeze"), "1")
}
