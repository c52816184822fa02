//! What every guest's base has beyond its packages: systemd made to fit a machine without disk, screen and
//! administrator, so that it boots quickly. Follows systemd.unit(5), systemd-update-done(8), machine-id(5).

use std::{io, path::Path};

use super::tree::Tree;

/// Units that make no sense in a guest, and why. A recipe that wants one puts a file of that name into
/// /etc/systemd/system.
const MASKED: &[(&str, &str)] = &[
    ("getty.target", "nobody can log in: root's password is locked, and the console is the guest's log"),
    ("dpkg-db-backup.timer", "packages change with the image, never in the guest"),
    ("apt-daily.timer", "packages change with the image, never in the guest"),
    ("apt-daily-upgrade.timer", "packages change with the image, never in the guest"),
    ("fstrim.timer", "the root is a tmpfs over read-only layers; volumes discard as they go"),
    ("e2scrub_all.timer", "there is no LVM in a guest"),
    ("systemd-firstboot.service", "asks questions on the console, which nobody would answer"),
    ("systemd-journal-flush.service", "the journal stays in memory: there is nowhere to move it to"),
    ("systemd-pstore.service", "there is no persistent store for a crashed kernel's words; the rack logs the console"),
    ("systemd-random-seed.service", "a seed kept in memory is none; virtio-rng feeds the kernel"),
    ("systemd-remount-fs.service", "the root is mounted as it shall be, and there is no fstab"),
    ("systemd-udev-load-credentials.service", "nobody passes rules for devices to a guest"),
    // Each of these starts a process or two at each boot, which under emulation take a second.
    ("modprobe@drm.service", "there is no screen"),
    ("sys-fs-fuse-connections.mount", "the kernel loads FUSE when something opens its device"),
    ("sys-kernel-config.mount", "nothing is configured through configfs"),
    ("sys-kernel-debug.mount", "for kernel developers"),
    ("sys-kernel-tracing.mount", "for kernel developers"),
    ("dev-hugepages.mount", "no service of an appliance asks for huge pages"),
];

/// Programs that systemd would run at each boot to find units that a guest never has, and why.
const MASKED_GENERATORS: &[(&str, &str)] = &[
    ("systemd-getty-generator", "nobody can log in"),
    ("systemd-gpt-auto-generator", "a guest's volumes are named by its manifest, not found by partition types"),
    ("systemd-hibernate-resume-generator", "a guest does not hibernate"),
    ("systemd-ssh-generator", "the rack reaches a guest through its agent"),
    ("systemd-tpm2-generator", "there is no TPM"),
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
    for (generator, _why) in MASKED_GENERATORS {
        tree.symlink(Path::new("/dev/null"), &Path::new("/etc/systemd/system-generators").join(generator))?;
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
