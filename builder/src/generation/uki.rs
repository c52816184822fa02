//! The host as one file: systemd's UEFI stub with kernel, command line and initrd appended (UAPI.5, Unified Kernel Image).

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use rackstick_image::{
    recipe::Rack,
    source::{Source, SourceError},
    uki,
};
use thiserror::Error;

use crate::{
    kernel::Kernel,
    package::{self, PackageError},
};

/// The host's kernel command line. A kernel that hangs or faults reboots the machine: nobody sits before it.
/// The serial line comes last, so it is `/dev/console`; a machine without one loses nothing by it. Of the kernel's own
/// messages the screen and the serial line show only what ends it, and the UEFI stub (`quiet`) says nothing at all: the
/// rest is in the log on the screen's second terminal. `gpt`: a partition table whose growth was cut is read from its
/// copy at the disk's end.
const CMDLINE: &str = "gpt panic=10 oops=panic softlockup_panic=1 console=tty0 console=ttyS0,115200 quiet loglevel=3";
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// Why there is no UKI.
#[derive(Debug, Error)]
pub enum UkiError {
    /// The boot loader's package.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// It lacks a file.
    #[error("the package {} holds no {file}; another version of systemd-boot-efi is needed", .package.display())]
    NoFile {
        /// The package.
        package: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// The stub can't be extended.
    #[error("can't make the UKI: {0}")]
    Uki(#[from] uki::UkiError),
    /// The initrd can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file can't be written.
    #[error("can't write the UKI {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A UKI that was written, and the boot loader that goes with it.
pub struct Uki {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// systemd-boot.
    pub loader: Vec<u8>,
}

/// Writes the UKI to `path`. `boot`: the package systemd-boot-efi.
pub fn write(
    path: &Path,
    rack: &Rack,
    kernel: &Kernel,
    boot: &Path,
    microcode: Vec<u8>,
    initrd: &Path,
) -> Result<Uki, UkiError> {
    let mut found = package::files(boot, |file| file == STUB || file == LOADER)?;
    let mut take = |file| found.remove(file).ok_or_else(|| UkiError::NoFile { package: boot.to_owned(), file });
    let (stub, loader) = (take(STUB)?, take(LOADER)?);

    let parts = uki::Uki {
        stub,
        os_release: os_release(rack),
        cmdline: CMDLINE.to_owned(),
        uname: kernel.release.clone(),
        microcode: Some(Source::Bytes(microcode)),
        initrd: Source::file(initrd)?,
        linux: Source::Bytes(kernel.vmlinuz.clone()),
    };
    let failed = |source| UkiError::Write { path: path.to_owned(), source };
    let size = uki::write(&parts, File::create(path).map_err(failed)?)?;
    Ok(Uki { path: path.to_owned(), size, loader })
}

/// systemd-boot shows a UKI only if it says what it is, and sorts by `VERSION_ID`.
fn os_release(rack: &Rack) -> String {
    let (name, version) = (&rack.name, &rack.version);
    format!(
        "ID=rackstick\nNAME=Rackstick\nPRETTY_NAME=\"{name} {version}\"\nVERSION_ID={version}\nIMAGE_ID={name}\nIMAGE_VERSION={version}\n"
    )
}
