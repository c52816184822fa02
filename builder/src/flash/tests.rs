use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use rackstick_image::{sector::SectorSize, used::Used};
use tempfile::TempDir;

use super::{Refusal, System, disks::Bus, refusal};

const GIB: u64 = 1 << 30;

/// A machine as the kernel would show it.
struct Machine(TempDir);

impl Machine {
    /// Without disks; its root is on a disk that is not there.
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(machine.path("sys/block")).unwrap();
        machine.file("proc/self/mountinfo", "22 1 254:9 / / rw - ext4 /dev/vdz rw\n");
        machine.file("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// A disk or partition with its attributes; a partition stands below its disk's folder.
    fn device(&self, folder: &str, number: &str, size: u64, attributes: &[(&str, &str)]) -> &Self {
        let name = Path::new(folder).file_name().unwrap().to_str().unwrap();
        let fixed = [("dev", number), ("size", &(size / 512).to_string()), ("ro", "0"), ("removable", "0")]
            .map(|(key, value)| (key, value.to_owned()));
        for (key, value) in fixed.into_iter().chain([("queue/logical_block_size", "512".to_owned())]) {
            self.file(&format!("sys/devices/{folder}/{key}"), &format!("{value}\n"));
        }
        for (key, value) in attributes {
            self.file(&format!("sys/devices/{folder}/{key}"), &format!("{value}\n"));
        }
        let links = if attributes.iter().any(|(key, _)| *key == "partition") {
            &["class/block"][..]
        } else {
            &["class/block", "block"]
        };
        for link in links {
            let link = self.path("sys").join(link).join(name);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(self.path("sys/devices").join(folder), link).unwrap();
        }
        self
    }

    /// A PC: its own disk, a stick, a card, an empty reader, a CD drive, a disk in parts of LVM, a loop device.
    fn pc() -> Self {
        let machine = Self::new();
        let stick = "pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb";
        let reader = "pci0000:00/0000:00:14.0/usb2/2-2/2-2:1.0/host7/target7:0:0/7:0:0:0/block/sdc";
        machine
            .device("pci0000:00/0000:00:1d.0/0000:02:00.0/nvme/nvme0/nvme0n1", "259:0", 256 * GIB, &[("device/model", "Samsung SSD 970")])
            .device("pci0000:00/0000:00:1d.0/0000:02:00.0/nvme/nvme0/nvme0n1/nvme0n1p1", "259:1", GIB, &[("partition", "1")])
            .device("pci0000:00/0000:00:1d.0/0000:02:00.0/nvme/nvme0/nvme0n1/nvme0n1p2", "259:2", 255 * GIB, &[("partition", "2"), ("holders/dm-0/x", "")])
            .device("virtual/block/dm-0", "253:0", 255 * GIB, &[("dm/name", "crypt-root")])
            .device(stick, "8:16", 16 * GIB, &[("device/vendor", "SanDisk "), ("device/model", "Ultra \u{1b}[2J"), ("removable", "1")])
            .device(&format!("{stick}/sdb1"), "8:17", 16 * GIB, &[("partition", "1")])
            .device(reader, "8:32", 0, &[("removable", "1")])
            .device("pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda", "8:0", 500 * GIB, &[("device/model", "WDC")])
            .device("pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sda/sda1", "8:1", 500 * GIB, &[("partition", "1"), ("holders/md0/x", "")])
            .device("virtual/block/md0", "9:0", 500 * GIB, &[])
            .device("pci0000:00/0000:00:17.0/ata4/host3/target3:0:0/3:0:0:0/block/sr0", "11:0", GIB, &[("removable", "1")])
            .device("platform/mmc0/mmc0:aaaa/block/mmcblk0", "179:0", 32 * GIB, &[("device/type", "SD"), ("device/name", "SC32G"), ("ro", "1")])
            .device("virtual/block/loop0", "7:0", GIB, &[])
            .file("run/udev/data/b8:17", "S:disk/by-label/PHOTOS\nE:ID_FS_TYPE=vfat\nE:ID_FS_LABEL=PHOTOS\nG:systemd\n")
            .file("proc/self/mountinfo", "22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/mapper/crypt-root rw\n30 22 259:1 / /boot/efi rw shared:2 - vfat /dev/nvme0n1p1 rw\n");
        machine
    }

    fn system(&self) -> System {
        System::at(self.0.path())
    }

    fn refusal(&self, name: &str) -> Option<Refusal> {
        let disk = self.system().disk(name).unwrap();
        refusal(&self.system(), &disk, None).unwrap()
    }
}

#[test]
fn disks_are_listed_with_what_is_on_them_and_those_that_are_carried_about_first() {
    let machine = Machine::pc();
    let disks = machine.system().disks().unwrap();
    let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["mmcblk0", "sdb", "nvme0n1", "sda"]);
    let buses: Vec<Bus> = disks.iter().map(|disk| disk.bus).collect();
    assert_eq!(buses, [Bus::Sd, Bus::Usb, Bus::Nvme, Bus::Sata]);
    let stick = &disks[1];
    assert_eq!((stick.size, stick.block), (16 * GIB, 512));
    // What a stick says of itself does not reach the terminal as it is.
    assert_eq!(stick.model, "SanDisk Ultra ?[2J");
    assert_eq!(stick.parts[0].content.as_ref().unwrap().to_string(), "vfat \"PHOTOS\"");
}

