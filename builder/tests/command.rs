//! What holds for the whole command: how it speaks to programs, what it writes for shells, editors and readers of
//! manuals, judged by those, and how one begins.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rackstick(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackstick"));
    command
        .current_dir(folder)
        .args(arguments)
        .env("RACKSTICK_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// The document, which is all on stdout; the code, and stderr.
fn json(folder: &Path, arguments: &[&str]) -> (Value, Option<i32>, String) {
    let output = rackstick(folder, &[arguments, &["--json"]].concat());
    let document = serde_json::from_slice(&output.stdout);
    let document = document.unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)));
    (document, output.status.code(), text(&output.stderr).to_owned())
}

#[test]
fn a_program_gets_one_document_with_what_people_are_told() {
    let (document, code, stderr) = json(&project(), &["check", "recipes/lab.toml"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let result = &document["result"];
    assert_eq!((&result["rack"], &result["lock"]["packages"]), (&"lab".into(), &276.into()), "{document:#}");
    let dns = &result["guests"][1];
    assert_eq!((&dns["name"], &dns["addresses"][0]["address"]), (&"dns".into(), &"10.20.0.53".into()), "{document:#}");
    assert_eq!(document["warnings"], Value::Array(vec![]));
    assert!(document.get("error").is_none());
    let (document, ..) = json(&project(), &["lock", "recipes/lab.toml"]);
    assert_eq!((&document["result"]["packages"], &document["result"]["written"]), (&276.into(), &Value::Null));
    let (document, ..) = json(&project(), &["store", "gc", "--dry-run"]);
    assert_eq!(document["result"]["removed"], false);
}

#[test]
fn a_program_gets_every_error_with_its_place() {
    let (document, code, stderr) = json(&project(), &["check", "tests/bad-recipes/several-at-once.toml"]);
    assert_eq!((code, stderr.as_str()), (Some(1), ""));
    let problems = document["error"]["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 4, "{document:#}");
    for problem in problems {
        assert_eq!(problem["file"], "tests/bad-recipes/several-at-once.toml");
        assert!(problem["line"].as_u64() > Some(0) && problem["column"].as_u64() > Some(0), "{problem}");
        assert!(problem["message"].is_string() && problem["hint"].is_string(), "{problem}");
    }
    let (document, code, _) = json(&project(), &["build", "no/such.toml"]);
    assert_eq!((code, &document["error"]["message"]), (Some(1), &"can't read the recipe no/such.toml".into()));
    assert_eq!(document["error"]["causes"].as_array().unwrap().len(), 1, "{document:#}");
    assert!(document.get("result").is_none());
}

#[test]
fn every_name_in_a_document_is_explained() {
    let explained = fs::read_to_string(project().join("docs/json.md")).unwrap();
    let documents = [
        json(&project(), &["check", "recipes/lab.toml"]).0,
        json(&project(), &["check", "tests/bad-recipes/several-at-once.toml"]).0,
        json(&project(), &["lock", "recipes/lab.toml"]).0,
        json(&project(), &["store", "gc", "--dry-run"]).0,
        json(&project(), &["store", "verify"]).0,
    ];
    let mut all: Vec<&Value> = documents.iter().collect();
    while let Some(value) = all.pop() {
        match value {
            Value::Array(items) => all.extend(items),
            Value::Object(fields) => {
                for (name, value) in fields {
                    assert!(explained.contains(&format!("`{name}`")), "`{name}` is not explained");
                    all.push(value);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn a_quiet_command_says_only_what_is_wrong() {
    let fine = rackstick(&project(), &["check", "--quiet", "recipes/lab.toml"]);
    assert_eq!((text(&fine.stdout), text(&fine.stderr), fine.status.code()), ("", "", Some(0)));
    let wrong = rackstick(&project(), &["check", "-q", "tests/bad-recipes/unknown-key.toml"]);
    assert!(text(&wrong.stderr).contains("did you mean `memory`?") && wrong.stdout.is_empty());
}

/// Runs the command with a stdout that nobody reads.
fn unread(arguments: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackstick"));
    command.current_dir(project()).args(arguments).stdout(writer).output().unwrap()
}

#[test]
fn that_nobody_reads_on_is_no_error_and_hides_none() {
    for arguments in [
        &["check", "recipes/lab.toml"][..],
        &["check", "recipes/lab.toml", "--json"],
        &["schema", "rack"],
        &["completions", "bash"],
        &["--help"],
        &["flash", "--help"],
    ] {
        let output = unread(arguments);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{arguments:?}");
    }
    let output = unread(&["check", "tests/bad-recipes/unknown-key.toml", "--json"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), ""));
    // Nor is it one that nobody hears errors and what goes on.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackstick"));
    let quarrel = ["lock", "no/such.toml"];
    let status = command.current_dir(project()).args(quarrel).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(1));
    // A full disk is an error.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    for arguments in [&["schema", "rack"][..], &["check", "recipes/lab.toml", "--json"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstick"));
        let output = command.current_dir(project()).args(arguments).stdout(full.try_clone().unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains("No space left on device"), "{output:?}");
    }
}

#[test]
fn a_word_that_can_be_no_device_is_wrong_usage() {
    for bad in ["zzz", "8086", "", "8086:10d3:1"] {
        let output = rackstick(&project(), &["inspect", "--hardware", bad, "recipes/lab.toml"]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{output:?}");
        assert!(text(&output.stderr).contains(&format!("`{bad}` is no device: give VENDOR:DEVICE")), "{output:?}");
    }
}

#[test]
fn what_can_not_be_read_in_the_store_is_told_and_the_rest_is_looked_at() {
    let cache = tempfile::tempdir().unwrap();
    let files = cache.path().join("store/sha256");
    fs::create_dir_all(files.join("0".repeat(64))).unwrap();
    fs::write(files.join("f".repeat(64)), "not what its name says").unwrap();
    let verify = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstick"));
        command.args(["store", "verify"]).args(arguments).env("RACKSTICK_CACHE", cache.path()).output().unwrap()
    };
    let output = verify(&[]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), ""));
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    let [damaged, unread, last] = lines[..] else { panic!("{lines:?}") };
    assert!(damaged.starts_with("damaged and removed: ") && damaged.ends_with(&"f".repeat(64)), "{damaged}");
    assert!(
        unread.starts_with("can't be read or removed, and was left: ") && unread.contains(&"0".repeat(64)),
        "{unread}"
    );
    assert!(last.starts_with("1 damaged, ") && last.contains("; 1 can't be read"), "{last}");
    let output = verify(&["--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let unread = document["result"]["unread"].as_array().unwrap();
    assert_eq!(
        (output.status.code(), unread.len(), &document["result"]["damaged"]),
        (Some(1), 1, &Value::Array(vec![]))
    );
}

#[test]
fn a_new_recipe_is_right_and_takes_the_place_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let made = rackstick(folder.path(), &["new", "home"]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    assert_eq!(
        text(&made.stdout),
        "home/home.toml: made; look into it, then build it with: rackstick build home/home.toml\n"
    );
    let checked = rackstick(folder.path(), &["check", "home/home.toml"]);
    assert_eq!((checked.status.code(), text(&checked.stderr)), (Some(0), ""));
    assert!(text(&checked.stdout).contains("rack home 1 is fine"));
    assert!(fs::read_to_string(folder.path().join("home/images/web/index.html")).unwrap().contains("the rack home"));
    // Images and secrets, and nothing else, stay out of git.
    let home = folder.path().join("home");
    let git = |arguments: &[&str]| Command::new("git").current_dir(&home).args(arguments).output().unwrap();
    assert!(git(&["init", "--quiet"]).status.success());
    let ignored =
        git(&["check-ignore", "out/home_1.img", "secrets/web/tls", "home.toml", "home.lock", "images/out.toml"]);
    assert_eq!(text(&ignored.stdout), "out/home_1.img\nsecrets/web/tls\n", "{ignored:?}");

    fs::write(folder.path().join("home/home.toml"), "mine").unwrap();
    let again = rackstick(folder.path(), &["new", "home"]);
    assert!(again.status.code() == Some(1) && text(&again.stderr).contains("home exists already"), "{again:?}");
    assert_eq!(fs::read_to_string(folder.path().join("home/home.toml")).unwrap(), "mine");
    for (bad, why) in
        [("Home", "can't be the name of a rack"), ("..", "can't be the name"), ("home/home.toml/shop", "can't make")]
    {
        let refused = rackstick(folder.path(), &["new", bad]);
        assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains(why), "{bad}: {refused:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    let deeper = rackstick(folder.path(), &["new", "recipes/shop"]);
    assert_eq!(deeper.status.code(), Some(0), "{}", text(&deeper.stderr));
    assert_eq!(fs::read_dir(folder.path().join("recipes")).unwrap().count(), 1, "nothing is left beside it");
}

/// Runs python with jsonschema: how many of the files do not fit the schema.
fn misfits(schema: &Path, files: &[PathBuf]) -> Vec<PathBuf> {
    let script = "import json, sys, tomllib\nfrom jsonschema import Draft7Validator\n\
        schema = json.load(open(sys.argv[1])); Draft7Validator.check_schema(schema)\n\
        for path in sys.argv[2:]:\n    if not Draft7Validator(schema).is_valid(tomllib.load(open(path, 'rb'))): print(path)\n";
    let output = Command::new("python3").args(["-c", script]).arg(schema).args(files).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(PathBuf::from).collect()
}

fn recipes_in(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(project().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|suffix| suffix == "toml")).collect()
}

/// The schema of recipes of this kind, in a file.
fn schema(folder: &Path, kind: &str) -> PathBuf {
    let path = folder.join(kind);
    fs::write(&path, rackstick(folder, &["schema", kind]).stdout).unwrap();
    path
}

/// Recipes with values at the edge of what may stand there, all of them right.
const ODD: [(&str, &str); 3] = [
    (
        "rack.toml",
        r#"
rack = { name = "a", version = "1~rc.2^x-Y", base = "debian:trixie", domain = "x1.y-z" }
[repositories.own]
suite      = "sid"
components = ["main", "non-free-firmware"]
packages   = ["libstdc++6", "0ad"]
[networks]
lan = { uplink = "AA-bb-00-11-22-33", address = "192.168.1.2/24", gateway = "192.168.1.1", resolver = "9.9.9.9" }
p   = { subnet = "10.20.0.0/24", nat = "lan" }
[guests.g]
image   = "./sub/app.toml"
vcpus   = 32
memory  = "2GiB"
address = { p = "10.20.0.2", lan = "dhcp" }
forward = [" lan : 80 / tcp  ->  8080 ", "lan:053/udp"]
health  = { http = "http://" }
volumes = { v = { mount = "/srv/..x", size = "1  GiB" } }
[guests.h]
image   = "other.toml"
memory  = "65 MiB"
address = { p = "10.20.0.3" }
health  = { dns = "a.b-c" }
after   = ["g"]
"#,
    ),
    (
        "sub/app.toml",
        r##"
packages = ["g++", "a0"]
services = ["getty@tty1", "-x:y_.socket", 'dev-disk-by\x2dlabel.mount']
timezone = "Etc/GMT+1"
locale   = "ca_ES.UTF-8@valencia"
cmdline  = ["a='b;c'", "x=#1"]
compress = "zstd"
groups   = { _g = { gid = 59999 } }
secrets  = { s = { path = "/run/credstore/.x/..y", mode = 0o777, owner = 0, group = "_g" } }
[users]
Debian-exim = { groups = ["adm"] }
_x          = { uid = 59999, home = "/srv/..x", shell = "/bin/.hidden/sh", comment = 'Jörg, "x"' }
x = { authorized_keys = ['from="10.0.0.0/8",no-pty ssh-ed25519 AAAAC3Nz a b'] }
[[files]]
path    = "/a b/..c/.d"
content = ""
mode    = 0o7777
owner   = 65534
group   = "Debian-exim"
"##,
    ),
    (
        "other.toml",
        r#"
from    = { rootfs = "./sub//..tar" }
command = ["x"]
workdir = "/"
user    = "0:www-data"
env     = { "a.b" = "" }
"#,
    ),
];

#[test]
fn a_schema_marks_no_value_that_the_command_takes() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub/..tar"), "").unwrap();
    for (name, text) in ODD {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let checked = rackstick(folder.path(), &["check", "rack.toml"]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let [rack, app, other] = ODD.map(|(name, _)| folder.path().join(name));
    assert_eq!(misfits(&schema(folder.path(), "rack"), &[rack]), Vec::<PathBuf>::new());
    assert_eq!(misfits(&schema(folder.path(), "image"), &[app, other]), Vec::<PathBuf>::new());
}

#[test]
fn recipes_fit_their_schema_and_those_with_other_keys_types_or_forms_of_values_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let (rack, image) = (schema(folder.path(), "rack"), schema(folder.path(), "image"));
    let good = [
        misfits(&rack, &[recipes_in("recipes"), recipes_in("tests/recipes")].concat()),
        misfits(&image, &[recipes_in("recipes/images"), recipes_in("tests/recipes/images")].concat()),
    ];
    assert!(good.iter().all(Vec::is_empty), "{good:?}");

    let bad = |names: &[&str]| -> Vec<PathBuf> {
        names.iter().map(|name| project().join("tests/bad-recipes").join(format!("{name}.toml"))).collect()
    };
    let wrong = bad(&[
        "unknown-key",
        "unknown-key-without-near-one",
        "unknown-table",
        "volume-unknown-key",
        "volume-without-size",
        "missing-key",
        "missing-rack",
        "wrong-type",
        "wrong-type-in-array",
        "wrong-type-of-table",
        "network-of-both-kinds",
        "network-of-no-kind",
        "bad-guest-name",
        "image-recipe",
        // By the form of a value.
        "bad-address",
        "bad-dns-check",
        "bad-domain",
        "bad-forward",
        "bad-forward-port",
        "bad-forward-protocol",
        "bad-http-check",
        "bad-image-name",
        "bad-nic",
        "bad-rack-name",
        "bad-subnet",
        "bad-tcp-check",
        "bad-version",
        "gateway-is-no-address",
        "image-recipe-not-toml",
        "memory-without-unit",
        "nic-mac-too-short",
        "repository-bad-component",
        "repository-bad-package",
        "repository-bad-suite",
        "repository-bad-url",
        "too-many-vcpus",
        "unsupported-base",
        "volume-relative",
        "volume-with-blank",
        "volume-without-unit",
    ]);
    assert_eq!(misfits(&rack, &wrong), wrong);
    let wrong = bad(&[
        "images/unknown-key-in-image",
        "images/file-without-path",
        "images/bad-package-name",
        "images/bad-service-name",
        "images/bad-user",
        "images/cmdline-with-blank",
        "images/compress-unknown",
        "images/file-outside-folder",
        "images/file-owner-no-name",
        "images/file-owner-too-big",
        "images/file-path-relative",
        "images/file-path-with-dots",
        "images/from-outside-folder",
        "images/group-bad-name",
        "images/locale-no-name",
        "images/locale-not-utf-8",
        "images/secret-mode-too-wide",
        "images/secret-not-in-memory",
        "images/timezone-no-name",
        "images/timezone-outside",
        "images/user-bad-comment",
        "images/user-bad-group",
        "images/user-bad-name",
        "images/user-home-relative",
        "images/user-home-with-colon",
        "images/user-no-key",
        "images/user-private-key",
        "images/user-uid-of-root",
        "images/workdir-relative",
    ]);
    assert_eq!(misfits(&image, &wrong), wrong);
}

#[test]
fn shells_and_readers_of_manuals_take_what_is_written_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let script = rackstick(&project(), &["completions", "bash"]).stdout;
    let path = folder.path().join("completions");
    fs::write(&path, script).unwrap();
    let complete = "source \"$0\"; COMP_WORDS=(rackstick bui); COMP_CWORD=1; _rackstick rackstick bui rackstick; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", complete]).arg(&path).output().unwrap();
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("build\n", ""));
    // The examples of the help work in a home that has no folders yet.
    let help = rackstick(&project(), &["completions", "--help"]).stdout;
    let examples = text(&help).split_once("Examples:\n").unwrap().1;
    let own = Path::new(env!("CARGO_BIN_EXE_rackstick")).parent().unwrap();
    let path = std::env::join_paths([own, Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", examples]).env("HOME", folder.path()).env("PATH", path);
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(folder.path().join(".config/fish/completions/rackstick.fish").exists());
    for shell in ["zsh", "fish"] {
        assert!(text(&rackstick(&project(), &["completions", shell]).stdout).contains("rackstick"), "{shell}");
    }

    let pages = folder.path().join("man");
    let written = rackstick(&project(), &["man", pages.to_str().unwrap()]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let pages: Vec<PathBuf> = fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().path()).collect();
    for name in ["rackstick.1", "rackstick-build.1", "rackstick-store-gc.1"] {
        assert!(pages.iter().any(|page| page.ends_with(name)), "{name}: {pages:?}");
    }
    let judged = Command::new("mandoc").args(["-T", "lint", "-W", "error"]).args(&pages).output().unwrap();
    assert!(judged.status.success(), "{}", text(&judged.stdout));
    let judged = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).args(&pages).output().unwrap();
    assert_eq!((judged.status.success(), text(&judged.stderr)), (true, ""));
}
