//! The clean shutdown, asked of whatever is process 1 of the image.

use std::{io, path::Path};

use rustix::process::{Pid, Signal, kill_process};

/// Exists if and only if systemd is process 1 (sd_booted(3)).
const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// `SIGRTMIN+4` of glibc, whose SIGRTMIN is 34: systemd starts poweroff.target (systemd(1), "Signals").
const SIGNAL_POWEROFF: i32 = 34 + 4;

/// Asks process 1 to switch the guest off: systemd by its signal, any other by SIGTERM.
pub(super) fn begin() -> io::Result<()> {
    let signal = if Path::new(SYSTEMD_RUNS).is_dir() {
        // SAFETY: 38 is a real-time signal that glibc keeps for nothing of its own (those are 32 and 33).
        unsafe { Signal::from_raw_unchecked(SIGNAL_POWEROFF) }
    } else {
        Signal::TERM
    };
    Ok(kill_process(Pid::INIT, signal)?)
}
