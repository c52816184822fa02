//! What hardware a rack drives: the table of classes, the kernel's modules that it takes, the firmware these load into
//! their devices, and the processors' microcode.

pub mod answer;
pub mod classes;
pub mod device;
pub mod document;
mod firmware;
pub mod microcode;
pub mod pasted;

pub use firmware::{Chosen, Firmware};

use crate::kernel::{Kernel, KernelError, Modules};

/// The drivers of a host.
pub struct Drivers<'a> {
    /// The kernel's modules.
    pub modules: Modules<'a>,
    /// What they load into their devices.
    pub firmware: Chosen<'a>,
}

impl<'a> Drivers<'a> {
    /// Chooses by the table of classes.
    pub fn choose(kernel: &'a Kernel, firmware: &'a Firmware) -> Result<Self, KernelError> {
        let modules = kernel.modules(&classes::wanted(kernel.paths()))?;
        let firmware = firmware.choose(&modules.index);
        Ok(Self { modules, firmware })
    }
}

/// Whether a package of the host's set holds firmware. The name is Debian's, which says so.
pub fn is_firmware(package: &str) -> bool {
    package.starts_with("firmware-") || is_microcode(package)
}

/// Whether a package of the host's set holds microcode.
pub fn is_microcode(package: &str) -> bool {
    package.ends_with("-microcode")
}
