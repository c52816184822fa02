//! What the racks of a recipe are made for, before one is bought or flashed. Goes by the recipe's lock: the kernel and
//! the firmware that it pins.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use rackstick_image::recipe;
use serde::Serialize;

use super::super::{MirrorArgs, Text};
use crate::{
    archive,
    hardware::{
        self, Drivers, Firmware,
        answer::{Answer, Answers, Says, Status},
        device::{Device, IdError},
        document, pasted,
    },
    kernel::Kernel,
    lock, output, parallel,
    progress::Progress,
    report, sets,
    store::Store,
};

/// Longest list of devices in bytes: a file named by mistake is cut before it fills the memory.
const LIST_MAX: u64 = 1 << 20;

/// Nothing drives the device, or nothing that names it.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
struct NotDriven(Vec<String>);

/// An empty list.
#[derive(Debug, thiserror::Error)]
#[error("no device on standard input; give it the output of `lspci -nn` or `lsusb`")]
struct NothingGiven;

/// A lock without a kernel.
#[derive(Debug, thiserror::Error)]
#[error("the lock's set `host` holds no kernel; renew it with `rackstick lock --update`")]
struct NoKernel;

/// An image instead of a recipe.
#[derive(Debug, thiserror::Error)]
#[error("{} is an image, not a recipe; name the recipe that it was built from, whose lock says what is in it", .0.display())]
struct IsImage(PathBuf);

/// What is asked about a recipe.
pub enum Question {
    /// Whether its racks drive a device, or those of a list.
    Hardware(Named),
    /// All that they drive.
    Drivers,
}

/// Which devices are asked for.
#[derive(Debug, Clone)]
pub enum Named {
    /// Those that one id may mean.
    Here(Vec<Device>),
    /// Those of a list on standard input.
    OnStdin,
}

impl FromStr for Named {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-" { Ok(Self::OnStdin) } else { pasted::devices(text).map(Self::Here) }
    }
}

/// What is asked for.
enum Asked {
    /// The devices that one id may mean.
    One(Vec<Device>),
    /// The same for each line of a list.
    Many(Vec<Result<Vec<Device>, IdError>>),
}

