//! Which drivers a host has: classes of devices, each with the folders of the kernel package that hold their drivers.
//! The aim is that any spare PC or server boots, finds its disks, and is reached through its wired NIC.
//!
//! What a chosen module needs comes along by itself, also out of folders that are left out here. `docs/hardware.md` is
//! this table with what the locked kernel makes of it.

use rackstick_image::modules;

/// A class of devices.
pub struct Class {
    /// What they are.
    pub name: &'static str,
    /// What a rack does with them.
    pub why: &'static str,
    /// Their drivers. With a slash: a folder below the package's `kernel/`, with all folders in it. Without: a module,
    /// wherever it lies; may hold fnmatch(3) patterns. What is built into the kernel may be named too. Empty: the
    /// kernel has it built in, under no name.
    pub take: &'static [&'static str],
    /// What is not taken all the same.
    pub except: &'static [Exception],
}

/// Drivers that a rack does without.
pub struct Exception {
    /// Written as in [`Class::take`].
    pub what: &'static [&'static str],
    /// The reason.
    pub why: &'static str,
}

const PCMCIA: &str = "PCMCIA cards: no PC that can run virtual machines has a slot for them";

/// The classes. A module belongs to the first that takes it.
pub const CLASSES: &[Class] = &[
    Class {
        name: "virtual machines",
        why: "A rack in a virtual machine of QEMU, VMware or Hyper-V: its disks, NICs, memory, console",
        take: &[
            "drivers/virtio/",
            "virtio_blk",
            "virtio_console",
            "virtio_net",
            "virtio_pci",
            "virtio_rng",
            "virtio_scsi",
            "drivers/hv/",
            "hid_hyperv",
            "hv_netvsc",
            "hv_storvsc",
            "hyperv_keyboard",
            "pci_hyperv",
            "vmw_balloon",
            "vmw_pvscsi",
            "vmxnet3",
        ],
        except: &[Exception {
            what: &["virtio_vdpa"],
            why: "Needs hardware that offers virtio queues: none is common",
        }],
    },
    Class {
        name: "network cards",
        why: "Wired NICs on PCI for which Linux has a driver, but for those below, and the PHYs behind some of them",
        take: &["drivers/net/ethernet/", "drivers/net/phy/"],
        except: &[
            Exception {
                what: &["drivers/net/ethernet/netronome/", "drivers/net/ethernet/cavium/liquidio/"],
                why: "SmartNICs that run programs of their own; the first needs up to 141 MB of firmware",
            },
            Exception { what: &["*_cs"], why: PCMCIA },
        ],
    },
    Class {
        name: "USB network adapters",
        why: "Also what is built into docks and thin clients",
        take: &["drivers/net/usb/"],
        except: &[Exception {
            what: &["cdc_mbim", "cdc_phonet", "hso", "huawei_cdc_ncm", "kalmia", "lg_vl600", "qmi_wwan", "sierra_net"],
            why: "Mobile modems: they need a program that dials",
        }],
    },
    Class {
        name: "disks",
        why: "SATA, NVMe, IDE, and the SAS and RAID controllers of servers",
        take: &[
            "drivers/ata/",
            "drivers/message/fusion/",
            "drivers/nvme/host/",
            "drivers/scsi/",
            "drivers/ufs/",
            "mtip32xx",
            // NVMe disks behind Intel's Volume Management Device are invisible without it.
            "vmd",
        ],
        except: &[
            Exception {
                what: &[
                    "drivers/scsi/bfa/",
                    "drivers/scsi/bnx2fc/",
                    "drivers/scsi/csiostor/",
                    "drivers/scsi/device_handler/",
                    "drivers/scsi/fcoe/",
                    "drivers/scsi/fnic/",
                    "drivers/scsi/libfc/",
                    "drivers/scsi/lpfc/",
                    "drivers/scsi/qedf/",
                    "drivers/scsi/qla2xxx/",
                    "drivers/scsi/snic/",
                    "mptfc",
                    "mptlan",
                    "nvme_fabrics",
                    "nvme_fc",
                    "nvme_rdma",
                    "nvme_tcp",
                ],
                why: "Storage networks (Fibre Channel, NVMe over Fabrics): a rack's disks are its own",
            },
            Exception {
                what: &[
                    "*iscsi*",
                    "drivers/scsi/be2iscsi/",
                    "drivers/scsi/bnx2i/",
                    "drivers/scsi/cxgbi/",
                    "drivers/scsi/qedi/",
                    "drivers/scsi/qla4xxx/",
                ],
                why: "Storage networks (iSCSI): a rack's disks are its own",
            },
            Exception { what: &["ch", "mptctl", "ses", "sg", "st"], why: "Tapes, changers, enclosures: no disks" },
            Exception { what: &["drivers/scsi/pcmcia/", "pata_pcmcia"], why: PCMCIA },
            Exception { what: &["scsi_debug"], why: "A disk that is not there, for tests" },
            Exception { what: &["xen_scsifront"], why: "Xen gives its guests no virtualization" },
        ],
    },
    Class {
        name: "memory cards",
        why: "eMMC, which small PCs boot from, and SD cards",
        take: &["drivers/misc/cardreader/", "drivers/mmc/", "drivers/pinctrl/intel/"],
        except: &[
            Exception { what: &["sdio_uart"], why: "Serial ports on SDIO cards" },
            Exception { what: &["sdricoh_cs"], why: PCMCIA },
        ],
    },
    Class {
        name: "USB",
        why: "Host controllers, sticks, USB disks",
        take: &["drivers/usb/host/", "drivers/usb/storage/"],
        except: &[Exception { what: &["sl811_*"], why: "A host controller of embedded boards and PCMCIA cards" }],
    },
    Class {
        name: "keyboard and buttons",
        why: "Whoever stands before the rack, and its power button",
        take: &[
            "atkbd",
            "button",
            "evdev",
            "hid_generic",
            // Keyboards that hid_generic leaves to drivers of their own.
            "hid_apple",
            "hid_cherry",
            "hid_chicony",
            "hid_lenovo",
            "hid_logitech",
            "hid_logitech_dj",
            "hid_logitech_hidpp",
            "hid_microsoft",
            "i8042",
            "usbhid",
        ],
        except: &[],
    },
    Class {
        name: "screen",
        why: "The framebuffer that the firmware leaves behind, by efifb: enough for text, whatever the graphics card",
        take: &[],
        except: &[],
    },
    Class {
        name: "watchdogs",
        why: "A machine that hangs starts again",
        take: &[
            "drivers/watchdog/",
            // They make the device that iTCO_wdt drives.
            "i2c_i801",
            "intel_pmc_bxt",
            "lpc_ich",
        ],
        except: &[Exception { what: &["xen_wdt"], why: "Xen gives its guests no virtualization" }],
    },
    Class {
        name: "power, temperature, clock",
        why: "What keeps the machine at its full speed and cool, and what can be read of it",
        take: &[
            "drivers/cpufreq/",
            "acpi_power_meter",
            "asus_atk0110",
            "asus_ec_sensors",
            "asus_wmi_sensors",
            "coretemp",
            "dell_smm_hwmon",
            "drivetemp",
            "fam15h_power",
            "fan",
            "hp_wmi_sensors",
            "intel_pch_thermal",
            "k10temp",
            "k8temp",
            "rtc_cmos",
            "thermal",
            "via_cputemp",
            "x86_pkg_temp_thermal",
        ],
        except: &[],
    },
    Class {
        name: "KVM",
        why: "Guests, and their networks and sockets",
        take: &["arch/x86/kvm/", "tun", "vhost_net", "vhost_vsock"],
        except: &[],
    },
    Class {
        name: "networks of the host",
        why: "Bridges, firewall, NAT",
        take: &["af_packet", "bridge", "nf_conntrack", "nf_tables", "nft_*", "veth"],
        except: &[],
    },
    Class {
        name: "file systems and digests",
        why: "The boot and data partitions, guests' layers; fs-verity at the speed of the CPU",
        take: &[
            "efivarfs",
            "erofs",
            "ext4",
            "loop",
            "nls_ascii",
            "nls_cp437",
            "nls_iso8859_1",
            "overlay",
            "vfat",
            "aesni_intel",
            "crc32_pclmul",
            "crc32c_generic",
            "crc32c_intel",
            "sha256_generic",
            "sha256_ssse3",
        ],
        except: &[],
    },
];

