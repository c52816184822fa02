//! `docs/hardware.md`: the table of classes with what a locked kernel and its firmware make of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
};

use super::{
    Drivers,
    classes::{CLASSES, Class, Exception, LEFT_OUT, Verdict, names, verdict},
};
use crate::kernel::Kernel;

const INTRODUCTION: &str = "\
# Hardware

What a rack drives: any PC or server with UEFI, a 64-bit AMD or Intel processor with virtualization, and a wired NIC for which there is
a driver below. This file is written by `rackstick inspect --drivers recipes/lab.toml` from the table in
`builder/src/hardware/classes.rs` and the kernel and firmware of `recipes/lab.lock`; a test fails if it is out of date.

`rackstick inspect --hardware 8086:10d3 RECIPE` answers for one device, by the numbers that `lspci -nn` or `lsusb` shows, or by a
whole line of theirs. Some drivers name devices, others whole classes (NVMe, SATA, USB controllers, sticks, keyboards): for those the
class must be known, as it is from a line of `lspci -nn`, or from a third number, 144d:a808:0108. It exits with 0 if the device is
driven, 1 if not, and 3 if its class decides and was not given. For a whole PC: `lspci -nn | rackstick inspect --hardware - RECIPE`,
which exits with the worst of all answers: 1, then 3.

";

/// Writes the document. `versions`: of the host's packages.
pub fn write(kernel: &Kernel, drivers: &Drivers, versions: &BTreeMap<&str, &str>) -> Result<String, fmt::Error> {
    let mut out = INTRODUCTION.to_owned();
    let taken = Taken::of(drivers);
    classes(&mut out, kernel, drivers, &taken)?;
    for class in CLASSES {
        section(&mut out, kernel, class, taken.modules(class))?;
    }
    left_out(&mut out, kernel)?;
    firmware(&mut out, drivers, versions)?;
    microcode(&mut out, versions)?;
    Ok(out)
}

/// The chosen modules by class: name and packed size in bytes. Without a class: what others need.
struct Taken<'a>(BTreeMap<Option<&'static str>, Vec<(&'a str, usize)>>);

impl<'a> Taken<'a> {
    fn of(drivers: &'a Drivers) -> Self {
        let mut new = Self(BTreeMap::new());
        for module in drivers.modules.index.modules() {
            let class = match verdict(&module.path) {
                Verdict::Taken(class) => Some(class.name),
                Verdict::LeftOut(_) | Verdict::Unnamed => None,
            };
            let size = drivers.modules.files.get(module.path.as_str()).map_or(0, |content| content.len());
            new.0.entry(class).or_default().push((module.name.as_str(), size));
        }
        new
    }

    fn modules(&self, class: &Class) -> &[(&'a str, usize)] {
        self.0.get(&Some(class.name)).map_or(&[], Vec::as_slice)
    }

    fn needed(&self) -> &[(&'a str, usize)] {
        self.0.get(&None).map_or(&[], Vec::as_slice)
    }
}

fn classes(out: &mut String, kernel: &Kernel, drivers: &Drivers, taken: &Taken) -> fmt::Result {
    writeln!(out, "## Classes\n\nModules of Linux {}, by size as they are packed.\n", kernel.release)?;
    writeln!(out, "| class | what for | modules | KiB |\n| --- | --- | --- | --- |")?;
    let mut row = |name: &str, why: &str, modules: &[(&str, usize)]| {
        let size: usize = modules.iter().map(|(_, size)| size).sum();
        writeln!(out, "| {name} | {why} | {} | {} |", modules.len(), size.div_ceil(1024))
    };
    for class in CLASSES {
        row(class.name, class.why, taken.modules(class))?;
    }
    row("", "What these modules need of others", taken.needed())?;
    let all = &drivers.modules.files;
    let size: usize = all.values().map(|content| content.len()).sum();
    writeln!(out, "| all | | {} | {} |", all.len(), size.div_ceil(1024))
}

fn section(out: &mut String, kernel: &Kernel, class: &Class, modules: &[(&str, usize)]) -> fmt::Result {
    writeln!(out, "\n### {}\n\n{}.", capital(class.name), class.why)?;
    let names: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
    if names.is_empty() {
        out.push_str("\nBuilt into the kernel.\n");
    } else {
        writeln!(out, "\n<details><summary>{} modules</summary>\n\n{}\n\n</details>", names.len(), names.join(", "))?;
    }
    exceptions(out, kernel, class.except, "\nBut not:\n\n")
}

fn left_out(out: &mut String, kernel: &Kernel) -> fmt::Result {
    exceptions(out, kernel, LEFT_OUT, "\n## Left out\n\nBeside drivers for what no rack has:\n\n")
}

/// A list of exceptions, each with how many modules of the kernel it keeps away.
fn exceptions(out: &mut String, kernel: &Kernel, exceptions: &[Exception], heading: &str) -> fmt::Result {
    if exceptions.is_empty() {
        return Ok(());
    }
    out.push_str(heading);
    for exception in exceptions {
        let of_it = |path: &&str| exception.what.iter().any(|entry| names(entry, path));
        let count = kernel.paths().filter(of_it).count();
        let modules = if count == 1 { "module" } else { "modules" };
        writeln!(out, "- {} ({count} {modules}: `{}`)", exception.why, exception.what.join("`, `"))?;
    }
    Ok(())
}

fn firmware(out: &mut String, drivers: &Drivers, versions: &BTreeMap<&str, &str>) -> fmt::Result {
    out.push_str(
        "\n## Firmware\n\nWhat these modules name, from Debian's packages; most is not free, and its licences allow to pass it \
         on.\nIn the image it is compressed.\n\n| package | version | files | KiB |\n| --- | --- | --- | --- |\n",
    );
    let mut packages: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (package, content) in drivers.firmware.files.values() {
        let (files, size) = packages.entry(package).or_default();
        *files += 1;
        *size += content.len();
    }
    for (package, (files, size)) in packages {
        let version = versions.get(package).copied().unwrap_or_default();
        writeln!(out, "| {package} | {version} | {files} | {} |", size.div_ceil(1024))?;
    }
    if drivers.firmware.missing.is_empty() {
        return Ok(());
    }
    out.push_str(
        "\nNo package of Debian that a rack takes has these; the devices work without them, or not at all:\n\n",
    );
    for (name, modules) in &drivers.firmware.missing {
        let modules: BTreeSet<&str> = modules.iter().map(String::as_str).collect();
        writeln!(out, "- `{name}` ({})", modules.into_iter().collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

fn microcode(out: &mut String, versions: &BTreeMap<&str, &str>) -> fmt::Result {
    out.push_str(
        "\n## Microcode\n\nFor all processors that these packages know, loaded before anything else runs:\n\n",
    );
    for (package, version) in versions.iter().filter(|(package, _)| super::is_microcode(package)) {
        writeln!(out, "- {package} {version}")?;
    }
    Ok(())
}

/// With a capital letter at its beginning.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