/// Answers.
pub fn run(question: Question, recipe: &Path, from: &MirrorArgs) -> Result<ExitCode, report::Error> {
    let asked = match question {
        Question::Drivers => None,
        Question::Hardware(Named::OnStdin) => Some(Asked::Many(from_stdin()?)),
        Question::Hardware(Named::Here(devices)) => Some(Asked::One(devices)),
    };
    if recipe.extension().is_some_and(|extension| extension == "img") {
        return Err(IsImage(recipe.to_owned()).into());
    }
    let rack = recipe::load(recipe)?;
    let progress = Progress::stderr();
    let locked = lock::path(recipe).exists();
    let store = Store::open()?;
    let mut lock = lock::for_build(recipe, &rack, &from.mirror, &store, &progress)?;
    if !locked {
        let path = lock::path(recipe);
        output::remark(&format!("{}: written, {} packages; keep it in git", path.display(), lock.packages().count()));
    }
    // Nothing but the host's packages is needed.
    lock.bases.retain(|base, _| *base == lock.base);
    for base in lock.bases.values_mut() {
        let host = base.sets.get(sets::HOST).cloned().unwrap_or_default();
        base.packages.retain(|name, _| host.contains(name));
    }
    archive::obtain(&lock, &from.mirrors(&lock)?, &store, &progress)?;
    store.unpack(&archive::wants(&lock), parallel::cpus(), &progress)?;
    let packages = archive::places(lock.own(), &store);

    let image = packages.iter().find(|(name, _)| name.starts_with("linux-image-")).ok_or(NoKernel)?;
    // The first question to a lock unpacks hundreds of MiB, and so does the second.
    let what = "drivers and firmware";
    let job = progress.spinner("reading", what);
    let kernel = Kernel::read(image.1)?;
    let of_firmware = packages.iter().filter(|(name, _)| hardware::is_firmware(name));
    let firmware = Firmware::read(of_firmware.map(|(name, path)| (name.as_str(), path.as_path())))?;
    let drivers = Drivers::choose(&kernel, &firmware)?;
    let answers = Answers::new(&kernel, &drivers);
    job.done(what);
    match asked {
        Some(Asked::One(devices)) => one(&devices, &answers),
        Some(Asked::Many(lines)) => list(lines, &answers),
        None => {
            let versions: BTreeMap<&str, &str> =
                lock.packages().map(|(_, name, package)| (name.as_str(), package.version.as_str())).collect();
            output::answer(&Text { text: document::write(&kernel, &drivers, &versions)? })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What is to be said of devices.
#[derive(Serialize)]
struct Judged {
    devices: Vec<JudgedDevice>,
}

#[derive(Serialize)]
struct JudgedDevice {
    status: Status,
    /// Who drives it, or why it is not driven.
    says: Vec<String>,
    /// Which firmware it may ask for.
    firmware: Vec<String>,
}

/// For one device: who drives it on stdout, or else what is wrong on stderr.
fn one(devices: &[Device], answers: &Answers<'_>) -> Result<ExitCode, report::Error> {
    let Answer { status, verdicts, firmware } = answers.of(devices)?;
    let mut says: Vec<String> = verdicts.into_iter().flat_map(Says::lines).collect();
    if status == Status::Driven || output::manner().json {
        output::answer(&Judged { devices: vec![JudgedDevice { status, says, firmware }] })?;
    } else {
        says.extend((status == Status::CantTell).then(|| answers.classes()));
        report::print(&NotDriven(says));
    }
    Ok(status.exit_code())
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.devices.iter().flat_map(|device| {
            let firmware = device.firmware.iter().map(|line| format!("  {line}"));
            device.says.iter().cloned().chain(firmware)
        });
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

/// For many devices: a line for each on stdout, whatever the answer. What can't be read may be a device that is not
/// driven.
fn list(lines: Vec<Result<Vec<Device>, IdError>>, answers: &Answers<'_>) -> Result<ExitCode, report::Error> {
    let mut worst = Status::Driven;
    let mut classes_matter = false;
    let mut needed = Needed::default();
    let mut judged = Judged { devices: Vec::new() };
    for line in lines {
        let (status, says) = match line {
            Ok(devices) => {
                let answer = answers.of(&devices)?;
                needed.count(&devices, answer.status);
                let lines: Vec<String> = answer.verdicts.into_iter().map(Says::line).collect();
                (answer.status, lines.join("; "))
            }
            Err(error) => (Status::NotDriven, error.to_string()),
        };
        worst = worst.max(status);
        classes_matter |= status == Status::CantTell;
        judged.devices.push(JudgedDevice { status, says: vec![says], firmware: Vec::new() });
    }
    output::answer(&judged)?;
    if output::manner().json {
        return Ok(worst.exit_code());
    }
    let needed = needed.to_string();
    if !needed.is_empty() {
        output::tell(needed.trim_end_matches('\n'));
    }
    if classes_matter {
        output::tell(answers.classes());
    }
    Ok(worst.exit_code())
}

/// Of the devices that a rack can't do without, how many there are and how many are driven.
#[derive(Default)]
struct Needed([(usize, usize); NEEDED.len()]);

/// Classes of PCI (PCI Code and ID Assignment) whose devices hold a rack's disk, connect it, or have its stick.
const NEEDED: [(&str, &[&str]); 3] = [
    ("disk controllers", &["0100", "0101", "0104", "0105", "0106", "0107", "0108"]),
    ("wired NICs", &["0200"]),
    ("USB controllers", &["0c03"]),
];

impl Needed {
    fn count(&mut self, devices: &[Device], status: Status) {
        let [device] = devices else { return };
        for ((all, driven), (_, classes)) in self.0.iter_mut().zip(NEEDED) {
            if classes.iter().any(|class| device.is_of_class(class)) {
                *all += 1;
                *driven += usize::from(status == Status::Driven);
            }
        }
    }
}

impl fmt::Display for Needed {
    /// Nothing if there are none, as in a list of USB devices.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = self.0.iter().zip(NEEDED).filter(|((all, _), _)| *all > 0);
        let counted: Vec<String> =
            counted.map(|((all, driven), (name, _))| format!("{driven} of {all} {name}")).collect();
        if counted.is_empty() { Ok(()) } else { writeln!(out, "driven, of what a rack needs: {}", counted.join(", ")) }
    }
}

/// The devices of a list on standard input, a line each.
fn from_stdin() -> Result<Vec<Result<Vec<Device>, IdError>>, report::Error> {
    let mut text = String::new();
    io::stdin().take(LIST_MAX).read_to_string(&mut text)?;
    let devices: Vec<_> = text.lines().filter(|line| !pasted::is_detail(line)).map(pasted::devices).collect();
    if devices.is_empty() { Err(NothingGiven.into()) } else { Ok(devices) }
}