#[test]
fn the_systems_own_disk_is_refused_also_through_encryption() {
    let machine = Machine::pc();
    let Some(Refusal::System(at)) = machine.refusal("nvme0n1") else { panic!("{:?}", machine.refusal("nvme0n1")) };
    assert_eq!(at, ["/", "/boot/efi"]);
}

#[test]
fn a_disk_in_use_is_refused_and_a_free_one_is_not() {
    let machine = Machine::pc();
    assert_eq!(machine.refusal("sdb"), None);
    assert_eq!(machine.refusal("mmcblk0"), Some(Refusal::ReadOnly));
    assert_eq!(machine.refusal("sda"), Some(Refusal::Held { device: "sda1".into(), by: "md0".into() }));

    let mounted = |at: &str| Some(Refusal::Mounted { device: "sdb1".into(), at: at.into() });
    machine.file("proc/self/mountinfo", "99 22 8:17 / /media/my\\040photos rw - vfat /dev/sdb1 rw\n");
    assert_eq!(machine.refusal("sdb"), mounted("/media/my photos"));
    // Btrfs has numbers of its own.
    machine.file("proc/self/mountinfo", "99 22 0:45 /sub /mnt rw - btrfs /dev/sdb1 rw\n");
    assert_eq!(machine.refusal("sdb"), mounted("/mnt"));
    // A name that only begins alike.
    machine.file("proc/self/mountinfo", "99 22 8:18 / /mnt rw - ext4 /dev/sdb11 rw\n");
    assert_eq!(machine.refusal("sdb"), None);

    machine.file("proc/swaps", "Filename Type Size Used Priority\n/dev/sdb1 partition 1024 0 -2\n");
    assert_eq!(machine.refusal("sdb"), Some(Refusal::Swap("sdb1".into())));
    machine.file("proc/swaps", "Filename Type Size Used Priority\n/swapfile file 1024 0 -2\n");
    machine.file("sys/devices/virtual/block/loop0/loop/backing_file", "/dev/sdb1\n");
    assert_eq!(machine.refusal("sdb"), Some(Refusal::Held { device: "sdb1".into(), by: "loop0".into() }));
}

#[test]
fn a_disk_that_does_not_fit_the_image_is_refused_with_the_numbers() {
    let machine = Machine::pc();
    let (system, used) = (machine.system(), |sector, size| Used { sector, size, ranges: Vec::new() });
    let disk = system.disk("sdb").unwrap();
    let of = |used| refusal(&system, &disk, Some(&used)).unwrap();
    assert_eq!(of(used(SectorSize::B512, 16 * GIB)), None);
    assert_eq!(
        of(used(SectorSize::B512, 16 * GIB + 512)),
        Some(Refusal::TooSmall { disk: 16 * GIB, image: 16 * GIB + 512 })
    );
    assert_eq!(of(used(SectorSize::B4096, GIB)), Some(Refusal::Blocks { disk: 512, image: 4096 }));
}
