//! What every guest's base has beyond its packages: systemd made to fit a machine without disk, screen and administrator,
//! so that it boots quickly. Follows systemd.unit(5), systemd-update-done(8), machine-id(5).

use std::{io, path::Path};

use super::tree::Tree;

/// Units that make no sense in a guest, and why.
const MASKED: &[(&str, &str)] = &[
    ("getty.target", "nobody can log in: root's password is locked, and the console is the guest's log"),
    ("dpkg-db-backup.timer", "packages change with the image, never in the guest"),
    ("apt-daily.timer", "packages change with the image, never in the guest"),
    ("apt-daily-upgrade.timer", "packages change with the image, never in the guest"),
    ("fstrim.timer", "the root is a tmpfs over read-only layers; volumes discard as they go"),
    ("e2scrub_all.timer", "there is no LVM in a guest"),
    ("systemd-firstboot.service", "asks questions on the console, which nobody would answer"),
    ("systemd-pstore.service", "there is no persistent store for a crashed kernel's words; the rack logs the console"),
    ("sys-kernel-debug.mount", "starts a process at each boot, for kernel developers"),
    ("sys-kernel-tracing.mount", "starts a process at each boot, for kernel developers"),
    ("dev-hugepages.mount", "starts a process at each boot; no service of an appliance asks for huge pages"),
];

/// Files that a guest's base has, with their content and why.
const FILES: &[(&str, &str)] = &[
    (
        "/usr/lib/systemd/journald.conf.d/10-rackstick.conf",
        "# The root is a tmpfs: a journal there would be in memory twice.\n[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n",
    ),
    ("/etc/hosts", "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n"),
    // Empty, not missing: systemd then fills it for this boot only, and does not think that this is the first one.
    ("/etc/machine-id", ""),
];

/// Applies it to a base whose packages are configured.
pub fn prepare(tree: &Tree) -> io::Result<()> {
    let units = Path::new("/etc/systemd/system");
    for (unit, _why) in MASKED {
        tree.symlink(Path::new("/dev/null"), &units.join(unit))?;
    }
    tree.symlink(Path::new("/usr/lib/systemd/system/multi-user.target"), &units.join("default.target"))?;
    for (path, content) in FILES {
        tree.write(Path::new(path), content.as_bytes(), if *path == "/etc/machine-id" { 0o444 } else { 0o644 })?;
    }
    Ok(())
}

/// Tells systemd that /etc and /var are as new as /usr: else each boot would build the hardware database, the linker's
/// cache and the users anew, which takes longer than all the rest.
pub fn mark_updated(tree: &Tree, epoch: i64) -> io::Result<()> {
    let mark = format!("# Written when the image was built.\nTIMESTAMP_NSEC={epoch}000000000\n");
    ["/etc/.updated", "/var/.updated"].iter().try_for_each(|path| tree.write(Path::new(path), mark.as_bytes(), 0o644))
}
