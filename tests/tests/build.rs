//! Ring 3: what `rackstick build` promises, judged by other people's tools.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    io::{Seek, Write},
    path::{Path, PathBuf},
    process::Command,
};

use rackstick_tests::{
    disk::Partition,
    image::{Image, images_in},
    place,
    recipe::Recipes,
    tool::{self, Said},
};
use tempfile::TempDir;

/// The largest host file, in bytes.
const UKI_GOAL: u64 = 64_000_000;

/// A build that must fail: returns what it said, after a look that nothing was left behind.
fn failing_build(recipe: &Path, change: impl FnOnce(&mut Command)) -> Said {
    let out = tempfile::tempdir().expect("a temporary folder can be made");
    let mut command = tool::rackstick();
    command.arg("build").arg(recipe).arg("-o").arg(out.path());
    change(&mut command);
    let said = tool::run(&mut command);
    assert!(!said.success, "the build must fail:\n{}", said.stderr);
    assert_eq!(images_in(out.path()), [""; 0].map(std::path::PathBuf::from), "{}", said.stderr);
    said
}

#[test]
fn the_image_is_whole_for_other_peoples_tools_and_the_host_is_small() {
    let image = Image::pair();
    let said = tool::ask("sgdisk", ["--verify".as_ref(), image.path.as_os_str()]);
    assert!(said.contains("No problems found"), "{said}");

    let data = Partition::of(&image.path, 2);
    tool::ask("e2fsck", ["-fn", &data.for_e2fsprogs()]);

    let esp = Partition::of(&image.path, 1);
    let folder = tempfile::tempdir().unwrap();
    // fsck.fat takes no offset.
    let copy = folder.path().join("esp");
    let [skip, count] = [format!("skip={}", esp.offset), format!("count={}", esp.length)];
    let (from, to) = (format!("if={}", image.path.display()), format!("of={}", copy.display()));
    tool::ask("dd", [&from, &to, &skip, &count, "bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse", "status=none"]);
    tool::ask("fsck.fat", ["-n".as_ref(), copy.as_os_str()]);

    let size = fs::metadata(host(image, folder.path())).unwrap().len();
    println!("UKI {:.1} MB", size as f64 / 1e6);
    assert!(size <= UKI_GOAL, "{size} bytes");
}

/// The only UKI on an image's ESP, as a file in `folder`.
fn host(image: &Image, folder: &Path) -> PathBuf {
    let esp = Partition::of(&image.path, 1);
    let hosts = tool::ask("mdir", ["-b", "-i", &esp.for_mtools(), "::EFI/Linux"]);
    let hosts: Vec<&str> = hosts.lines().filter(|line| line.ends_with(".efi")).collect();
    let [host] = hosts[..] else { panic!("one host must lie on the ESP, not {hosts:?}") };
    let copy = folder.join("host.efi");
    tool::ask("mcopy", ["-i".as_ref(), esp.for_mtools().as_ref(), host.as_ref(), copy.as_os_str()]);
    copy
}

/// The files in one of a UKI's sections that is a cpio, unpacked by GNU cpio into a folder.
fn unpacked(uki: &Path, section: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    let dump = format!("{section}={}", archive.display());
    let nowhere = folder.path().join("uki");
    let arguments = ["--dump-section".as_ref(), dump.as_ref(), uki.as_os_str(), nowhere.as_os_str()];
    tool::ask("objcopy", arguments);
    let files = folder.path().join("files");
    fs::create_dir(&files).unwrap();
    let mut cpio = Command::new("cpio");
    cpio.args(["-id", "--quiet", "--no-absolute-filenames", "-F"]).arg(&archive).args(["*.bin", "lib/*"]);
    tool::output(cpio.current_dir(&files));
    folder
}

#[test]
fn the_host_holds_the_processors_microcode_and_the_firmware_of_its_drivers() {
    let folder = tempfile::tempdir().unwrap();
    let uki = host(Image::pair(), folder.path());

    let microcode = unpacked(&uki, ".ucode");
    let of = |vendor: &str| microcode.path().join(format!("files/kernel/x86/microcode/{vendor}.bin"));
    assert!(fs::read(of("AuthenticAMD")).unwrap().starts_with(b"DMA\0"));
    // Another program's reader: it checks every update, and knows which processors each is for.
    let list = tool::ask("iucode_tool", ["-tb".as_ref(), "-l".as_ref(), of("GenuineIntel").as_os_str()]);
    assert!(list.matches("sig 0x").count() > 100, "{list}");

    let initrd = unpacked(&uki, ".initrd");
    let firmware = initrd.path().join("files/lib/firmware");
    // Of NICs that spare PCs and servers have; the second is a link in its package.
    for name in ["rtl_nic/rtl8168h-2.fw", "intel/ice/ddp/ice.pkg", "tigon/tg3_tso.bin", "bnx2/bnx2-mips-09-6.2.1b.fw"] {
        let file = firmware.join(format!("{name}.xz"));
        tool::ask("xz", ["--test".as_ref(), file.as_os_str()]);
        let said = tool::ask("xz", ["--robot".as_ref(), "--list".as_ref(), file.as_os_str()]);
        assert!(said.contains("CRC32"), "the kernel reads no other check: {said}");
    }
}

