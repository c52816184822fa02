//! A virtual machine of QEMU that resembles the PC or server a rack will run on: q35, UEFI, one disk, NICs.
//! Option names as in QEMU's manual page, section "Standard options" and following.

pub mod accel;
pub mod devices;
pub mod find;
pub mod forward;

use std::{
    ffi::{OsStr, OsString},
    net::Ipv4Addr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use rackstick_api::rack::VIRTIO_PORT;
use rackstick_image::{
    manifest::{Manifest, Network, UplinkAddress},
    sector::SectorSize,
};

use self::{
    accel::Accel,
    devices::{Disk, Nic},
    forward::Forward,
};

/// One machine, before it is started.
#[derive(Debug)]
pub struct Machine {
    /// Its name in process lists.
    pub name: String,
    /// What runs its instructions.
    pub accel: Accel,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// UEFI code.
    pub firmware: PathBuf,
    /// UEFI variables, this machine's own copy.
    pub variables: PathBuf,
    /// The disk's file.
    pub disk: PathBuf,
    /// QEMU's name of the file's format.
    pub disk_format: &'static str,
    /// Whether the file is thrown away afterwards, so that nothing needs to reach this machine's own disk.
    pub throw_away: bool,
    /// How the disk is attached.
    pub disk_bus: Disk,
    /// The size of its logical blocks.
    pub sector: SectorSize,
    /// Whether the CPU can run guests of its own.
    pub virtualization: bool,
    /// The NICs, each at a network of its own.
    pub nics: Vec<Nic>,
    /// The network at the first NIC.
    pub uplink: Uplink,
    /// Ports that lead in, through the first NIC.
    pub forwards: Vec<Forward>,
    /// Unix socket behind the virtio-serial port of the API.
    pub api: PathBuf,
    /// What the serial port leads to.
    pub serial: Serial,
    /// Unix socket of a VNC server that shows the screen; none: no graphics card.
    pub screen: Option<PathBuf>,
    /// Unix socket of QEMU's monitor (QMP).
    pub qmp: Option<PathBuf>,
}

/// What the serial port leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serial {
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
    /// There is no serial port.
    Absent,
}

/// The address that QEMU's network must give or expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uplink {
    /// The rack asks by DHCP.
    Dhcp,
    /// The rack has this address in a network of this prefix length, and this gateway.
    Static(Ipv4Addr, u8, Option<Ipv4Addr>),
}

impl Uplink {
    /// What the rack's first uplink expects.
    pub fn of(manifest: &Manifest) -> Self {
        let mut uplinks = manifest.networks.values().filter_map(|network| match network {
            Network::Uplink { address, gateway, .. } => Some((address, *gateway)),
            Network::Private { .. } => None,
        });
        match uplinks.next() {
            Some((UplinkAddress::Static { address, prefix }, gateway)) => Self::Static(*address, *prefix, gateway),
            Some((UplinkAddress::Dhcp, _)) | None => Self::Dhcp,
        }
    }
}

impl Machine {
    /// QEMU's arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut out = Arguments(Vec::new());
        out.flag("-no-user-config").flag("-nodefaults");
        out.pair("-name", Value::new("rackstick-").quoted(&self.name));
        let (accel, cpu) = match self.accel {
            Accel::Kvm => ("kvm", "host"),
            Accel::Tcg => ("tcg,thread=multi", "max"),
        };
        let nesting = if self.virtualization { "" } else { ",svm=off,vmx=off" };
        out.pair("-machine", "q35").pair("-accel", accel).pair("-cpu", Value::new(cpu).text(nesting));
        out.pair("-smp", self.cpus.to_string()).pair("-m", self.memory_mib.to_string());
        match &self.screen {
            Some(path) => out.pair("-device", "VGA").pair("-display", Value::new("vnc=unix:").quoted(path)),
            None => out.pair("-display", "none"),
        };

        let flash = |unit, mode| Value::new("if=pflash,format=raw,unit=").text(unit).text(mode).text(",file=");
        out.pair("-drive", flash("0", ",readonly=on").quoted(&self.firmware));
        out.pair("-drive", flash("1", "").quoted(&self.variables));

