//! A whole small archive, signed by GnuPG (builder/tests/signatures/make.sh), behind a server that can misbehave.

use std::collections::BTreeMap;

use rackstick_image::{lock::Repository, recipe};
use tempfile::TempDir;

use super::*;
use crate::{
    archive::{
        keys::tests::{NOW, data, keyring},
        packages::Catalogue,
    },
    store::server::{Answer, Server},
};

struct Rig {
    _folder: TempDir,
    store: Store,
    trust: Trust,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().to_owned()).unwrap();
        let foreign = BTreeMap::from([("other".to_owned(), keyring("other"))]);
        Self {
            _folder: folder,
            store,
            trust: Trust { debian: keyring("primary"), security: keyring("primary"), foreign },
        }
    }

    fn fetch(&self, servers: &[&Server]) -> Result<Suites, String> {
        self.fetch_with(servers, &Repositories::new())
    }

    fn fetch_with(&self, servers: &[&Server], repositories: &Repositories) -> Result<Suites, String> {
        let mirrors: Vec<String> = servers.iter().map(|server| server.root(DEBIAN)).collect();
        let mirrors = &Mirrors::choose(&mirrors, repositories).unwrap();
        let client = Client::new();
        let source =
            Source { store: &self.store, client: &client, mirrors, repositories, trust: &self.trust, now: NOW };
        Suites::fetch(recipe::RACK_BASE, true, &source, &Progress::quiet()).map_err(|error| error.to_string())
    }
}

/// The suites of the archive here.
fn trixie() -> &'static [(&'static str, &'static str)] {
    BASES.iter().find(|(base, _)| *base == recipe::RACK_BASE).unwrap().1
}