#[test]
fn a_device_is_said_to_be_driven_or_not_before_anything_is_bought() {
    let ask = |id: &str| {
        let recipe = place::clone().join("tests/recipes/pair.toml");
        tool::run(tool::rackstick().args(["inspect", "--hardware", id]).arg(recipe))
    };
    for (id, lines) in [
        // Realtek's NIC of most PCs, Intel's, a USB adapter, an NVMe disk by its class.
        ("10ec:8168", &["PCI 10ec:8168 is driven by r8169 (network cards", "rtl_nic/rtl8168h-2.fw"][..]),
        ("8086:10d3", &["PCI 8086:10d3 is driven by e1000e (network cards"]),
        ("0bda:8153", &["USB 0bda:8153 is driven by r8152 (USB network adapters"]),
        ("144d:a808:0108", &["PCI 144d:a808:0108 is driven by nvme (disks"]),
        // As they are pasted; of lspci's line the class is known.
        ("[8086:15b8] (rev 10)", &["PCI 8086:15b8 is driven by e1000e (network cards"]),
        (
            "01:00.0 Non-Volatile memory controller [0108]: Samsung NVMe SSD Controller SM981/PM981/PM983 [144d:a808]",
            &["PCI 144d:a808:0108 is driven by nvme (disks"],
        ),
        ("Bus 001 Device 002: ID 0bda:8153 Realtek Semiconductor Corp. RTL8153", &["USB 0bda:8153 is driven by r8152"]),
    ] {
        let said = ask(id);
        assert!(said.success && lines.iter().all(|line| said.stdout.contains(line)), "{id}: {said:?}");
        assert!(said.stderr.contains("reading drivers and firmware"), "nobody waits without a word: {said:?}");
    }
    for (id, code, why) in [
        ("8086:2723", 1, "leaves out its driver iwlwifi"),
        ("dead:beef:0200", 1, "is for PCI dead:beef:0200"),
        ("8086", 2, "is no device"),
        // An NVMe disk, which is driven by its class alone: that can't be known from its id.
        ("144d:a808", 3, "names PCI 144d:a808 or USB 144d:a808 itself: its class decides"),
    ] {
        let said = ask(id);
        assert!(said.code == Some(code) && said.stdout.is_empty() && said.stderr.contains(why), "{id}: {said:?}");
    }
    let classes = ask("144d:a808").stderr;
    for class in ["0106 (ahci)", "0108 (nvme)", "0c03 (xhci_pci)", "03 (usbhid)", "0806 (usb_storage)"] {
        assert!(classes.contains(class), "no {class}: {classes}");
    }
}

#[test]
fn a_whole_pc_is_judged_by_what_lspci_says_of_it() {
    let ask = |list: &str| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(list.as_bytes()).unwrap();
        file.rewind().unwrap();
        let recipe = place::clone().join("tests/recipes/pair.toml");
        tool::run(tool::rackstick().args(["inspect", "--hardware", "-"]).arg(recipe).stdin(file))
    };
    let driven = "00:00.0 Host bridge [0600]: Intel Corporation 8th Gen Core Processor Host Bridge [8086:3ec2] (rev 07)\n\
                  00:14.0 USB controller [0c03]: Intel Corporation Cannon Lake PCH USB 3.1 xHCI [8086:a36d] (rev 10)\n\
                  \tKernel driver in use: xhci_hcd\n\
                  00:17.0 SATA controller [0106]: Intel Corporation Cannon Lake PCH SATA AHCI Controller [8086:a352]\n\
                  00:1f.6 Ethernet controller [0200]: Intel Corporation Ethernet Connection (7) I219-V [8086:15bc]\n";
    let said = ask(driven);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!((said.code, lines.len()), (Some(0), 4), "{said:?}");
    let drivers = ["needs no driver", "xhci_pci (USB", "ahci (disks", "e1000e (network cards"];
    assert!(lines.iter().zip(drivers).all(|(line, driver)| line.contains(driver)), "{said:?}");
    let needed = "1 of 1 disk controllers, 1 of 1 wired NICs, 1 of 1 USB controllers";
    assert!(said.stderr.contains(needed), "{said:?}");

    // The worst of all is the exit status; all others are answered nevertheless.
    let disk = "Bus 002 Device 003: ID dead:beef A disk\n";
    let said = ask(&format!("{disk}{driven}"));
    assert_eq!((said.code, said.stdout.lines().count()), (Some(3), 5), "{said:?}");
    let sound = "00:1f.3 Audio device [0403]: Intel Corporation Cannon Lake PCH cAVS [8086:a348] (rev 10)\n";
    let said = ask(&format!("{disk}{sound}{driven}"));
    assert_eq!((said.code, said.stdout.lines().count()), (Some(1), 6), "{said:?}");
    assert!(said.stdout.contains("Sound"), "{said:?}");
    let said = ask(&format!("/:  Bus 01.Port 1: Dev 1\n{driven}"));
    assert_eq!((said.code, said.stdout.lines().count()), (Some(1), 5), "{said:?}");
    assert!(said.stdout.starts_with("`/:  Bus 01.Port 1: Dev 1` is no device"), "{said:?}");
    assert_eq!(ask("\n").code, Some(1));
}

