//! Unified kernel images: systemd's stub with kernel, initrd and command line appended as PE sections;
//! [`read`] finds them again.
//! Follows the UAPI Group's Specification 5 (Unified Kernel Image) and Microsoft's "PE Format".

mod checksum;
mod pe;
pub mod read;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Seek, SeekFrom, Write};

pub use self::pe::StubError;
use self::{
    checksum::Checksum,
    pe::{NewSection, Stub},
};
use crate::source::{Source, SourceError};

/// Bytes copied at once.
const BUFFER_SIZE: usize = 1 << 20;

/// Why a UKI could not be written.
#[derive(Debug, thiserror::Error)]
pub enum UkiError {
    /// The stub is not one.
    #[error("the UKI stub cannot be used: {0}")]
    Stub(#[from] StubError),
    /// A source could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A source ended early, or the UKI could not be written.
    #[error("cannot write the UKI's section {section}: {source}")]
    Io {
        /// Name of the section, or `headers`.
        section: &'static str,
        /// What the system said.
        source: io::Error,
    },
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
    pub initrd: Source,
    /// The kernel, a `bzImage` with its EFI stub.
    pub linux: Source,
}

/// Writes the UKI to `out`, which must be empty, and returns its size in bytes.
pub fn write(uki: &Uki, out: impl Write + Seek) -> Result<u64, UkiError> {
    let mut out = Summed { out, sum: Checksum::default() };
    let text = |text: &str| Source::Bytes(text.as_bytes().to_vec());
    let (os_release, cmdline, uname) = (text(&uki.os_release), text(&uki.cmdline), text(&uki.uname));
    let mut sections: Vec<(&'static str, &Source)> =
        vec![(".osrel", &os_release), (".cmdline", &cmdline), (".uname", &uname)];
    sections.extend(uki.microcode.as_ref().map(|microcode| (".ucode", microcode)));
    // The kernel is last, as ukify has it: old ones run in place and need the room behind them.
    sections.extend([(".initrd", &uki.initrd), (".linux", &uki.linux)]);

    let described: Vec<NewSection> = sections
        .iter()
        .map(|(name, source)| NewSection { name, size: source.size(), code: *name == ".linux" })
        .collect();
    let stub = Stub::parse(&uki.stub)?;
    let (head, offsets) = stub.append(&described)?;
    let failed = |section| move |source| UkiError::Io { section, source };
    out.write_all(&head).map_err(failed("headers"))?;
    let mut position = head.len() as u64;
    for ((name, source), extent) in sections.into_iter().zip(offsets) {
        pad(&mut out, extent.start - position).map_err(failed(name))?;
        let mut reader = source.reader()?;
        copy(&mut reader, source.size(), &mut out).map_err(failed(name))?;
        pad(&mut out, extent.end - extent.start - source.size()).map_err(failed(name))?;
        position = extent.end;
    }
    let Summed { mut out, sum } = out;
    let finish = || {
        out.seek(SeekFrom::Start(stub.checksum_at()))?;
        out.write_all(&sum.finish().to_le_bytes())?;
        out.flush()
    };
    finish().map_err(failed("headers"))?;
    Ok(position)
}

/// An output and the checksum of what went there.
struct Summed<W> {
    out: W,
    sum: Checksum,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn pad(out: &mut impl Write, length: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(length), out).map(drop)
}

fn copy(reader: &mut impl Read, size: u64, out: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; size.min(BUFFER_SIZE as u64) as usize];
    let mut left = size;
    while left > 0 {
        let wanted = left.min(BUFFER_SIZE as u64) as usize;
        reader.read_exact(&mut buffer[..wanted])?;
        out.write_all(&buffer[..wanted])?;
        left -= wanted as u64;
    }
    Ok(())
}
