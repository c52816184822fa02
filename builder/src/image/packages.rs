//! The Debian packages of an image: what dpkg's own database in its layers says (dpkg(1), /var/lib/dpkg/status).

use std::collections::BTreeMap;

use deb822_fast::borrowed::BorrowedParagraphIter;
use rackstick_image::manifest::Image;

use super::open::{Fault, ImageError, Opened};

const STATUS: &str = "var/lib/dpkg/status";
/// Largest database: one of 10,000 packages has some 12 MiB.
const MAX_STATUS: u64 = 64 << 20;

/// Versions by name; the name of a package of another architecture than the image's ends in `:` and that.
pub type Packages = BTreeMap<String, String>;

/// The packages of an image; none if no layer of it has a database.
pub fn of(opened: &Opened<'_>, image: &Image) -> Result<Option<Packages>, ImageError> {
    // The highest layer's file hides those below.
    for blob in image.layers.iter().rev() {
        let failed = |error| opened.in_layer(blob, &error);
        let layer = opened.layer(blob.digest)?;
        let Some(status) = layer.find(STATUS).map_err(failed)? else { continue };
        if status.is_whiteout() {
            return Ok(None);
        }
        let bytes = layer.content(&status).and_then(|content| content.bytes(MAX_STATUS)).map_err(failed)?;
        let part = || format!("data partition, layers/{} ({}), {STATUS}", blob.digest, blob.label);
        let text = String::from_utf8(bytes).map_err(|_| opened.disk.damaged(Fault::new(part(), "it is no text")))?;
        return parse(&text).map(Some).map_err(|what| opened.disk.damaged(Fault::new(part(), what)));
    }
    Ok(None)
}

fn parse(status: &str) -> Result<Packages, String> {
    let mut packages = Packages::new();
    for paragraph in BorrowedParagraphIter::new(status) {
        let paragraph = paragraph.map_err(|error| error.to_string())?;
        let field = |name| paragraph.get_single(name).map(|value| value.trim());
        let (Some(name), Some(state)) = (field("Package"), field("Status")) else {
            return Err("a paragraph has no Package or no Status".to_owned());
        };
        // What was removed and left its configuration is listed too.
        if state.split(' ').next_back() != Some("not-installed") && !state.ends_with("config-files") {
            packages.insert(name.to_owned(), field("Version").unwrap_or("of unknown version").to_owned());
        }
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_packages_are_listed_with_versions_and_removed_ones_are_not() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1:2.3-4\nDescription: x\n y\n\n\
                      Package: b\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                      Package: c\nStatus: install ok unpacked\nVersion: 3+deb13u1\n";
        let found = parse(status).unwrap();
        let found: Vec<(&str, &str)> = found.iter().map(|(name, version)| (name.as_str(), version.as_str())).collect();
        assert_eq!(found, [("a", "1:2.3-4"), ("c", "3+deb13u1")]);
        assert!(parse("Package: a\n").is_err() && parse("").unwrap().is_empty());
    }
}
