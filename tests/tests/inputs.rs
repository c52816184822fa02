//! Ring 3: guests that are not made of packages: a container image, and root file systems that are as small as they can be.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, process::Command, time::Duration};

use rackstick_api::rack::{Request, State};
use rackstick_tests::{
    client::curl,
    image::Image,
    place,
    rack::{HEALTHY_LIMIT, Options, Rack, guest},
    recipe::Recipes,
    tool,
};

/// How long a guest may take to stop, or to be started again.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);

/// Guests of `recipes/appliance.toml` beside its own.
const GUESTS: &str = r#"
[guests.keeper]
image   = "images/keeper.toml"
memory  = "96 MiB"
address = { lan = "dhcp" }
volumes.kept = { mount = "/data", size = "32 MiB" }
health  = { tcp = 7 }

[guests.ends]
image   = "images/ends.toml"
memory  = "96 MiB"
"#;

/// Its layers are compressed. Says who and where it is, counts its starts on its volume, leaves an orphan behind, and ends when it is asked to.
const KEEPER: &str = r#"
from    = { rootfs = "tiny.tar.gz" }
command = ["sh", "/bin/keeper"]
env     = { GREETING = "hello" }
workdir = "/data"
user    = "keeper"
compress = "zstd"

[[files]]
path    = "/bin/keeper"
content = '''
trap 'echo "keeper: asked to stop."; sync; exit 0' TERM
echo $(($(cat starts 2>/dev/null || echo 0) + 1)) > starts
(sleep 1 & ) ; sleep 3
until ip -4 -o addr | grep -q ' eth' && grep -qs nameserver /etc/resolv.conf; do sleep 1; done
echo "keeper: $GREETING, start $(cat starts), $(id -u):$(id -g) $(id -G), in $PWD, seed $(cat seed), PATH $PATH, HOME $HOME,"
echo "keeper: zombies $(ps -o stat | grep -c Z), tmp $(stat -c %a /tmp), $(cat /etc/hostname), resolver $(grep -c nameserver /etc/resolv.conf)."
nc -ll -p 7 -e true &
while true; do sleep 1; done
'''
"#;

const ENDS: &str =
    "from = { rootfs = \"tiny.tar.gz\" }\ncommand = [\"sh\", \"-c\", \"echo the end is near; exit 3\"]\n";

/// Makes a root file system of one program.
const TINY: &str = r#"set -euo pipefail; mkdir -p tiny/bin tiny/etc tiny/data; cp "$(command -v busybox)" tiny/bin/busybox
    for program in sh cat echo sleep ip grep id ps stat nc true sync; do ln -s busybox tiny/bin/$program; done
    printf 'root:x:0:0::/:/bin/sh\nkeeper:x:1234:1235::/data:/bin/sh\n' > tiny/etc/passwd
    printf 'keeper:x:1235:\nextra:x:77:keeper\n' > tiny/etc/group; echo of-the-image > tiny/data/seed; chown -R 1234:1235 tiny/data
    tar --numeric-owner -C tiny -czf tiny.tar.gz ."#;

/// The rack, with its container made as a user makes it, and pinned without asking an archive.
fn build() -> Image {
    let recipes = Recipes::copy();
    let images = recipes.path("images");
    tool::output(Command::new(place::clone().join("ci/appliance")).arg(images.join("appliance.tar")));
    tool::output(Command::new("bash").args(["-c", TINY]).current_dir(&images));
    fs::write(images.join("keeper.toml"), KEEPER).unwrap();
    fs::write(images.join("ends.toml"), ENDS).unwrap();
    let rack = recipes.path("appliance.toml");
    fs::write(&rack, fs::read_to_string(&rack).unwrap() + GUESTS).unwrap();
    // A lock of the same base without any images: only the inputs are missing in it.
    fs::copy(place::clone().join("tests/recipes/bare.lock"), recipes.path("appliance.lock")).unwrap();
    let said = tool::output(tool::rackstick().arg("lock").arg(&rack).args(["--mirror", "http://127.0.0.1:1/debian"]));
    assert!(said.contains("images not made of packages: 3"), "{said}");
    let out = place::test_folder("images/appliance");
    println!("{}", tool::output(tool::rackstick().arg("build").arg(&rack).arg("-o").arg(&out)));
    Image::only_one_in(&out)
}