fn packed(suite: &str, component: &str) -> Vec<u8> {
    let kind = if component == MAIN { "Packages" } else { "Firmware" };
    fs::read(format!("{}/tests/signatures/{suite}.{kind}.xz", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn path_of_index(archive: &str, suite: &str, component: &str) -> String {
    let hash = Sha256::of(packed(suite, component));
    format!("/{archive}/dists/{suite}/{component}/binary-amd64/by-hash/SHA256/{hash}")
}

fn mirror() -> Server {
    let server = Server::start();
    for (archive, suite) in trixie() {
        let release = data(&format!("{suite}.InRelease")).into_bytes();
        server.answer(&format!("/{archive}/dists/{suite}/InRelease"), vec![Answer::Whole(release)]);
        for component in [MAIN, FIRMWARE] {
            let index = packed(suite, component);
            server.answer(&path_of_index(archive, suite, component), vec![Answer::Whole(index)]);
        }
    }
    server
}

#[test]
fn the_suites_of_a_base_are_fetched_checked_and_read() {
    let (rig, server) = (Rig::new(), mirror());
    let suites = rig.fetch(&[&server]).unwrap();
    let names = suites.indexes.iter().map(|index| index.suite.as_str());
    assert!(names.eq(trixie().iter().map(|(_, name)| *name)));
    assert_eq!(suites.indexes[2].date, "Sun, 01 Jun 2025 03:00:00 UTC");
    let catalogue = Catalogue::read(&suites.packages).unwrap();
    let shared = catalogue.get(catalogue.find("shared").unwrap());
    assert_eq!((shared.version, shared.archive), ("1.3", SECURITY));
    assert!(catalogue.find("only-in-trixie-updates").is_some());
    let firmware = Catalogue::read(&suites.firmware).unwrap();
    assert!(firmware.find("firmware-of-trixie-security").is_some() && firmware.find("shared").is_none());
    assert!(catalogue.find("firmware-of-trixie").is_none(), "no image gets what is not free");
    let before = server.requests().len();
    rig.fetch(&[&server]).unwrap();
    assert_eq!(server.requests().len() - before, 3, "the package indexes are in the store");
}

#[test]
fn an_unacceptable_signed_index_is_refused_with_its_reason_and_another_mirror_helps() {
    let good = mirror();
    for (file, why) in [
        (data("other.InRelease"), "and not by primary, key "),
        (data("trixie.InRelease").replace("Packages", "packages"), "was changed after it was signed"),
        (data("trixie-updates.InRelease"), "it is the index of `trixie-updates`"),
        (data("future.InRelease"), "this machine's clock is wrong"),
        ("<html>Please log in</html>".to_owned(), "not a signed file"),
        (String::new(), "not a signed file"),
    ] {
        let (rig, server) = (Rig::new(), mirror());
        server.answer("/debian/dists/trixie/InRelease", vec![Answer::Whole(file.into_bytes())]);
        let error = rig.fetch(&[&server]).err().unwrap();
        assert!(error.contains(why) && error.contains("dists/trixie/InRelease"), "{why}: {error}");
        rig.fetch(&[&server, &good]).unwrap();
    }
    let (rig, server) = (Rig::new(), mirror());
    server.answer("/debian-security/dists/trixie-security/InRelease", vec![Answer::Status(404)]);
    let error = rig.fetch(&[&server]).err().unwrap();
    assert!(error.contains("trixie-security") && error.contains("not found"), "{error}");
}

#[test]
fn a_package_index_with_another_hash_than_the_signed_one_is_refused() {
    let (rig, server) = (Rig::new(), mirror());
    let mut bad = packed("trixie", MAIN);
    let last = bad.len() - 1;
    bad[last] ^= 1;
    server.answer(&path_of_index(DEBIAN, "trixie", MAIN), vec![Answer::Whole(bad)]);
    let error = rig.fetch(&[&server]).err().unwrap();
    assert!(error.contains("package index of trixie") && error.contains("wrong content"), "{error}");
}

#[test]
fn a_mirror_without_the_component_of_firmware_is_named_as_such() {
    // Either its signed index does not list it, or it serves only a part of what is listed.
    let unlisted = mirror();
    let release = data("without-firmware.InRelease").into_bytes();
    unlisted.answer("/debian-security/dists/trixie-security/InRelease", vec![Answer::Whole(release)]);
    let partial = mirror();
    partial.answer(&path_of_index(SECURITY, "trixie-security", FIRMWARE), vec![Answer::Status(404)]);
    for server in [unlisted, partial] {
        let error = Rig::new().fetch(&[&server]).err().unwrap();
        assert!(error.contains("`non-free-firmware` of trixie-security") && error.contains("--mirror"), "{error}");
    }
}

#[test]
fn an_index_that_unpacks_to_another_size_than_listed_is_refused() {
    let size = 400;
    for wrong in [0, 1, 10_000, u64::MAX] {
        assert!(unpack(packed("trixie", MAIN), ".xz", Some(wrong)).is_err(), "{wrong}");
    }
    assert!(unpack(packed("trixie", MAIN)[..100].to_vec(), ".xz", Some(size)).is_err());
    assert!(unpack(Vec::new(), ".xz", Some(size)).is_err());
}

#[test]
fn an_index_without_packages_is_read() {
    let empty = std::process::Command::new("xz").arg("-c").stdin(std::process::Stdio::null()).output().unwrap().stdout;
    assert_eq!(unpack(empty.clone(), ".xz", Some(0)).unwrap(), "");
    assert!(unpack(empty, ".xz", Some(1)).is_err());
}

#[test]
fn an_index_is_unpacked_however_it_is_packed_also_if_its_size_is_not_listed() {
    let text = unpack(packed("trixie", MAIN), ".xz", None).unwrap();
    assert!(text.contains("Package: only-in-trixie\n"));
    assert_eq!(unpack(text.clone().into_bytes(), "", Some(text.len() as u64)).unwrap(), text);
    let gzip = |text: &str| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut packer, text.as_bytes()).unwrap();
        packer.finish().unwrap()
    };
    // Parts that were packed one by one, as some archives' are.
    let (one, other) = text.split_at(100);
    assert_eq!(unpack([gzip(one), gzip(other)].concat(), ".gz", None).unwrap(), text);
    assert!(unpack(gzip(&text), ".gz", Some(1)).is_err());
    assert!(unpack(gzip(&text)[..50].to_vec(), ".gz", None).is_err());
}

/// A repository of Debian's own archive, and one of somebody else's.
fn repositories(url: &str) -> Repositories {
    let of = |url: Option<&str>, suite: &str| Repository {
        base: recipe::RACK_BASE.to_owned(),
        url: url.map(str::to_owned),
        suite: suite.to_owned(),
        components: vec![MAIN.to_owned()],
        keys: Vec::new(),
        packages: vec!["shared".to_owned()],
    };
    Repositories::from([("own".to_owned(), of(None, "trixie-updates")), ("other".to_owned(), of(Some(url), "trixie"))])
}

#[test]
fn each_repository_is_checked_by_its_own_keys_and_by_no_others() {
    let (rig, server) = (Rig::new(), mirror());
    let all = repositories(&server.root("elsewhere"));
    let release = |file: &str| {
        let release = vec![Answer::Whole(data(file).into_bytes())];
        server.answer("/elsewhere/dists/trixie/InRelease", release);
    };
    // Debian's own keys are not theirs: what Debian signed is no index of theirs, and the other way round.
    release("trixie.InRelease");
    let error = rig.fetch_with(&[&server], &all).err().unwrap();
    let other = keyring("other").fingerprints().remove(0);
    let primary = keyring("primary").fingerprints().remove(0);
    let expected = format!(
        "no mirror has an acceptable index of trixie of repository `other`:\n  {}/dists/trixie/InRelease: it has no signature \
         that counts: it was signed by key {primary} on Sun, 01 Jun 2025 00:00:00 UTC, and not by other, key {other}",
        server.root("elsewhere")
    );
    assert_eq!(error, expected);
    release("other.InRelease");
    let error = rig.fetch_with(&[&server], &all).err().unwrap();
    assert!(error.contains("package index of trixie of repository `other` main"), "past the signature: {error}");
    let own = Repositories::from([("own".to_owned(), all["own"].clone())]);
    let suites = rig.fetch_with(&[&server], &own).unwrap();
    let last = suites.indexes.last().unwrap();
    assert_eq!((last.archive.as_str(), last.suite.as_str()), ("own", "trixie-updates"));
    let catalogue = Catalogue::read(&suites.packages).unwrap();
    let shared = catalogue.get(catalogue.find("shared").unwrap());
    assert_eq!((shared.version, shared.archive), ("1.2", "own"), "named, although trixie-security has 1.3");
}

#[test]
fn a_component_that_a_repository_does_not_have_is_an_error_that_says_so() {
    let (rig, server) = (Rig::new(), mirror());
    let mut all = repositories(&server.root("elsewhere"));
    all.get_mut("own").unwrap().components = vec!["contrib".to_owned()];
    all.remove("other");
    let error = rig.fetch_with(&[&server], &all).err().unwrap();
    let expected = "the index of trixie-updates of repository `own`: it lists no `contrib/binary-amd64/Packages`";
    assert_eq!(error, expected);
}

#[test]
fn every_base_of_recipes_has_its_suites_and_no_other_sees_what_stands_beside_it() {
    assert_eq!(BASES.map(|(base, _)| base), recipe::BASES);
    let (rig, server) = (Rig::new(), mirror());
    let mut all = repositories(&server.root("elsewhere"));
    all.remove("other");
    let own = all.get_mut("own").unwrap();
    own.base = "debian:bookworm".to_owned();
    let suites = rig.fetch_with(&[&server], &all).unwrap();
    assert_eq!(suites.indexes.len(), 3, "and none of the repository");
    let names = |base: &str, host: bool| {
        let (client, mirrors) = (Client::new(), Mirrors::choose(&[server.root(DEBIAN)], &all).unwrap());
        let (store, trust) = (&rig.store, &rig.trust);
        let source = Source { store, client: &client, mirrors: &mirrors, repositories: &all, trust, now: NOW };
        let suites = source.suites(base, host).map_err(|error| error.to_string())?;
        Ok::<_, String>(
            suites.iter().map(|suite| format!("{} {}", suite.name, suite.components.join(" "))).collect::<Vec<_>>(),
        )
    };
    let bookworm = ["bookworm main", "bookworm-updates main", "bookworm-security main", "trixie-updates main"];
    assert_eq!(names("debian:bookworm", false).unwrap(), bookworm);
    assert_eq!(names("debian:sid", true).unwrap(), ["sid main non-free-firmware"]);
    assert!(names("debian:woody", false).unwrap_err().contains("the base `debian:woody` is not known"));
}
