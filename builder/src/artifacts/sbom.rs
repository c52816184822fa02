//! `<image>.spdx.json`: what is in the rack, and where: every package of host, guests' kernel, base and images. SPDX
//! 2.3 as JSON.

use std::collections::BTreeMap;

use rackstick_image::{
    digest::Sha256,
    guid,
    lock::{Input, Lock, Package},
};
use serde_json::{Value, json};

use super::{copyright, licences, purl};
use crate::{archive, generation::Inputs, sets};

/// What nobody says.
const UNKNOWN: &str = "NOASSERTION";
/// The whole.
const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const RACK: &str = "SPDXRef-Rack";

/// One of the rack's own programs.
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// The set that it is in.
    pub set: &'static str,
    /// Its hash.
    pub sha256: Sha256,
}

/// All of the document that can be told before the image is there: nearly all.
pub struct Draft {
    packages: Vec<Value>,
    relations: Vec<Value>,
    /// The texts of licences that SPDX has no name for.
    extracted: Vec<Value>,
}

/// What there is to tell of packages and of the rack's own programs.
pub fn draft(lock: &Lock, copyrights: &copyright::Texts, programs: &[Program]) -> Draft {
    let mut packages = Vec::new();
    let mut relations = vec![relation(DOCUMENT, "DESCRIBES", RACK)];
    let mut extracted = BTreeMap::new();
    for (base, set, names) in
        lock.bases.iter().flat_map(|(base, of)| of.sets.iter().map(move |(set, names)| (base, set, names)))
    {
        let id = set_id(lock, base, set);
        packages.push(set_package(lock, base, set));
        relations.push(relation(RACK, "CONTAINS", &id));
        // An image is its base, the kernel and what it adds.
        if set.starts_with(&sets::image("")) {
            let parts = [(base, sets::BASE), (&lock.base, sets::KERNEL)];
            relations.extend(parts.map(|(base, part)| relation(&id, "DEPENDS_ON", &set_id(lock, base, part))));
        }
        let of_set = programs.iter().filter(|program| program.set == set);
        relations.extend(of_set.map(|program| relation(&id, "CONTAINS", &id_of("Program", program.name))));
        relations.extend(names.iter().map(|name| relation(&id, "CONTAINS", &package_id(lock, base, name))));
    }
    for (name, input) in &lock.inputs {
        for (id, package) in input_packages(name, input) {
            packages.push(package);
            relations.push(relation(RACK, "CONTAINS", &id));
        }
    }
    packages.extend(programs.iter().map(program_package));
    for (base, name, package) in lock.packages() {
        let text = copyrights.get(&(base.clone(), name.clone()));
        let declared = text.and_then(|text| licences::declared(text));
        let licence = declared.as_ref().map_or(UNKNOWN, |declared| declared.expression.as_str());
        packages.push(debian_package(base, name, package, licence, lock));
        extracted.extend(declared.into_iter().flat_map(|declared| declared.extracted));
    }
    let extracted = extracted
        .into_iter()
        .map(|(id, (name, text))| json!({ "licenseId": id, "name": name, "extractedText": text }))
        .collect();
    Draft { packages, relations, extracted }
}

