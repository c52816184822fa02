//! The machine's disks, as the kernel shows them (Linux, Documentation/ABI/stable/sysfs-block), and what udev found on
//! them.

use std::{
    fmt, fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{major, makedev, minor};

/// Unit of sizes in sysfs, whatever a disk's own blocks.
const SYSFS_SECTOR: u64 = 512;

/// Why disks can't be listed or found.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// The kernel's list.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No such name.
    #[error("there is no disk {}: {source}; `rackstick flash` lists those that there are", .path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file, a folder.
    #[error("{} is no disk; `rackstick flash` lists those that there are", .0.display())]
    NoDisk(PathBuf),
    /// A part of a disk.
    #[error("{partition} is a partition, and an image is a whole disk: name the disk, {disk}")]
    Partition {
        /// What was named.
        partition: String,
        /// The disk that it is on.
        disk: String,
    },
}

/// Where the kernel and udev tell of disks.
pub struct System {
    root: PathBuf,
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// USB.
    Usb,
    /// A card in a slot.
    Sd,
    /// Soldered flash.
    Emmc,
    /// NVMe.
    Nvme,
    /// SATA or IDE.
    Sata,
    /// A virtual machine's.
    Virtio,
    /// A file as a disk.
    Loop,
    /// Any other.
    Other,
}

/// A whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name, `sdb`.
    pub name: String,
    /// Its device node, and what stat(2) calls its number (`st_rdev`).
    pub node: PathBuf,
    pub(super) number: u64,
    /// The kernel's own number of this disk, which no other one gets (`diskseq`); none before Linux 5.15.
    pub(super) sequence: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of its logical blocks.
    pub block: u64,
    /// Made to be taken out.
    pub removable: bool,
    /// Write-protected.
    pub read_only: bool,
    /// How it is attached.
    pub bus: Bus,
    /// Vendor and model as it says itself; may be empty.
    pub model: String,
    /// What is on the disk as a whole, if udev knows.
    pub content: Option<Content>,
    /// Its partitions.
    pub parts: Vec<Part>,
    /// A disk of hardware, not one that software makes of others.
    physical: bool,
    /// Takes what is written, unlike a CD drive.
    direct: bool,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The kernel's name, `sdb1`.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// What is on it, if udev knows.
    pub content: Option<Content>,
}

/// A file system, or a part of a RAID, as udev found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// `vfat`, `ext4`.
    pub kind: String,
    /// Its label, if it has one.
    pub label: Option<String>,
}

impl Disk {
    /// Whether it is still the disk that it was.
    pub fn is(&self, other: &Self) -> bool {
        let which = |disk: &Self| (disk.number, disk.sequence.clone(), disk.size, disk.block);
        which(self) == which(other)
    }

    /// Whether it is made to be carried about.
    pub fn is_portable(&self) -> bool {
        self.removable || matches!(self.bus, Bus::Usb | Bus::Sd)
    }
}

impl System {
    /// This machine.
    pub fn this() -> Self {
        Self { root: PathBuf::from("/") }
    }

