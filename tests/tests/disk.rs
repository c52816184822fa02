//! Ring 3: a guest that is a whole disk with a system of its own, without anything of ours in it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, os::unix::fs::symlink, process::Command, time::Duration};

use rackstick_api::rack::{Process, Request, State};
use rackstick_tests::{
    client::curl,
    disk::Partition,
    image::Image,
    place,
    rack::{HEALTHY_LIMIT, Options, Rack, guest},
    recipe::Recipes,
    tool,
};

/// How long a guest may take to stop, or the rack to notice something.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);
/// A mirror on a port where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1/debian";
/// The data partition's number.
const DATA: u32 = 2;

/// Of `tests/recipes/bare.toml` beside its own.
const GUEST: &str = r#"
[networks.inside]
subnet = "10.60.0.0/24"
nat    = "lan"

[guests.server]
image   = "images/server.toml"
memory  = "128 MiB"
address = { inside = "10.60.0.90" }
forward = ["lan:8080/tcp -> 80"]
disk    = "1 GiB"
health  = { http = "http://:80/" }
"#;

const SERVER: &str = r#"
from    = { disk = "server/server.qcow2", kernel = "server/vmlinuz", initrd = "server/initrd.img" }
cmdline = ["root=/dev/vda1"]
"#;

/// Makes a disk as a stranger would: a partition with a system of one program, which asks DHCP for its address, counts
/// its starts, serves a page that says so, and listens to the power button; its kernel is Debian's, with an initrd for
/// that. Debian packages are in the folder `$1`.
const MAKE: &str = r##"
set -euo pipefail
dpkg-deb --fsys-tarfile "$(find "$1" -name 'linux-image-6*-cloud-*.deb')" | tar -x
cp boot/vmlinuz-* vmlinuz
busybox=$(command -v busybox)
programs() {
    mkdir -p "$1/bin"
    cp "$busybox" "$1/bin/busybox"
    for name in $("$busybox" --list | grep -vx busybox); do ln -s busybox "$1/bin/$name"; done
}

programs early
mkdir -p early/{modules,proc,sys,dev,root}
for module in failover net_failover virtio_net virtio_blk evdev button; do
    xz -dc "$(find . -path ./early -prune -o -name "$module.ko.xz" -print)" >"early/modules/$module.ko"
