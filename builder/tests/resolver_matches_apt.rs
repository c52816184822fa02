//! The oracle of the resolver: for each set of packages, `rackstick lock` must choose what apt chooses for a system that
//! has the same base installed. Needs the network: both read the archive as it is now, from this machine's mirrors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod apt;

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use apt::{Apt, Deb, run};
use rackstick_image::lock::Lock;

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

#[test]
fn a_lock_holds_what_apt_would_install() {
    let folder = tempfile::tempdir().unwrap();
    let lock = lock(folder.path());
    let apt = Apt::new(folder.path(), "");

    let mut base: Vec<&str> = lock.roots["base"].iter().map(String::as_str).collect();
    base.push("?essential");
    let mut differences = difference("base", &chosen(&lock, "base"), &apt.install(&base));

    apt.set_installed(&lock.sets["base"]);
    let compare = |(name, packages): &(&str, &[&str])| {
        difference(name, &chosen(&lock, &format!("image:{name}")), &apt.install(packages))
    };
    let (compare, halves) = (&compare, SETS.split_at(SETS.len() / 2));
    std::thread::scope(|scope| {
        let one = scope.spawn(move || halves.0.iter().map(compare).collect::<String>());
        differences += &halves.1.iter().map(compare).collect::<String>();
        differences += &one.join().unwrap();
    });
    assert!(differences.is_empty(), "\n{differences}");
}

/// Locks a rack with one guest for each set.
fn lock(folder: &Path) -> Lock {
    let mut rack = "[rack]\nname = \"test\"\nversion = \"1\"\nbase = \"debian:trixie\"\ndomain = \"test.internal\"\n\
         [networks.servers]\nsubnet = \"10.0.0.0/24\"\n"
        .to_owned();
    for (number, (name, packages)) in SETS.iter().enumerate() {
        let address = number + 2;
        rack += &format!(
            "[guests.{name}]\nimage = \"{name}.toml\"\nmemory = \"256 MiB\"\naddress = {{ servers = \"10.0.0.{address}\" }}\n"
        );
        fs::write(folder.join(format!("{name}.toml")), format!("packages = {packages:?}\n")).unwrap();
    }
    let recipe = folder.join("rack.toml");
    fs::write(&recipe, rack).unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    run(Command::new(env!("CARGO_BIN_EXE_rackstick")).arg("lock").arg(&recipe).env("RACKSTICK_CACHE", cache));
    toml::from_str(&fs::read_to_string(folder.join("rack.lock")).unwrap()).unwrap()
}

/// The .debs of a set.
fn chosen(lock: &Lock, set: &str) -> BTreeSet<Deb> {
    let deb = |name: &String| (lock.packages[name].path.clone(), lock.packages[name].size);
    lock.sets[set].iter().map(deb).collect()
}

fn difference(set: &str, ours: &BTreeSet<Deb>, apts: &BTreeSet<Deb>) -> String {
    let explained = |(path, _): &Deb| {
        let name = path.rsplit('/').next().unwrap().split('_').next().unwrap();
        ONLY_APT.iter().any(|(of, names)| *of == set && names.contains(&name))
    };
    let apts = apts.iter().filter(|deb| ours.contains(*deb) || !explained(deb)).cloned().collect();
    let mut lines = String::new();
    for (who, mut only) in [("we", ours.difference(&apts).peekable()), ("apt", apts.difference(ours).peekable())] {
        if only.peek().is_some() {
            lines += &format!("{set}: only {who} would install {:?}\n", only.collect::<Vec<_>>());
        }
    }
    lines
}
