//! Names of packages that mean the same to all programs: package URLs (purl-spec, type `deb`).

use std::fmt::Write;

use rackstick_image::lock::Package;

/// `pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=amd64&distro=trixie`.
pub fn of(name: &str, package: &Package, base: &str) -> String {
    let suite = base.split_once(':').map_or(base, |(_, suite)| suite);
    format!(
        "pkg:deb/debian/{}@{}?arch={}&distro={}",
        encoded(name),
        encoded(&package.version),
        encoded(&package.architecture),
        encoded(suite)
    )
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
    use rackstick_image::digest::Sha256;

    use super::*;

    #[test]
    fn a_package_has_the_url_that_the_specification_gives() {
        let package = Package {
            version: "1:14.2.0-19+b1~x".into(),
            architecture: "amd64".into(),
            archive: "debian".into(),
            path: "pool/main/g/gcc-14/libstdc++6_14.2.0-19_amd64.deb".into(),
            size: 1,
            sha256: Sha256([0; 32]),
        };
        assert_eq!(
            of("libstdc++6", &package, "debian:trixie"),
            "pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19%2Bb1~x?arch=amd64&distro=trixie"
        );
    }
}
