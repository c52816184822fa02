//! The host without what a recipe says of it: kernel, drivers with their firmware, microcode, boot loader. All of it is
//! made of the host's packages alone.

use std::{path::Path, thread};

use rackstick_image::lock::Lock;
use serde::Serialize;

use super::{
    BuildError, Inputs,
    parts::{Part, Parts},
    write,
};
use crate::{
    hardware::{self, Drivers, Firmware},
    initrd,
    kernel::Kernel,
    package, sets,
};

/// The kernel, a bzImage.
pub const VMLINUZ: &str = "vmlinuz";
/// `uname -r`.
pub const RELEASE: &str = "release";
/// The piece of the initrd with modules and firmware.
pub const DRIVERS: &str = "drivers.cpio";
/// The processors' microcode, as the stub hands it over.
pub const MICROCODE: &str = "microcode.cpio";
/// systemd's UEFI stub.
pub const STUB: &str = "stub";
/// systemd-boot.
pub const LOADER: &str = "loader";

/// Where the package systemd-boot-efi has them.
const BOOT: [(&str, &str); 2] =
    [(STUB, "usr/lib/systemd/boot/efi/linuxx64.efi.stub"), (LOADER, "usr/lib/systemd/boot/efi/systemd-bootx64.efi")];

/// The part with all of it.
pub fn part(inputs: &Inputs, parts: &Parts, epoch: u32) -> Result<Part, BuildError> {
    parts.get(&made_of(inputs.lock, epoch), |folder| make(inputs, epoch, folder))
}

/// What decides the part.
pub fn made_of(lock: &Lock, epoch: u32) -> impl Serialize {
    let packages = lock.own().set(sets::HOST).map(|(name, package)| (name, package.sha256));
    ("host", epoch, packages.collect::<Vec<_>>())
}

fn make(inputs: &Inputs, epoch: u32, folder: &Path) -> Result<(), BuildError> {
    let image = inputs.named(sets::HOST, |name| name.starts_with("linux-image-"), "kernel")?;
    let boot = inputs.named(sets::HOST, |name| name == "systemd-boot-efi", "boot loader")?;
    let (kernel, firmware) = thread::scope(|scope| {
        let firmware = scope.spawn(|| Firmware::read(inputs.all(sets::HOST, hardware::is_firmware)));
        (Kernel::read(image), firmware.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (kernel, firmware) = (kernel?, firmware?);
    let drivers = Drivers::choose(&kernel, &firmware)?;
    initrd::drivers(&folder.join(DRIVERS), &kernel, &drivers, epoch)?;
    write(&folder.join(VMLINUZ), &kernel.vmlinuz)?;
    write(&folder.join(RELEASE), kernel.release.as_bytes())?;
    let microcode = inputs.all(sets::HOST, hardware::is_microcode).map(|(_, package)| package);
    write(&folder.join(MICROCODE), &hardware::microcode::archive(microcode, epoch)?)?;

    let mut found = package::files(boot, |file| BOOT.iter().any(|(_, path)| file == *path))?;
    for (name, file) in BOOT {
        let lacks = || BuildError::NoFile { package: boot.to_owned(), file };
        write(&folder.join(name), &found.remove(file).ok_or_else(lacks)?)?;
    }
    Ok(())
}
