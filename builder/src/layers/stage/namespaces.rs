//! The system calls of the builder that Rust can't prove safe: leaving the namespaces of the process, and ending
//! whatever runs in those of a stage. Follows user_namespaces(7), pid_namespaces(7), unshare(2) and kill(2).

use std::io;

use rustix::{
    io::Errno,
    process::{DumpableBehavior, Pid, WaitOptions},
    thread::{CapabilitySet, UnshareFlags},
};

/// Everything a stage keeps apart from the machine.
pub fn leave_all() -> rustix::io::Result<()> {
    unshare(
        UnshareFlags::NEWUSER
            | UnshareFlags::NEWNS
            | UnshareFlags::NEWPID
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS,
    )
}

/// The mounts alone, for one program of the image.
pub fn leave_mounts() -> rustix::io::Result<()> {
    unshare(UnshareFlags::NEWNS)
}

/// Shuts `/proc/<this process>/root`, `mem` and the like to processes of the same user, and ptrace(2) with them, unless
/// they have CAP_SYS_PTRACE: this process still sees the machine's file systems. See ptrace(2), "Ptrace access mode
/// checking".
pub fn hide_from_programs() -> rustix::io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Takes CAP_SYS_PTRACE from this process for good, and from what it executes.
pub fn give_up_tracing() -> rustix::io::Result<()> {
    rustix::thread::remove_capability_from_bounding_set(CapabilitySet::SYS_PTRACE)
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: unsafe because of CLONE_FILES alone, by which threads lose sight of each other's descriptors; no caller
    // passes it, and the processes that call this have one thread.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(flags)
    }
}

/// Kills every other process of the PID namespace whose PID 1 this is, and waits for their end: daemons that a script
/// left behind would go on writing. Does nothing in any other process.
pub fn end_all_others() -> io::Result<()> {
    if rustix::process::getpid() != Pid::INIT {
        return Ok(());
    }
    // SAFETY: takes two integers and touches no memory of this process. -1 means all processes that this one may
    // signal, which are those of its PID namespace, itself excepted; that it is not the machine's, PID 1 in it says.
    #[allow(unsafe_code)]
    let killed = unsafe { libc::kill(-1, libc::SIGKILL) };
    if killed != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) };
    }
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
