//! The rack's API: one [`Call`] a line in, one [`Answer`] a line out, in any order; empty lines are ignored.
//!
//! A call carries a number that its answer repeats, because a virtio-serial port outlives whoever speaks through it:
//! an answer to a client that has left reaches the next one, who must be able to tell.
//! For the same reason a client begins with an empty line, which ends what another may have left half-written.
//!
//! The daemon serves it on the Unix socket [`SOCKET`] and, where the rack is itself a virtual machine, on the
//! virtio-serial port [`VIRTIO_PORT`]: whoever holds the hypervisor below holds the rack anyway.
//! No network port is opened.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

/// The daemon's socket on the rack.
pub const SOCKET: &str = "/run/rackstick/api.sock";
/// Name of the virtio-serial port on which a virtual rack serves the same API.
pub const VIRTIO_PORT: &str = "org.rackstick.api";

/// One line to the rack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Chosen by the client, different for each call.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// One line from the rack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The call's number; 0 if the line could not be read as a call.
    pub id: u64,
    /// What came of it.
    pub response: Response,
}

/// A request to the rack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the rack is.
    Status,
    /// The last lines of one guest's console.
    Console {
        /// The guest's name.
        guest: String,
    },
    /// Stop one guest cleanly and leave it stopped.
    Stop {
        /// The guest's name.
        guest: String,
    },
    /// Start a guest that is stopped or failed.
    Start {
        /// The guest's name.
        guest: String,
    },
    /// End a process of the runtime with SIGKILL, as a crash would.
    Kill {
        /// Which one.
        process: Process,
    },
    /// Keep a process of the runtime from running, as a hang would: what watches over it must notice.
    Freeze {
        /// Which one.
        process: Watched,
    },
    /// Stop all guests cleanly, then switch the machine off.
    PowerOff,
    /// Stop all guests cleanly, then reboot the machine.
    Reboot,
}

/// A process of the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Process {
    /// The daemon itself.
    Daemon,
    /// The virtual machine monitor of the guest named.
    Vmm(String),
}

/// A process of the runtime that another, or the hardware, watches over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Watched {
    /// PID 1, which feeds the machine's watchdog.
    Init,
    /// The daemon, which PID 1 listens to.
    Daemon,
}

/// The rack's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// How the rack is.
    Status(Box<Status>),
    /// The text asked for.
    Text(String),
    /// Done, or begun where it takes longer.
    Ok,
    /// Not done, and why.
    Error(String),
}

/// How the rack is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The rack's name.
    pub rack: String,
    /// The generation's version.
    pub version: String,
    /// Seconds since the kernel started.
    pub uptime_s: u64,
    /// What is wrong with the rack itself (no KVM, data partition not mounted...), one line each; empty if nothing.
    pub problems: Vec<String>,
    /// Process id of the daemon.
    pub daemon_pid: u32,
    /// The host's own memory in KiB once all its drivers are loaded: MemTotal - MemFree - clean page cache, less the
    /// same of its guests; 0 before that.
    pub host_memory_kib: u64,
    /// How the rack came up, part by part, in the order in which the parts ended; only those that have.
    pub boot: Vec<Phase>,
    /// Who the rack is; none as long as its data partition is not there.
    pub identity: Option<Identity>,
    /// The data partition; none as long as it is not there.
    pub data: Option<Data>,
    /// The rack's own IPv4 addresses with their prefix lengths, by uplink network; those that it has now.
    pub addresses: BTreeMap<String, String>,
    /// What is going on now, the oldest first; empty if nothing.
    pub activities: Vec<Activity>,
    /// All guests, in the order of the manifest.
    pub guests: Vec<Guest>,
}

/// Who the rack is: made on its first boot and kept on its data partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its machine id, 32 hexadecimal digits.
    pub machine_id: String,
    /// SHA-256 of its public key's SubjectPublicKeyInfo, 64 hexadecimal digits.
    pub key_sha256: String,
}

/// How the data partition is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// The kernel's name for it, as `sda2`.
    pub device: String,
    /// Bytes that its file system has for files.
    pub size_bytes: u64,
    /// Bytes of them that are free.
    pub free_bytes: u64,
}

/// Something that is going on, and will be over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// What, as `loading drivers`.
    pub what: String,
    /// For how many seconds so far.
    pub for_s: u64,
}

/// One part of how the rack came up. Parts from [`Part::Drivers`] on go on side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Which.
    pub part: Part,
    /// When it began, in milliseconds since the kernel's clock began; 0 for what was before that.
    pub began_ms: u64,
    /// How long it took, in milliseconds; none if whoever knows did not tell (no EFI, another boot loader).
    pub took_ms: Option<u64>,
}

/// The parts in which a rack comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// From power-on to the boot loader.
    Firmware,
    /// The boot loader, until it started the kernel's file.
    Loader,
    /// From the beginning of the kernel's clock to PID 1.
    Kernel,
    /// Drivers of what may hold data, be an uplink or run guests.
    Drivers,
    /// All other drivers; nobody waits for them.
    LateDrivers,
    /// The data partition found and mounted, its layers checked.
    Data,
    /// Bridges, taps and firewall; not the uplink's address, for which no guest waits.
    Networks,
    /// The first guest's monitor started, from the moment when nothing kept it from that.
    FirstGuest,
}

/// How one guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// Whether its health check passed the last time.
    pub healthy: bool,
    /// What is wrong, in one line; empty if nothing.
    pub detail: String,
    /// Its IPv4 addresses by network: those of the recipe, and those that a DHCP server gave it, by its own account.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// Process id of its monitor while it runs.
    pub pid: Option<u32>,
    /// How often it was started again since the rack came up.
    pub restarts: u32,
}

/// What a guest is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not yet started: waits for another guest, or for its next try.
    Waiting,
    /// Its monitor runs.
    Running,
    /// Stopped because it was asked to be.
    Stopped,
    /// Stopped for a reason that a restart would not mend.
    Failed,
}
