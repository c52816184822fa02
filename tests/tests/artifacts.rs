//! Ring 3: what a build gives beside the image, judged by the programs that it is for.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path, process::Command};

use rackstick_tests::{
    disk::{self, Partition},
    image::Image,
    place, tool,
};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What `sha256sum` says.
fn sha256(path: &Path) -> String {
    tool::ask("sha256sum", [path])[..64].to_owned()
}

/// Panics unless two files have the same bytes.
fn assert_same(a: &Path, b: &Path) {
    let said = tool::run(Command::new("cmp").args([a, b]));
    assert!(said.success, "{}{}", said.stdout, said.stderr);
}

#[test]
fn bmaptool_writes_an_image_by_its_block_map_and_finds_a_flipped_bit() {
    let image = Image::pair();
    let map = image.path.with_extension("bmap");
    let folder = tempfile::tempdir_in(place::rig()).unwrap();
    let copy = folder.path().join("copy");
    let bmaptool = |from: &Path, to: &Path| {
        let mut command = Command::new("bmaptool");
        tool::run(command.args(["copy", "--bmap"]).args([map.as_path(), from, to]))
    };
    let said = bmaptool(&image.path, &copy);
    assert!(said.success, "{}", said.stderr);
    assert_same(&image.path, &copy);

    let text = fs::read_to_string(&map).unwrap();
    let number = |name: &str| -> u64 {
        let (_, rest) = text.split_once(&format!("<{name}>")).unwrap();
        rest.split_once('<').unwrap().0.trim().parse().unwrap()
    };
    let (mapped, blocks) = (number("MappedBlocksCount"), number("BlocksCount"));
    println!("{} of {} MiB are to be written", mapped / 256, blocks / 256);
    assert!(mapped < blocks / 2, "{mapped} of {blocks} blocks");

    let damaged = image.copy_to(folder.path());
    let data = Partition::of(&damaged.path, 2);
    let layer = format!("/layers/{}", image.manifest.images["web"].layers[0].digest);
    disk::flip_bit(&damaged.path, data.place_of_block(&layer, 1000));
    let said = bmaptool(&damaged.path, &copy);
    assert!(!said.success && said.stderr.contains("checksum mismatch"), "{}", said.stderr);
}

#[test]
fn the_sbom_is_valid_and_tells_of_every_package_where_it_is_and_its_licence() {
    let image = Image::pair();
    let path = image.path.with_extension("spdx.json");
    tool::output(Command::new(place::cache().join("spdx-tools/bin/pyspdxtools")).arg("--infile").arg(&path));

    let sbom = json(&path);
    let packages = sbom["packages"].as_array().unwrap();
    let package =
        |name: &str| packages.iter().find(|package| package["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let relations = sbom["relationships"].as_array().unwrap();
    for (name, set, licence) in [
        ("nginx-light", "image:web", Some("BSD-2-Clause")),
        ("bind9", "image:dns", Some("MPL-2.0")),
        ("bash", "base", Some("GPL-3.0-or-later")),
        ("systemd-boot-efi", "host", Some("LGPL-2.1-or-later")),
        ("rackstick-host", "host", Some("MIT OR Apache-2.0")),
        ("rackstick-guest", "kernel", None),
    ] {
        let found = package(name);
        let within = |relation: &&Value| {
            relation["relationshipType"] == "CONTAINS"
                && relation["spdxElementId"] == package(set)["SPDXID"]
                && relation["relatedSpdxElement"] == found["SPDXID"]
        };
        assert_eq!(relations.iter().filter(within).count(), 1, "{name} is not in {set}");
        let declared = found["licenseDeclared"].as_str().unwrap();
        assert!(licence.is_none_or(|licence| declared.contains(licence)), "{name}: {declared}");
    }
    // As the lock has it.
    let lock = fs::read_to_string(place::clone().join("tests/recipes/pair.lock")).unwrap();
    let found = package("libstdc++6");
    let purl = found["externalRefs"][0]["referenceLocator"].as_str().unwrap();
    assert!(purl.starts_with("pkg:deb/debian/libstdc%2B%2B6@") && purl.ends_with("&distro=trixie"), "{purl}");
    assert!(lock.contains(found["checksums"][0]["checksumValue"].as_str().unwrap()), "{found}");
    assert_eq!(package("pair")["checksums"][0]["checksumValue"].as_str().unwrap(), sha256(&image.path));
    let debian = || packages.iter().filter(|package| package["supplier"] == "Organization: Debian");
    let unknown = debian().filter(|package| package["licenseDeclared"] == "NOASSERTION").count();
    println!("{} packages, {unknown} without a machine-readable licence", debian().count());
    assert!(unknown * 2 < debian().count(), "{unknown} of {}", debian().count());
}

#[test]
fn the_provenance_names_image_recipes_lock_and_builder_by_hash_and_nothing_of_this_machine() {
    let image = Image::pair();
    let path = image.path.with_extension("provenance.json");
    let statement = json(&path);
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let subject = &statement["subject"][0];
    assert_eq!(subject["name"], image.path.file_name().unwrap().to_str().unwrap());
    assert_eq!(subject["digest"]["sha256"], sha256(&image.path));
    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["recipe"], "pair.toml");
    let recipes = place::clone().join("tests/recipes");
    let dependencies = definition["resolvedDependencies"].as_array().unwrap();
    for name in ["pair.toml", "pair.lock", "images/web.toml", "images/web/index.html", "images/dns.toml"] {
        let found = dependencies.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(found["digest"]["sha256"], sha256(&recipes.join(name)), "{name}");
    }
    assert!(
        dependencies.iter().any(|one| one["uri"].as_str().is_some_and(|uri| uri.starts_with("pkg:deb/debian/bind9@")))
    );
    let programs = statement["predicate"]["runDetails"]["builder"]["builderDependencies"].as_array().unwrap();
    let command = tool::rackstick();
    let builder = programs.iter().find(|one| one["name"] == "rackstick").unwrap();
    assert_eq!(builder["digest"]["sha256"], sha256(Path::new(command.get_program())));

    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let here = place::clone().to_str().unwrap();
    for path in [path, image.path.with_extension("spdx.json"), image.path.with_extension("bmap")] {
        let text = fs::read_to_string(&path).unwrap();
        for word in [here, image.path.parent().unwrap().to_str().unwrap(), &format!("\"{}\"", host.trim())] {
            assert!(!text.contains(word), "{word} stands in {}", path.display());
        }
    }
}

#[test]
fn a_compressed_image_is_the_same_bytes_by_any_number_of_threads_and_unpacks_to_the_image() {
    let folder = place::test_folder("compressed");
    let build = |jobs: &str| {
        let out = folder.join(jobs);
        let recipe = place::clone().join("tests/recipes/bare.toml");
        tool::output(tool::rackstick().arg("build").arg(recipe).arg("-o").arg(&out).args(["--zst", "--jobs", jobs]));
        Image::only_one_in(&out).path
    };
    let (one, three) = (build("1"), build("3"));
    let packed = |image: &Path| image.with_extension("img.zst");
    assert_same(&packed(&one), &packed(&three));
    let unpacked = folder.join("unpacked");
    tool::ask("zstd", ["-q", "-d", packed(&one).to_str().unwrap(), "-o", unpacked.to_str().unwrap()]);
    assert_same(&unpacked, &one);

    // The next build does not ask for it: an old one would be of another image.
    let recipe = place::clone().join("tests/recipes/bare.toml");
    tool::output(tool::rackstick().arg("build").arg(recipe).arg("-o").arg(one.parent().unwrap()));
    assert!(!packed(&one).exists());
}