done
cat >early/init <<'END'
#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in failover net_failover virtio_net virtio_blk evdev button; do insmod /modules/$module.ko; done
for word in $(cat /proc/cmdline); do case $word in root=*) root=${word#root=};; esac; done
until [ -b "$root" ]; do sleep 1; done
mount -t ext4 "$root" /root
mount --move /dev /root/dev; umount /proc /sys
exec switch_root /root /bin/init
END
chmod 755 early/init
(cd early && find . | cpio --quiet -o -H newc) | gzip -1 >initrd.img

programs tree
mkdir -p tree/{dev,proc,sys,etc/acpi/PWRF,srv,var/log,var/run}
printf '::sysinit:/etc/start\n::shutdown:/etc/stop\n' >tree/etc/inittab
cat >tree/etc/start <<'END'
#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys
starts=$(($(cat /starts 2>/dev/null || echo 0) + 1))
echo $starts >/starts; sync
acpid
ip link set lo up
udhcpc -i eth0 -s /etc/lease
echo "start $starts, $(cat /sys/block/vda/serial) of $(cat /sys/block/vda/size) sectors, $(ip -4 -o addr show eth0 | awk '{ print $4 }')" >/srv/index.html
echo "server: $(cat /srv/index.html)."
httpd -h /srv
END
printf '#!/bin/sh\necho "server: it shuts down."\nmount -o remount,ro /\n' >tree/etc/stop
printf '#!/bin/sh\npoweroff\n' >tree/etc/acpi/PWRF/00000080
printf '#!/bin/sh\nip link set "$interface" up\n[ "$1" = bound ] && ip addr add "$ip/$mask" dev "$interface" && ip route add default via "$router"\ntrue\n' >tree/etc/lease
chmod 755 tree/etc/start tree/etc/stop tree/etc/lease tree/etc/acpi/PWRF/00000080
truncate -s 256M server.raw
sgdisk --clear --new 1:2048:0 server.raw >/dev/null
mke2fs -q -t ext4 -d tree -E offset=1048576 server.raw 250M
qemu-img convert -f raw -c -O qcow2 server.raw server.qcow2
rm -r boot usr tree early
"##;

fn build() -> Image {
    let recipes = Recipes::of_tests();
    let debs = recipes.path("debs");
    tool::output(tool::rackstick().arg("vendor").arg(&debs).arg(recipes.path("bare.toml")));
    let folder = recipes.path("images/server");
    fs::create_dir(&folder).unwrap();
    tool::output(Command::new("bash").args(["-c", MAKE, "bash"]).arg(&debs).current_dir(&folder));
    fs::remove_dir_all(&debs).unwrap();
    fs::write(recipes.path("images/server.toml"), SERVER).unwrap();
    let rack = recipes.path("disk.toml");
    fs::write(&rack, fs::read_to_string(recipes.path("bare.toml")).unwrap() + GUEST).unwrap();
    // The disk is all that is missing in the lock, and no archive is asked for that.
    fs::copy(recipes.path("bare.lock"), recipes.path("disk.lock")).unwrap();
    let cache = place::caches_without_layers();
    let rackstick = |command: &str| {
        let mut rackstick = tool::rackstick();
        rackstick.arg(command).arg(&rack).args(["--mirror", NOBODY]).env("RACKSTICK_CACHE", cache.path());
        rackstick
    };
    let said = tool::output(&mut rackstick("lock"));
    assert!(said.contains("images not made of packages: 1"), "{said}");
    let out = place::test_folder("images/disk");
    println!("{}", tool::output(rackstick("build").arg("-o").arg(&out)));
    println!("{}", tool::output(Command::new("ls").args(["-ls"]).arg(&folder)));

    // Another initrd: no package is needed for that, and none is there any more, only what was once read in them.
    let store = cache.path().join("store");
    fs::remove_file(&store).unwrap();
    fs::create_dir(&store).unwrap();
    for kept in fs::read_dir(place::cache().join("store")).unwrap().map(Result::unwrap) {
        if kept.file_name() != "sha256" {
            symlink(kept.path(), store.join(kept.file_name())).unwrap();
        }
    }
    let mut initrd = fs::read(folder.join("initrd.img")).unwrap();
    initrd.extend_from_slice(&[0; 512]);
    fs::write(folder.join("initrd.img"), initrd).unwrap();
    tool::output(&mut rackstick("lock"));
    let other = tempfile::tempdir_in(place::rig()).unwrap();
    tool::output(rackstick("build").arg("-o").arg(other.path()));
    let (image, other) = (Image::only_one_in(&out), Image::only_one_in(other.path()));
    let [before, after] = [&image, &other].map(|image| &image.manifest.images["server"]);
    assert!(before.initrd != after.initrd && before.kernel == after.kernel && before.disk == after.disk);

    // A kernel that has changed is named, and not built.
    fs::write(folder.join("vmlinuz"), "another").unwrap();
    let said = tool::run(rackstick("build").arg("-o").arg(&out));
    assert!(!said.success && said.stderr.contains("server/vmlinuz of image `server` has changed"), "{}", said.stderr);
    // What is no kernel or a damaged disk is told where the recipe names it.
    for (file, content, why) in [
        ("vmlinuz", &b"another"[..], "server/vmlinuz is not a bzImage"),
        ("server.qcow2", b"QFI\xfb\0\0\0\x03", "server/server.qcow2 is damaged"),
    ] {
        fs::write(folder.join(file), content).unwrap();
        tool::output(&mut rackstick("lock"));
        let said = tool::run(rackstick("build").arg("-o").arg(&out)).stderr;
        let mark = format!("\"server/{file}\"");
        let line = fs::read_to_string(recipes.path("images/server.toml")).unwrap();
        let line = 1 + line.lines().position(|line| line.contains(&mark)).unwrap();
        assert!(said.contains(why) && said.contains(&format!("images/server.toml:{line}:")), "{file}: {said}");
    }
    image
}

fn console(rack: &Rack) -> String {
    rack.client().text(Request::Console { guest: "server".into() }).unwrap_or_default()
}

/// Waits until the guest's page, which comes through the rack's port, is of this start.
fn page(rack: &mut Rack, start: u32) -> String {
    let begin = format!("start {start}, ");
    let page = rack.until(&format!("the page of start {start}"), HEALTHY_LIMIT, |rack| {
        curl(rack.address("8080/tcp"), "/").ok().filter(|page| page.starts_with(&begin))
    });
    println!("{:6.1} s {}", rack.seconds(), page.trim_end());
    rack.until_status("the guest to be healthy", CHANGE_LIMIT, |status| guest(status, "server").healthy);
    page
}

#[test]
fn a_whole_disk_boots_answers_keeps_what_it_writes_and_is_shut_down_by_its_power_button() {
    let image = build();
    let said = tool::output(tool::rackstick().arg("inspect").arg(&image.path));
    for part in
        ["a disk of its own of 1.0 GiB from server/server.qcow2 of server", "image server: a whole disk of 256.0 MiB"]
    {
        assert!(said.contains(part), "no `{part}` in:\n{said}");
    }
    tool::output(tool::rackstick().arg("verify").arg(&image.path));
    let disk = image.manifest.images["server"].disk.as_ref().unwrap();
    println!("the packed disk has {} KiB, of a disk of {} KiB", disk.blob.size >> 10, disk.size >> 10);
    assert!(disk.size == 256 << 20 && disk.blob.size < 32 << 20);

    let mut rack = Rack::start("disk", &image, Options { persist: true, ..Options::default() });
    // It is asked from outside before anybody answers.
    rack.until_status("a check that fails", HEALTHY_LIMIT, |status| {
        let server = guest(status, "server");
        server.state == State::Running && !server.healthy && server.detail.contains("10.60.0.90:80")
    });
    let first = page(&mut rack, 1);
    println!("healthy {:.1} s after power-on", rack.seconds());
    // Its disk is as large as the recipe says, its address the recipe's, by DHCP.
    assert!(first.contains("disk of 2097152 sectors, 10.60.0.90/24"), "{first}");

    // A daemon that died finds it again.
    let status = rack.client().status().unwrap();
    let (pid, daemon) = (guest(&status, "server").pid, status.daemon_pid);
    rack.client().order(Request::Kill { process: Process::Daemon }).unwrap();
    let status = rack.until_status("the new daemon to see the guest", CHANGE_LIMIT, |status| {
        status.daemon_pid != daemon && guest(status, "server").healthy
    });
    assert_eq!((guest(&status, "server").pid, guest(&status, "server").restarts), (pid, 0));

    // A stop presses the power button, and the guest switches itself off.
    rack.client().order(Request::Stop { guest: "server".into() }).unwrap();
    rack.until_status("the guest to stop", CHANGE_LIMIT, |status| guest(status, "server").state == State::Stopped);
    rack.until_console("server: its power button is pressed: it has no agent", CHANGE_LIMIT);
    rack.until_console("server: stopped (it switched itself off)", CHANGE_LIMIT);
    assert!(console(&rack).contains("server: it shuts down."), "{}", console(&rack));
    rack.client().order(Request::Start { guest: "server".into() }).unwrap();
    page(&mut rack, 2);
    // A crash of its monitor.
    rack.client().order(Request::Kill { process: Process::Vmm("server".into()) }).unwrap();
    page(&mut rack, 3);
    // A reboot of the rack.
    rack.client().order(Request::Reboot).unwrap();
    page(&mut rack, 4);
    let status = rack.client().status().unwrap();
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    rack.power_off();
    assert_eq!(rack.console().matches("server: stopped (it switched itself off)").count(), 3, "each stop was clean");

    // What is on the rack's disk: holes have stayed holes, nothing is left of the copy, and the guest's file system is
    // whole.
    let said = Partition::of(&image.path, DATA).within(
        "ro",
        "ls -A volumes/server; stat -c '%s %b' volumes/server/disk.raw; e2fsck -fn volumes/server/disk.raw?offset=1048576 2>&1",
    );
    println!("{said}");
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("disk.raw"));
    let numbers: Vec<u64> = lines.next().unwrap().split(' ').map(|number| number.parse().unwrap()).collect();
    assert!(numbers[0] == 1 << 30 && numbers[1] * 512 < 64 << 20, "{numbers:?}");
}
