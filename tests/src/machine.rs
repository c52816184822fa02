//! The machine that a rack is booted on, as arguments of `rackstick run`.

use std::path::PathBuf;

/// A machine; the default is one with a virtio disk and a virtio NIC, 2 CPUs and 2 GiB, without a screen.
///
/// Its parts can be pulled by name (see [`crate::qmp`]): `disk0` (virtio, NVMe and USB), `nic0` and so on, whose
/// networks are `net0` and so on; `slot0` and so on are empty.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the rack writes stays in the image.
    pub persist: bool,
    /// A folder with the values of guests' secrets.
    pub secrets: Option<PathBuf>,
    /// How the disk is attached. Its sectors are those that the image was built for.
    pub disk: Disk,
    /// The disk's size in GiB; none: what `rackstick run` takes.
    pub disk_gib: Option<u64>,
    /// The NICs; forwards lead through the first.
    pub nics: Vec<Nic>,
    /// What is at the NICs.
    pub network: Network,
    /// Number of CPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Whether the CPU can run guests (SVM).
    pub virtualization: bool,
    /// Whether there is a serial port.
    pub serial: bool,
    /// Whether there is a graphics card, so that [`crate::rack::Rack::screenshot`] works.
    pub screen: bool,
    /// Empty PCIe slots, into which devices can be plugged.
    pub slots: u8,
    /// Whether there is an xHCI controller `usb` with the bus `usb.0`, also without a USB disk.
    pub usb: bool,
    /// More arguments for QEMU.
    pub qemu: Vec<String>,
}

/// How the disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// virtio-blk.
    Virtio,
    /// SATA, AHCI.
    Ahci,
    /// NVMe.
    Nvme,
    /// A USB stick at an xHCI controller.
    Usb,
}

/// The model of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nic {
    /// virtio-net.
    Virtio,
    /// Intel 82574L.
    E1000e,
    /// Intel 82576.
    Igb,
    /// Realtek 8139.
    Rtl8139,
    /// Intel 82551, which is of no use without its firmware.
    I82551,
}

/// What is at the NICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// QEMU's user network: answers DHCP or has the manifest's fixed address, with the manifest's forwards.
    User,
    /// A carrier, but nobody who answers, and no forwards.
    Silent,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            persist: false,
            secrets: None,
            disk: Disk::Virtio,
            disk_gib: None,
            nics: vec![Nic::Virtio],
            network: Network::User,
            cpus: 2,
            memory_mib: 2048,
            virtualization: true,
            serial: true,
            screen: false,
            slots: 0,
            usb: false,
            qemu: Vec::new(),
        }
    }
}

impl Options {
    /// Arguments of `rackstick run`, but for the image and for paths. They end with QEMU's.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let disk = match self.disk {
            Disk::Virtio => "virtio",
            Disk::Ahci => "ahci",
            Disk::Nvme => "nvme",
            Disk::Usb => "usb",
        };
        let mut out =
            vec![format!("--disk={disk}"), format!("--cpus={}", self.cpus), format!("--memory={}", self.memory_mib)];
        out.extend(self.disk_gib.map(|gib| format!("--disk-size={gib}")));
        out.extend(self.persist.then(|| "--persist".to_owned()));
        out.extend(self.secrets.iter().map(|folder| format!("--secrets={}", folder.display())));
        out.extend((!self.virtualization).then(|| "--no-virtualization".to_owned()));
        out.extend((!self.serial).then(|| "--no-serial".to_owned()));
        match self.network {
            Network::User if !self.nics.is_empty() => {
                out.extend(self.nics.iter().map(|nic| format!("--nic={}", nic.name())));
            }
            _ => out.push("--nic=none".to_owned()),
        }
        out.push("--".to_owned());
        let mut device = |text: String| out.extend(["-device".to_owned(), text]);
        // `rackstick run` counts its slots from 1.
        (0..self.slots).for_each(|number| device(format!("pcie-root-port,id=slot{number},chassis={}", 100 + number)));
        if self.usb && self.disk != Disk::Usb {
            device("qemu-xhci,id=usb".to_owned());
        }
        if self.network == Network::Silent {
            for (number, nic) in self.nics.iter().enumerate() {
                let (model, bus) = (nic.model(), format!("slot-nic{number}"));
                // A hub with one port.
                out.extend(["-netdev".to_owned(), format!("hubport,id=net{number},hubid={number}")]);
                out.extend(["-device".to_owned(), format!("pcie-root-port,id={bus},chassis={}", 200 + number)]);
                let nic = format!("{model},id=nic{number},bus={bus},netdev=net{number},romfile=");
                out.extend(["-device".to_owned(), nic]);
            }
        }
        out.extend_from_slice(&self.qemu);
        out
    }
}

impl Nic {
    fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::E1000e => "e1000e",
            Self::Igb => "igb",
            Self::Rtl8139 => "rtl8139",
            Self::I82551 => "i82551",
        }
    }

    /// QEMU's name of the model, for `device_add`.
    pub fn model(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-net-pci",
            other => other.name(),
        }
    }
}
