//! Other people's programs, and our own command.

use std::{
    env,
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Output},
    sync::OnceLock,
};

use crate::place;

/// What a program said.
#[derive(Debug)]
pub struct Said {
    /// Whether it exited with 0.
    pub success: bool,
    /// What it exited with; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a program to its end. Panics if it can't be started.
pub fn run(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("can't start {command:?}: {error}; run ci/setup"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { success: status.success(), code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs a program and returns its standard output. Panics with all it said if it fails.
pub fn output(command: &mut Command) -> String {
    let said = run(command);
    assert!(said.success, "{command:?} failed:\n{}{}", said.stdout, said.stderr);
    said.stdout
}

/// [`output`] of a program with arguments.
pub fn ask<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    output(Command::new(program).args(arguments))
}

/// The command `rackstick`, release build. It is brought up to date first, once per test program, by the one script
/// that does so: tests never judge an old binary. `RACKSTICK` in the environment names another.
pub fn rackstick() -> Command {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    Command::new(PATH.get_or_init(|| {
        if let Some(path) = env::var_os("RACKSTICK") {
            return path.into();
        }
        let target = place::rig();
        let target = target.parent().expect("rig/ lies in target/");
        let mut build = Command::new(place::clone().join("ci/build"));
        // What cargo tells this test of its own package, build scripts would take for news of theirs, and compile
        // again.
        for (name, _) in env::vars_os() {
            let own = [&b"CARGO_PKG_"[..], b"CARGO_MANIFEST_"];
            if own.iter().any(|own| name.as_encoded_bytes().starts_with(own)) {
                build.env_remove(name);
            }
        }
        output(build.env("CARGO_TARGET_DIR", target));
        place::release().join("rackstick")
    }))
}
