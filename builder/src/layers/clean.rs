//! Takes away what differs from build to build, or is of no use in an image: logs, locks, caches that are made again,
//! backups of files that just changed.

use std::{collections::BTreeSet, io, path::Path};

use rustix::fs::FileType;

use super::tree::Tree;

/// Files that go.
const FILES: &[&str] = &[
    "/etc/.pwd.lock",
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/passwd-",
    "/etc/shadow-",
    "/etc/subgid-",
    "/etc/subuid-",
    // The guest's init writes them.
    "/etc/hostname",
    "/etc/resolv.conf",
    // What systemd-resolved found in its place.
    "/etc/.resolv.conf.systemd-resolved.bak",
    // Inode numbers and times of this build's tree.
    "/var/cache/ldconfig/aux-cache",
    "/var/cache/debconf/config.dat-old",
    "/var/cache/debconf/passwords.dat-old",
    "/var/cache/debconf/templates.dat-old",
    "/var/lib/dbus/machine-id",
    "/var/lib/dpkg/available-old",
    "/var/lib/dpkg/diversions-old",
    "/var/lib/dpkg/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/statoverride-old",
    "/var/lib/dpkg/status-old",
    "/var/lib/dpkg/triggers/Lock",
    "/var/lib/systemd/random-seed",
];

/// Folders whose files go; the folders stay, with their owners.
const FOLDERS: &[&str] = &["/var/cache/apt", "/var/lib/apt/lists", "/var/tmp"];

/// Cleans a tree whose packages are configured, but for what the recipe itself put there.
pub fn clean(tree: &Tree, asked: &BTreeSet<&Path>) -> io::Result<()> {
    let remove = |path: &Path| if asked.contains(path) { Ok(()) } else { tree.remove(path) };
    FILES.iter().try_for_each(|path| remove(Path::new(path)))?;
    for folder in FOLDERS {
        tree.walk(Path::new(folder), &mut |path, _| remove(path))?;
    }
    // Empty logs stay: a package made them with the owner that its service needs.
    tree.walk(Path::new("/var/log"), &mut |path, kind| {
        let written = kind == FileType::RegularFile && tree.stat(path)?.is_some_and(|stat| stat.st_size > 0);
        if written { remove(path) } else { Ok(()) }
    })
}
