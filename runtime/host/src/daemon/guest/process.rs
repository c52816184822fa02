//! A guest's monitor as a process: started as its own user in its own session, so that it outlives the daemon, and
//! found again by its pid and start time when the daemon was restarted.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};

use crate::signals;

/// The monitor.
const MONITOR: &str = "/rackstick/rackstick-vmm";
/// User of the guest with index 0; each guest has its own.
const FIRST_UID: u32 = 2000;
/// Group of all monitors; `/dev/kvm` and `/dev/vhost-*` belong to it.
pub const GROUP: u32 = 2000;

/// The user that the guest with this index runs as.
pub fn uid(index: usize) -> u32 {
    FIRST_UID.saturating_add(u32::try_from(index).unwrap_or(u32::MAX))
}

/// A running monitor.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// When it was started, in clock ticks since boot: tells it from a later process with the same id.
    pub start_time: u64,
    handle: Arc<OwnedFd>,
}

impl Process {
    /// Starts a monitor with this configuration. Its messages go to `log`, and it is in the cgroup behind `door` before
    /// it runs: should the daemon be killed right afterwards, it is found there.
    pub fn start(config: &Path, log: File, uid: u32, mut door: File) -> io::Result<Self> {
        let mut command = Command::new(MONITOR);
        command
            .arg("--config")
            .arg(config)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .uid(uid)
            .gid(GROUP);
        let no_signals = signals::Set::of(&[]);
        // SAFETY: between fork and exec only system calls are made: write, setsid, prctl, sigprocmask.
        unsafe {
            command.pre_exec(move || {
                door.write_all(b"0")?;
                rustix::process::setsid()?;
                rustix::thread::set_no_new_privs(true)?;
                no_signals.block_only();
                Ok(())
            });
        }
        let child = command.spawn()?;
        // A monitor is what the kernel should end first when memory runs out. PID 1 and the daemon, whose value it
        // inherits, are protected.
        fs::write(format!("/proc/{}/oom_score_adj", child.id()), "300")?;
        Self::find(child.id())?.ok_or_else(|| io::Error::other("it ended at once"))
    }

    /// The process with this id and start time, if it still runs.
    pub fn adopt(pid: u32, start_time: u64) -> io::Result<Option<Self>> {
        Ok(Self::find(pid)?.filter(|process| process.start_time == start_time))
    }

    /// The process that has this id now, if any.
    pub fn find(pid: u32) -> io::Result<Option<Self>> {
        let Some(raw) = Pid::from_raw(pid.cast_signed()) else { return Ok(None) };
        let handle = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(handle) => Arc::new(handle),
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The handle is taken first: what is read afterwards belongs to the process it stands for, or to none.
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(start_time(&stat).map(|start_time| Self { pid, start_time, handle })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a signal; one that has ended is as well.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Calls `ended` once the process has ended, with the signal that killed it if it is known.
    pub fn watch(&self, name: &str, ended: impl FnOnce(Option<i32>) + Send + 'static) -> io::Result<()> {
        let handle = self.handle.clone();
        thread::Builder::new().name(format!("watch {name}")).spawn(move || {
            let readable = || poll(&mut [PollFd::new(&handle, PollFlags::IN)], None);
            while matches!(readable(), Err(Errno::INTR)) {}
            // One that was adopted is PID 1's child, and only PID 1 learns how it ended.
            let status = waitid(WaitId::PidFd(handle.as_fd()), WaitIdOptions::EXITED);
            ended(status.ok().flatten().and_then(|status| status.terminating_signal()));
        })?;
        Ok(())
    }
}

/// Field 22 of `/proc/PID/stat` (proc(5)). The name before it may hold anything, but ends at the last parenthesis.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time_whatever_its_name() {
        assert_eq!(start_time("7 (a) b ) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n"), Some(4711));
        assert_eq!(start_time("7 (x) S 1"), None);
        let own = Process::find(std::process::id()).unwrap().unwrap();
        assert!(Process::adopt(own.pid, own.start_time).unwrap().is_some());
        assert!(Process::adopt(own.pid, own.start_time + 1).unwrap().is_none());
    }
}