/// The document of an image with this file name and hash.
pub fn document(inputs: &Inputs, draft: Draft, image: &str, sha256: Sha256) -> Value {
    let (rack, lock) = (inputs.rack, inputs.lock);
    let packages: Vec<Value> = [rack_package(inputs, image, sha256)].into_iter().chain(draft.packages).collect();
    // The same content always has the same name, and other content another.
    let namespace = guid::derive(&[b"SBOM", &sha256.0]);
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT,
        "name": format!("{}_{}", rack.name, rack.version),
        "documentNamespace": format!("urn:uuid:{namespace}"),
        "creationInfo": {
            "created": archive::rfc3339(lock.epoch),
            "creators": [format!("Tool: rackstick-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": draft.relations,
        "hasExtractedLicensingInfos": draft.extracted,
    })
}

/// What all packages have, with `more`.
fn package(id: &str, name: &str, licence: &str, more: Value) -> Value {
    let mut package = json!({
        "SPDXID": id,
        "name": name,
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": false,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": licence,
        "copyrightText": UNKNOWN,
    });
    if let (Value::Object(package), Value::Object(more)) = (&mut package, more) {
        package.extend(more);
    }
    package
}

fn rack_package(inputs: &Inputs, image: &str, sha256: Sha256) -> Value {
    let more = json!({
        "versionInfo": inputs.rack.version,
        "packageFileName": image,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "checksums": checksums(sha256),
    });
    package(RACK, &inputs.rack.name, UNKNOWN, more)
}

fn set_package(lock: &Lock, base: &str, set: &str) -> Value {
    let (purpose, comment) = match set {
        sets::HOST => ("OPERATING-SYSTEM", "the host: kernel, drivers, firmware and runtime, in one UKI"),
        sets::KERNEL => ("OPERATING-SYSTEM", "the guests' kernel, initrd and modules"),
        sets::BASE => ("CONTAINER", "the layer that all images of its base share"),
        _ => ("CONTAINER", "what an image adds to its base"),
    };
    package(
        &set_id(lock, base, set),
        &lock.told_apart(base, set),
        UNKNOWN,
        json!({ "primaryPackagePurpose": purpose, "comment": comment }),
    )
}

/// What an image was made of in place of packages. What is in it, it does not tell.
fn input_packages(image: &str, input: &Input) -> Vec<(String, Value)> {
    let of_file = |part: &str, path: &str, purpose: &str, comment: &str, sha256: Option<Sha256>| {
        let mut more = json!({ "packageFileName": path, "primaryPackagePurpose": purpose, "comment": comment });
        if let (Value::Object(more), Some(sha256)) = (&mut more, sha256) {
            more.insert("checksums".to_owned(), checksums(sha256));
        }
        let id = id_of("Input", &format!("{image}{part}"));
        let package = package(&id, &sets::image(image), UNKNOWN, more);
        (id, package)
    };
    match input {
        Input::Rootfs { path, sha256, .. } => {
            vec![of_file("", path, "CONTAINER", "a tarball of a root file system", Some(*sha256))]
        }
        // The hash is that of its manifest, and of no file.
        Input::Oci { .. } | Input::Registry { .. } => {
            vec![of_file("", input.path(), "CONTAINER", &format!("a container image, sha256:{}", input.sha256()), None)]
        }
        // Names of images have no dots, so none can be another image's.
        Input::Disk { disk, kernel, initrd } => [
            ("", disk, "a whole disk"),
            (".kernel", kernel, "the kernel that boots the disk"),
            (".initrd", initrd, "the initrd that boots the disk"),
        ]
        .map(|(part, file, comment)| of_file(part, &file.path, "OPERATING-SYSTEM", comment, Some(file.sha256)))
        .into(),
    }
}

fn program_package(program: &Program) -> Value {
    let more = json!({
        "versionInfo": env!("CARGO_PKG_VERSION"),
        "primaryPackagePurpose": "APPLICATION",
        "checksums": checksums(program.sha256),
    });
    package(&id_of("Program", program.name), program.name, env!("CARGO_PKG_LICENSE"), more)
}

fn debian_package(base: &str, name: &str, locked: &Package, licence: &str, lock: &Lock) -> Value {
    let url = lock.repositories.get(&locked.archive).and_then(|repository| repository.url.as_ref());
    // Who runs somebody else's archive is not known, only what the recipe calls it.
    let supplier = if url.is_some() { &locked.archive } else { "Debian" };
    let more = json!({
        "versionInfo": locked.version,
        "packageFileName": locked.path,
        "supplier": format!("Organization: {supplier}"),
        "checksums": checksums(locked.sha256),
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl::of(name, locked, base, lock),
        }],
    });
    package(&package_id(lock, base, name), name, licence, more)
}

fn checksums(sha256: Sha256) -> Value {
    json!([{ "algorithm": "SHA256", "checksumValue": sha256 }])
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

fn set_id(lock: &Lock, base: &str, set: &str) -> String {
    id_of("Set", &lock.told_apart(base, set))
}

fn package_id(lock: &Lock, base: &str, name: &str) -> String {
    id_of("Package", &lock.told_apart(base, name))
}

/// An identifier has letters, digits, `.` and `-`; what else names have (`+`, `:`) stands as its number.
fn id_of(kind: &str, name: &str) -> String {
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || c == '.' || c == '-' => c.to_string(),
        c => format!(".{:X}", u32::from(c)),
    };
    format!("SPDXRef-{kind}-{}", name.chars().map(plain).collect::<String>())
}