    #[cfg(test)]
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The disks of hardware that have a size (an empty card reader has none), those that are carried about first.
    pub fn disks(&self) -> Result<Vec<Disk>, DisksError> {
        let folder = self.path("sys/block");
        let failed = |source| DisksError::Read { path: folder.clone(), source };
        let mut disks = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // One that is gone already needs no line.
            disks.extend(name.to_str().and_then(|name| self.disk(name)));
        }
        disks.retain(|disk| disk.physical && disk.direct && disk.size > 0);
        disks.sort_by(|a, b| (!a.is_portable(), &a.name).cmp(&(!b.is_portable(), &b.name)));
        Ok(disks)
    }

    /// The disk that a person names: `sdb`, `/dev/sdb`, or a link to it. Any that the kernel takes for a whole disk.
    pub fn find(&self, named: &Path) -> Result<Disk, DisksError> {
        let path = self.path("dev").join(named);
        let missing = |source| DisksError::Missing { path: path.clone(), source };
        let node = fs::canonicalize(&path).map_err(missing)?;
        let metadata = fs::metadata(&node).map_err(missing)?;
        if !metadata.file_type().is_block_device() {
            return Err(DisksError::NoDisk(path));
        }
        let number = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
        let folder = self.path("sys/dev/block").join(number);
        let failed = |source| DisksError::Read { path: folder.clone(), source };
        let real = fs::canonicalize(&folder).map_err(failed)?;
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if real.join("partition").exists() {
            return Err(DisksError::Partition {
                partition: name(&real),
                disk: real.parent().map(name).unwrap_or_default(),
            });
        }
        let disk = self.disk(&name(&real)).ok_or_else(|| missing(io::ErrorKind::NotFound.into()))?;
        Ok(Disk { node, number: metadata.rdev(), ..disk })
    }

    /// A disk by the kernel's name; none if it is not there, or no longer.
    pub(super) fn disk(&self, name: &str) -> Option<Disk> {
        let folder = fs::canonicalize(self.path("sys/block").join(name)).ok()?;
        let mut parts: Vec<Part> = self.partitions(&folder);
        parts.sort_by_key(|part| (part.name.len(), part.name.clone()));
        let vendor_and_model = ["device/vendor", "device/model", "device/name"].map(|file| attribute(&folder, file));
        // virtio's vendor is a number.
        let words = vendor_and_model.into_iter().flatten().filter(|word| !word.is_empty() && !word.starts_with("0x"));
        let model: Vec<String> = words.map(|word| printable(&word)).collect();
        let bus = bus(name, &folder);
        Some(Disk {
            name: name.to_owned(),
            // The kernel writes a slash in a name as an exclamation mark.
            node: Path::new("/dev").join(name.replace('!', "/")),
            number: number(&folder)?,
            sequence: attribute(&folder, "diskseq"),
            size: size(&folder)?,
            block: attribute(&folder, "queue/logical_block_size")?.parse().ok()?,
            removable: attribute(&folder, "removable")? == "1",
            read_only: attribute(&folder, "ro")? == "1",
            bus,
            model: model.join(" "),
            content: self.content(&folder),
            parts,
            // Of what stands below `virtual` only NVMe's disks with several paths are hardware.
            physical: !folder.components().any(|part| part.as_os_str() == "virtual") || bus == Bus::Nvme,
            direct: !["sr", "fd"].iter().any(|drive| name.starts_with(drive)),
        })
    }

    fn partitions(&self, disk: &Path) -> Vec<Part> {
        let folders = fs::read_dir(disk).into_iter().flatten().flatten().map(|entry| entry.path());
        let parts = folders.filter(|folder| folder.join("partition").exists()).filter_map(|folder| {
            let name = folder.file_name()?.to_str()?.to_owned();
            Some(Part { name, size: size(&folder)?, content: self.content(&folder) })
        });
        parts.collect()
    }

    /// What udev's database says of a disk or partition.
    fn content(&self, folder: &Path) -> Option<Content> {
        let number = attribute(folder, "dev")?;
        let text = fs::read_to_string(self.path("run/udev/data").join(format!("b{number}"))).ok()?;
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix("E:")?.strip_prefix(key)?.strip_prefix('='));
            found.map(printable).filter(|value| !value.is_empty())
        };
        Some(Content {
            kind: value("ID_FS_TYPE")?,
            label: value("ID_FS_LABEL").or_else(|| value("ID_PART_ENTRY_NAME")),
        })
    }
}

/// One value of sysfs, if it is there.
fn attribute(folder: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(folder.join(name)).ok()?.trim().to_owned())
}

/// `8:16` as a number.
fn number(folder: &Path) -> Option<u64> {
    let text = attribute(folder, "dev")?;
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn size(folder: &Path) -> Option<u64> {
    attribute(folder, "size")?.parse::<u64>().ok()?.checked_mul(SYSFS_SECTOR)
}

fn bus(name: &str, folder: &Path) -> Bus {
    let parts: Vec<&str> = folder.components().filter_map(|part| part.as_os_str().to_str()).collect();
    let on = |prefix: &str| parts.iter().any(|part| part.strip_prefix(prefix).is_some_and(starts_with_digit));
    match attribute(folder, "device/type").as_deref() {
        _ if name.starts_with("nvme") => Bus::Nvme,
        _ if name.starts_with("loop") => Bus::Loop,
        Some("SD") => Bus::Sd,
        Some("MMC") => Bus::Emmc,
        _ if on("usb") => Bus::Usb,
        _ if on("ata") => Bus::Sata,
        _ if on("virtio") => Bus::Virtio,
        _ => Bus::Other,
    }
}

fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

/// What a disk says of itself goes to a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>().trim().to_owned()
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Usb => "USB",
            Self::Sd => "SD",
            Self::Emmc => "eMMC",
            Self::Nvme => "NVMe",
            Self::Sata => "SATA",
            Self::Virtio => "virtio",
            Self::Loop => "loop",
            Self::Other => "-",
        })
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            Some(label) => write!(f, "{} \"{label}\"", self.kind),
            None => write!(f, "{}", self.kind),
        }
    }
}
