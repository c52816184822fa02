//! The end of a machine. Only PID 1, or root with everything else stopped, should call these.

use std::{convert::Infallible, io};

use rustix::system::{RebootCommand, reboot};

/// Writes all file systems back and switches the machine off.
///
/// # Errors
/// What the kernel says, if it does not do it: EPERM without CAP_SYS_BOOT.
pub fn power_off() -> io::Result<Infallible> {
    end(RebootCommand::PowerOff)
}

/// Writes all file systems back and resets the machine.
///
/// # Errors
/// As [`power_off`].
pub fn restart() -> io::Result<Infallible> {
    end(RebootCommand::Restart)
}

fn end(command: RebootCommand) -> io::Result<Infallible> {
    rustix::fs::sync();
    reboot(command)?;
    Err(io::Error::other("the kernel accepted the command and went on running"))
}
