//! The oracle of the resolver: for each set of packages, `rackstick lock` must choose what apt chooses for a system that
//! has the same base installed. Needs the network: both read the archive as it is now, from this machine's mirrors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

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

/// What tells two .debs apart: the path below the archive's root, and the size.
type Deb = (String, u64);

#[test]
fn a_lock_holds_what_apt_would_install() {
    let folder = tempfile::tempdir().unwrap();
    let lock = lock(folder.path());
    let apt = Apt::new(folder.path());

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

/// An apt that knows only trixie, and nothing of this machine but its mirrors.
struct Apt {
    root: PathBuf,
}

impl Apt {
    fn new(folder: &Path) -> Self {
        let apt = Self { root: folder.join("apt") };
        for folder in
            ["etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "lists/partial", "cache/archives/partial"]
        {
            fs::create_dir_all(apt.root.join(folder)).unwrap();
        }
        fs::write(apt.root.join("status"), "").unwrap();
        let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/keys/debian-archive-trixie-");
        let mut sources = String::new();
        for (archive, suites, key) in [
            ("debian", "trixie trixie-updates", "automatic.asc"),
            ("debian-security", "trixie-security", "security-automatic.asc"),
        ] {
            sources += &format!(
                "Types: deb\nURIs: {}\nSuites: {suites}\nComponents: main\nArchitectures: amd64\nSigned-By: {keys}{key}\n\n",
                mirror(archive)
            );
        }
        fs::write(apt.root.join("etc/sources.list.d/trixie.sources"), sources).unwrap();
        let etc = apt.root.join("etc");
        let root = apt.root.display();
        let conf = format!(
            "Dir::Etc \"{}\";\nDir::State \"{root}\";\nDir::State::lists \"{root}/lists\";\nDir::State::status \"{root}/status\";\n\
             Dir::Cache \"{root}/cache\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             pkgCacheGen::ForceEssential \",\";\nAPT::Install-Recommends \"false\";\nAPT::Sandbox::User \"\";\nAcquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n",
            etc.display()
        );
        // ForceEssential: otherwise apt counts itself as essential.
        fs::write(apt.root.join("apt.conf"), conf).unwrap();
        run(apt.command("apt-get").args(["-q", "update"]));
        apt
    }

    /// APT_CONFIG is read before the folders of parts, so that the machine's own are never looked at.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.root.join("apt.conf")).env("LC_ALL", "C");
        command
    }

    /// Lets apt believe that these packages are installed.
    fn set_installed(&self, names: &[String]) {
        let stanzas = run(self.command("apt-cache").args(["show", "--no-all-versions"]).args(names));
        let installed: String = stanzas
            .split("\n\n")
            .filter(|stanza| !stanza.trim().is_empty())
            .map(|stanza| format!("{}\nStatus: install ok installed\n\n", stanza.trim()))
            .collect();
        fs::write(self.root.join("status"), installed).unwrap();
    }

    /// What it would fetch and install.
    fn install(&self, packages: &[&str]) -> BTreeSet<Deb> {
        let args = ["-qq", "--print-uris", "--no-install-recommends", "install"];
        let out = run(self.command("apt-get").args(args).args(packages));
        // 'http://HOST/debian/pool/main/g/glibc/libc6_2.41-12%2bdeb13u5_amd64.deb' FILE 2850108 HASH
        out.lines()
            .map(|line| {
                let mut words = line.split(' ');
                let url = words.next().unwrap().trim_matches('\'');
                let path = &url[url.find("/pool/").unwrap() + 1..];
                (decode(path), words.nth(1).unwrap().parse().unwrap())
            })
            .collect()
    }
}

/// Takes the percent signs out of a URL's path.
fn decode(path: &str) -> String {
    let mut parts = path.split('%');
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        out.push(char::from(u8::from_str_radix(&part[..2], 16).unwrap()));
        out.push_str(&part[2..]);
    }
    out
}

/// The root of an archive, from this machine's own apt configuration.
fn mirror(archive: &str) -> String {
    let targets =
        run(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]));
    let found = targets.lines().find(|root| root.trim_end_matches('/').ends_with(&format!("/{archive}")));
    found.unwrap_or_else(|| panic!("this machine's apt knows no mirror of {archive}")).to_owned()
}

/// Runs a command that must succeed, and gives what it prints.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
