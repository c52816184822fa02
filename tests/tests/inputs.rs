//! Ring 3: what guests are made of: a container image, root file systems that are as small as they can be, packages
//! from somebody else's repository and from another suite of Debian's, and a release of Debian that the rack is not
//! made of. Needs the network: the base is Debian's, from this machine's mirrors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command},
    time::Duration,
};

use rackstick_api::rack::{Request, State};
use rackstick_image::lock::{Base, Lock};
use rackstick_tests::{
    client::curl,
    image::Image,
    place,
    rack::{HEALTHY_LIMIT, Options, Rack, guest},
    recipe::Recipes,
    tool, wait,
};
use tempfile::TempDir;

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

/// Its layers are compressed. Says who and where it is, counts its starts on its volume, leaves an orphan behind, and
/// ends when it is asked to.
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

/// A guest of packages that the base does not have, or not like this; and where they are.
const PACKAGED: &str = r#"
[guests.packaged]
image   = "images/packaged.toml"
memory  = "192 MiB"
address = { inside = "10.20.0.81" }
forward = ["lan:8081/tcp -> 80"]

[guests.old]
image   = "images/old.toml"
memory  = "192 MiB"
address = { inside = "10.20.0.82" }
forward = ["lan:8082/tcp -> 80"]
health  = { http = "http://:80/" }

[repositories.example]
url   = "URL"
suite = "./"
key   = "example.asc"

[repositories.backports]
suite    = "trixie-backports"
packages = ["wireguard-tools"]
"#;

const PACKAGES: &str = "packages = [\"example-agent\", \"wireguard-tools\"]\nservices = [\"example-agent.socket\"]\n";

/// A guest of an older release, which tells by HTTP which one it is, what it has of that, whether it finds the rack's
/// modules, and that nothing in it failed.
const OLD: &str = r#"
base     = "debian:bookworm"
packages = ["busybox"]
services = ["about.socket"]

[[files]]
path    = "/usr/local/bin/about"
mode    = 0o755
content = '''
#!/bin/sh
read -r method path rest
while read -r line && [ ${#line} -gt 1 ]; do :; done
printf 'HTTP/1.0 200 OK\r\n\r\n'
# Health checks need no more than that.
[ "$path" = /about ] || exit 0
. /etc/os-release
echo "release $VERSION_ID"
dpkg-query -W busybox systemd
busybox | head -n 1
echo "erofs in $(modinfo -n erofs) of $(uname -r)"
echo "failed: $(systemctl list-units --failed --plain --no-legend | tr '\n' ' ')."
'''

[[files]]
path    = "/etc/systemd/system/about.socket"
content = """
[Socket]
ListenStream=80
Accept=yes
[Install]
WantedBy=sockets.target
"""

[[files]]
path    = "/etc/systemd/system/about@.service"
content = """
[Service]
# Who asks may hang up early.
ExecStart=-/usr/local/bin/about
StandardInput=socket
"""
"#;

/// Makes a repository of one package and signs it. The package's service tells by HTTP what the guest's dpkg and its
/// programs say.
const REPOSITORY: &str = r#"set -euo pipefail; export GNUPGHOME=$PWD/gnupg; mkdir -m 700 gnupg
    mkdir -p tree/DEBIAN tree/usr/bin tree/usr/lib/systemd/system repository
    cat > tree/DEBIAN/control <<'END'
Package: example-agent
Version: 2.0-1
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: says what is installed
END
    cat > tree/usr/bin/example-agent <<'END'
