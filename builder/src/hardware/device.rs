//! What a user says of a device, and the drivers that name it. A driver's aliases hold the ids that it is for, as
//! `pci:v00008086d000010D3sv*sd*bc*sc*i*` (Linux, scripts/mod/file2alias.c); a user knows two numbers of them, from
//! `lspci -nn` or `lsusb`, and perhaps the class.

use std::fmt;

use rackstick_image::modules::{self, Index, Module};
use thiserror::Error;

/// Drivers for PCI devices that Debian's kernel has built in, and the aliases that they would have as modules: up to
/// Linux 6.16 `modules.builtin.modinfo` lacks those that come from a driver's table of ids.
const BUILT_IN: [(&str, &str); 2] =
    [("virtio_pci", "pci:v00001AF4d*sv*sd*bc*sc*i*"), ("8250_pci", "pci:v*d*sv*sd*bc07sc00i*")];

/// Not a device.
#[derive(Debug, Error)]
#[error(
    "`{0}` is no device: give VENDOR:DEVICE as `lspci -nn` or `lsusb` shows it, like 8086:10d3, with pci: or usb: before \
     it if only one bus is meant, or a whole line of theirs, or what stands in a file `modalias` under /sys"
)]
pub struct IdError(pub(super) String);

/// A device on one bus, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// Exactly what the kernel says of it.
    Modalias(String),
    /// By its numbers.
    Id {
        /// The bus.
        bus: Bus,
        /// What the user wrote, without the bus.
        text: String,
        /// Fields of the alias that are known; all others are not.
        fields: Vec<(&'static str, String)>,
    },
}

/// A bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// PCI and PCI Express.
    Pci,
    /// USB.
    Usb,
}

impl Bus {
    /// How its aliases begin.
    fn prefix(self) -> &'static str {
        match self {
            Self::Pci => "pci:",
            Self::Usb => "usb:",
        }
    }

    /// The fields for vendor and device.
    fn id(self) -> [&'static str; 2] {
        match self {
            Self::Pci => ["v", "d"],
            Self::Usb => ["v", "p"],
        }
    }

    /// The fields for class, subclass and interface; of USB the interface's, since drivers are bound to interfaces.
    fn class(self) -> [&'static str; 3] {
        match self {
            Self::Pci => ["bc", "sc", "i"],
            Self::Usb => ["ic", "isc", "ip"],
        }
    }

    /// The class that an alias is for, whatever the device's vendor and id: four digits, or the two that it names.
    pub fn class_alone(self, alias: &str) -> Option<String> {
        let alias = alias.strip_prefix(self.prefix())?;
        let field = |name: &str| fields(alias).find(|(key, _)| *key == name).map_or("*", |(_, value)| value);
        let plain = |value: &&str| value.bytes().all(|byte| byte.is_ascii_hexdigit());
        if self.id().into_iter().any(|name| field(name) != "*") {
            return None;
        }
        let [class, subclass, _] = self.class().map(field);
        let subclass = Some(subclass).filter(plain).unwrap_or_default();
        Some(class).filter(plain).map(|class| format!("{class}{subclass}").to_ascii_lowercase())
    }

    /// How many hexadecimal digits an id has in an alias.
    fn digits(self) -> usize {
        match self {
            Self::Pci => 8,
            Self::Usb => 4,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Modalias(modalias) => out.write_str(modalias),
            Self::Id { bus: Bus::Pci, text, .. } => write!(out, "PCI {text}"),
            Self::Id { bus: Bus::Usb, text, .. } => write!(out, "USB {text}"),
        }
    }
}