/// Two guests are of one tarball, of which one has its layers compressed.
fn check_compression(image: &Image) {
    let layer = |name: &str| {
        let layers = &image.manifest.images[name].layers;
        layers.iter().find(|layer| layer.label.starts_with("tiny.tar.gz")).unwrap()
    };
    let (packed, plain) = (layer("keeper"), layer("ends"));
    assert_eq!((packed.label.as_str(), plain.label.as_str()), ("tiny.tar.gz, zstd", "tiny.tar.gz"));
    println!("{} bytes of layer, {} compressed", plain.size, packed.size);
    assert!(packed.size * 4 < plain.size * 3);
    let told = tool::output(tool::rackstick().arg("inspect").arg(&image.path));
    assert!(told.contains(" tiny.tar.gz, zstd (files of ") && told.contains(" tiny.tar.gz: ends\n"), "{told}");
    let told = tool::output(tool::rackstick().arg("verify").arg(&image.path));
    assert!(told.contains(" is whole: "), "{told}");
}

fn console(rack: &Rack, name: &str) -> String {
    rack.client().text(Request::Console { guest: name.into() }).unwrap_or_default()
}

#[test]
fn a_container_and_a_tarball_run_as_guests_like_any_other() {
    let image = build();
    check_compression(&image);
    let mut rack = Rack::start("inputs", &image, Options::default());
    let status = rack.until_status("page and keeper healthy", HEALTHY_LIMIT, |status| {
        ["page", "keeper"].iter().all(|name| guest(status, name).healthy)
    });
    println!("healthy {:.1} s after power-on", rack.seconds());
    assert_eq!(guest(&status, "page").restarts, 0);

    // The container: its own command as its own user, on a port below 1024.
    let page = curl(rack.address("8080/tcp"), "/").unwrap();
    assert!(page.contains("Served by a container that is a virtual machine."), "{page}");
    rack.until("the request on the container's console", CHANGE_LIMIT, |rack| {
        console(rack, "page").contains("response:200").then_some(())
    });

    // The tarball: user, groups, folder, environment, volume, network, and nobody left unreaped.
    let said = console(&rack, "keeper");
    for line in [
        "keeper: hello, start 1, 1234:1235 1235 77, in /data, seed of-the-image, PATH /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin, HOME /data,",
        "keeper: zombies 0, tmp 1777, keeper, resolver 1.",
    ] {
        assert!(said.contains(line), "`{line}` is not in:\n{said}");
    }

    // A command that ends is started again, by the rule for every guest, and the rack says how it ended.
    rack.until_status("the end of `ends` to be told", CHANGE_LIMIT, |status| {
        let ends = guest(status, "ends");
        ends.restarts >= 2 && ends.detail.contains("its command ended: exit status 3")
    });
    assert!(console(&rack, "ends").contains("the end is near"));

    // A stop lets the command end by itself; what it wrote to its volume is there at the next start.
    rack.client().order(Request::Stop { guest: "keeper".into() }).unwrap();
    rack.until_status("keeper to stop", CHANGE_LIMIT, |status| guest(status, "keeper").state == State::Stopped);
    let stopped = "keeper: stopped (its command ended: exit status 0, as the guest was asked to stop)";
    rack.until_console(stopped, CHANGE_LIMIT);
    assert!(console(&rack, "keeper").contains("keeper: asked to stop."));
    rack.client().order(Request::Start { guest: "keeper".into() }).unwrap();
    rack.until("keeper's second start", HEALTHY_LIMIT, |rack| {
        console(rack, "keeper").contains("hello, start 2,").then_some(())
    });

    rack.power_off();
    let stopped = "page: stopped (its command ended: ";
    assert!(rack.console().contains(stopped), "`{stopped}` is not on the console");
}
