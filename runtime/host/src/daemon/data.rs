//! The data partition: found by its GUID, mounted, never formatted. What can't be mounted is reported and left as it is.

mod gpt;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rackstick_linux::{
    mount::{self, MountError, MountFlags},
    uevent::{UeventError, Uevents},
};

/// Where it is mounted.
pub const MOUNT: &str = "/data";

/// How long the disk may take to turn up after coldplug: USB sticks and big controllers need many seconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// A layer is read through mappings, never executed; nothing on it may bring devices or raise rights. An error found
/// by ext4 makes it read-only, which keeps what is there.
const FLAGS: MountFlags =
    MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC).union(MountFlags::NOATIME);
const OPTIONS: &str = "errors=remount-ro";

/// Why there is no data partition. The rack stays up and says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No disk has it.
    #[error("no disk holds the data partition {guid}: {source}; is the disk connected, and is its driver in the host?")]
    Missing {
        /// The partition's GUID.
        guid: String,
        /// How long was waited.
        source: UeventError,
    },
    /// Nobody says when disks come.
    #[error("disks can't be waited for: {0}")]
    Uevents(UeventError),
    /// It is there and can't be mounted.
    #[error("the data partition {} can't be mounted, it is left untouched: {source}", device.display())]
    Mount {
        /// The partition's device.
        device: PathBuf,
        /// The cause; large, and this error rare.
        source: Box<MountError>,
    },
}

/// Waits for the partition with this GUID and mounts it, if it is not mounted yet.
pub fn bring_up(guid: &str, uevents: &Uevents) -> Result<PathBuf, Error> {
    let device = uevents
        .wait_for("the data partition's disk", Instant::now() + DEADLINE, || find(guid))
        .map_err(|source| Error::Missing { guid: guid.to_owned(), source })?;
    if !mount::is_mount_point(Path::new(MOUNT)) {
        mount::mount("ext4", &device, MOUNT, FLAGS, OPTIONS)
            .map_err(|source| Error::Mount { device: device.clone(), source: Box::new(source) })?;
    }
    Ok(device)
}

/// The device of the partition with this GUID, if any disk has it now.
fn find(guid: &str) -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?;
    disks.flatten().find_map(|disk| {
        let name = disk.file_name();
        let sector = fs::read_to_string(disk.path().join("queue/logical_block_size")).ok()?.trim().parse().ok()?;
        // A medium without a GPT, or an empty drive: not ours.
        let file = fs::File::open(Path::new("/dev").join(&name)).ok()?;
        let number = gpt::partition_number(&file, sector, guid).ok()??;
        partition_device(&disk.path(), number)
    })
}

/// The kernel's name for a disk's partition: `sda2`, `nvme0n1p2`.
fn partition_device(disk: &Path, number: u32) -> Option<PathBuf> {
    fs::read_dir(disk).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("partition")).ok()?;
        (found.trim().parse() == Ok(number)).then(|| Path::new("/dev").join(entry.file_name()))
    })
}
