//! Which accelerator can run a rack. A rack runs guests of its own, so KVM must nest; where it does not,
//! QEMU's software emulation does, with AMD's SVM (not Intel's VMX) and from version 10 on.

use std::{fmt, fs, io};

const KVM: &str = "/dev/kvm";

/// What runs the rack's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The kernel's KVM.
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "software emulation",
        })
    }
}

/// What this machine says of its own KVM.
#[derive(Debug)]
pub struct Kvm {
    /// Whether `/dev/kvm` can be opened.
    pub opened: io::Result<()>,
    /// Text of `/proc/cpuinfo`.
    pub cpuinfo: String,
    /// The `nested` parameter of `kvm_amd` and of `kvm_intel`, where that module is loaded.
    pub nested: [Option<String>; 2],
}

impl Kvm {
    /// Asks this machine.
    pub fn probe() -> Self {
        let nested = |module: &str| fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok();
        Self {
            opened: fs::File::options().read(true).write(true).open(KVM).map(drop),
            // Unreadable: no flags, and the reason given is that there are none.
            cpuinfo: fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            nested: [nested("kvm_amd"), nested("kvm_intel")],
        }
    }

    /// Whether a rack under this KVM can run guests of its own; if not, why, to stand behind "because".
    pub fn nests(&self) -> Result<(), String> {
        if let Err(error) = &self.opened {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => format!("{KVM} does not exist"),
                io::ErrorKind::PermissionDenied => {
                    format!("{KVM} may not be opened by this user (is it in the group `kvm`?)")
                }
                _ => format!("{KVM} can't be opened ({error})"),
            });
        }
        let flag = |name| {
            let mut flags = self.cpuinfo.lines().filter(|line| line.starts_with("flags"));
            flags.any(|line| line.split_ascii_whitespace().any(|flag| flag == name))
        };
        // A page-table KVM has a device file but neither flag: it can't even run an unmodified kernel.
        let (module, nested) = match (flag("svm"), flag("vmx")) {
            (true, _) => ("kvm_amd", &self.nested[0]),
            (false, true) => ("kvm_intel", &self.nested[1]),
            (false, false) => return Err(format!("{KVM} exists, but the CPU shows neither svm nor vmx")),
        };
        match nested.as_deref().map(str::trim) {
            Some("1" | "Y" | "y") => Ok(()),
            Some(_) => Err(format!("KVM's guests can't run guests: load {module} with nested=1")),
            None => Err(format!("{module} does not say whether its guests can run guests (no parameter `nested`)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kvm(flags: &str, amd: Option<&str>, intel: Option<&str>) -> Kvm {
        Kvm {
            opened: Ok(()),
            cpuinfo: format!("processor\t: 0\nmodel name\t: svm vmx\nflags\t\t: fpu {flags} sse\n"),
            nested: [amd, intel].map(|text| text.map(|text| format!("{text}\n"))),
        }
    }

    #[test]
    fn kvm_is_taken_only_where_it_nests() {
        assert!(kvm("svm", Some("1"), None).nests().is_ok());
        assert!(kvm("vmx", None, Some("Y")).nests().is_ok());
        for (kvm, why) in [
            (kvm("", None, None), "neither svm nor vmx"),
            (kvm("svm", Some("0"), None), "kvm_amd with nested=1"),
            (kvm("vmx", Some("1"), Some("N")), "kvm_intel with nested=1"),
            (kvm("vmx", None, None), "does not say"),
            (Kvm { opened: Err(io::ErrorKind::NotFound.into()), ..kvm("svm", Some("1"), None) }, "does not exist"),
            (Kvm { opened: Err(io::ErrorKind::PermissionDenied.into()), ..kvm("svm", Some("1"), None) }, "group"),
        ] {
            let reason = kvm.nests().unwrap_err();
            assert!(reason.contains(why), "{reason}");
        }
    }
}
