//! Whether a rack drives a device, in words and as an exit status.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
};

use rackstick_image::modules::Index;
use serde::Serialize;

use super::{
    Drivers,
    classes::{Verdict, verdict},
    device::{Bus, Device},
};
use crate::kernel::{Kernel, KernelError};

/// Whether a device is driven, the better first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is.
    Driven,
    /// It depends on its class, which was not said.
    CantTell,
    /// It is not.
    NotDriven,
}

impl Status {
    /// What the command exits with; 2 is for wrong usage.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Driven => 0,
            Self::NotDriven => 1,
            Self::CantTell => 3,
        })
    }
}

/// What is to be said of a device, and the drivers that it is said of, if of any.
pub struct Says(String, Vec<String>);

impl Says {
    /// A line for each driver.
    pub fn lines(self) -> Vec<String> {
        let Self(what, drivers) = self;
        if drivers.is_empty() { vec![what] } else { drivers.iter().map(|driver| format!("{what} {driver}")).collect() }
    }

    /// All in one line.
    pub fn line(self) -> String {
        let Self(what, drivers) = self;
        if drivers.is_empty() { what } else { format!("{what} {}", drivers.join(" or ")) }
    }
}

/// What is to be said of one device.
pub struct Answer {
    /// In short.
    pub status: Status,
    /// Who drives it, or why it is not driven.
    pub verdicts: Vec<Says>,
    /// Which firmware it may ask for.
    pub firmware: Vec<String>,
}

/// Answers for one kernel and the drivers chosen from it.
pub struct Answers<'a> {
    kernel: &'a Kernel,
    drivers: &'a Drivers<'a>,
    /// All modules of the kernel: reading them takes seconds, and only what is not driven needs them.
    all: OnceCell<Index>,
}

impl<'a> Answers<'a> {
    /// Nothing is read yet.
    pub fn new(kernel: &'a Kernel, drivers: &'a Drivers<'a>) -> Self {
        Self { kernel, drivers, all: OnceCell::new() }
    }

    /// What there is to say of the devices that an id may mean.
    pub fn of(&self, devices: &[Device]) -> Result<Answer, KernelError> {
        let mut answer = Answer { status: Status::Driven, verdicts: Vec::new(), firmware: Vec::new() };
        let index = &self.drivers.modules.index;
        for device in devices {
            if device.is_builtin(index) {
                let what = format!("{device} is driven by what is built into Linux {}", self.kernel.release);
                answer.verdicts.push(Says(what, Vec::new()));
            }
            let mut drivers = Vec::new();
            for module in device.drivers(index) {
                drivers.push(format!("{} ({}; {})", module.name, class_of(&module.path), module.path));
                answer.firmware.extend(self.firmware(&module.firmware));
            }
            if !drivers.is_empty() {
                answer.verdicts.push(Says(format!("{device} is driven by"), drivers));
            }
            if device.is_bridge() {
                answer.verdicts.push(Says(format!("{device} is a bridge, which needs no driver"), Vec::new()));
            }
        }
        if answer.verdicts.is_empty() {
            (answer.status, answer.verdicts) = self.why_not(devices)?;
        }
        Ok(answer)
    }

    /// Which firmware a module may ask for, and whether the image has it.
    fn firmware(&self, names: &[String]) -> Option<String> {
        let lacks = |name: &&String| self.drivers.firmware.missing.contains_key(*name);
        let missing: Vec<&str> = names.iter().filter(lacks).map(String::as_str).collect();
        Some(match (names, missing.as_slice()) {
            ([], _) => return None,
            ([only], []) => format!("it may ask for the firmware {only}, which is in the image"),
            (all, []) => {
                let (count, all) = (all.len(), all.join(", "));
                format!("it may ask for {count} files of firmware, which are all in the image: {all}")
            }
            (all, missing) => format!(
                "it may ask for {} files of firmware; Debian does not have, and so the image lacks: {}",
                all.len(),
                missing.join(", ")
            ),
        })
    }

    /// What the whole kernel has for devices that a rack does not drive by what is known of them.
    fn why_not(&self, devices: &[Device]) -> Result<(Status, Vec<Says>), KernelError> {
        let all = match self.all.get() {
            Some(all) => all,
            None => {
                let all = self.kernel.all_modules()?;
                self.all.get_or_init(|| all)
            }
        };
        let mut left_out = Vec::new();
        for device in devices {
            let drivers = device.drivers(all).into_iter().map(|module| match verdict(&module.path) {
                Verdict::LeftOut(exception) => format!("{} ({}): {}", module.name, module.path, exception.why),
                Verdict::Taken(_) | Verdict::Unnamed => format!("{} ({})", module.name, module.path),
            });
            let drivers: Vec<String> = drivers.collect();
            if !drivers.is_empty() {
                left_out.push(Says(format!("{device} is not driven: a rack leaves out its driver"), drivers));
            }
        }
        if !left_out.is_empty() {
            return Ok((Status::NotDriven, left_out));
        }
        let names: Vec<String> = devices.iter().map(ToString::to_string).collect();
        let (release, names) = (&self.kernel.release, names.join(" or "));
        let (status, what) = if devices.iter().all(Device::has_class) {
            (Status::NotDriven, format!("no driver in Linux {release} is for {names}"))
        } else {
            (Status::CantTell, format!("no driver in Linux {release} names {names} itself: its class decides"))
        };
        Ok((status, vec![Says(what, Vec::new())]))
    }

    /// Which classes of devices are driven whatever their ids, and how a class is given.
    pub fn classes(&self) -> String {
        let mut text = "devices of these classes are driven whatever their id:".to_owned();
        for (bus, title) in [(Bus::Pci, "PCI"), (Bus::Usb, "USB interfaces")] {
            let mut classes: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
            for (alias, module) in self.drivers.modules.index.aliases() {
                if let (Some(class), Some(module)) = (bus.class_alone(alias), module) {
                    classes.entry(&module.name).or_default().insert(class);
                }
            }
            let classes = classes
                .into_iter()
                .map(|(module, classes)| format!("{} ({module})", classes.into_iter().collect::<Vec<_>>().join(", ")));
            text.push_str(&format!("\n  {title}: {}", classes.collect::<Vec<_>>().join("; ")));
        }
        text.push_str(
            "\nGive the class after the id, like 144d:a808:0108, or the whole line of `lspci -nn`, which has it in its first \
             brackets; of USB what `lsusb -v` shows as bInterfaceClass, like 0781:5567:08, or with bInterfaceSubClass, like \
             usb:0781:5567:0806",
        );
        text
    }
}

/// The class in the table to which a driver of the image belongs.
fn class_of(path: &str) -> &'static str {
    match verdict(path) {
        Verdict::Taken(class) => class.name,
        Verdict::LeftOut(_) | Verdict::Unnamed => "needed by another driver",
    }
}
