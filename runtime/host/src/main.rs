//! The host's one program: PID 1 (`/init`), the kernel's module loader (`/sbin/modprobe`), the rack daemon
//! (`rackstick-host daemon`) and the gateway of its private networks (`rackstick-host gateway`), chosen by the name it
//! is called by, else by its first argument.

mod daemon;
mod init;
mod modprobe;
mod signals;
mod terminals;

use std::{env, ffi::OsStr, path::Path, process::ExitCode};

/// Where the initrd holds this program; PID 1 starts the daemon from here.
const PROGRAM: &str = "/rackstick/rackstick-host";

/// The variable in which PID 1 tells the daemon when it started, in milliseconds since the kernel's clock began.
const STARTED: &str = "RACKSTICK_STARTED_MS";

/// This program's version, the builder's and the VMM's too.
const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let called_as = arguments.next().unwrap_or_default();
    let name = Path::new(&called_as).file_name().unwrap_or_default();
    let role =
        if name == "init" || name == "modprobe" { name.to_owned() } else { arguments.next().unwrap_or_default() };
    if role == OsStr::new("init") {
        init::run()
    } else if role == OsStr::new("modprobe") {
        modprobe::run(arguments)
    } else if role == OsStr::new("daemon") {
        daemon::run()
    } else if role == OsStr::new("gateway") {
        daemon::network::gateway::process::run()
    } else {
        eprintln!("rackstick-host {VERSION}: call it as init or modprobe, or with the argument `daemon` or `gateway`");
        ExitCode::from(2)
    }
}
