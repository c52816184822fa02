//! The end of a machine. Only PID 1, or root with everything else stopped, should call these.

use std::{convert::Infallible, fs, io};

use rustix::system::{RebootCommand, reboot};

/// Switches the machine off; what is not yet written is lost.
///
/// # Errors
/// What the kernel says, if it does not do it: EPERM without CAP_SYS_BOOT.
pub fn power_off() -> io::Result<Infallible> {
    end(RebootCommand::PowerOff)
}

/// Resets the machine; what is not yet written is lost.
///
/// # Errors
/// As [`power_off`].
pub fn restart() -> io::Result<Infallible> {
    end(RebootCommand::Restart)
}

/// Resets the machine at once, without a word to its drivers, which [`power_off`] and [`restart`] may wait for without
/// end (`b` in the kernel's admin-guide/sysrq.rst).
///
/// # Errors
/// Where the kernel has no SysRq.
pub fn reset() -> io::Result<()> {
    fs::write("/proc/sysrq-trigger", "b")
}

fn end(command: RebootCommand) -> io::Result<Infallible> {
    reboot(command)?;
    Err(io::Error::other("the kernel accepted the command and went on running"))
}
