//! What `rackstick lock` chooses for sets of packages: a rack with a guest for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rackstick_image::lock::{Base, Lock};

use super::apt::Deb;

/// The release that every rack is made of.
const RACKS: &str = "trixie";

/// Locks all of these sets of a release, which must be possible.
pub fn all(folder: &Path, release: &str, sets: &BTreeMap<String, Vec<String>>) -> Lock {
    let recipe = write(folder, release, sets);
    let output = run(&recipe);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    read(&recipe)
}

/// Locks these sets of trixie, less those that can't be had, and names the latter.
pub fn some(folder: &Path, sets: &BTreeMap<String, Vec<String>>) -> (Base, BTreeSet<String>) {
    let recipe = write(folder, RACKS, sets);
    let output = run(&recipe);
    if output.status.success() {
        return (read(&recipe).own().clone(), BTreeSet::new());
    }
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = said["error"]["problems"].as_array().unwrap_or_else(|| panic!("{said}"));
    let set = |problem: &serde_json::Value| {
        let message = problem["message"].as_str().unwrap();
        let (set, _) =
            message.strip_prefix("`image:").and_then(|rest| rest.split_once("` can't be had: ")).expect(message);
        set.to_owned()
    };
    let refused: BTreeSet<String> = problems.iter().map(set).collect();
    assert!(!refused.is_empty(), "{said}");
    let left = sets.iter().filter(|(name, _)| !refused.contains(*name));
    let left = left.map(|(name, packages)| (name.clone(), packages.clone())).collect();
    (all(folder, RACKS, &left).own().clone(), refused)
}

/// The .debs of a set.
pub fn chosen(base: &Base, set: &str) -> BTreeSet<Deb> {
    base.set(set).map(|(_, package)| (package.path.clone(), package.size)).collect()
}

fn write(folder: &Path, release: &str, sets: &BTreeMap<String, Vec<String>>) -> PathBuf {
    let mut rack = "[rack]\nname = \"test\"\nversion = \"1\"\nbase = \"debian:trixie\"\ndomain = \"test.internal\"\n\
         [networks.servers]\nsubnet = \"10.0.0.0/24\"\n"
        .to_owned();
    for (number, (name, packages)) in sets.iter().enumerate() {
        let address = number + 2;
        rack += &format!(
            "[guests.{name}]\nimage = \"{name}.toml\"\nmemory = \"256 MiB\"\naddress = {{ servers = \"10.0.0.{address}\" }}\n"
        );
        let recipe = format!("base = \"debian:{release}\"\npackages = {packages:?}\n");
        fs::write(folder.join(format!("{name}.toml")), recipe).unwrap();
    }
    let recipe = folder.join("rack.toml");
    fs::write(&recipe, rack).unwrap();
    recipe
}

/// The store of these tests.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

fn run(recipe: &Path) -> Output {
    let mut lock = Command::new(env!("CARGO_BIN_EXE_rackstick"));
    lock.args(["lock", "--json"]).arg(recipe).env("RACKSTICK_CACHE", cache()).output().unwrap()
}

fn read(recipe: &Path) -> Lock {
    toml::from_str(&fs::read_to_string(recipe.with_extension("lock")).unwrap()).unwrap()
}
