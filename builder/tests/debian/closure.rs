//! The oracle of the resolver: for each set of packages, `rackstick lock` must choose what apt chooses for a system
//! that has the same base installed.

use std::collections::BTreeSet;

use super::{
    apt::{Apt, Deb},
    lock,
};

/// What is asked for: what servers, and labs, consist of.
const SETS: &[(&str, &[&str])] = &[
    ("dns", &["bind9"]),
    ("web", &["nginx-light"]),
    ("mail", &["postfix", "dovecot-imapd", "rspamd"]),
    ("dovecot", &["dovecot-core"]),
    ("exim", &["exim4-daemon-light"]),
    ("database", &["postgresql"]),
    ("mariadb", &["mariadb-server"]),
    ("files", &["samba"]),
    ("nfs", &["nfs-kernel-server"]),
    ("shell", &["openssh-server"]),
    ("python", &["python3"]),
    ("php", &["apache2", "php"]),
    ("java", &["default-jre-headless"]),
    ("git", &["git", "cgit"]),
    ("network", &["network-manager", "chrony", "nftables"]),
    ("containers", &["podman"]),
    ("compiler", &["build-essential"]),
    ("monitoring", &["prometheus", "prometheus-node-exporter"]),
    ("desktop", &["xfce4"]),
];

/// What apt installs and we do not, with the reason: the set, the package, and the need that brings it in.
///
/// apt settles each alternative when it comes to it. We settle what is certain first, and find the alternative already
/// satisfied by it.
const ONLY_APT: &[(&str, &[&str])] = &[
    // golang-github-containers-common needs container-network-stack, which containernetworking-plugins and netavark
    // provide. podman itself needs netavark.
    (
        "containers",
        &[
            "containernetworking-plugins",
            "iptables",
            "libip4tc2",
            "libip6tc2",
            "libmnl0",
            "libnetfilter-conntrack3",
            "libnfnetlink0",
            "libnftnl11",
            "libxtables12",
            "netbase",
        ],
    ),
];

/// Those of images of another release than the rack's.
const OF_BOOKWORM: [&str; 6] = ["dns", "web", "dovecot", "database", "shell", "php"];

#[test]
fn a_lock_holds_what_apt_would_install() {
    compare("trixie", SETS);
}

#[test]
fn of_images_of_another_release_a_lock_holds_what_its_apt_would_install() {
    let sets: Vec<_> = SETS.iter().copied().filter(|(name, _)| OF_BOOKWORM.contains(name)).collect();
    compare("bookworm", &sets);
}

fn compare(release: &str, sets: &[(&str, &[&str])]) {
    let folder = tempfile::tempdir().unwrap();
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    let all = sets.iter().map(|(name, packages)| ((*name).to_owned(), owned(packages))).collect();
    let lock = lock::all(folder.path(), release, &all);
    let locked = &lock.bases[&format!("debian:{release}")];
    let apt = Apt::new(folder.path(), release, "");

    let mut base = locked.roots["base"].clone();
    base.push("?essential".to_owned());
    let mut differences = difference("base", &lock::chosen(locked, "base"), &apt.install(&base));

    apt.set_installed(&locked.sets["base"]);
    let compare = |(name, packages): &(&str, &[&str])| {
        difference(name, &lock::chosen(locked, &format!("image:{name}")), &apt.install(&owned(packages)))
    };
    let (compare, halves) = (&compare, sets.split_at(sets.len() / 2));
    std::thread::scope(|scope| {
        let one = scope.spawn(move || halves.0.iter().map(compare).collect::<String>());
        differences += &halves.1.iter().map(compare).collect::<String>();
        differences += &one.join().unwrap();
    });
    assert!(differences.is_empty(), "\n{differences}");
}

pub fn difference(set: &str, ours: &BTreeSet<Deb>, apts: &BTreeSet<Deb>) -> String {
    let explained =
        |(path, _): &Deb| ONLY_APT.iter().any(|(of, names)| *of == set && names.contains(&package_of(path)));
    let apts = apts.iter().filter(|deb| ours.contains(*deb) || !explained(deb)).cloned().collect();
    let mut lines = String::new();
    for (who, mut only) in [("we", ours.difference(&apts).peekable()), ("apt", apts.difference(ours).peekable())] {
        if only.peek().is_some() {
            lines += &format!("{set}: only {who} would install {:?}\n", only.collect::<Vec<_>>());
        }
    }
    lines
}

/// The name of the package in a .deb.
pub fn package_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap().split('_').next().unwrap()
}
