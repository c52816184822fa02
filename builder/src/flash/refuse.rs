//! Which disks are not overwritten, and why.

use rackstick_image::used::Used;

use super::{
    disks::{Disk, DisksError, System},
    users::{self, Use},
};

/// Where a running system's own files are.
const SYSTEM: &[&str] = &["/", "/usr", "/boot", "/boot/efi", "/efi", "/nix", "/var"];

/// Why a disk is not overwritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The running system is on it.
    #[error("this system runs from it ({})", .0.join(", "))]
    System(Vec<String>),
    /// Something is mounted.
    #[error("{device} is mounted at {at}; `umount {at}` if nothing needs it")]
    Mounted {
        /// What.
        device: String,
        /// Where.
        at: String,
    },
    /// Swap.
    #[error("{0} is in use as swap; `swapoff /dev/{0}` if nothing needs it")]
    Swap(String),
    /// A part of LVM, a RAID, an encrypted disk, a loop device.
    #[error("{device} is in use by {by}; stop that first")]
    Held {
        /// What.
        device: String,
        /// By what.
        by: String,
    },
    /// Write-protected.
    #[error("it is write-protected; many SD cards have a switch for that")]
    ReadOnly,
    /// Too small.
    #[error("it has {disk} bytes, the image {image}")]
    TooSmall {
        /// Its size.
        disk: u64,
        /// The image's size.
        image: u64,
    },
    /// Another kind of disk.
    #[error("its logical blocks have {disk} bytes, and the image is for {image}; build it with `--sector-size {disk}`")]
    Blocks {
        /// Of the disk.
        disk: u64,
        /// That the image is for.
        image: u64,
    },
}

/// Why a disk must not be overwritten, with this image or at all; none if it may be.
pub fn refusal(system: &System, disk: &Disk, image: Option<&Used>) -> Result<Option<Refusal>, DisksError> {
    let uses = users::of(system, disk)?;
    let mounted = uses.iter().filter_map(|one| match one {
        Use::Mounted { at, .. } => Some(at.clone()),
        _ => None,
    });
    let mounted: Vec<String> = mounted.collect();
    if mounted.iter().any(|at| SYSTEM.contains(&at.as_str())) {
        return Ok(Some(Refusal::System(mounted)));
    }
    // What is mounted tells more than what holds it.
    if let Some(one) = uses.into_iter().min_by_key(|one| matches!(one, Use::Held { .. })) {
        return Ok(Some(match one {
            Use::Mounted { device, at } => Refusal::Mounted { device, at },
            Use::Swap(device) => Refusal::Swap(device),
            Use::Held { device, by } => Refusal::Held { device, by },
        }));
    }
    if disk.read_only {
        return Ok(Some(Refusal::ReadOnly));
    }
    Ok(match image {
        Some(image) if image.sector.bytes() != disk.block => {
            Some(Refusal::Blocks { disk: disk.block, image: image.sector.bytes() })
        }
        Some(image) if image.size > disk.size => Some(Refusal::TooSmall { disk: disk.size, image: image.size }),
        _ => None,
    })
}
