//! The host as one file: systemd's UEFI stub with kernel, command line and initrd appended (UAPI.5, Unified Kernel
//! Image).

use rackstick_image::{
    pieces::Pieces,
    recipe::Rack,
    source::{Source, SourceError},
    uki,
};
use thiserror::Error;

use super::{
    host,
    parts::{Part, PartsError},
};

/// The host's kernel command line. A kernel that hangs or faults reboots the machine: nobody sits before it.
/// The serial line comes last, so it is `/dev/console`; a machine without one loses nothing by it. Of the kernel's own
/// messages the screen and the serial line show only what ends it, and the UEFI stub (`quiet`) says nothing at all: the
/// rest is in the log on the screen's second terminal. `gpt`: a partition table whose growth was cut is read from its
/// copy at the disk's end.
const CMDLINE: &str = "gpt panic=10 oops=panic softlockup_panic=1 console=tty0 console=ttyS0,115200 quiet loglevel=3";

/// Why there is no UKI.
#[derive(Debug, Error)]
pub enum UkiError {
    /// What it is made of.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// The stub can't be extended.
    #[error("can't make the UKI: {0}")]
    Uki(#[from] uki::UkiError),
    /// What it is made of can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// A UKI, and the boot loader that goes with it.
pub struct Uki {
    /// The file.
    pub content: Pieces,
    /// systemd-boot.
    pub loader: Vec<u8>,
}

/// The UKI of a part that [`host`] made, with this initrd.
pub fn make(rack: &Rack, host: &Part, initrd: Pieces) -> Result<Uki, UkiError> {
    let content = uki::make(&uki::Uki {
        stub: host.read(host::STUB)?,
        os_release: os_release(rack),
        cmdline: CMDLINE.to_owned(),
        uname: String::from_utf8_lossy(&host.read(host::RELEASE)?).into_owned(),
        microcode: Some(Source::file(&host.file(host::MICROCODE))?),
        initrd,
        linux: Source::file(&host.file(host::VMLINUZ))?,
    })?;
    Ok(Uki { content, loader: host.read(host::LOADER)? })
}

/// systemd-boot shows a UKI only if it says what it is, and sorts by `VERSION_ID`.
fn os_release(rack: &Rack) -> String {
    let (name, version) = (&rack.name, &rack.version);
    format!(
        "ID=rackstick\nNAME=Rackstick\nPRETTY_NAME=\"{name} {version}\"\nVERSION_ID={version}\nIMAGE_ID={name}\nIMAGE_VERSION={version}\n"
    )
}
