//! `rackstick lock` as a user meets it, on copies of the project's own recipes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// A mirror on a port where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1/debian";

struct Recipes(TempDir);

impl Recipes {
    fn copy() -> Self {
        let new = Self(tempfile::tempdir().unwrap());
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
        let copied = Command::new("cp").arg("-r").arg(from.join(".")).arg(new.0.path()).status().unwrap();
        assert!(copied.success());
        new
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn replace(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{name} has no {from}");
        fs::write(self.path(name), text.replacen(from, to, 1)).unwrap();
    }

    /// Runs `rackstick lock lab.toml`: whether it succeeded, and all that it said.
    fn lock(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_rackstick"))
            .current_dir(self.0.path())
            .args(["lock", "lab.toml"])
            .args(args)
            .env("RACKSTICK_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), said)
    }
}

#[test]
fn a_lock_that_fits_is_left_alone_and_no_mirror_is_asked() {
    let recipes = Recipes::copy();
    let before = recipes.read("lab.lock");
    let (success, said) = recipes.lock(&["--mirror", NOBODY]);
    assert!(success && said.contains("fits its recipe") && said.contains("--update"), "{said}");
    assert_eq!(recipes.read("lab.lock"), before);
}

#[test]
fn a_mirror_that_is_down_leaves_the_lock_as_it_was() {
    let recipes = Recipes::copy();
    let before = recipes.read("lab.lock");
    let (success, said) = recipes.lock(&["--update", "--mirror", NOBODY]);
    assert!(!success && said.contains("the mirror is down") && said.contains(NOBODY), "{said}");
    assert_eq!(recipes.read("lab.lock"), before);
    recipes.replace("images/web.toml", "nginx-light", "nginx-full");
    let (success, said) = recipes.lock(&["--mirror", NOBODY]);
    assert!(!success && said.contains("`nginx-full` was added to `image:web`"), "{said}");
    assert_eq!(recipes.read("lab.lock"), before);
}

#[test]
fn a_damaged_lock_is_refused_with_its_place_and_only_replaced_when_asked() {
    let recipes = Recipes::copy();
    recipes.replace("lab.lock", "\nformat = 2\n", "\nformat = 2\nfromat = 2\n");
    let damaged = recipes.read("lab.lock");
    let (success, said) = recipes.lock(&["--mirror", NOBODY]);
    assert!(!success && said.contains("lab.lock:5:1") && said.contains("fromat"), "{said}");
    let (success, said) = recipes.lock(&["--update", "--mirror", NOBODY]);
    assert!(!success && said.contains("the mirror is down"), "{said}");
    assert_eq!(recipes.read("lab.lock"), damaged);
}

/// A rack whose one image is made from a file, locked but for that; the lock of its packages is that of a rack without
/// images.
fn rack_from(file: &str) -> (TempDir, impl Fn(&str, &[&str]) -> (bool, String)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let rack = "[rack]\nname = 'app'\nversion = '1'\nbase = 'debian:trixie'\n[guests.app]\nimage = 'images/app.toml'\nmemory = '64 MiB'\n";
    fs::write(path.join("app.toml"), rack).unwrap();
    fs::create_dir(path.join("images")).unwrap();
    fs::write(path.join("images/app.toml"), format!("from = {{ rootfs = '{file}' }}\ncommand = ['/bin/app']\n"))
        .unwrap();
    let bare = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recipes/bare.lock");
    fs::copy(bare, path.join("app.lock")).unwrap();
    let run = move |command: &str, args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_rackstick"))
            .current_dir(&path)
            .args([command, "app.toml"])
            .args(args)
            .env("RACKSTICK_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    (folder, run)
}

#[test]
fn an_input_that_changed_since_it_was_locked_is_an_error_that_names_it_and_lock_takes_it_without_a_mirror() {
    let (folder, run) = rack_from("root.tar");
    let (file, lock) = (folder.path().join("images/root.tar"), folder.path().join("app.lock"));
    let before = fs::read_to_string(&lock).unwrap();
    fs::write(&file, "one").unwrap();
    let (success, said) = run("check", &[]);
    assert!(!success && said.contains("image `app` is made from root.tar, which the lock does not have"), "{said}");
    assert!(said.contains("Run `rackstick lock app.toml`"), "{said}");

    let (success, said) = run("lock", &["--mirror", NOBODY]);
    assert!(success && said.contains("images not made of packages: 1"), "{said}");
    let pinned = fs::read_to_string(&lock).unwrap();
    let sha256 = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    let entry = format!("[inputs.app.rootfs]\npath = \"root.tar\"\nsize = 3\nsha256 = \"{sha256}\"\n");
    assert_eq!(pinned, format!("{before}\n{entry}"), "nothing else changes");
    assert!(run("check", &[]).0);

    fs::write(&file, "two").unwrap();
    for command in ["check", "build"] {
        let (success, said) = run(command, &[]);
        assert!(!success && said.contains("root.tar of image `app` has changed: it is 3fc4ccfe745870e2"), "{said}");
        assert!(said.contains(sha256) && said.contains("Run `rackstick lock app.toml`"), "{said}");
    }
    assert!(run("lock", &["--mirror", NOBODY]).0 && run("check", &[]).0);

    // A recipe that goes back to packages has a lock as it was before.
    fs::write(folder.path().join("app.toml"), "[rack]\nname = 'app'\nversion = '1'\nbase = 'debian:trixie'\n").unwrap();
    let (success, said) = run("lock", &["--mirror", NOBODY]);
    assert!(success && said.contains("image `app` is no longer made from root.tar"), "{said}");
    assert_eq!(fs::read_to_string(&lock).unwrap(), before);
}

#[test]
fn what_an_image_can_not_be_made_from_is_told_where_its_recipe_names_it() {
    let (folder, run) = rack_from("root.tar");
    let image = folder.path().join("images/app.toml");
    fs::write(folder.path().join("images/app.tar"), "no archive at all, but longer than nothing").unwrap();
    fs::write(&image, "# An archive.\nfrom = { oci = 'app.tar' }\n").unwrap();
    for command in ["check", "lock", "build"] {
        let (success, said) = run(command, &[]);
        assert!(!success && said.contains("[images/app.toml:2:16]"), "{command}: {said}");
        assert!(said.contains("images/app.tar is no tar archive or a damaged one"), "{command}: {said}");
    }
    assert_eq!(fs::read_to_string(folder.path().join("app.lock")).unwrap().matches("[inputs").count(), 0);
}

#[test]
fn a_full_disk_is_told_with_what_makes_room_and_not_as_the_recipes_fault() {
    let (folder, _) = rack_from("root.tar");
    let script = "set -e; mount -t tmpfs -o size=2m none /mnt
        dd if=/dev/zero bs=1M count=8 status=none | gzip > images/app.tar.gz
        printf \"from = { oci = 'app.tar.gz' }\\n\" > images/app.toml
        RACKSTICK_CACHE=/mnt \"$0\" lock app.toml \"$@\"";
    let lock = |options: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_rackstick")]);
        command.args(options).current_dir(folder.path()).output().unwrap()
    };
    let output = lock(&[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: images/app.tar.gz can't be unpacked to /mnt/"), "{said}");
    for part in ["No space left on device", "\n  help: `rackstick store gc` removes", "`--output`", "RACKSTICK_CACHE"] {
        assert!(said.contains(part), "no {part}: {said}");
    }
    let document: serde_json::Value = serde_json::from_slice(&lock(&["--json"]).stdout).unwrap();
    assert!(document["error"]["hint"].as_str().unwrap().contains("store gc"), "{document:#}");
}

/// Needs the network, like the next one.
#[test]
fn packages_that_do_not_exist_are_all_reported_with_their_place_and_near_names() {
    let recipes = Recipes::copy();
    let before = recipes.read("lab.lock");
    recipes.replace("images/web.toml", "\"nginx-light\"", "\"nginx-lite\"");
    recipes.replace("images/dns.toml", "\"bind9\"", "\"bind9\", \"mail-transport-agent\"");
    let (success, said) = recipes.lock(&[]);
    for part in ["images/web.toml:2:13", "did you mean `nginx-light`", "images/dns.toml:2:22", "postfix"] {
        assert!(!success && said.contains(part), "{part}: {said}");
    }
    assert_eq!(recipes.read("lab.lock"), before);
}

#[test]
fn a_lock_is_the_same_whenever_the_archive_is() {
    let recipes = Recipes::copy();
    fs::remove_file(recipes.path("lab.lock")).unwrap();
    let (success, said) = recipes.lock(&[]);
    assert!(success, "{said}");
    let first = recipes.read("lab.lock");
    let (success, said) = recipes.lock(&["--update"]);
    assert!(success, "{said}");
    assert_eq!(recipes.read("lab.lock"), first);
}
