//! `<image>.provenance.json`: what the image was made of, and by what: an in-toto statement (v1) with a SLSA provenance
//! (v1). Nothing in it tells when, where or by whom: the same recipe and lock give the same statement.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rackstick_image::{
    digest::Sha256,
    recipe::{Content, Rack},
};
use serde_json::{Value, json};

use super::{ArtifactError, purl};
use crate::{generation::Inputs, lock};

/// What kind of build it is: what its parameters mean stands in docs/architecture.md.
const BUILD_TYPE: &str = "urn:rackstick:build:1";
const BUILDER: &str = "urn:rackstick:builder";

/// The statement of an image, which was made of what [`made_of`] says. `image`: its file name.
pub fn statement(made_of: &Value, image: &str, sha256: Sha256) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [file(image.to_owned(), sha256)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": made_of,
    })
}

/// What an image is made of, as it is now; `builder` is the hash of this program.
pub fn made_of(inputs: &Inputs, builder: Sha256) -> Result<Value, ArtifactError> {
    let recipe = name(inputs.recipe);
    let lock = lock::path(inputs.recipe);
    let mut dependencies = vec![
        // As it was read, whatever became of the file since.
        file(recipe.clone(), Sha256::of(&inputs.rack.base.place.source.text)),
        file(name(&lock), hash(&lock)?),
    ];
    for (path, content) in sources(inputs.rack, inputs.recipe)? {
        dependencies.push(file(path, content));
    }
    for input in inputs.lock.inputs.values() {
        dependencies.extend(input.files().into_iter().map(|(path, sha256)| file(path.to_owned(), sha256)));
    }
    dependencies.extend(inputs.lock.packages().map(|(base, name, package)| {
        let uri = purl::of(name, package, base, inputs.lock);
        json!({ "uri": uri, "digest": { "sha256": package.sha256 } })
    }));
    let runtime = inputs.runtime;
    let mut programs = vec![file("rackstick".to_owned(), builder)];
    for path in [&runtime.guest, &runtime.host, &runtime.vmm] {
        programs.push(file(name(path), hash(path)?));
    }
    Ok(json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": { "recipe": recipe, "sectorSize": inputs.sector.bytes() },
            "internalParameters": {},
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {
                "id": BUILDER,
                "version": { "rackstick": env!("CARGO_PKG_VERSION") },
                "builderDependencies": programs,
            },
        },
    }))
}

fn file(name: String, sha256: Sha256) -> Value {
    json!({ "name": name, "digest": { "sha256": sha256 } })
}

/// Image recipes, what they put into images, and the files beside them, by path from the rack recipe's folder.
fn sources(rack: &Rack, recipe: &Path) -> Result<Vec<(String, Sha256)>, ArtifactError> {
    let folder = recipe.parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    for image in rack.images.values() {
        let text = Sha256::of(&image.source.text);
        found.push((relative(&image.source.path, folder), text));
        for file in &image.files {
            match &file.content {
                // A template's text stands in no one file, so it is named by its recipe and its place in the image.
                Content::Inline(text) => {
                    let place = format!("{}#{}", relative(&image.source.path, folder), file.path.value);
                    found.push((place, Sha256::of(text)));
                }
                Content::File(path) => found.push((relative(path, folder), hash(path)?)),
                Content::Directory(path) => {
                    for path in files(path)? {
                        found.push((relative(&path, folder), hash(&path)?));
                    }
                }
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// All regular files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ArtifactError> {
    let failed = |source| ArtifactError::Read { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            found.extend(files(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// A path from the recipe's folder; never one of this machine.
fn relative(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).map_or_else(|_| name(path), |path| path.to_string_lossy().into_owned())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// SHA-256 of a file.
pub fn hash(path: &Path) -> Result<Sha256, ArtifactError> {
    Sha256::of_file(path).map_err(|source| ArtifactError::Read { path: path.to_owned(), source })
}
