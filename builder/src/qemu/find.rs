//! Finds QEMU and the UEFI firmware on this machine.

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    process::Command,
};

use super::accel::Accel;

const QEMU: &str = "qemu-system-x86_64";
const INSTALL_QEMU: &str = "install QEMU 10 or newer: `apt-get install qemu-system-x86` on Debian 13 or newer, \
                            on Debian 12 from bookworm-backports";

/// The first QEMU whose emulated SVM runs guests; 7.2 corrupts them, versions between are untested.
const NESTING: Version = Version(10, 0);

/// Code and matching variable store, in order of preference: the 4 MiB builds first, which hold more Secure Boot keys.
const FIRMWARE: [(&str, &str); 8] = [
    // Debian, Ubuntu
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    // Arch
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    // openSUSE
    ("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
    // Fedora
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    // Alpine, Debian 11
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    // Gentoo
    ("/usr/share/edk2-ovmf/OVMF_CODE.fd", "/usr/share/edk2-ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/OvmfX64/OVMF_CODE.fd", "/usr/share/edk2/OvmfX64/OVMF_VARS.fd"),
    // NixOS, with a profile
    ("/run/current-system/sw/share/OVMF/OVMF_CODE.fd", "/run/current-system/sw/share/OVMF/OVMF_VARS.fd"),
];

/// What is missing on this machine.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No QEMU.
    #[error("`{QEMU}` is not in PATH; {INSTALL_QEMU}")]
    NoQemu,
    /// QEMU does not start.
    #[error("{} --version failed", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// QEMU does not say its version.
    #[error("{} --version says no version number, but: {said}", path.display())]
    NoVersion {
        /// The program.
        path: PathBuf,
        /// Its output.
        said: String,
    },
    /// QEMU is too old to emulate a rack.
    #[error("{} is version {version}, whose software emulation can't run a rack's guests, and KVM can't be used because {why}; {INSTALL_QEMU}", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: Version,
        /// Why not KVM.
        why: String,
    },
    /// No firmware.
    #[error("no UEFI firmware found; install OVMF (`apt-get install ovmf`). Looked for {}", FIRMWARE.map(|(code, _)| code).join(", "))]
    NoFirmware,
}

/// Major and minor version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    /// Reads it out of what `--version` prints.
    fn parse(said: &str) -> Option<Self> {
        let mut numbers = said.split_once(" version ")?.1.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// A QEMU on this machine.
#[derive(Debug)]
pub struct Qemu {
    /// The program.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
}

impl Qemu {
    /// The first in PATH.
    pub fn find() -> Result<Self, FindError> {
        let path = find_program(QEMU).ok_or(FindError::NoQemu)?;
        let output = Command::new(&path)
            .arg("--version")
            .output()
            .map_err(|source| FindError::Start { path: path.clone(), source })?;
        let said = String::from_utf8_lossy(&output.stdout);
        match Version::parse(&said) {
            Some(version) => Ok(Self { path, version }),
            None => Err(FindError::NoVersion { path, said: said.trim().to_owned() }),
        }
    }

    /// Whether this QEMU can run a rack with `accel`; `why` says why KVM was not taken.
    pub fn check(&self, accel: Accel, why: &str) -> Result<(), FindError> {
        if accel == Accel::Tcg && self.version < NESTING {
            let (path, version, why) = (self.path.clone(), self.version, why.to_owned());
            return Err(FindError::TooOld { path, version, why });
        }
        Ok(())
    }
}

/// Looks a program up in PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Code and pristine variable store of the machine's UEFI firmware.
pub fn firmware() -> Result<(&'static Path, &'static Path), FindError> {
    let pairs = FIRMWARE.iter().map(|(code, vars)| (Path::new(*code), Path::new(*vars)));
    pairs.into_iter().find(|(code, vars)| code.is_file() && vars.is_file()).ok_or(FindError::NoFirmware)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_any_distributions_qemu() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003-2025 Fabrice Bellard";
        assert_eq!(Version::parse(debian), Some(Version(10, 0)));
        assert_eq!(Version::parse("QEMU emulator version 9.2.50 (v9.2.0-1-gabc)"), Some(Version(9, 2)));
        assert_eq!(Version::parse("QEMU emulator"), None);
    }

    #[test]
    fn an_old_qemu_is_refused_only_for_emulation() {
        let qemu = Qemu { path: "/usr/bin/qemu".into(), version: Version(7, 2) };
        assert!(qemu.check(Accel::Kvm, "").is_ok());
        let error = qemu.check(Accel::Tcg, "/dev/kvm does not exist").unwrap_err().to_string();
        assert!(error.contains("version 7.2") && error.contains("bookworm-backports"), "{error}");
    }
}
