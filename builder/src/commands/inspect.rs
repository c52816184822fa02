//! `rackstick inspect RECIPE --hardware ID | --drivers`: what the racks of a recipe are made for, before one is bought or
//! flashed. Goes by the recipe's lock: the kernel and the firmware that it pins.

use std::{collections::BTreeMap, path::PathBuf};

use rackstick_image::recipe;

use crate::{
    archive::{self, Mirrors},
    hardware::{self, Drivers, Firmware, classes::Verdict, device::Device, document},
    kernel::Kernel,
    lock,
    progress::Progress,
    report, sets,
};

/// Say what hardware a rack drives
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("question").required(true)))]
pub struct Args {
    /// Whether a rack drives this device, and with what: VENDOR:DEVICE as `lspci -nn` or `lsusb` shows it, like
    /// 8086:10d3; with its class after it, like 144d:a808:0108, also drivers for the whole class count. Exits with 1
    /// if nothing drives it
    #[arg(long, value_name = "ID", group = "question")]
    hardware: Option<String>,
    /// All that a rack drives, as a document
    #[arg(long, group = "question")]
    drivers: bool,
    /// The rack recipe
    recipe: PathBuf,
    /// Root of a Debian archive, like http://HOST/debian, in place of those of this machine's apt; may be repeated
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
}

/// Nothing drives the device.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
struct NotDriven(Vec<String>);

/// A lock without a kernel.
#[derive(Debug, thiserror::Error)]
#[error("the lock's set `host` holds no kernel; renew it with `rackstick lock --update`")]
struct NoKernel;

/// An image instead of a recipe.
#[derive(Debug, thiserror::Error)]
#[error("{} is an image, not a recipe; name the recipe that it was built from, whose lock says what is in it", .0.display())]
struct IsImage(PathBuf);

/// Answers.
pub fn run(args: Args) -> Result<(), report::Error> {
    let devices = args.hardware.as_deref().map(Device::parse).transpose()?;
    if args.recipe.extension().is_some_and(|extension| extension == "img") {
        return Err(IsImage(args.recipe).into());
    }
    let rack = recipe::load(&args.recipe)?;
    let progress = Progress::stderr();
    let mut lock = lock::for_build(&args.recipe, &rack, &args.mirror, &progress)?;
    // Nothing but the host's packages is needed.
    let host = lock.sets.get(sets::HOST).cloned().unwrap_or_default();
    lock.packages.retain(|name, _| host.contains(name));
    let packages = archive::obtain(&lock, &Mirrors::choose(&args.mirror)?, &progress)?;

    let image = packages.iter().find(|(name, _)| name.starts_with("linux-image-")).ok_or(NoKernel)?;
    let kernel = Kernel::read(image.1)?;
    let of_firmware = packages.iter().filter(|(name, _)| hardware::is_firmware(name));
    let firmware = Firmware::read(of_firmware.map(|(name, path)| (name.as_str(), path.as_path())))?;
    let drivers = Drivers::choose(&kernel, &firmware)?;
    match devices {
        Some(devices) => answer(&devices, &drivers, &kernel),
        None => {
            let versions: BTreeMap<&str, &str> =
                lock.packages.iter().map(|(name, package)| (name.as_str(), package.version.as_str())).collect();
            print!("{}", document::write(&kernel, &drivers, &versions)?);
            Ok(())
        }
    }
}

fn answer(devices: &[Device], drivers: &Drivers, kernel: &Kernel) -> Result<(), report::Error> {
    let mut driven = false;
    for device in devices {
        if device.is_builtin(&drivers.modules.index) {
            driven = true;
            println!("{device} is driven by what is built into Linux {}", kernel.release);
        }
        for module in device.drivers(&drivers.modules.index) {
            driven = true;
            let class = match hardware::classes::verdict(&module.path) {
                Verdict::Taken(class) => class.name,
                Verdict::LeftOut(_) | Verdict::Unnamed => "needed by another driver",
            };
            println!("{device} is driven by {} ({class}; {})", module.name, module.path);
            if let Some(line) = firmware(&module.firmware, drivers) {
                println!("  {line}");
            }
        }
    }
    if driven { Ok(()) } else { Err(NotDriven(why_not(devices, kernel)?).into()) }
}

/// Which firmware a module may ask for, and whether the image has it.
fn firmware(names: &[String], drivers: &Drivers) -> Option<String> {
    let missing: Vec<&str> =
        names.iter().filter(|name| drivers.firmware.missing.contains_key(*name)).map(String::as_str).collect();
    Some(match (names, missing.as_slice()) {
        ([], _) => return None,
        ([only], []) => format!("it may ask for the firmware {only}, which is in the image"),
        (all, []) => {
            format!("it may ask for {} files of firmware, which are all in the image: {}", all.len(), all.join(", "))
        }
        (all, missing) => format!(
            "it may ask for {} files of firmware; Debian does not have, and so the image lacks: {}",
            all.len(),
            missing.join(", ")
        ),
    })
}

/// What the whole kernel has for devices that a rack does not drive, one line each.
fn why_not(devices: &[Device], kernel: &Kernel) -> Result<Vec<String>, report::Error> {
    let index = kernel.all_modules()?;
    let mut lines = Vec::new();
    for device in devices {
        for module in device.drivers(&index) {
            let why = match hardware::classes::verdict(&module.path) {
                Verdict::LeftOut(exception) => format!(": {}", exception.why),
                Verdict::Taken(_) | Verdict::Unnamed => String::new(),
            };
            lines.push(format!(
                "{device} is not driven: a rack leaves out its driver {} ({}){why}",
                module.name, module.path
            ));
        }
    }
    if lines.is_empty() {
        let names: Vec<String> = devices.iter().map(ToString::to_string).collect();
        lines.push(format!("nothing in Linux {} names {}", kernel.release, names.join(" or ")));
        if !devices.iter().all(Device::has_class) {
            lines.push(
                "If it belongs to a class that needs no driver of its own (SATA, NVMe, USB controllers, sticks), ask again \
                 with the class after the id: `lspci -nn` shows it in brackets, like 144d:a808:0108, `lsusb -v` as \
                 bInterfaceClass, like 0781:5567:08"
                    .to_owned(),
            );
        }
    }
    Ok(lines)
}
