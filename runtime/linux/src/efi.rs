//! What the boot loader left in EFI variables (systemd, "The Boot Loader Interface"), read through efivarfs (Linux,
//! Documentation/filesystems/efivarfs.rst).

use std::{fs, io, path::Path};

use crate::mount::{self, MountError, MountFlags};

const EFIVARFS: &str = "/sys/firmware/efi/efivars";
/// Vendor of the interface's variables.
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Before the value stand its attributes.
const ATTRIBUTES: usize = 4;
/// Longer values are not read: anybody may have written them.
const MAX_VALUE: usize = 4096;

/// Makes the variables readable, if the machine has any: false without EFI. Nothing is written to them from here.
///
/// # Errors
/// If they can't be mounted.
pub fn mount_variables() -> Result<bool, MountError> {
    if !Path::new("/sys/firmware/efi").exists() {
        return Ok(false);
    }
    if !mount::is_mount_point(Path::new(EFIVARFS)) {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
        mount::mount("efivarfs", "efivarfs", EFIVARFS, flags, "")?;
    }
    Ok(true)
}

/// A text that the boot loader left; none if it left none. After [`mount_variables`].
///
/// # Errors
/// If the variable is there and can't be read, or is no text.
pub fn loader_variable(name: &str) -> io::Result<Option<String>> {
    match fs::read(Path::new(EFIVARFS).join(format!("{name}-{LOADER}"))) {
        Ok(bytes) => text(&bytes).map(Some).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the EFI variable {name} holds no text in UTF-16"))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// UTF-16 with a NUL at its end.
fn text(bytes: &[u8]) -> Option<String> {
    let value = bytes.get(ATTRIBUTES..).filter(|value| value.len() <= MAX_VALUE && value.len().is_multiple_of(2))?;
    let units = value.chunks_exact(2).filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16(&units).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_s_text_ends_at_its_nul() {
        assert_eq!(text(b"\x06\0\0\x001\x002\0\0\0").as_deref(), Some("12"));
        assert_eq!(text(b"\x06\0\0\x001\x002\0").as_deref(), Some("12"));
        assert_eq!(text(b"\x06\0\0\0").as_deref(), Some(""));
        for bad in [b"\x06\0".as_slice(), b"\x06\0\0\0x", b"\x06\0\0\0\x00\xd8\0\0"] {
            assert_eq!(text(bad), None);
        }
    }
}