impl Device {
    /// The devices that a user may mean: one on each bus, unless the bus is said or the class has as many digits as it
    /// has on one bus: two of USB, which are enough there, and four or six of PCI.
    pub fn parse(text: &str) -> Result<Vec<Self>, IdError> {
        let wrong = || IdError(text.to_owned());
        let text = text.trim();
        for bus in [Bus::Pci, Bus::Usb] {
            if let Some(rest) = text.strip_prefix(bus.prefix()).filter(|rest| !rest.starts_with('v')) {
                return Ok(vec![Self::on(bus, rest).ok_or_else(wrong)?]);
            }
        }
        if text.starts_with(|c: char| c.is_ascii_hexdigit()) && text.chars().all(|c| c.is_ascii_hexdigit() || c == ':')
        {
            let pci = Self::on(Bus::Pci, text);
            let usb = Self::on(Bus::Usb, text).filter(|_| pci.as_ref().is_none_or(|device| !device.has_class()));
            let devices: Vec<Self> = pci.into_iter().chain(usb).collect();
            return if devices.is_empty() { Err(wrong()) } else { Ok(devices) };
        }
        let bus = text.split(':').next().unwrap_or_default();
        let modalias = text.len() > bus.len()
            && bus.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_graphic());
        if modalias { Ok(vec![Self::Modalias(text.to_owned())]) } else { Err(wrong()) }
    }

    /// `VENDOR:DEVICE` or `VENDOR:DEVICE:CLASS`; the class with 2, 4 or 6 digits, of PCI with at least 4.
    fn on(bus: Bus, text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (vendor, device) = (parts.next()?, parts.next()?);
        let class = parts.next().unwrap_or_default();
        let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let least = if bus == Bus::Pci { 4 } else { 2 };
        let class_fits = class.is_empty() || (least..=6).contains(&class.len()) && class.len().is_multiple_of(2);
        if parts.next().is_some() || [vendor, device].iter().any(|part| part.len() != 4) || !class_fits {
            return None;
        }
        if ![vendor, device, class].iter().all(|part| hex(part)) {
            return None;
        }
        let width = bus.digits();
        let id = |part: &str| format!("{:0>width$}", part.to_ascii_uppercase());
        let mut fields: Vec<_> = bus.id().into_iter().zip([id(vendor), id(device)]).collect();
        let class = class.to_ascii_uppercase();
        let pairs = class.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).into_owned());
        fields.extend(bus.class().into_iter().zip(pairs));
        Some(Self::Id { bus, text: text.to_ascii_lowercase(), fields })
    }

    /// Whether the class is known where it would have to be.
    pub fn has_class(&self) -> bool {
        match self {
            Self::Modalias(_) => true,
            Self::Id { bus, fields, .. } => fields.len() > bus.id().len(),
        }
    }

    /// Whether it is a bridge of PCI to the processor, to ISA or to more of PCI (PCI Code and ID Assignment, section
    /// 1.7), which the kernel's bus code handles.
    pub fn is_bridge(&self) -> bool {
        let Self::Id { bus: Bus::Pci, fields, .. } = self else { return false };
        let value = |name| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
        value("bc") == Some("06") && matches!(value("sc"), Some("00" | "01" | "04"))
    }

    /// Whether it is a PCI device of this class and subclass, four digits.
    pub fn is_of_class(&self, class: &str) -> bool {
        let Self::Id { bus: Bus::Pci, fields, .. } = self else { return false };
        let value = |name| fields.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value.as_str());
        format!("{}{}", value("bc"), value("sc")).eq_ignore_ascii_case(class)
    }

    /// The modules with an alias for this device. Without its class only those that name the device itself: a driver
    /// for a whole class of devices may be meant for it or not.
    pub fn drivers<'i>(&self, index: &'i Index) -> Vec<&'i Module> {
        let mut found: Vec<&Module> = index
            .aliases()
            .filter_map(|(alias, module)| Some((alias, module?)))
            .filter(|(alias, _)| self.fits(alias))
            .map(|(_, module)| module)
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.dedup_by(|a, b| a.name == b.name);
        found
    }

    /// Whether the kernel has a driver for this device built in.
    pub fn is_builtin(&self, index: &Index) -> bool {
        index.aliases().any(|(alias, module)| module.is_none() && self.fits(alias))
            || BUILT_IN.iter().any(|(module, alias)| index.is_builtin(module) && self.fits(alias))
    }

    /// Whether an alias is for this device, as far as that is known.
    fn fits(&self, alias: &str) -> bool {
        let (bus, known) = match self {
            Self::Modalias(modalias) => return modules::matches(alias, modalias),
            Self::Id { bus, fields, .. } => (bus, fields),
        };
        let Some(alias) = alias.strip_prefix(bus.prefix()) else { return false };
        let (mut names_vendor, mut names_device, mut names_class) = (true, true, false);
        for (key, pattern) in fields(alias) {
            if bus.id().contains(&key) && pattern == "*" {
                names_device = false;
                names_vendor &= key != bus.id()[0];
            }
            if key == bus.class()[0] && pattern != "*" {
                names_class = true;
            }
            if let Some((_, value)) = known.iter().find(|(name, _)| *name == key)
                && !modules::matches(pattern, value)
            {
                return false;
            }
        }
        // Some drivers are for all that a vendor makes, as virtio's.
        names_device || names_vendor && !names_class || names_class && self.has_class()
    }
}

