//! How the volumes are: mounted, writable, without errors (proc_pid_mountinfo(5); Linux,
//! Documentation/filesystems/ext4/).

use std::{fs, io, path::Path};

use rackstick_api::guest::Volume;
use rackstick_linux::ext4;

/// Something wrong with a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// What.
    pub what: String,
    /// Whether it can be read and written nevertheless.
    pub usable: bool,
}

/// All that is wrong.
pub(super) fn check(volumes: &[Volume]) -> Vec<Found> {
    if volumes.is_empty() {
        return Vec::new();
    }
    match fs::read_to_string("/proc/self/mountinfo") {
        Ok(mounts) => check_in(&mounts, volumes, errors),
        Err(error) => vec![Found { what: format!("volumes can't be looked at: {error}"), usable: false }],
    }
}

fn check_in(mounts: &str, volumes: &[Volume], errors: impl Fn(&str) -> io::Result<u64>) -> Vec<Found> {
    let found = |volume: &Volume| {
        let name = &volume.name;
        // The last one lies above.
        let Some(mounted) = mounts.lines().filter_map(Mounted::parse).rfind(|mounted| mounted.at == volume.mount)
        else {
            return Some(Found { what: format!("volume `{name}` is not mounted on {}", volume.mount), usable: false });
        };
        let errors = match errors(mounted.device) {
            Ok(errors) => errors,
            Err(error) => {
                let what = format!("volume `{name}` can't be asked for its errors: {error}");
                return Some(Found { what, usable: !mounted.readonly });
            }
        };
        let what = match (mounted.readonly, errors) {
            (false, 0) => return None,
            (false, _) => {
                format!("volume `{name}`: its file system has {errors} errors on record; back it up and run e2fsck")
            }
            (true, 0) => format!("volume `{name}` is read-only"),
            (true, _) => format!("volume `{name}` is read-only since its file system has {errors} errors"),
        };
        Some(Found { what, usable: !mounted.readonly })
    };
    volumes.iter().filter_map(found).collect()
}

/// The errors of the file system on a device with these numbers.
fn errors(device: &str) -> io::Result<u64> {
    let link = fs::canonicalize(Path::new("/sys/dev/block").join(device))?;
    let name = link.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidData)?;
    ext4::errors(name)
}

/// A line of mountinfo.
struct Mounted<'a> {
    device: &'a str,
    at: &'a str,
    readonly: bool,
}

impl<'a> Mounted<'a> {
    /// `36 35 98:0 /data /var/lib/bind rw,nosuid - ext4 /dev/vda rw,errors=remount-ro`: the mount may be read-only, or
    /// the file system. Paths of volumes need no escapes.
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = mount.split(' ');
        let (device, at, options) = (words.nth(2)?, words.nth(1)?, words.next()?);
        let super_options = file_system.split(' ').nth(2)?;
        let readonly = [options, super_options].iter().any(|options| options.split(',').any(|word| word == "ro"));
        Some(Self { device, at, readonly })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        21 1 0:20 / / rw,relatime - overlay root rw,lowerdir=/layers/0\n\
        36 21 254:0 /data /var/lib/bind rw,nosuid,nodev,relatime - ext4 /dev/vda rw,discard,errors=remount-ro\n\
        37 21 254:16 /data /var/mail rw,nosuid,nodev,relatime - ext4 /dev/vdb ro,discard,errors=remount-ro\n";

    fn check(name: &str, mount: &str, errors: u64) -> Vec<Found> {
        check_in(MOUNTS, &[Volume { name: name.into(), mount: mount.into() }], |device| {
            assert_eq!(device, if name == "zones" { "254:0" } else { "254:16" });
            Ok(errors)
        })
    }

    #[test]
    fn a_volume_that_is_well_is_not_mentioned() {
        assert_eq!(check("zones", "/var/lib/bind", 0), []);
    }

    #[test]
    fn a_volume_that_became_read_only_or_has_errors_is_reported() {
        let one = |found: Vec<Found>| found.into_iter().next().map(|found| (found.what, found.usable)).unwrap();
        let (what, usable) = one(check("mail", "/var/mail", 3));
        assert!(what.contains("`mail` is read-only") && what.contains("3 errors") && !usable, "{what}");
        let (what, usable) = one(check("zones", "/var/lib/bind", 2));
        assert!(what.contains("`zones`") && what.contains("2 errors") && usable, "{what}");
        let (what, usable) = one(check("other", "/srv", 0));
        assert!(what.contains("not mounted on /srv") && !usable, "{what}");
    }
}
