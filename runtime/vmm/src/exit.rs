//! Why a virtual machine ended: said by the process's exit status and by the exit file.

use serde::{Deserialize, Serialize};

/// Why the virtual machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Exit {
    /// The guest switched itself off (ACPI S5).
    PoweredOff,
    /// The guest asked for a reset: a reboot, or a panic with `panic=-1`.
    Reset,
    /// A block of a read-only layer could not be read: its fs-verity check failed or the disk did.
    CorruptLayer {
        /// The layer's label.
        label: String,
        /// The 4096-byte block that can't be read.
        block: u64,
    },
    /// The guest did something that no machine survives, such as a triple fault.
    GuestFault {
        /// What happened, with the vCPU.
        message: String,
    },
    /// The machine could not be made, or the host failed it.
    Error {
        /// What happened, where, and what to do.
        message: String,
    },
}

impl Exit {
    /// The process's exit status.
    pub fn code(&self) -> u8 {
        match self {
            Exit::PoweredOff => 0,
            Exit::Error { .. } => 1,
            // 2 is taken by bad arguments.
            Exit::Reset => 3,
            Exit::CorruptLayer { .. } => 4,
            Exit::GuestFault { .. } => 5,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::PoweredOff => write!(f, "powered off"),
            Exit::Reset => write!(f, "reset"),
            Exit::CorruptLayer { label, block } => write!(f, "layer {label} corrupt at block {block}"),
            Exit::GuestFault { message } => write!(f, "guest fault: {message}"),
            Exit::Error { message } => write!(f, "error: {message}"),
        }
    }
}
