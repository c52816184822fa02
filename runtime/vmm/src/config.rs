//! What one virtual machine consists of: the JSON file that `rackstick-vmm` is given.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name used in messages.
    pub name: String,
    /// Number of vCPUs, at least 1.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// The kernel: an uncompressed ELF `vmlinux` with a PVH note, or a bzImage.
    pub kernel: PathBuf,
    /// Files that together are the initrd: each is padded to 4 bytes and they follow one another in memory.
    #[serde(default)]
    pub initrd: Vec<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Where the guest's console output goes.
    pub console: Console,
    /// Read-only files mapped into the guest as persistent memory, in order of PCI address.
    #[serde(default)]
    pub pmem: Vec<Pmem>,
    /// Block devices.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network interfaces.
    #[serde(default)]
    pub nets: Vec<Net>,
    /// The vsock device, through which the daemon reaches the agent.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// Where the reason of the end is written, as JSON of [`crate::exit::Exit`]; beside, then renamed.
    #[serde(default)]
    pub exit_file: Option<PathBuf>,
}

/// Where console output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Console {
    /// To standard output, input from standard input.
    Stdio,
    /// To a file that is kept below `limit_kib`: when full it is renamed to `<path>.1` and begun anew.
    File {
        /// The file.
        path: PathBuf,
        /// The most one of the two files may hold, in KiB: a chatty guest can't fill the host's memory.
        limit_kib: u32,
    },
}

/// One read-only persistent memory device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// The file, usually an fs-verity file; a multiple of 4096 bytes.
    pub path: PathBuf,
    /// What it is called in messages: the layer's digest.
    pub label: String,
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// A raw file or block device; a multiple of 512 bytes.
    pub path: PathBuf,
    /// Its serial number, by which the guest knows it: at most 20 bytes, different for each disk.
    pub serial: String,
    /// Whether the guest may only read.
    #[serde(default)]
    pub readonly: bool,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Name of the tap device, which exists already and belongs to a bridge.
    pub tap: String,
    /// The guest's MAC address, as `52:54:00:12:34:56`.
    pub mac: String,
}

/// The vsock device, backed by the kernel's vhost-vsock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context id, at least 3.
    pub cid: u32,
}
