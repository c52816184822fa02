//! A whole small archive, signed by GnuPG (builder/tests/signatures/make.sh), behind a server that can misbehave.

use std::fs;

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
        Self { _folder: folder, store, trust: Trust { debian: keyring("primary"), security: keyring("primary") } }
    }

    fn fetch(&self, servers: &[&Server]) -> Result<Suites, String> {
        let mirrors = Mirrors::given(&servers.iter().map(|server| server.root(DEBIAN)).collect::<Vec<_>>()).unwrap();
        let client = Client::new();
        let source = Source { store: &self.store, client: &client, mirrors: &mirrors, trust: &self.trust, now: NOW };
        Suites::fetch(TRIXIE, &source, &Progress::quiet()).map_err(|error| error.to_string())
    }
}

fn packed(suite: &str, component: &str) -> Vec<u8> {
    let kind = if component == MAIN { "Packages" } else { "Firmware" };
    fs::read(format!("{}/tests/signatures/{suite}.{kind}.xz", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn path_of_index(archive: &str, suite: &str, component: &str) -> String {
    let hash = Sha256(sha2::Sha256::digest(packed(suite, component)).into());
    format!("/{archive}/dists/{suite}/{component}/binary-amd64/by-hash/SHA256/{hash}")
}

fn mirror() -> Server {
    let server = Server::start();
    for (archive, suite) in TRIXIE_SUITES {
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
    // Sun, 01 Jun 2025 03:00:00 UTC, the date of the last of the three.
    assert_eq!(suites.newest, 1_748_746_800);
    assert_eq!(suites.indexes.iter().map(|index| index.suite.as_str()).collect::<Vec<_>>(), TRIXIE_SUITES.map(|s| s.1));
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
        (data("other.InRelease"), "none by primary"),
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
        assert!(unpack(packed("trixie", MAIN), wrong).is_err(), "{wrong}");
    }
    assert!(unpack(packed("trixie", MAIN)[..100].to_vec(), size).is_err());
    assert!(unpack(Vec::new(), size).is_err());
}

#[test]
fn an_index_without_packages_is_read() {
    let empty = std::process::Command::new("xz").arg("-c").stdin(std::process::Stdio::null()).output().unwrap().stdout;
    assert_eq!(unpack(empty.clone(), 0).unwrap(), "");
    assert!(unpack(empty, 1).is_err());
}
