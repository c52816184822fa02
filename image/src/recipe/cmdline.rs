//! Reads `cmdline`: further parameters of a guest's kernel. Follows the kernel's admin-guide/kernel-parameters and
//! bootparam(7).

use super::{
    names::shown,
    reader::{Report, Table},
};

/// Most bytes of all parameters together: with those of the rack's own they fit the monitor's 2047.
const CMDLINE_MAX: usize = 1024;

/// What the rack decides, and which parameters would take it out of its hands.
const REFUSED: &[(&str, &[&str])] = &[
    ("the console is where the rack reads the guest's log", &["console"]),
    ("the rack starts a guest again whose kernel panics, and sees that at once", &["panic", "oops"]),
    ("the initrd is what the rack gives to the kernel", &["initrd", "noinitrd"]),
    ("memory is the guest's `memory` in the rack recipe", &["mem", "memmap"]),
    ("CPUs are the guest's `vcpus` in the rack recipe", &["maxcpus", "nr_cpus", "nosmp", "possible_cpus"]),
    ("a guest's devices and interrupts are found by ACPI and PCI", &["acpi", "pci", "noapic", "nolapic"]),
];

/// The same, but where the image is a whole disk and its own initrd mounts it.
const REFUSED_WITH_LAYERS: &[(&str, &[&str])] = &[
    (
        "the rack's own init mounts the image's layers and then starts the image's",
        &["root", "rootfstype", "rootflags", "rootdelay", "rootwait", "ro", "rw", "init", "rdinit"],
    ),
    ("what follows it would go to init", &["--"]),
];

/// Reads the parameters, each one of its own. `disk`: whether the image is a whole disk.
pub(super) fn read(report: &mut Report, table: &Table<'_>, disk: bool) -> Vec<String> {
    let refused = || REFUSED.iter().chain(REFUSED_WITH_LAYERS.iter().filter(|_| !disk));
    let mut parameters = Vec::new();
    let mut length = 0;
    for text in table.texts(report, "cmdline") {
        let name = text.value.split('=').next().unwrap_or_default().replace('-', "_");
        let name = if text.value == "--" { "--" } else { &name };
        if text.value.is_empty() || !text.value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"') {
            let message = format!("`{}` can't be a kernel parameter", shown(text.value));
            report.wrong(text.span, message, "each parameter is a string of its own, without blanks and quotes");
        } else if let Some((why, _)) = refused().find(|(_, names)| names.contains(&name)) {
            report.wrong(
                text.span,
                format!("`{}` would break the guest", shown(text.value)),
                format!("leave it out: {why}"),
            );
        } else {
            length += text.value.len() + 1;
            if length > CMDLINE_MAX {
                let hint = format!("all together have at most {CMDLINE_MAX} bytes");
                report.wrong(text.span, "too many kernel parameters", hint);
                break;
            }
            parameters.push(text.value.to_owned());
        }
    }
    parameters
}
