//! Names of packages that mean the same to all programs: package URLs (purl-spec, type `deb`).

use std::fmt::Write;

use rackstick_image::lock::{Lock, Package};

/// `pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=amd64&distro=trixie`. Whose package it is stands before the name: of
/// somebody else's archive that is the repository's name, and its URL is told too. `base` is that of the package.
pub fn of(name: &str, package: &Package, base: &str, lock: &Lock) -> String {
    let repository = lock.repositories.get(&package.archive);
    let url = repository.and_then(|repository| repository.url.as_ref());
    let base = base.split_once(':').map_or(base, |(_, suite)| suite);
    let suite = repository.map_or(base, |repository| &repository.suite);
    let mut purl = format!(
        "pkg:deb/{}/{}@{}?arch={}&distro={}",
        if url.is_some() { &*package.archive } else { "debian" },
        encoded(name),
        encoded(&package.version),
        encoded(&package.architecture),
        encoded(suite)
    );
    if let Some(url) = url {
        purl += &format!("&repository_url={}", encoded(url));
    }
    purl
}

/// All but letters, digits and `.-_~:` as `%2B`.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b".-_~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rackstick_image::{
        digest::Sha256,
        lock::{FORMAT, Repository},
    };

    use super::*;

    fn lock() -> Lock {
        let repository = |url: Option<&str>, suite: &str| Repository {
            base: "debian:trixie".to_owned(),
            url: url.map(str::to_owned),
            suite: suite.to_owned(),
            components: Vec::new(),
            keys: Vec::new(),
            packages: Vec::new(),
        };
        Lock {
            format: FORMAT,
            builder: String::new(),
            epoch: 0,
            base: "debian:trixie".into(),
            bases: BTreeMap::new(),
            repositories: BTreeMap::from([
                ("backports".to_owned(), repository(None, "trixie-backports")),
                ("example".to_owned(), repository(Some("https://packages.example.org/debian"), "stable")),
            ]),
            inputs: BTreeMap::new(),
        }
    }

    #[test]
    fn a_package_has_the_url_that_the_specification_gives() {
        let mut package = Package {
            version: "1:14.2.0-19+b1~x".into(),
            architecture: "amd64".into(),
            archive: "debian".into(),
            path: "pool/main/g/gcc-14/libstdc++6_14.2.0-19_amd64.deb".into(),
            size: 1,
            sha256: Sha256([0; 32]),
        };
        for (archive, expected) in [
            ("debian", "pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19%2Bb1~x?arch=amd64&distro=trixie"),
            ("backports", "pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19%2Bb1~x?arch=amd64&distro=trixie-backports"),
            (
                "example",
                "pkg:deb/example/libstdc%2B%2B6@1:14.2.0-19%2Bb1~x?arch=amd64&distro=stable\
                 &repository_url=https:%2F%2Fpackages.example.org%2Fdebian",
            ),
        ] {
            package.archive = archive.to_owned();
            assert_eq!(of("libstdc++6", &package, "debian:trixie", &lock()), expected);
        }
        package.archive = "debian-security".to_owned();
        assert!(of("libstdc++6", &package, "debian:bookworm", &lock()).ends_with("&distro=bookworm"));
    }
}
