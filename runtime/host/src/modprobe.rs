//! `/sbin/modprobe`: the kernel calls it for what it lacks (nftables expressions, file systems, protocols). It has the
//! daemon load that, and does it by itself only where there is no daemon.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    process::ExitCode,
};

use rackstick_linux::{kmsg, modules};

/// Where the daemon listens.
pub const SOCKET: &str = "/run/rackstick/modprobe.sock";
/// What it answers once everything is loaded; anything else is what failed.
pub const LOADED: &str = "loaded\n";
/// The longest call, in bytes; the kernel's names have 64 at most.
pub const MAX_CALL: u64 = 4096;

/// Loads what the arguments name.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    // Its output goes nowhere, so it speaks through the kernel's log.
    kmsg::init("modprobe", log::LevelFilter::Warn);
    let arguments: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    match ask_daemon(arguments.iter().filter(|argument| !argument.starts_with('-'))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Not there, or gone in the middle.
        Err(_) => modules::modprobe(arguments.into_iter()),
    }
}

/// Whether the daemon has loaded all of them; what failed is in its log.
fn ask_daemon<'a>(names: impl Iterator<Item = &'a String>) -> io::Result<bool> {
    let mut daemon = UnixStream::connect(SOCKET)?;
    let names: String = names.map(|name| format!("{name}\n")).collect();
    daemon.write_all(names.as_bytes())?;
    daemon.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    daemon.read_to_string(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer == LOADED)
}
