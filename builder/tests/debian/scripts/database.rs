//! The dpkg database of a tree, judged by the machine's own dpkg and apt.

use std::{fs, path::Path, process::Command};

use super::super::{
    apt::{Apt, run},
    closure::package_of,
};

/// A package that no set needs, and that needs nothing but the base.
const ANOTHER: &str = "hello";

/// Whether all is installed and whole, nothing is open, and apt would go on from here.
pub fn judge(tree: &Path, apt: &Apt) {
    let root = format!("--root={}", tree.display());
    let dpkg = |arguments: &[&str]| run(Command::new("dpkg").arg(&root).args(arguments));
    let listed = dpkg(&["--list", "--no-pager"]);
    let states: Vec<&str> = listed.lines().skip_while(|line| !line.starts_with("+++")).skip(1).collect();
    assert!(states.len() > 50 && states.iter().all(|line| line.starts_with("ii ")), "{listed}");
    assert_eq!(dpkg(&["--audit"]), "", "dpkg --audit");
    assert_eq!(dpkg(&["--verify"]), "", "dpkg --verify");
    apt.set_status(&fs::read_to_string(tree.join("var/lib/dpkg/status")).unwrap());
    run(apt.command("apt-get").args(["-q", "check"]));
    let debs = apt.install(&[ANOTHER]);
    assert_eq!(debs.iter().map(|(path, _)| package_of(path)).collect::<Vec<_>>(), [ANOTHER]);
}
