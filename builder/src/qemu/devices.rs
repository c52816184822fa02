//! The disks and NICs that a machine can have, by the names of QEMU's models.
//!
//! Disks, NICs and the networks behind these are `disk0`, `nic0`, `net0`, `nic1` and so on: the names by which QEMU's
//! monitor pulls them. What is a PCI device sits in a slot of its own (`slot-disk0`, `slot-nic0`), as in real machines:
//! only from a slot can it be pulled, and into an empty one another can be plugged.

use rackstick_image::sector::SectorSize;

/// How the disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Disk {
    /// virtio-blk
    Virtio,
    /// A SATA disk at the chipset's AHCI controller
    Ahci,
    /// An NVMe disk
    Nvme,
    /// A USB stick at an xHCI controller
    Usb,
}

impl Disk {
    /// Whether it can have sectors of this size: QEMU's IDE devices, of which SATA disks are one, know only 512 bytes.
    pub fn takes(self, sector: SectorSize) -> bool {
        !matches!((self, sector), (Self::Ahci, SectorSize::B4096))
    }

    /// Its devices, the one with the file `disk` last.
    pub fn devices(self, sector: SectorSize) -> Vec<String> {
        let sector = match sector {
            SectorSize::B512 => "",
            SectorSize::B4096 => ",logical_block_size=4096,physical_block_size=4096",
        };
        let disk = format!("id=disk0,drive=disk,bootindex=0{sector}");
        let slot = || slot("slot-disk0", 1);
        match self {
            Self::Virtio => vec![slot(), format!("virtio-blk-pci,bus=slot-disk0,{disk}")],
            Self::Ahci => vec![format!("ide-hd,bus=ide.0,{disk}")],
            Self::Nvme => vec![slot(), format!("nvme,bus=slot-disk0,serial=rackstick,{disk}")],
            Self::Usb => vec!["qemu-xhci,id=usb".to_owned(), format!("usb-storage,bus=usb.0,{disk}")],
        }
    }
}

/// The model of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Nic {
    /// virtio-net
    Virtio,
    /// Intel 82574L
    E1000e,
    /// Intel 82576
    Igb,
    /// Realtek 8139
    Rtl8139,
    /// Intel 82551, which is of no use without its firmware
    I82551,
    /// No NIC at all
    None,
}

impl Nic {
    /// Its devices as the NIC with this number; none for [`Nic::None`].
    pub fn devices(self, number: usize) -> Vec<String> {
        let model = match self {
            Self::Virtio => "virtio-net-pci",
            Self::E1000e => "e1000e",
            Self::Igb => "igb",
            Self::Rtl8139 => "rtl8139",
            Self::I82551 => "i82551",
            Self::None => return Vec::new(),
        };
        let bus = format!("slot-nic{number}");
        // Without its ROM the firmware does not try to boot from the network. The disk's slot is the first.
        let nic = format!("{model},id=nic{number},bus={bus},netdev=net{number},romfile=");
        vec![slot(&bus, number + 2), nic]
    }
}

/// A PCIe slot; each has another number.
fn slot(id: &str, number: usize) -> String {
    format!("pcie-root-port,id={id},chassis={number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_number_of_its_own() {
        let mut slots: Vec<String> = Disk::Nvme.devices(SectorSize::B512);
        slots.extend((0..3).flat_map(|number| Nic::Igb.devices(number)));
        let mut numbers: Vec<&str> = slots.iter().filter_map(|device| Some(device.split_once("chassis=")?.1)).collect();
        numbers.dedup();
        assert_eq!(numbers, ["1", "2", "3", "4"]);
    }
}