/// What no class takes on purpose.
pub const LEFT_OUT: &[Exception] = &[
    Exception { what: &["sound/", "drivers/soundwire/"], why: "Sound" },
    Exception { what: &["drivers/media/"], why: "Television, radio, cameras" },
    Exception { what: &["drivers/gpu/", "drivers/accel/"], why: "Graphics: the firmware's framebuffer shows text" },
    Exception {
        what: &["drivers/net/wireless/", "net/mac80211/", "net/wireless/", "drivers/staging/"],
        why: "Wireless networks: access points drop what bridged guests send, and the firmware has some 200 MB",
    },
    Exception {
        what: &["drivers/net/wwan/", "drivers/net/ppp/"],
        why: "Mobile modems: they need a program that dials",
    },
    Exception { what: &["drivers/bluetooth/", "net/bluetooth/", "drivers/nfc/", "net/nfc/"], why: "Bluetooth, NFC" },
    Exception { what: &["drivers/infiniband/"], why: "InfiniBand and RDMA; such cards' Ethernet ports work" },
    Exception { what: &["drivers/md/"], why: "Software RAID and volume managers: a rack's data is on one disk" },
    Exception {
        what: &["drivers/thunderbolt/", "drivers/firewire/"],
        why: "Thunderbolt, FireWire: what is plugged in could read all memory. What the firmware lets in works",
    },
    Exception {
        what: &["drivers/iio/", "drivers/input/", "drivers/hid/", "drivers/platform/"],
        why: "Sensors, pointers, games' controllers, laptops' keys",
    },
    Exception { what: &["drivers/pcmcia/"], why: PCMCIA },
    Exception { what: &["drivers/xen/", "xen_*"], why: "Xen gives its guests no virtualization" },
];

