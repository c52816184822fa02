//! What `rackstick run` leaves behind when it ends: nothing that it made. A program stands for QEMU that makes its
//! sockets and ends in every way that QEMU may.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    env, fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long the program may take to come up and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// Binds its sockets like QEMU, which replaces what is there, tells that by a file, and then does what it was told to.
const QEMU: &str = r#"#!/usr/bin/env python3
import os, socket, sys, time
if "--version" in sys.argv:
    print("QEMU emulator version 10.0.2")
    sys.exit()
how = os.environ["HOW"]
if how == "never":
    sys.exit(1)
held = []
for word in sys.argv:
    path = word.split("path=")[-1] if word.startswith("socket,") else word.removeprefix("vnc=unix:")
    if word.startswith("socket,") or word.startswith("vnc=unix:"):
        if os.path.exists(path):
            os.unlink(path)
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].bind(path)
        held[-1].listen()
open(os.environ["READY"], "w")
if how == "stays":
    time.sleep(600)
sys.exit(0 if how == "ends" else 1)
"#;

/// Takes its time to make the throw-away disk.
const QEMU_IMG: &str = "#!/bin/sh\ntouch \"$READY\"\nsleep 1\n";

struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    fn new() -> Self {
        let run = Self { folder: tempfile::tempdir().unwrap() };
        ["bin", "temporary", "sockets"].iter().for_each(|name| fs::create_dir(run.at(name)).unwrap());
        for (name, text) in [("bin/qemu-system-x86_64", QEMU), ("bin/qemu-img", QEMU_IMG)] {
            fs::write(run.at(name), text).unwrap();
            fs::set_permissions(run.at(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        // All that `run` looks at: the signature of a partition table.
        let mut image = vec![0; 1 << 20];
        image[512..520].copy_from_slice(b"EFI PART");
        fs::write(run.at("rack.img"), image).unwrap();
        run
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self, how: &str) -> Child {
        let path = env::var_os("PATH").unwrap();
        let path = env::join_paths([self.at("bin")].into_iter().chain(env::split_paths(&path))).unwrap();
        let _ = fs::remove_file(self.at("ready"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstick"));
        command.arg("run").arg(self.at("rack.img")).args(["--accel", "tcg", "--no-serial"]);
        command.args((how != "slow").then_some("--persist"));
        for name in ["api", "screen", "qmp"] {
            command.arg(format!("--{name}")).arg(self.socket(name));
        }
        command.env("PATH", path).env("TMPDIR", self.at("temporary")).env("HOW", how).env("READY", self.at("ready"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.at("sockets").join(name)
    }

    fn until_ready(&self) {
        let started = Instant::now();
        while !self.at("ready").exists() {
            assert!(started.elapsed() < LIMIT, "it did not start");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let names = fs::read_dir(self.at(folder)).unwrap();
        let mut names: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[track_caller]
    fn assert_nothing_is_left(&self, output: &Output) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((self.names("sockets"), self.names("temporary")), (vec![], vec![]), "{said}");
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

/// A socket that nobody listens at.
fn stale(path: &Path) -> u64 {
    drop(UnixListener::bind(path).unwrap());
    fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn sockets_and_its_own_folder_are_gone_however_the_rack_ends() {
    let run = Run::new();
    for (how, code) in [("ends", 0), ("fails", 1)] {
        // What an earlier run left in its place is replaced, and goes too.
        stale(&run.socket("screen"));
        let output = run.start(how).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{how}: {output:?}");
        assert!(run.at("ready").exists(), "{how}: {output:?}");
        run.assert_nothing_is_left(&output);
    }
    // The program does not answer: it is killed, and can't tidy up.
    for name in ["INT", "TERM", "HUP"] {
        let child = run.start("stays");
        run.until_ready();
        assert_eq!(run.names("sockets"), ["api", "qmp", "screen"]);
        signal(&child, name);
        // Another one, as soon as the first was taken: stop it hard.
        thread::sleep(Duration::from_millis(300));
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        run.assert_nothing_is_left(&output);
    }
    // Before there is a QEMU.
    let child = run.start("slow");
    run.until_ready();
    assert_eq!(run.names("temporary").len(), 1);
    signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("a signal came before"), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
    run.assert_nothing_is_left(&output);
}

#[test]
fn what_it_did_not_make_stays() {
    let run = Run::new();
    // It fails before it makes any: what an earlier run left is not this one's.
    let before = stale(&run.socket("api"));
    let output = run.start("never").wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(fs::symlink_metadata(run.socket("api")).unwrap().ino(), before);
    assert_eq!((run.names("sockets"), run.names("temporary")), (vec!["api".to_owned()], vec![]));

    // Somebody listens there, or it is no socket: refused, and the places named before it are left as they were.
    let _listener = UnixListener::bind(run.socket("screen")).unwrap();
    fs::write(run.socket("qmp"), "mine").unwrap();
    let output = run.start("ends").wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!run.at("ready").exists() && UnixStream::connect(run.socket("screen")).is_ok(), "{output:?}");
    assert!(fs::symlink_metadata(run.socket("api")).unwrap().file_type().is_socket());
    assert_eq!(fs::read_to_string(run.socket("qmp")).unwrap(), "mine");
    assert_eq!(run.names("temporary"), [""; 0]);
}
