//! Unified kernel images: systemd's stub with kernel, initrd and command line appended as PE sections;
//! [`read`] finds them again.
//! Follows the UAPI Group's Specification 5 (Unified Kernel Image) and Microsoft's "PE Format".

mod checksum;
mod pe;
pub mod read;
#[cfg(test)]
mod tests;

pub use self::pe::StubError;
use self::{
    checksum::Checksum,
    pe::{NewSection, Stub},
};
use crate::{
    pieces::Pieces,
    source::{Source, SourceError},
};

/// Why there can be no UKI.
#[derive(Debug, thiserror::Error)]
pub enum UkiError {
    /// The stub is not one.
    #[error("the UKI stub cannot be used: {0}")]
    Stub(#[from] StubError),
    /// A source could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// What a UKI consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uki {
    /// systemd's `linuxx64.efi.stub`.
    pub stub: Vec<u8>,
    /// The os-release file; without it, systemd-boot does not show the UKI.
    pub os_release: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Kernel version, as `uname -r` says.
    pub uname: String,
    /// Microcode, an uncompressed cpio that the stub (256 or newer) hands over before the initrd.
    pub microcode: Option<Source>,
    /// The initrd.
    pub initrd: Pieces,
    /// The kernel, a `bzImage` with its EFI stub.
    pub linux: Source,
}

/// The UKI. All that it consists of is read once, for its checksum.
pub fn make(uki: &Uki) -> Result<Pieces, UkiError> {
    let text = |text: &str| Source::Bytes(text.as_bytes().to_vec()).into();
    let mut sections: Vec<(&'static str, Pieces)> =
        vec![(".osrel", text(&uki.os_release)), (".cmdline", text(&uki.cmdline)), (".uname", text(&uki.uname))];
    sections.extend(uki.microcode.clone().map(|microcode| (".ucode", microcode.into())));
    // The kernel is last, as ukify has it: old ones run in place and need the room behind them.
    sections.extend([(".initrd", uki.initrd.clone()), (".linux", uki.linux.clone().into())]);

    let described: Vec<NewSection> = sections
        .iter()
        .map(|(name, content)| NewSection { name, size: content.size(), code: *name == ".linux" })
        .collect();
    let stub = Stub::parse(&uki.stub)?;
    let (head, extents) = stub.append(&described)?;
    let mut made = Pieces::from(Source::Bytes(head));
    for ((_, content), extent) in sections.into_iter().zip(extents) {
        pad(&mut made, extent.start);
        made.append(content);
        pad(&mut made, extent.end);
    }
    let mut sum = Checksum::default();
    made.each(|bytes| {
        sum.update(bytes);
        Ok::<_, UkiError>(())
    })?;
    stub.set_checksum(made.head(), sum.finish());
    Ok(made)
}

/// Fills up with zeroes to `end`: less than a page.
fn pad(made: &mut Pieces, end: u64) {
    let missing = end.saturating_sub(made.size());
    made.push(Source::Bytes(vec![0; missing as usize]));
}