/// What the tables say of a module.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// A class takes it.
    Taken(&'static Class),
    /// It is left out on purpose.
    LeftOut(&'static Exception),
    /// No table names it.
    Unnamed,
}

/// What the tables say of the module in the file `path` below `/lib/modules/<release>`.
pub fn verdict(path: &str) -> Verdict {
    let named = |list: &[&str]| list.iter().any(|entry| names(entry, path));
    let Some(class) = CLASSES.iter().find(|class| named(class.take)) else {
        let left_out = LEFT_OUT.iter().find(|exception| named(exception.what));
        return left_out.map_or(Verdict::Unnamed, Verdict::LeftOut);
    };
    let exception = class.except.iter().find(|exception| named(exception.what));
    exception.map_or(Verdict::Taken(class), Verdict::LeftOut)
}

/// The modules to ask for from a kernel whose modules' files are `paths`: all that a class takes. The names that the
/// table spells out are among them even if there is no such file: they may be built in, and if not, that is an error.
pub fn wanted<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let taken = paths.filter(|path| matches!(verdict(path), Verdict::Taken(_))).filter_map(modules::name_of_path);
    let spelt = CLASSES.iter().flat_map(|class| class.take).filter(|entry| !entry.contains(['/', '*']));
    let mut wanted: Vec<String> = taken.chain(spelt.map(|name| (*name).to_owned())).collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

/// Whether an entry of the tables names the module in the file `path`.
pub fn names(entry: &str, path: &str) -> bool {
    match entry.strip_suffix('/') {
        Some(folder) => path
            .strip_prefix("kernel/")
            .is_some_and(|path| path.strip_prefix(folder).is_some_and(|below| below.starts_with('/'))),
        None => modules::name_of_path(path).is_some_and(|name: String| modules::matches(entry, &name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str) -> &'static str {
        match verdict(path) {
            Verdict::Taken(class) => class.name,
            Verdict::LeftOut(exception) => exception.why,
            Verdict::Unnamed => "",
        }
    }

    #[test]
    fn a_driver_is_judged_by_its_folder_and_by_its_name() {
        for (path, name) in [
            ("kernel/drivers/net/ethernet/realtek/r8169.ko.xz", "network cards"),
            ("kernel/drivers/scsi/hv_storvsc.ko.xz", "virtual machines"),
            ("kernel/drivers/scsi/mpt3sas/mpt3sas.ko.xz", "disks"),
            ("kernel/drivers/net/usb/ax88179_178a.ko.xz", "USB network adapters"),
            ("kernel/net/netfilter/nft_ct.ko.xz", "networks of the host"),
            ("kernel/drivers/net/ethernet/8390/pcnet_cs.ko.xz", PCMCIA),
            ("kernel/drivers/hid/hid-generic.ko.xz", "keyboard and buttons"),
            ("kernel/drivers/net/ethernets/x.ko.xz", ""),
            ("drivers/net/ethernet/x.ko.xz", ""),
            ("modules.builtin", ""),
        ] {
            assert_eq!(said(path), name, "{path}");
        }
        assert!(said("kernel/drivers/net/wireless/intel/iwlwifi/iwlwifi.ko.xz").starts_with("Wireless"));
        assert!(said("kernel/drivers/scsi/qla2xxx/qla2xxx.ko.xz").starts_with("Storage networks"));
    }

    #[test]
    fn what_is_taken_is_wanted_and_so_is_what_is_spelt_out() {
        let paths = ["kernel/drivers/ata/ahci.ko.xz", "kernel/sound/soundcore.ko.xz", "modules.order"];
        let wanted = wanted(paths.into_iter());
        for name in ["ahci", "ext4", "vhost_net"] {
            assert!(wanted.iter().any(|wanted| wanted == name), "{name}");
        }
        assert!(wanted.iter().all(|name| !name.contains(['/', '*']) && name != "soundcore"), "{wanted:?}");
    }

    #[test]
    fn no_entry_stands_twice() {
        let taken = CLASSES.iter().flat_map(|class| class.take);
        let kept = CLASSES.iter().flat_map(|class| class.except).chain(LEFT_OUT);
        let mut all: Vec<&str> = taken.copied().collect();
        all.extend(LEFT_OUT.iter().flat_map(|exception| exception.what));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(kept.into_iter().all(|exception| !exception.what.is_empty() && !exception.why.is_empty()));
    }
}
