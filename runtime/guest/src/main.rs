//! `rackstick-guest`: first the init of a guest's initrd, then the agent that stays in the guest.
//!
//! Started by the kernel as PID 1 it mounts the guest's root and becomes the image's own init; before that it starts
//! itself once more as the agent, which the daemon on the host talks to over vsock.

mod agent;
mod init;

use std::{env, os::unix::ffi::OsStrExt, process::ExitCode};

use rackstick_linux::kmsg;

fn main() -> ExitCode {
    let name = env::args_os().next().unwrap_or_default();
    if name.as_bytes() == agent::ARGV0.as_bytes() {
        kmsg::init("rackstick-agent", kmsg::level());
        return agent::run();
    }
    if rustix::process::getpid().is_init() {
        init::run();
        return ExitCode::FAILURE;
    }
    eprintln!("rackstick-guest is the init of a guest's initrd and its agent; it does nothing when started by hand");
    ExitCode::from(2)
}
