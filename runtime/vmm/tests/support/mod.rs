//! Tiny bare-metal guests and the monitor that runs them.
//!
//! These tests need a `/dev/kvm` that can run simple 32-bit code. Where there is none they fail, unless
//! `RACKSTICK_NO_KVM=1` says that it is known: then each says so and passes.

// Each test file uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

pub mod assembler;
pub mod elf;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rackstick_vmm::{
    config::{Config, Console},
    exit::Exit,
};
use tempfile::TempDir;

use assembler::Code;

/// How long anything here may take; a guest's whole life is milliseconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whether there is KVM; panics where it is missing and nobody said that it would be.
pub fn kvm() -> bool {
    if Path::new("/dev/kvm").exists() {
        return true;
    }
    let known = std::env::var_os("RACKSTICK_NO_KVM").is_some_and(|value| value == "1");
    assert!(known, "no /dev/kvm: these tests can't run; RACKSTICK_NO_KVM=1 leaves them out knowingly");
    eprintln!("LEFT OUT: no /dev/kvm, and RACKSTICK_NO_KVM=1");
    false
}

/// A machine to be run, with its files in a folder of its own.
pub struct Machine {
    pub folder: TempDir,
    pub config: Config,
}

/// A machine that runs.
pub struct Running {
    pub folder: TempDir,
    pub child: Child,
}

/// How a machine ended.
pub struct Ended {
    pub exit: Exit,
    pub console: String,
}

impl Machine {
    /// One vCPU and 16 MiB with `code` as its kernel.
    pub fn new(code: Code) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("kernel"), elf::kernel(&code.assemble())).unwrap();
        let config = Config {
            name: "tiny".into(),
            vcpus: 1,
            memory_mib: 16,
            kernel: at("kernel"),
            initrd: Vec::new(),
            cmdline: String::new(),
            console: Console::File { path: at("console"), limit_kib: 64 },
            pmem: Vec::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            exit_file: Some(at("exit.json")),
        };
        Self { folder, config }
    }

    /// Writes a file into the machine's folder.
    pub fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// Starts the monitor.
    pub fn start(self) -> Running {
        let path = self.file("config.json", &serde_json::to_vec(&self.config).unwrap());
        let child = monitor(&path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running { folder: self.folder, child }
    }

    /// Runs the machine to its end.
    pub fn run(self) -> Ended {
        self.start().end()
    }
}

impl Running {
    /// Waits until `condition` holds.
    pub fn wait_for(&mut self, what: &str, mut condition: impl FnMut(&Path, u32) -> bool) {
        let start = Instant::now();
        while !condition(self.folder.path(), self.child.id()) {
            assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
            if self.child.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the machine's end; its three ways to say why must agree.
    pub fn end(mut self) -> Ended {
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if start.elapsed() > DEADLINE {
                self.child.kill().unwrap();
                let Output { stderr, .. } = self.child.wait_with_output().unwrap();
                panic!("the guest never ended; its monitor said: {}", String::from_utf8_lossy(&stderr));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let Output { status, stderr, .. } = self.child.wait_with_output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        let exit = fs::read(self.folder.path().join("exit.json"));
        let exit: Exit = serde_json::from_slice(&exit.unwrap_or_else(|_| panic!("no exit file: {stderr}"))).unwrap();
        assert_eq!(status.code(), Some(exit.code().into()), "{stderr}");
        assert!(stderr.ends_with(&format!("tiny: {exit}\n")), "{stderr}");
        let console = fs::read_to_string(self.folder.path().join("console")).unwrap_or_default();
        Ended { exit, console }
    }
}

/// The monitor with a configuration file.
pub fn monitor(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackstick-vmm"));
    command.arg("--config").arg(config);
    command
}
