//! Repositories beside the base, as a user meets them: which package comes from where, by apt's judgement; and what is
//! said if one can't be trusted or can't give what is asked. Needs the network: the base is Debian's, from this
//! machine's mirrors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../apt/mod.rs"]
mod apt;
mod archive;
#[allow(dead_code, missing_docs)]
#[path = "../../src/store/server.rs"]
mod server;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use apt::{Apt, Deb, mirror};
use archive::{Archive, Key};
use rackstick_image::lock::Lock;
use tempfile::TempDir;

/// Long before and long after everything.
const BORN: &str = "20240101T000000";
const NEVER: &str = "never";

/// A rack whose one image has some packages.
struct Rack(TempDir);

impl Rack {
    fn new(packages: &[&str], repositories: &str, keys: &[(&str, &Key)]) -> Self {
        let new = Self(tempfile::tempdir().unwrap());
        let rack = format!(
            "[rack]\nname = \"test\"\nversion = \"1\"\nbase = \"debian:trixie\"\n\n[guests.app]\nimage = \"app.toml\"\n\
             memory = \"64 MiB\"\n\n{repositories}"
        );
        fs::write(new.path("rack.toml"), rack).unwrap();
        fs::write(new.path("app.toml"), format!("packages = {packages:?}\n")).unwrap();
        for (name, key) in keys {
            fs::copy(&key.file, new.path(name)).unwrap();
        }
        new
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `rackstick` in the recipe's folder, with the store that all tests share: whether it succeeded, and all that
    /// it said.
    fn run(&self, args: &[&str]) -> (bool, String) {
        self.run_with(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"), args)
    }

    fn run_with(&self, cache: &Path, args: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstick"));
        command.current_dir(self.0.path()).args(args).env("RACKSTICK_CACHE", cache);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    fn lock(&self) -> Lock {
        let (success, said) = self.run(&["lock", "rack.toml"]);
        assert!(success, "{said}");
        toml::from_str(&fs::read_to_string(self.path("rack.lock")).unwrap()).unwrap()
    }
}

/// The repository `example` of a recipe.
fn example(archive: &Archive, packages: &[&str]) -> String {
    let url = archive.url();
    format!(
        "[repositories.example]\nurl = \"{url}\"\nsuite = \"stable\"\nkey = \"example.asc\"\npackages = {packages:?}\n"
    )
}

/// The .debs of a set.
fn debs(lock: &Lock, set: &str) -> BTreeSet<Deb> {
    lock.own().set(set).map(|(_, package)| (package.path.clone(), package.size)).collect()
}

/// What stands in an archive beside what Debian has.
fn agent() -> Archive {
    Archive::new(&[
        ("example-agent", "2.0", "Depends: example-lib (>= 2),\n libc6 (>= 2.30), adduser\n"),
        ("example-lib", "1.0", ""),
        ("example-lib", "2.0", "Depends: bind9-dnsutils\n"),
        // Newer than the base's, and not named.
        ("nginx-common", "99", ""),
        // Older than the base's, and named.
        ("bind9-dnsutils", "0.1", ""),
        // Nobody else's archive makes a package essential.
        ("hostname", "99", "Essential: yes\n"),
        ("example-essential", "1", "Essential: yes\n"),
    ])
}

#[test]
fn a_lock_takes_what_apt_takes_with_the_same_priorities() {
    let key = Key::new("Example", BORN, NEVER);
    let archive = agent().signed(&key, "");
    let folder = tempfile::tempdir().unwrap();
    let sources = format!(
        "Types: deb\nURIs: {}\nSuites: trixie-backports\nComponents: main\nArchitectures: amd64\nSigned-By: {}\n\n\
         Types: deb\nURIs: {}\nSuites: stable\nComponents: main\nArchitectures: amd64\nSigned-By: {}\n",
        mirror("debian"),
        concat!(env!("CARGO_MANIFEST_DIR"), "/keys/debian-archive-trixie-automatic.asc"),
        archive.url(),
        key.file.display()
    );
    let apt = Apt::new(folder.path(), "trixie", &sources);
    let [named, left, only] = backports(&apt);
    let preferences = format!(
        "Package: *\nPin: release n=trixie-backports\nPin-Priority: 100\n\n\
         Package: *\nPin: release n=stable\nPin-Priority: 100\n\n\
         Package: {named}\nPin: release n=trixie-backports\nPin-Priority: 990\n\n\
         Package: bind9-dnsutils\nPin: release n=stable\nPin-Priority: 990\n"
    );
    apt.prefer(&preferences);
    let wanted = ["example-agent", "nginx-light", &named, &left, &only];
    let repositories = format!(
        "{}\n[repositories.backports]\nsuite = \"trixie-backports\"\npackages = [\"{named}\"]\n",
        example(&archive, &["bind9-dnsutils"])
    );
    let rack = Rack::new(&wanted, &repositories, &[("example.asc", &key)]);
    let lock = rack.lock();

    apt.set_installed(&lock.own().sets["base"]);
    assert_eq!(debs(&lock, "image:app"), apt.install(&wanted));
    let from = |name: &str| (lock.own().packages[name].archive.as_str(), lock.own().packages[name].version.as_str());
    assert_eq!(from("example-lib"), ("example", "2.0"));
    assert_eq!(from("bind9-dnsutils"), ("example", "0.1"));
    assert_eq!(from("hostname").0, "debian");
    assert_eq!(from(&named).0, "backports");
    assert_eq!(from(&only).0, "backports");
    assert!(["debian", "debian-security"].contains(&from(&left).0), "{:?}", from(&left));
    assert_eq!(lock.repositories["example"].keys, [key.fingerprint.as_str()]);
    let indexes: Vec<_> =
        lock.own().indexes.iter().map(|index| (index.archive.as_str(), index.suite.as_str())).collect();
    assert!(
        indexes.contains(&("example", "stable")) && indexes.contains(&("backports", "trixie-backports")),
        "{indexes:?}"
    );
}

/// Packages of trixie-backports that need nothing: two that trixie has too, and one that it has not.
fn backports(apt: &Apt) -> [String; 3] {
    let trixie = apt.lists("trixie");
    let trixie: BTreeSet<&str> = trixie.lines().filter_map(|line| line.strip_prefix("Package: ")).collect();
    let mut both = Vec::new();
    let mut only: Option<String> = None;
    for stanza in apt.lists("trixie-backports").split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        if ["Depends", "Pre-Depends", "Conflicts", "Breaks", "Provides"].into_iter().any(|name| field(name).is_some()) {
            continue;
        }
        let Some(name) = field("Package") else { continue };
        let known = trixie.contains(name);
        if !known {
            only.get_or_insert_with(|| name.to_owned());
        } else if both.len() < 2 {
            both.push(name.to_owned());
        }
    }
    let [named, left]: [String; 2] = both.try_into().unwrap();
    [named, left, only.unwrap()]
}

#[test]
fn a_vendored_rack_needs_its_repository_no_more_and_another_place_can_be_named_for_it() {
    let key = Key::new("Example", BORN, NEVER);
    let archive = agent().signed(&key, "");
    let rack = Rack::new(&["example-agent"], &example(&archive, &[]), &[("example.asc", &key)]);
    let lock = rack.lock();
    let (success, said) = rack.run(&["check", "rack.toml"]);
    assert!(success && said.contains("example (stable of "), "{said}");
    let (success, said) = rack.run(&["vendor", "vendored", "rack.toml"]);
    assert!(success, "{said}");
    let deb = Path::new("vendored/example").join(&lock.own().packages["example-agent"].path);
    assert!(rack.path(deb.to_str().unwrap()).is_file(), "{}", deb.display());

    // Everything is gone but the folder: the store, and the server's files.
    for name in ["example-agent", "example-lib"] {
        let path = format!("/example/{}", lock.own().packages[name].path);
        archive.server.answer(&path, vec![server::Answer::Status(404)]);
    }
    let (empty, again) = (rack.path("empty"), ["vendor", "again", "rack.toml", "--mirror", "vendored"]);
    let (success, said) = rack.run_with(&empty, &again);
    assert!(success && said.contains(&format!("{} are new", lock.packages().count())), "{said}");

    // Without the folder it says whose file is missing.
    let (success, said) = rack.run(&["lock", "rack.toml", "--update", "--mirror", "exampel=http://127.0.0.1:1/x"]);
    assert!(!success && said.contains("the recipe has no repository `exampel`; it has example"), "{said}");
    let elsewhere = format!("example={}", server::nobody("x"));
    let (success, said) = rack.run(&["lock", "rack.toml", "--update", "--mirror", &elsewhere]);
    assert!(!success && said.contains("the connection was refused"), "{said}");
    let elsewhere = format!("example={}", archive.url());
    let (success, said) = rack.run(&["lock", "rack.toml", "--update", "--mirror", &elsewhere]);
    assert!(success, "{said}");
}

#[test]
fn a_plain_folder_of_packages_is_a_repository_too() {
    let key = Key::new("Example", BORN, NEVER);
    let archive = Archive::plain(&[("example-agent", "2.0", "Depends: adduser\n")]).signed(&key, "");
    let recipe = example(&archive, &[]).replace("\"stable\"", "\"./\"");
    let rack = Rack::new(&["example-agent"], &recipe, &[("example.asc", &key)]);
    let lock = rack.lock();
    assert_eq!(lock.own().packages["example-agent"].path, "example-agent_2.0_all.deb");
    let (success, said) = rack.run(&["vendor", "vendored", "rack.toml"]);
    assert!(success && rack.path("vendored/example/example-agent_2.0_all.deb").is_file(), "{said}");
}

#[test]
fn a_lock_no_longer_fits_a_recipe_with_another_key_or_other_packages() {
    let (key, other) = (Key::new("Example", BORN, NEVER), Key::new("Other", BORN, NEVER));
    let archive = agent().signed(&key, "");
    let rack = Rack::new(&["example-agent"], &example(&archive, &[]), &[("example.asc", &key)]);
    rack.lock();
    let unfit = |line: &str| {
        let (success, said) = rack.run(&["check", "rack.toml"]);
        assert!(!success && said.contains(line) && said.contains("Run `rackstick lock rack.toml`"), "{line}: {said}");
    };
    fs::copy(&other.file, rack.path("example.asc")).unwrap();
    unfit(&format!("the key of repository `example` is {}, the lock's {}", other.fingerprint, key.fingerprint));
    fs::copy(&key.file, rack.path("example.asc")).unwrap();
    let recipe = fs::read_to_string(rack.path("rack.toml")).unwrap();
    fs::write(rack.path("rack.toml"), recipe.replace("packages = []", "packages = [\"nginx-common\"]")).unwrap();
    unfit("repository `example` has the packages [nginx-common], the lock's []");
    let (success, said) = rack.run(&["lock", "rack.toml", "--update", "example-lib"]);
    assert!(!success && said.contains("--update alone"), "{said}");
    rack.lock();
    fs::write(rack.path("example.asc"), "no key").unwrap();
    let (success, said) = rack.run(&["check", "rack.toml"]);
    assert!(
        !success && said.contains("the key `example.asc` can't be used") && said.contains("rack.toml:13:7"),
        "{said}"
    );
}

/// Runs `rackstick lock` in vain and compares what it says with a golden file; keys, places and the time are left out.
fn golden(name: &str, rack: &Rack, archive: &Archive, keys: &[(&str, &Key)]) {
    let (success, mut said) = rack.run(&["lock", "rack.toml", "--quiet"]);
    assert!(!success, "{said}");
    for (name, key) in keys {
        said = said.replace(&key.fingerprint, name);
    }
    said = said.replace(&archive.url(), "URL");
    if let Some(start) = said.find("now it is ").map(|start| start + "now it is ".len()) {
        said.replace_range(start..start + "Sun, 01 Jun 2025 00:00:00 UTC".len(), "NOW");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/repositories/{name}.txt"));
    if std::env::var_os("BLESS").is_some() {
        fs::write(&file, &said).unwrap();
    }
    assert_eq!(fs::read_to_string(&file).unwrap_or_default(), said, "{name} (BLESS=1 accepts it)");
}

#[test]
fn an_archive_that_can_not_be_trusted_stops_the_lock_with_key_and_date() {
    let (key, other) = (Key::new("Example", BORN, NEVER), Key::new("Other", BORN, NEVER));
    let short = Key::new("Example", BORN, "20250701T000000");
    for (name, signer, known, fields) in [
        ("another-key", &other, &key, ""),
        ("expired-key", &short, &short, ""),
        ("expired-index", &key, &key, "Valid-Until: Sun, 08 Jun 2025 00:00:00 UTC"),
    ] {
        let archive = agent().signed(signer, fields);
        let rack = Rack::new(&["example-agent"], &example(&archive, &[]), &[("example.asc", known)]);
        golden(name, &rack, &archive, &[("EXAMPLE", &key), ("OTHER", &other), ("SHORT", &short)]);
        assert!(!rack.path("rack.lock").exists());
    }
}

#[test]
fn a_suite_that_no_archive_has_is_marked_in_the_recipe() {
    let key = Key::new("Example", BORN, NEVER);
    let archive = agent().signed(&key, "");
    let foreign = example(&archive, &[]).replace("\"stable\"", "\"stabel\"");
    for (repositories, place, suite) in [
        ("[repositories.x]\nsuite = \"trixy\"\n", "[rack.toml:11:9]", "trixy of repository `x`"),
        (&*foreign, "[rack.toml:12:9]", "stabel of repository `example`"),
    ] {
        let rack = Rack::new(&["hello"], repositories, &[("example.asc", &key)]);
        let (success, said) = rack.run(&["lock", "rack.toml"]);
        assert!(!success && said.contains(place), "{said}");
        for part in [&format!("no mirror has an acceptable index of {suite}"), ": not found", "  help: "] {
            assert!(said.contains(part), "no `{part}`: {said}");
        }
        assert!(!rack.path("rack.lock").exists());
    }
}

#[test]
fn what_an_archive_can_not_give_is_told_with_the_chain_that_needs_it() {
    let key = Key::new("Example", BORN, NEVER);
    let archive = Archive::new(&[
        ("example-web", "3", "Depends: example-app\n"),
        ("example-app", "2", "Depends: example-db (>= 2)\n"),
        ("example-db", "1", ""),
        ("example-new", "1", "Depends: hello (>= 99)\n"),
        ("hello", "99", ""),
        ("example-mta", "1", "Conflicts: example-db (<< 2)\n"),
        ("example-both", "1", "Depends: example-mta, example-db\n"),
    ])
    .signed(&key, "");
    for (name, wanted, pinned) in [
        ("unsatisfiable", "example-web", [].as_slice()),
        ("newer-beside", "example-new", &[]),
        ("conflict", "example-both", &[]),
        ("unknown-package", "exampel-web", &[]),
        ("not-there", "example-web", &["helo"]),
        ("of-the-host", "example-web", &["linux-image-amd64"]),
    ] {
        let rack = Rack::new(&[wanted], &example(&archive, pinned), &[("example.asc", &key)]);
        golden(name, &rack, &archive, &[("EXAMPLE", &key)]);
    }
}
