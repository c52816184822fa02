//! `/sbin/modprobe`: the kernel calls it for what it lacks (nftables expressions, file systems, protocols).

use std::{ffi::OsString, process::ExitCode};

use rackstick_linux::{kmsg, modules};

/// Loads what the arguments name.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    // Its output goes nowhere, so it speaks through the kernel's log.
    kmsg::init("modprobe", log::LevelFilter::Warn);
    modules::modprobe(arguments.map(|argument| argument.to_string_lossy().into_owned()))
}
