//! A build needs no root: an ordinary user with subordinate ids gets the same bytes. The user exists only in the mounts
//! of the test's own processes, so nothing of the machine changes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::{Bench, EPOCH, PROGRAM, accounts};
use rackstick::layers::{Additions, Layers, Package};

const USER: &str = "4242";

/// Runs the test below as that user, with this file as /etc/subuid and /etc/subgid.
fn build_as_user(dir: &Path, subordinate_ids: &str) -> Output {
    assert!(rustix::process::geteuid().is_root(), "this test becomes another user: run it as root");
    // The target folder may lie where only root looks.
    fs::copy(PROGRAM, dir.join("rackstick")).unwrap();
    let (ids, users) = (dir.join("ids"), dir.join("users"));
    fs::write(&ids, subordinate_ids).unwrap();
    let entry = format!("builder:x:{USER}:{USER}::/:/bin/sh\n");
    fs::write(&users, fs::read_to_string("/etc/passwd").unwrap() + &entry).unwrap();
    let script = "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && mount --bind \"$1\" /etc/passwd && shift \\
                  && exec \"$@\"";
    let user = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--"];
    Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .args([&ids, &users])
        .args(user)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "ordinary_user::as_this_user", "--ignored", "--nocapture"])
        .env("BENCH", dir)
        .output()
        .unwrap()
}

/// Everything that a recipe can give to somebody.
fn additions(dir: &Path, package: Package) -> Additions {
    let (changes, files) = accounts::of_alice(dir);
    Additions { packages: vec![package], files, changes }
}

#[test]
fn an_ordinary_user_gets_the_same_bytes_as_root() {
    let bench = Bench::new();
    let base_package = bench.workshop.base();
    let draft = bench.workshop.draft("owned");
    draft.script("postinst", "echo > /etc/of-daemon; chown daemon:daemon /etc/of-daemon; cp /bin/true /bin/cap; setcap cap_chown+ep /bin/cap; rm /bin/touch");
    let package = draft.build();
    let base = bench.layers.base(std::slice::from_ref(&base_package), &|_| ()).unwrap();
    let layers = bench.layers.image("test", &base, &additions(bench.dir.path(), package), &|_| ()).unwrap();

    // Reachable for others, unlike a fresh temporary folder.
    for folder in [bench.dir.path(), &bench.dir.path().join("packages")] {
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let home = bench.dir.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, USER.parse().ok(), USER.parse().ok()).unwrap();
    let output = build_as_user(bench.dir.path(), "builder:300000:65536\n");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&base.layer.digest.to_string()), "the base differs from {}: {said}", base.layer.digest);
    for (label, layer) in layers {
        assert!(said.contains(&layer.digest.to_string()), "layer {label} differs from {}: {said}", layer.digest);
    }
}

#[test]
fn a_user_without_subordinate_ids_is_told_how_to_get_some() {
    let bench = Bench::new();
    bench.workshop.base();
    bench.workshop.draft("owned").build();
    for folder in [bench.dir.path(), &bench.dir.path().join("packages")] {
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let home = bench.dir.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, USER.parse().ok(), USER.parse().ok()).unwrap();
    for ids in ["", "builder:300000:1000\n", "nobody:300000:65536\n"] {
        let output = build_as_user(bench.dir.path(), ids);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("no 65535 subordinate ids in /etc/subuid"),
            "{ids:?}: {said}"
        );
        assert!(said.contains("usermod --add-subuids"), "{said}");
    }
}

#[test]
#[ignore = "run by the tests above, as another user"]
fn as_this_user() {
    let dir = PathBuf::from(std::env::var_os("BENCH").unwrap());
    let layers = Layers::new(&dir.join("home/cache"), &dir.join("rackstick"), EPOCH, 1).unwrap();
    let package = |name: &str| {
        let deb = dir.join("packages").join(name).with_extension("deb");
        let sha256 = rackstick_image::digest::Sha256::of_file(&deb).unwrap();
        Package { name: name.to_owned(), version: "1".to_owned(), sha256, deb }
    };
    let base =
        layers.base(&[package("mini-base")], &|_| ()).unwrap_or_else(|error| panic!("{error}: {}", cause(&error)));
    let additions = additions(&dir, package("owned"));
    let above =
        layers.image("test", &base, &additions, &|_| ()).unwrap_or_else(|error| panic!("{error}: {}", cause(&error)));
    println!("{}", base.layer.digest);
    above.iter().for_each(|(_, layer)| println!("{}", layer.digest));
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}
