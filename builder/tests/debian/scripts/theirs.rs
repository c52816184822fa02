//! What mmdebstrap makes of a set of packages.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    super::apt::run,
    archive::{Archive, SUITE},
};

/// A tree with these packages and no others, in a new folder.
pub fn make(target: &Path, archive: &Archive, packages: &[String], epoch: i64) -> PathBuf {
    // In memory, where nobody waits for dpkg's syncs.
    let script = "mount -t tmpfs none /mnt && \"$@\" && cp -a /mnt/tree \"$0\"";
    let mut make = Command::new("unshare");
    make.args(["-m", "sh", "-c", script]).arg(target);
    make.args(["mmdebstrap", "--mode=root", "--format=directory", "--variant=essential"]);
    // A release whose packages still ship files in `/bin` and `/lib` has this to say that they are links: it makes none.
    if packages.iter().any(|package| package == "usr-is-merged") {
        make.arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr");
    }
    make.arg(format!("--include={}", packages.join(","))).args([SUITE, "/mnt/tree"]).arg(archive.source());
    // As a stage has it, and nothing of this machine's: python3 for one makes other files where it may not write any at
    // each import.
    make.env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("DEBIAN_FRONTEND", "noninteractive");
    make.env("SOURCE_DATE_EPOCH", epoch.to_string())
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .env("PERL_HASH_SEED", "0");
    run(&mut make);
    target.to_owned()
}
