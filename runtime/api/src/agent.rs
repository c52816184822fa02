//! What the daemon asks of the agent inside a guest, over vsock: it connects to [`PORT`], writes one
//! [`Request`] a line and reads one [`Response`] a line. The guest is hostile: the daemon reads nothing else of it.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

/// The vsock port on which the agent listens.
pub const PORT: u32 = 1024;

/// A request to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Run the health check now and say how the guest is.
    Status,
    /// Shut the guest down cleanly.
    Shutdown,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// How the guest is.
    Status {
        /// Whether the health check passed, if there is one, and all volumes can be written to.
        healthy: bool,
        /// What is wrong, in one line; empty if nothing. A healthy guest may have something to say too.
        detail: String,
        /// MemAvailable of the guest in KiB.
        memory_available_kib: u64,
        /// By MAC address, the addresses that its interfaces have by DHCP.
        addresses: BTreeMap<String, Ipv4Addr>,
    },
    /// The shutdown has begun.
    ShuttingDown,
    /// The request could not be carried out.
    Error(String),
}
