//! The one system call of the builder that Rust can't prove safe: leaving the namespaces of the process. Follows
//! user_namespaces(7) and unshare(2).

use rustix::thread::UnshareFlags;

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

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: unsafe because of CLONE_FILES alone, by which threads lose sight of each other's descriptors; no caller
    // passes it, and the processes that call this have one thread.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(flags)
    }
}