#[test]
fn the_document_of_hardware_is_that_of_the_table_and_the_lock() {
    let mut command = tool::rackstick();
    let fresh = tool::output(command.args(["inspect", "--drivers"]).arg(place::clone().join("recipes/lab.toml")));
    assert!(!fresh.contains("(0 modules"), "a row of the table is for nothing in this kernel:\n{fresh}");
    let written = fs::read_to_string(place::clone().join("docs/hardware.md")).unwrap();
    assert!(written == fresh, "renew it: rackstick inspect --drivers recipes/lab.toml > docs/hardware.md");
}

#[test]
fn a_full_disk_leaves_no_image() {
    // Filled beforehand, so that the image itself must fail wherever the caches lie.
    let script = r#"mount -t tmpfs -o size=16m tmpfs "$1" && shift && "$@"; code=$?; ls "$OUT" >&2; exit $code"#;
    let out = tempfile::tempdir().unwrap();
    let recipe = place::clone().join("tests/recipes/pair.toml");
    // Only the build's own image may be missing: all else lies in the cache.
    Image::pair();
    let mut command = Command::new("unshare");
    // Mounting needs a namespace of users too, unless one is root already.
    command.arg(if rustix::process::geteuid().is_root() { "-m" } else { "-rm" });
    command.args(["sh", "-c", script, "sh"]).arg(out.path()).arg(tool::rackstick().get_program());
    command.arg("build").arg(recipe).arg("-o").arg(out.path()).env("OUT", out.path());
    let said = tool::run(&mut command);
    assert!(!said.success, "{}", said.stderr);
    assert!(said.stderr.contains("No space left on device"), "{}", said.stderr);
    assert!(!said.stderr.lines().any(|line| line.ends_with(".img")), "{}", said.stderr);
}

#[test]
fn a_package_that_does_not_exist_is_named() {
    let recipes = Recipes::of_tests();
    recipes.edit("images/web.toml", "\"nginx-light\"", "\"nginx-lihgt\"");
    fs::remove_file(recipes.path("pair.lock")).unwrap();
    let said = failing_build(&recipes.path("pair.toml"), |_| {});
    assert!(said.stderr.contains("nginx-lihgt"), "{}", said.stderr);
    assert!(!recipes.path("pair.lock").exists(), "a lock was written");
}

#[test]
fn a_lock_that_no_longer_fits_its_recipe_is_refused_and_kept() {
    let recipes = Recipes::of_tests();
    recipes.edit("images/web.toml", "\"nginx-light\"", "\"nginx-light\", \"lynx\"");
    let before = fs::read(recipes.path("pair.lock")).unwrap();
    let said = failing_build(&recipes.path("pair.toml"), |_| {});
    assert!(said.stderr.contains("lynx") && said.stderr.contains("Run `rackstick lock "), "{}", said.stderr);
    assert_eq!(fs::read(recipes.path("pair.lock")).unwrap(), before);
}

#[test]
fn a_mirror_that_is_down_is_named() {
    let caches = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("http://{}/debian", listener.local_addr().unwrap());
    drop(listener);
    let said = failing_build(&place::clone().join("tests/recipes/pair.toml"), |command| {
        command.args(["--mirror", &mirror]).env("RACKSTICK_CACHE", caches.path());
    });
    assert!(said.stderr.contains(&mirror), "{}", said.stderr);
}
