//! apt, apart from this machine's own: the judge of what is chosen from the same archives.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What tells two .debs apart: the path below the archive's root, and the size.
pub type Deb = (String, u64);

/// An apt that knows only one release and what it is told of, and nothing of this machine but its mirrors.
pub struct Apt {
    root: PathBuf,
}

/// What apt says to being asked for packages.
pub enum Answer {
    /// What it would fetch and install.
    Installed(BTreeSet<Deb>),
    /// It can't, or would have to remove what is installed; its words.
    Refused(String),
}

/// What apt says last where it refuses.
const REFUSALS: [&str; 2] = ["E: Unable to correct problems", "E: Packages need to be removed but remove is disabled."];

impl Apt {
    /// One with further sources (deb822, sources.list(5)).
    pub fn new(folder: &Path, release: &str, sources_beside: &str) -> Self {
        let apt = Self { root: folder.join("apt") };
        for folder in
            ["etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "lists/partial", "cache/archives/partial"]
        {
            fs::create_dir_all(apt.root.join(folder)).unwrap();
        }
        fs::write(apt.root.join("status"), "").unwrap();
        let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/keys/debian-archive-");
        let mut sources = String::new();
        for (archive, suites, key) in [
            ("debian", format!("{release} {release}-updates"), "trixie-automatic.asc".to_owned()),
            ("debian-security", format!("{release}-security"), format!("{release}-security-automatic.asc")),
        ] {
            sources += &format!(
                "Types: deb\nURIs: {}\nSuites: {suites}\nComponents: main\nArchitectures: amd64\nSigned-By: {keys}{key}\n\n",
                mirror(archive)
            );
        }
        fs::write(apt.root.join("etc/sources.list.d/release.sources"), sources + sources_beside).unwrap();
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
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.root.join("apt.conf")).env("LC_ALL", "C");
        command
    }

    /// Gives it preferences (apt_preferences(5)).
    #[allow(dead_code)] // not every test has any
    pub fn prefer(&self, preferences: &str) {
        fs::write(self.root.join("etc/preferences.d/all"), preferences).unwrap();
    }

    /// The package index of a suite's component `main`, as it fetched it.
    #[allow(dead_code)] // not every test asks
    pub fn lists(&self, suite: &str) -> String {
        let end = format!("_dists_{suite}_main_binary-amd64_Packages");
        let mut files = fs::read_dir(self.root.join("lists")).unwrap().map(|entry| entry.unwrap().path());
        let file = files.find(|path| path.to_str().unwrap().ends_with(&end)).unwrap();
        fs::read_to_string(file).unwrap()
    }

    /// Lets apt believe that these packages are installed.
    pub fn set_installed(&self, names: &[String]) {
        let stanzas = run(self.command("apt-cache").args(["show", "--no-all-versions"]).args(names));
        let installed: String = stanzas
            .split("\n\n")
            .filter(|stanza| !stanza.trim().is_empty())
            .map(|stanza| format!("{}\nStatus: install ok installed\n\n", stanza.trim()))
            .collect();
        self.set_status(&installed);
    }

    /// Lets apt take this for dpkg's database.
    pub fn set_status(&self, status: &str) {
        fs::write(self.root.join("status"), status).unwrap();
    }

    /// What it would fetch and install, which must be possible.
    pub fn install<S: AsRef<OsStr> + Debug>(&self, packages: &[S]) -> BTreeSet<Deb> {
        match self.ask(packages) {
            Answer::Installed(debs) => debs,
            Answer::Refused(why) => panic!("{packages:?}: {why}"),
        }
    }

    /// What it would fetch and install, if it can without removing anything.
    pub fn ask<S: AsRef<OsStr> + Debug>(&self, packages: &[S]) -> Answer {
        let args = ["-qq", "--print-uris", "--no-install-recommends", "--no-remove", "--solver", "internal", "install"];
        let output = self.command("apt-get").args(args).args(packages).output().unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        if !output.status.success() {
            let refused = REFUSALS.iter().any(|refusal| stderr.contains(refusal));
            assert!(refused, "apt failed of {packages:?}: {stdout}{stderr}");
            return Answer::Refused(stdout + &stderr);
        }
        // 'http://HOST/debian/pool/main/g/glibc/libc6_2.41-12%2bdeb13u5_amd64.deb' FILE 2850108 HASH
        let deb = |line: &str| {
            let mut words = line.split(' ');
            let url = words.next().unwrap().trim_matches('\'');
            let path = &url[url.find("/pool/").unwrap() + 1..];
            (decode(path), words.nth(1).unwrap().parse().unwrap())
        };
        Answer::Installed(stdout.lines().map(deb).collect())
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
pub fn mirror(archive: &str) -> String {
    let targets =
        run(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]));
    let found = targets.lines().find(|root| root.trim_end_matches('/').ends_with(&format!("/{archive}")));
    found.unwrap_or_else(|| panic!("this machine's apt knows no mirror of {archive}")).to_owned()
}

/// Runs a command that must succeed, and gives what it prints.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(output.stderr));
    text(output.stdout)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}
