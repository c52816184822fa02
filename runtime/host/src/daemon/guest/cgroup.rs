//! A cgroup for each guest (Linux, Documentation/admin-guide/cgroup-v2.rst): its monitor's memory and processes are
//! bounded, so that a fault in one guest's monitor does not take the rack.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rackstick_image::manifest::Guest;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

const ROOT: &str = "/sys/fs/cgroup";
const PARENT: &str = "/sys/fs/cgroup/guests";
const CONTROLLERS: &str = "+cpu +memory +pids";

/// What a monitor may use beside the guest's own memory: its own few MiB, page tables, and the layers' pages, which
/// are charged to the guest that touches them first and are given back under pressure.
const OVERHEAD_MIB: u64 = 192;
/// A monitor is one process with a thread for each vCPU and device.
const MOST_TASKS: u64 = 64;
/// How long killed processes may take to end; the daemon waits for nothing else meanwhile.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// More than the two lines of `cgroup.events`.
const LONGEST_EVENTS: usize = 256;

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

/// Ends all that is in the cgroup: also a monitor that no record tells of, because the daemon was killed right after it
/// had started it. It would hold the guest's taps and vsock address for ever.
pub fn clear(group: &Path) -> Result<(), Error> {
    let path = group.join("cgroup.events");
    let failed = |source| Error { path: path.clone(), source };
    let events = File::open(&path).map_err(failed)?;
    set(&group.join("cgroup.kill"), "1")?;
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        // Reading it also arms the notice of the next change.
        let mut text = [0; LONGEST_EVENTS];
        let length = events.read_at(&mut text, 0).map_err(failed)?;
        if text[..length].split(|&byte| byte == b'\n').any(|line| line == b"populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(io::Error::other("a process in it does not end though it was killed")));
        }
        let left = Timespec::try_from(left).map_err(|error| failed(io::Error::other(error)))?;
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// The cgroup's door: a process that writes `0` to it is inside.
pub fn door(group: &Path) -> Result<File, Error> {
    let path = group.join("cgroup.procs");
    OpenOptions::new().write(true).open(&path).map_err(|source| Error { path, source })
}

/// `memory.current` and `memory.stat` of all guests together; NotFound before the first was started.
pub fn guests_memory() -> io::Result<(String, String)> {
    let read = |file| fs::read_to_string(Path::new(PARENT).join(file));
    Ok((read("memory.current")?, read("memory.stat")?))
}

fn set(path: &Path, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(|source| Error { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::process::CommandExt, process::Command};

    use super::*;

    #[test]
    fn what_was_started_in_a_cgroup_ends_with_it_though_nobody_knows_of_it() {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let root = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
        let group = Path::new(root.split(' ').nth(1).unwrap()).join(format!("rackstick-test-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        clear(&group).unwrap();
        let mut door = door(&group).unwrap();
        let mut command = Command::new("sleep");
        // SAFETY: one system call on a file that is open already.
        unsafe { command.arg("1000").uid(2000).pre_exec(move || door.write_all(b"0")) };
        let mut child = command.spawn().unwrap();
        assert_eq!(fs::read_to_string(group.join("cgroup.procs")).unwrap(), format!("{}\n", child.id()));
        clear(&group).unwrap();
        assert!(!child.wait().unwrap().success());
        fs::remove_dir(&group).unwrap();
    }
}
