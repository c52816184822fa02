//! Which disk holds the data partition. Two sticks flashed with one image hold it both: the one to which more was
//! written is taken, so that a fresh copy never takes the place of a rack's own data; of equals, the first by its place
//! on the buses, which stays the same while nobody plugs the disks differently.

use std::{
    cmp::Reverse,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rackstick_image::gpt::read as gpt;
use rackstick_linux::mount;

use super::{
    MOUNT,
    resize::{SuperBlock, Use},
};

/// The partition type of an ESP (UEFI specification 2.10, section 5.3.3).
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// Files of a disk in sysfs that say what it is, the best first: of SCSI and NVMe disks, of SD cards, of virtio.
const NAMES: [&str; 3] = ["device/model", "device/name", "serial"];

/// A partition with the data partition's GUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its device.
    pub device: PathBuf,
    /// Where its disk is on the buses: the path in sysfs.
    place: PathBuf,
    /// How far its file system was used; none if it is no ext4.
    usage: Option<Use>,
}

impl Candidate {
    /// Whether no rack has used it yet.
    pub fn is_fresh(&self) -> bool {
        self.usage.is_some_and(|usage| !usage.mounted)
    }
}

/// All partitions with this GUID that disks have now, the one to take first.
pub fn candidates(guid: &str) -> Vec<Candidate> {
    let Ok(disks) = fs::read_dir("/sys/block") else { return Vec::new() };
    let mut found: Vec<Candidate> = disks.flatten().filter_map(|disk| candidate(&disk.path(), guid)).collect();
    rank(&mut found);
    found
}

fn rank(candidates: &mut [Candidate]) {
    candidates.sort_by(|a, b| (Reverse(a.usage), &a.place).cmp(&(Reverse(b.usage), &b.place)));
}

fn candidate(disk: &Path, guid: &str) -> Option<Candidate> {
    let number = table(disk)?.number(guid)?;
    let device = partition_device(disk, number)?;
    let super_block = File::open(&device).and_then(|file| SuperBlock::read(&file)).ok().flatten();
    let place = fs::canonicalize(disk).unwrap_or_else(|_| disk.to_owned());
    Some(Candidate { device, place, usage: super_block.map(|super_block| super_block.usage) })
}

/// All ESPs of all disks, as far as they can be read.
pub fn esps() -> Vec<PathBuf> {
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    disks.flat_map(|disk| esps_of(&disk.path()).unwrap_or_default()).collect()
}

/// The ESP of the disk that holds this partition, the first if there are several.
pub fn esp_beside(partition: &Path) -> Option<PathBuf> {
    let disk = fs::canonicalize(Path::new("/sys/class/block").join(partition.file_name()?)).ok()?;
    esps_of(disk.parent()?)?.into_iter().next()
}

fn esps_of(disk: &Path) -> Option<Vec<PathBuf>> {
    let numbers = table(disk)?.numbers_of_type(ESP)?;
    Some(numbers.into_iter().filter_map(|number| partition_device(disk, number)).collect())
}

/// A disk's GPT; none for a medium without one. Where the kernel found no partition nothing is read: a dead disk
/// answers after minutes, and a CD drive pulls its tray in.
pub(super) fn table(disk: &Path) -> Option<gpt::Table> {
    if !fs::read_dir(disk).ok()?.flatten().any(|entry| entry.path().join("partition").exists()) {
        return None;
    }
    let sector = fs::read_to_string(disk.join("queue/logical_block_size")).ok()?.trim().parse().ok()?;
    let file = File::open(Path::new("/dev").join(disk.file_name()?)).ok()?;
    gpt::Disk::new(&file, sector).ok()??.table().ok()?
}

/// The kernel's name for a disk's partition: `sda2`, `nvme0n1p2`.
fn partition_device(disk: &Path, number: u32) -> Option<PathBuf> {
    fs::read_dir(disk).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("partition")).ok()?;
        (found.trim().parse() == Ok(number)).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// What is mounted as the data partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mounted {
    /// Nothing.
    No,
    /// This device.
    Yes(PathBuf),
    /// A device that the machine no longer has.
    Gone,
}

/// What is mounted as the data partition now; asks the kernel only, never a disk.
pub fn mounted() -> Mounted {
    let mount = Path::new(MOUNT);
    if !mount::is_mount_point(mount) {
        return Mounted::No;
    }
    let Ok(metadata) = fs::metadata(mount) else { return Mounted::Gone };
    let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    match fs::read_link(format!("/sys/dev/block/{major}:{minor}")) {
        Ok(link) => link.file_name().map_or(Mounted::Gone, |name| Mounted::Yes(Path::new("/dev").join(name))),
        Err(_) => Mounted::Gone,
    }
}

/// A partition for people: its name, and what its disk calls itself.
pub fn describe(device: &Path) -> String {
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    let disk = Path::new("/sys/class/block").join(&*name).join("..");
    let called = NAMES.iter().find_map(|file| {
        // A disk may call itself anything.
        let text: String = fs::read_to_string(disk.join(file))
            .ok()?
            .chars()
            .filter(|c| c.is_ascii_graphic() || *c == ' ')
            .take(40)
            .collect();
        (!text.trim().is_empty()).then(|| text.trim().to_owned())
    });
    called.map_or_else(|| name.to_string(), |called| format!("{name} ({called})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_sticks_the_one_that_served_before_is_taken_whatever_order_they_are_found_in() {
        const MADE: u64 = 600;
        let candidate = |name: &str, place: &str, usage: Option<(u64, u16)>| Candidate {
            device: Path::new("/dev").join(name),
            place: place.into(),
            usage: usage.map(|(written_kib, mounts)| Use {
                written_kib,
                mounts,
                mounted: written_kib > MADE || mounts > 0,
            }),
        };
        // Its image was larger than that of the others, all of which counts as written.
        let large = Candidate {
            usage: Some(Use { written_kib: 900_000, mounts: 0, mounted: false }),
            ..candidate("sdg2", "/sys/devices/pci0/usb9", None)
        };
        // It was checked since, which makes the count of mounts 0.
        let used = candidate("sdc2", "/sys/devices/pci0/usb2", Some((70_000, 0)));
        let tried = candidate("sde2", "/sys/devices/pci0/usb0", Some((5000, 7)));
        // Its power was cut before the kernel noted what was written.
        let cut = candidate("sdf2", "/sys/devices/pci0/usb8", Some((MADE, 1)));
        let fresh = candidate("sda2", "/sys/devices/pci0/usb1", Some((MADE, 0)));
        let other = candidate("sdb2", "/sys/devices/pci0/usb3", Some((MADE, 0)));
        let broken = candidate("sdd2", "/sys/devices/pci0/ata1", None);
        let expected = [&used, &tried, &cut, &large, &fresh, &other, &broken].map(Clone::clone);
        assert_eq!(expected.each_ref().map(Candidate::is_fresh), [false, false, false, true, true, true, false]);
        for turn in 0..expected.len() {
            let mut found = expected.to_vec();
            found.rotate_left(turn);
            rank(&mut found);
            assert_eq!(found, expected);
            found.reverse();
            rank(&mut found);
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_partition_that_no_disk_has_is_not_found() {
        assert_eq!(candidates("5e8e1b1a-0c6e-4d5b-9d7c-0a1b2c3d4e5f"), []);
        assert_eq!(describe(Path::new("/dev/nowhere9")), "nowhere9");
    }
}
