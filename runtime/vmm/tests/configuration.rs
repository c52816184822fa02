//! Bad configurations: a clear message and an exit status, and nothing started.

#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, process::Stdio};

use rackstick_vmm::{
    config::{Config, Disk, Net, Pmem, Vsock},
    exit::Exit,
};
use support::{Machine, assembler::Code, kvm, monitor};

/// What the monitor says to `text` as its configuration, and its exit status.
fn told(text: &[u8]) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    fs::write(&path, text).unwrap();
    let output = monitor(&path).stdin(Stdio::null()).output().unwrap();
    (String::from_utf8(output.stderr).unwrap(), output.status.code())
}

fn refused(change: impl FnOnce(&mut Config), message: &str) {
    let mut machine = Machine::new(Code::new().power_off());
    change(&mut machine.config);
    let exit = machine.run().exit;
    assert!(exit.code() == 1 && exit.to_string().contains(message), "`{message}` is not in `{exit}`");
}

#[test]
fn bad_arguments_are_status_2() {
    for arguments in [&[][..], &["--config"], &["--help"], &["--config", "a", "b"]] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_rackstick-vmm")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains("usage: rackstick-vmm --config FILE"));
    }
}

#[test]
fn an_unreadable_configuration_says_where() {
    assert_eq!(told(b"{").1, Some(1));
    let (message, status) = told(br#"{"name": "web", "vcpus": 1, "colour": "red"}"#);
    assert!(status == Some(1) && message.contains("unknown field `colour`") && message.contains("line 1"), "{message}");
}

#[test]
fn values_no_machine_can_have_are_named() {
    refused(|config| config.vcpus = 0, "0 vCPUs; 1 to 255");
    refused(|config| config.memory_mib = 1, "1 MiB of memory; the least is 2");
    refused(|config| config.vsock = Some(Vsock { cid: 2 }), "vsock context id 2");
    refused(
        |config| config.disks = vec![Disk { path: "/dev/null".into(), serial: "a".into(), readonly: true }; 30],
        "32 devices; at most 31",
    );
    refused(
        |config| config.disks = vec![Disk { path: "/dev/null".into(), serial: "x".repeat(21), readonly: true }],
        "it has at most 20 bytes",
    );
    refused(
        |config| config.pmem = vec![Pmem { path: "/nowhere/layer".into(), label: "base".into() }],
        "cannot map layer base from /nowhere/layer: No such file",
    );
}

#[test]
fn a_full_standard_error_does_not_keep_the_exit_file_from_being_written() {
    let end = |change: fn(&mut Config)| {
        let mut machine = Machine::new(Code::new().power_off());
        change(&mut machine.config);
        let path = machine.file("config.json", &serde_json::to_vec(&machine.config).unwrap());
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let status = monitor(&path).stdin(Stdio::null()).stderr(full).status().unwrap();
        let exit: Exit = serde_json::from_slice(&fs::read(machine.config.exit_file.unwrap()).unwrap()).unwrap();
        assert_eq!(status.code(), Some(exit.code().into()));
        exit
    };
    let refused = end(|config| config.vcpus = 0);
    assert!(refused.to_string().contains("0 vCPUs"), "{refused}");
    if kvm() {
        assert_eq!(end(|_| ()), Exit::PoweredOff);
    }
}

#[test]
fn what_is_missing_on_the_host_is_named() {
    if kvm() {
        refused(|config| config.kernel = "/nowhere/vmlinux".into(), "cannot read /nowhere/vmlinux: No such file");
        refused(|config| config.cmdline = "x".repeat(2048), "2048 bytes, 2047 are possible");
        refused(|config| config.initrd = vec!["/nowhere/initrd".into()], "cannot read /nowhere/initrd");
        refused(
            |config| config.disks = vec![Disk { path: "/nowhere/disk".into(), serial: "a".into(), readonly: false }],
            "cannot open disk /nowhere/disk",
        );
        let net = |tap: &str, mac: &str| vec![Net { tap: tap.into(), mac: mac.into() }];
        refused(|config| config.nets = net("nosuchtap", "52:54:00:00:00:01"), "cannot find tap nosuchtap");
        refused(|config| config.nets = net("tap0", "52:54"), "net 0: `52:54` is not the MAC address");
    }
}

#[test]
fn a_disk_serves_one_machine_at_a_time() {
    if kvm() {
        let mut first = Machine::new(Code::new().raw(&[0xEB, 0xFE]));
        let disk = first.file("disk", &[0; 4096]);
        first.config.disks = vec![Disk { path: disk.clone(), serial: "a".into(), readonly: false }];
        let mut first = first.start();
        first.wait_for("the first machine to take the disk", |_, pid| {
            fs::read_to_string("/proc/locks").is_ok_and(|locks| locks.contains(&format!(" {pid} ")))
        });
        refused(
            |config| config.disks = vec![Disk { path: disk, serial: "a".into(), readonly: false }],
            "is used by another process",
        );
        first.child.kill().unwrap();
        first.child.wait().unwrap();
    }
}

#[test]
fn memory_too_small_for_the_kernel_is_said() {
    if kvm() {
        let mut machine = Machine::new(Code::new().raw(&vec![0x90; 3 << 20]).power_off());
        machine.config.memory_mib = 3;
        let exit = machine.run().exit.to_string();
        assert!(exit.contains("into 3 MiB of memory"), "{exit}");
    }
}