        let cache = if self.throw_away { "unsafe" } else { "writeback" };
        let disk = Value::new("if=none,id=disk,discard=unmap,cache=").text(cache);
        out.pair("-drive", disk.text(",format=").text(self.disk_format).text(",file=").quoted(&self.disk));
        for device in self.disk_bus.devices(self.sector) {
            out.pair("-device", device);
        }
        for (number, nic) in self.nics.iter().enumerate() {
            out.pair("-netdev", self.netdev(number));
            for device in nic.devices(number) {
                out.pair("-device", device);
            }
        }
        out.pair("-device", "virtio-rng-pci");
        out.pair("-chardev", Value::new("socket,id=api,server=on,wait=off,path=").quoted(&self.api));
        out.pair("-device", "virtio-serial-pci");
        out.pair("-device", Value::new("virtserialport,chardev=api,name=").text(VIRTIO_PORT));
        match &self.serial {
            Serial::File(path) => out
                .pair("-chardev", Value::new("file,id=console,path=").quoted(path))
                .pair("-serial", "chardev:console"),
            // Ctrl-C belongs to this command, not to QEMU.
            Serial::Stdout => out.pair("-chardev", "stdio,id=console,signal=off").pair("-serial", "chardev:console"),
            Serial::Absent => out.pair("-serial", "none"),
        };
        if let Some(path) = &self.qmp {
            out.pair("-chardev", Value::new("socket,id=qmp,server=on,wait=off,path=").quoted(path));
            out.pair("-mon", "chardev=qmp,mode=control");
        }
        out.0
    }

    /// The network at one NIC.
    fn netdev(&self, number: usize) -> Value {
        let mut value = Value::new("user,id=net").text(number.to_string());
        if number > 0 {
            // QEMU would give each the same subnet, 10.0.2.0/24.
            return value.text(format!(",net=10.0.{}.0/24", number + 2));
        }
        let mut rack = String::new();
        if let Uplink::Static(address, prefix, gateway) = self.uplink {
            value = value.text(",net=").text(format!("{address}/{prefix}"));
            if let Some(gateway) = gateway {
                value = value.text(",host=").text(gateway.to_string());
            }
            rack = address.to_string();
        }
        for Forward { host_port, port, protocol, .. } in &self.forwards {
            let protocol = forward::name(*protocol);
            let local = Ipv4Addr::LOCALHOST;
            value = value.text(",hostfwd=").text(format!("{protocol}:{local}:{host_port}-{rack}:{port}"));
        }
        value
    }
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.extend([option.into(), value.into()]);
        self
    }
}

/// A value of a QEMU option: `key=value,key=value`.
struct Value(Vec<u8>);

impl Value {
    fn new(text: &str) -> Self {
        Self(text.into())
    }

    fn text(mut self, text: impl AsRef<str>) -> Self {
        self.0.extend_from_slice(text.as_ref().as_bytes());
        self
    }

    /// Appends what somebody else chose: a comma in it is doubled, else QEMU would read an option after it.
    fn quoted(mut self, text: impl AsRef<OsStr>) -> Self {
        for byte in text.as_ref().as_bytes() {
            self.0.extend_from_slice(if *byte == b',' { b",," } else { std::slice::from_ref(byte) });
        }
        self
    }
}

impl From<Value> for OsString {
    fn from(value: Value) -> Self {
        OsString::from_vec(value.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            name: "lab".into(),
            accel: Accel::Tcg,
            cpus: 2,
            memory_mib: 2048,
            firmware: "/fw/code.fd".into(),
            variables: "/tmp/vars.fd".into(),
            disk: "/images/a,readonly=on.img".into(),
            disk_format: "raw",
            throw_away: false,
            disk_bus: Disk::Ahci,
            sector: SectorSize::B512,
            virtualization: true,
            nics: vec![Nic::Virtio],
            uplink: Uplink::Static(Ipv4Addr::new(192, 168, 7, 2), 24, Some(Ipv4Addr::new(192, 168, 7, 1))),
            forwards: vec![Forward {
                host_port: 10053,
                port: 53,
                protocol: rackstick_image::manifest::Protocol::Udp,
                label: None,
            }],
            api: "/run/api".into(),
            serial: Serial::Stdout,
            screen: None,
            qmp: None,
        }
    }

    fn line(machine: &Machine) -> String {
        machine.arguments().join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn a_comma_in_a_path_is_no_option() {
        assert!(line(&machine()).contains("file=/images/a,,readonly=on.img -device ide-hd"), "{}", line(&machine()));
    }

    #[test]
    fn a_rack_with_a_fixed_address_gets_the_network_it_expects() {
        let expected = "user,id=net0,net=192.168.7.2/24,host=192.168.7.1,hostfwd=udp:127.0.0.1:10053-192.168.7.2:53 ";
        assert!(line(&machine()).contains(expected), "{}", line(&machine()));
        let machine = Machine { uplink: Uplink::Dhcp, ..machine() };
        assert!(line(&machine).contains("user,id=net0,hostfwd=udp:127.0.0.1:10053-:53 "), "{}", line(&machine));
    }

    #[test]
    fn emulation_is_asked_for_what_nests() {
        assert!(line(&machine()).contains("-machine q35 -accel tcg,thread=multi -cpu max -smp"));
        let machine = Machine { virtualization: false, ..machine() };
        assert!(line(&machine).contains("-cpu max,svm=off,vmx=off -smp"));
    }

    #[test]
    fn every_nic_has_a_network_of_its_own_and_the_first_the_forwards() {
        let machine = Machine { nics: vec![Nic::Rtl8139, Nic::Igb], uplink: Uplink::Dhcp, ..machine() };
        let line = line(&machine);
        for part in [
            "user,id=net0,hostfwd=udp:127.0.0.1:10053-:53 ",
            "rtl8139,id=nic0,bus=slot-nic0,netdev=net0,romfile= ",
            "user,id=net1,net=10.0.3.0/24 ",
            "igb,id=nic1,bus=slot-nic1,netdev=net1,romfile= ",
        ] {
            assert!(line.contains(part), "{part} is missing: {line}");
        }
    }
}