#!/bin/sh
while read -r line && [ ${#line} -gt 1 ]; do :; done
printf 'HTTP/1.0 200 OK\r\n\r\n'
dpkg-query -W example-agent wireguard-tools; wg --version
END
    chmod 755 tree/usr/bin/example-agent
    printf '[Socket]\nListenStream=80\nAccept=yes\n[Install]\nWantedBy=sockets.target\n' \
        > tree/usr/lib/systemd/system/example-agent.socket
    printf '[Service]\nExecStart=/usr/bin/example-agent\nStandardInput=socket\n' \
        > tree/usr/lib/systemd/system/example-agent@.service
    dpkg-deb --root-owner-group --build tree repository >&2
    cd repository; apt-ftparchive packages . > Packages
    apt-ftparchive -o APT::FTPArchive::Release::Suite=./ release . > ../Release
    gpg --batch --quiet --passphrase '' --quick-generate-key Example ed25519 sign never
    gpg --batch --quiet --output InRelease --clear-sign ../Release; gpg --armor --export > ../example.asc; gpgconf --kill all"#;

/// Somebody's repository behind a web server, gone when dropped.
struct Repository {
    folder: TempDir,
    address: SocketAddr,
    server: Child,
}

impl Repository {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        tool::output(Command::new("bash").args(["-c", REPOSITORY]).current_dir(folder.path()));
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut server = Command::new("busybox");
        server.args(["httpd", "-f", "-p", &address.to_string(), "-h"]).arg(folder.path().join("repository"));
        let new = Self { folder, address, server: server.spawn().unwrap() };
        wait::until("the repository's server", CHANGE_LIMIT, || TcpStream::connect(address).ok());
        new
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        self.server.kill().expect("it is ours");
        self.server.wait().expect("it is ours");
    }
}

/// Gives the rack a guest of packages from elsewhere and one of an older release, and locks it. Returns the lock.
fn add_packaged(recipes: &Recipes, repository: &Repository) -> Lock {
    let rack = recipes.path("appliance.toml");
    let url = format!("http://{}", repository.address);
    fs::write(&rack, fs::read_to_string(&rack).unwrap() + &PACKAGED.replace("URL", &url)).unwrap();
    fs::write(recipes.path("images/packaged.toml"), PACKAGES).unwrap();
    fs::write(recipes.path("images/old.toml"), OLD).unwrap();
    fs::copy(repository.folder.path().join("example.asc"), recipes.path("example.asc")).unwrap();
    tool::output(tool::rackstick().arg("lock").arg(&rack));
    toml::from_str(&fs::read_to_string(recipes.path("appliance.lock")).unwrap()).unwrap()
}

/// The version that a lock has of a package, which must be of this archive.
fn version(base: &Base, name: &str, archive: &str) -> String {
    let package = &base.packages[name];
    assert_eq!(package.archive, archive, "{name}");
    package.version.clone()
}

/// The rack, with its container made as a user makes it, and pinned without asking an archive; and its lock.
fn build() -> (Image, Lock) {
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
    let repository = Repository::start();
    let lock = add_packaged(&recipes, &repository);
    let out = place::test_folder("images/appliance");
    // The archive has another base next week: its layers are no use to anybody then.
    let cache = place::caches_without_layers();
    let mut build = tool::rackstick();
    build.arg("build").arg(&rack).arg("-o").arg(&out).env("RACKSTICK_CACHE", cache.path());
    println!("{}", tool::output(&mut build));
    (Image::only_one_in(&out), lock)
}

/// Each base is a layer of its own, and the packages of each are told as what they are.
fn check_bases(image: &Image) {
    let labels = |name: &str| -> Vec<&str> {
        image.manifest.images[name].layers.iter().map(|layer| layer.label.as_str()).collect()
    };
    assert_eq!(labels("packaged")[0], "base");
    assert_eq!(labels("old")[0], "base debian:bookworm");
    assert_eq!(labels("old")[1], labels("packaged")[1], "the rack's kernel");
    let provenance = fs::read_to_string(image.path.with_extension("provenance.json")).unwrap();
    let sbom = fs::read_to_string(image.path.with_extension("spdx.json")).unwrap();
    for text in [provenance, sbom] {
        let of = |distro: &str| text.contains("pkg:deb/debian/bash@") && text.contains(&format!("&distro={distro}\""));
        assert!(of("bookworm") && of("trixie"));
    }
    tool::output(
        Command::new(place::cache().join("spdx-tools/bin/pyspdxtools"))
            .arg("--infile")
            .arg(image.path.with_extension("spdx.json")),
    );
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
fn a_container_a_tarball_packages_from_elsewhere_and_another_release_run_as_guests_like_any_other() {
    let (image, lock) = build();
    check_compression(&image);
    check_bases(&image);
    let mut rack = Rack::start("inputs", &image, Options::default());
    let status = rack.until_status("page, keeper, packaged and old healthy", HEALTHY_LIMIT, |status| {
        ["page", "keeper", "packaged", "old"].iter().all(|name| guest(status, name).healthy)
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

    // The packages: those that the lock names, by dpkg's word and by the program's own; trixie's program says
    // v1.0.20210914.
    let example = version(lock.own(), "example-agent", "example");
    let wireguard = version(lock.own(), "wireguard-tools", "backports");
    assert!(wireguard.contains("~bpo13"), "{wireguard}");
    let said = rack.until("packaged to answer", HEALTHY_LIMIT, |rack| curl(rack.address("8081/tcp"), "/").ok());
    let upstream = wireguard.split('-').next().unwrap();
    for line in [
        format!("example-agent\t{example}\n"),
        format!("wireguard-tools\t{wireguard}\n"),
        format!("wireguard-tools v{upstream} "),
    ] {
        assert!(said.contains(&line), "`{line}` is not in:\n{said}");
    }

    // The older release: by its own word, dpkg's and the program's, with the rack's kernel.
    let bookworm = &lock.bases["debian:bookworm"];
    let [busybox, systemd] = ["busybox", "systemd"].map(|name| bookworm.packages[name].version.clone());
    assert_ne!(systemd, lock.own().packages["systemd"].version);
    let said = rack.until("old to answer", HEALTHY_LIMIT, |rack| curl(rack.address("8082/tcp"), "/about").ok());
    let upstream = busybox.split(['-', '+']).next().unwrap();
    let upstream = upstream.split_once(':').map_or(upstream, |(_, version)| version);
    for line in [
        "release 12\n".to_owned(),
        format!("busybox\t{busybox}\n"),
        format!("systemd\t{systemd}\n"),
        format!("BusyBox v{upstream} "),
        "kernel/fs/erofs/erofs.ko.xz of 6.".to_owned(),
        "failed: .\n".to_owned(),
    ] {
        assert!(said.contains(&line), "`{line}` is not in:\n{said}");
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