/// The fields of an alias without its bus: names are lower-case letters, values are all else.
fn fields(alias: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = alias;
    std::iter::from_fn(move || {
        let name = rest.find(|c: char| !c.is_ascii_lowercase()).filter(|end| *end > 0)?;
        let value = rest[name..].find(|c: char| c.is_ascii_lowercase()).map_or(rest.len(), |end| name + end);
        let field = (&rest[..name], &rest[name..value]);
        rest = &rest[value..];
        Some(field)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index::parse(
            "rackstick-modules 1\nb 8250_pci\nb virtio_pci\nm ahci kernel/drivers/ata/ahci.ko.xz\nm e1000e kernel/e1000e.ko.xz\n\
             m hyperv kernel/hyperv.ko.xz\nm r8152 kernel/r8152.ko.xz\nm tg3 kernel/tg3.ko.xz\n\
             m usb_storage kernel/usb-storage.ko.xz\n\
             a 0 pci:v*d*sv*sd*bc01sc06i01*\na 2 pci:v00001414d*sv*sd*bc*sc*i*\n\
             a 4 pci:v000014E4d00001684sv00001028sd*bc*sc*i*\n\
             a 1 pci:v00008086d000010D3sv*sd*bc*sc*i*\na - pci:v00009710d00009835sv*sd*bc*sc*i*\n\
             a 5 usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*\na 4 usb:v*p*d*dc09dsc*dp*ic*isc*ip*in*\n\
             a 3 usb:v0BDAp8153d*dc*dsc*dp*icFFisc*ip*in*\n",
        )
        .unwrap()
    }

    fn drivers(text: &str) -> Vec<(String, Vec<String>)> {
        let index = index();
        let names = |device: &Device| device.drivers(&index).iter().map(|module| module.name.clone()).collect();
        Device::parse(text).unwrap().iter().map(|device| (device.to_string(), names(device))).collect()
    }

    fn only(text: &str) -> Vec<String> {
        drivers(text).into_iter().flat_map(|(_, names)| names).collect()
    }

    #[test]
    fn a_device_is_known_by_the_numbers_that_lspci_and_lsusb_show() {
        assert_eq!(drivers("8086:10D3")[0], ("PCI 8086:10d3".to_owned(), vec!["e1000e".to_owned()]));
        assert_eq!(drivers("8086:10d3")[1], ("USB 8086:10d3".to_owned(), vec![]));
        assert_eq!(only("usb:0bda:8153"), ["r8152"]);
        assert_eq!(only("pci:0bda:8153"), [""; 0]);
        assert_eq!((only("1414:1041"), only("1414:1041:0200")), (vec!["hyperv".to_owned()], vec!["hyperv".to_owned()]));
        assert_eq!(only("14e4:1684"), ["tg3"], "the subsystem is not known, so it may be that one");
        assert_eq!(only("pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00"), ["e1000e"]);
    }

    #[test]
    fn a_driver_for_a_class_of_devices_counts_only_for_a_device_of_that_class() {
        assert_eq!(only("1b21:0612"), [""; 0]);
        assert_eq!(only("1b21:0612:0106"), ["ahci"]);
        assert_eq!(only("1b21:0612:010601"), ["ahci"]);
        assert_eq!(only("1b21:0612:010685"), [""; 0], "another interface");
        assert_eq!(only("1b21:0612:0200"), [""; 0]);
        assert_eq!(only("0781:5567:08"), ["usb_storage"]);
        assert_eq!(only("usb:0781:5567:0806"), ["usb_storage"]);
        assert_eq!(only("0781:5567:0806"), [""; 0], "four digits are a class of PCI unless the bus is said");
        assert_eq!(only("0781:5567:09"), [""; 0], "a hub's class is that of the device, not of an interface");
        assert_eq!(only("8086:10d3:0200"), ["e1000e"]);
    }

    #[test]
    fn classes_with_a_driver_for_all_their_devices_are_known() {
        assert_eq!(Bus::Pci.class_alone("pci:v*d*sv*sd*bc01sc06i01*").as_deref(), Some("0106"));
        assert_eq!(Bus::Pci.class_alone("pci:v*d*sv*sd*bc0Csc*i*").as_deref(), Some("0c"));
        assert_eq!(Bus::Usb.class_alone("usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*").as_deref(), Some("0806"));
        for other in [
            "pci:v00001B4Bd*sv*sd*bc01sc06i01*",
            "pci:v00008086d000010D3sv*sd*bc*sc*i*",
            "usb:v*p*d*dc09dsc*dp*ic*isc*ip*in*",
            "virtio:d00000001v*",
        ] {
            assert_eq!((Bus::Pci.class_alone(other), Bus::Usb.class_alone(other)), (None, None), "{other}");
        }
    }

    #[test]
    fn a_bridge_is_known_by_its_class() {
        let is_bridge = |text| Device::parse(text).unwrap().iter().any(Device::is_bridge);
        assert!(is_bridge("8086:1237:0600") && is_bridge("8086:7000:0601") && is_bridge("1b36:000c:060400"));
        assert!(!is_bridge("8086:1237") && !is_bridge("8086:7113:0680") && !is_bridge("usb:8086:1237:06"));
    }

    #[test]
    fn what_the_kernel_has_built_in_needs_no_module() {
        let index = index();
        let is_builtin = |text| Device::parse(text).unwrap().iter().any(|device| device.is_builtin(&index));
        assert!(is_builtin("9710:9835") && is_builtin("pci:v00009710d00009835sv00001000sd00000012bc07sc00i02"));
        assert!(!is_builtin("8086:10d3") && !is_builtin("usb:9710:9835"));
        // Without an alias, as Debian's kernel has them.
        assert!(is_builtin("1af4:1041") && is_builtin("1af4:1000:0200") && !is_builtin("usb:1af4:1041"));
        assert!(is_builtin("8086:9c3d:0700") && !is_builtin("8086:9c3d") && !is_builtin("8086:9c3d:0780"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for bad in [
            "",
            "8086",
            "8086:",
            "8086:10d",
            "8086:10d3:1",
            "8086:10d3:01060101",
            "pci:8086:10d3:01",
            "8g86:10d3",
            "8086:10d3:0200:1",
            "usb:",
            "e1000e",
            "pci:é",
        ] {
            assert!(Device::parse(bad).is_err(), "{bad}");
        }
    }
}
