//! Images that are not made of packages, as other programs make them: GNU tar, umoci, skopeo and buildah write, the
//! kernel reads the layer, and what stands in it must be what they meant.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rackstick::{
    from::{self, Built, FromError, PinError, Pinned},
    layers::{Layers, RecipeFile, stage::protocol::Marked},
};
use rackstick_image::recipe;

/// Every layer's date. Later than all that the tests make.
const EPOCH: i64 = 1_700_000_000;
const PROGRAM: &str = env!("CARGO_BIN_EXE_rackstick");

/// Runs a script of bash in a folder, which must succeed; what it wrote.
fn script(folder: &Path, text: &str) -> String {
    let text = format!("set -euo pipefail\n{text}");
    let output = Command::new("bash").args(["-c", &text]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    // One of the names is no UTF-8.
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `find`, `getfattr` and `sha256sum` say of a tree.
const LISTING: &str = r#"find . -printf '%p %y %m %U:%G %T@ %l ' \( -type f -printf '%s bytes, %n names' -o -true \) -printf '\n' | LC_ALL=C sort
    find . \( -type c -o -type b \) -exec stat -c '%n %t:%T' {} + | LC_ALL=C sort
    getfattr -R -h -d -m '^(security.capability|user)' . | LC_ALL=C sort; find . -type f -exec sha256sum {} + | LC_ALL=C sort"#;

struct Bench {
    dir: tempfile::TempDir,
    layers: Layers,
}

impl Bench {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes devices and mounts a layer: run it as root");
        let dir = tempfile::tempdir().unwrap();
        let layers = Layers::new(&dir.path().join("cache"), Path::new(PROGRAM), EPOCH, 2).unwrap();
        Self { dir, layers }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Builds the image whose recipe says `text`, from what lies beside it now.
    fn build(&self, text: &str) -> Result<Built, FromError> {
        let rack = "[rack]\nname = 'r'\nversion = '1'\nbase = 'debian:trixie'\n[guests.g]\nimage = 'app.toml'\nmemory = '64 MiB'\n";
        fs::write(self.path().join("rack.toml"), rack).unwrap();
        fs::write(self.path().join("app.toml"), text).unwrap();
        let rack = recipe::load(&self.path().join("rack.toml")).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let pinned = from::pin(&rack, scratch.path()).unwrap();
        let image = &rack.images["app"];
        let files: Vec<_> = image
            .files
            .iter()
            .map(|file| {
                let recipe::Content::Inline(text) = &file.content else { unreachable!() };
                let source = scratch.path().join(file.path.value.replace('/', "_"));
                fs::write(&source, text).unwrap();
                let owner = |owner: &Option<recipe::Placed<recipe::Owner>>| {
                    owner.as_ref().map(|owner| Marked { value: owner.value.clone(), mark: 7 })
                };
                RecipeFile {
                    path: PathBuf::from(&file.path.value),
                    source,
                    mode: file.mode,
                    owner: owner(&file.owner),
                    group: owner(&file.group),
                }
            })
            .collect();
        from::build(
            &self.layers,
            image,
            Pinned::of(image.root().unwrap(), &pinned["app"]).unwrap(),
            &files,
            scratch.path(),
            scratch.path(),
        )
    }

    /// What the kernel sees in the layers, mounted as a guest mounts them; fsck.erofs has no complaints.
    fn listing(&self, built: &Built) -> String {
        let mut lower = Vec::new();
        let mut text = "exec 3>&1 >/dev/null; mount -t tmpfs tmpfs /mnt; mkdir /mnt/none\n".to_owned();
        for (number, (_, layer)) in built.layers.iter().enumerate() {
            let path = layer.path.display();
            text += &format!("fsck.erofs {path}; mkdir /mnt/{number}; mount -o loop,ro {path} /mnt/{number}\n");
            lower.insert(0, format!("/mnt/{number}"));
        }
        text += &format!("mkdir /mnt/all; mount -t overlay -o lowerdir={}:/mnt/none x /mnt/all\n", lower.join(":"));
        text += &format!("cd /mnt/all; {{ {LISTING}; }} >&3");
        script(self.path(), &format!("unshare -m bash -euo pipefail -c '{}'", text.replace('\'', r"'\''")))
    }
}

/// A tree with everything that a file system can hold.
const TREE: &str = r#"mkdir -p rootfs/etc rootfs/bin rootfs/lib/modules rootfs/dev 'rootfs/srv/with blank'; cd rootfs
    cp /bin/true bin/app; printf 'root:x:0:0::/root:/bin/sh\nwww:x:33:44::/srv:/bin/sh\n' > etc/passwd
    printf 'root:x:0:\nwww:x:44:\nlogs:x:7:other,www\nmail:x:8:www\n' > etc/group
    chmod 4755 bin/app; ln bin/app bin/twin; setcap cap_net_raw+ep bin/app; setfattr -n user.note -v $'two\nlines' etc/passwd
    chown 70000:33 srv; chmod 1775 srv; ln -s ../etc/passwd srv/link; ln -s /nowhere srv/dangling; mkfifo srv/pipe; mknod dev/null c 1 3
    mknod dev/disk b 259 300; head -c 3000000 /dev/urandom > srv/large; : > srv/empty
    long=$(printf 'n%.0s' {1..200}); mkdir -p "srv/$long"; echo long > "srv/$long/$long"; echo latin > $'srv/caf\xe9'
    find . -exec touch -h -d '2001-02-03 04:05:06' {} +; cd .."#;

#[test]
fn a_tarball_becomes_a_layer_with_all_that_it_holds_whoever_packed_it() {
    let bench = Bench::new();
    script(bench.path(), TREE);
    let expected = script(&bench.path().join("rootfs"), LISTING);
    let recipe = "from = { rootfs = 'image.tar' }\ncommand = ['app']\n";
    let mut digests = Vec::new();
    for (format, pack) in [("pax", "cat"), ("pax", "gzip"), ("pax", "xz -0"), ("pax", "zstd"), ("gnu", "zstd")] {
        // GNU's own format knows no attributes.
        let strip =
            if format == "gnu" { "setcap -r rootfs/bin/app; setfattr -x user.note rootfs/etc/passwd" } else { "true" };
        let tar = "tar --sort=name --numeric-owner --xattrs --xattrs-include='*' -C rootfs -c .";
        let tar = if format == "gnu" { "tar --sort=name --numeric-owner -C rootfs -c ." } else { tar };
        script(bench.path(), &format!("{strip}; {tar} --format={format} | {pack} > image.tar"));
        let built = bench.build(recipe).unwrap_or_else(|error| panic!("{format} {pack}: {error}"));
        let expected = if format == "gnu" { script(&bench.path().join("rootfs"), LISTING) } else { expected.clone() };
        assert_eq!(bench.listing(&built), expected, "{format} {pack}");
        digests.push(built.layers[0].1.digest);
    }
    assert!(digests[..4].windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
}

#[test]
fn files_lie_above_the_image_and_the_command_runs_as_the_images_own_user() {
    let bench = Bench::new();
    script(bench.path(), &format!("{TREE}\ntar --xattrs -C rootfs -c . > image.tar"));
    let recipe = r#"
from    = { rootfs = "image.tar" }
command = ["app", "--flag"]
env     = { MODE = "production", HOME = "/tmp" }
workdir = "/srv"
user    = "www"

[[files]]
path    = "/srv/link/of/no/use"
content = ""
owner   = "www"
group   = "logs"
"#;
    let error = bench.build(recipe).unwrap_err().to_string();
    assert!(error.contains("`passwd` on the way to it is no folder"), "{error}");
    let built = bench.build(&recipe.replace("/srv/link/of/no/use", "/srv/with blank/new")).unwrap();
    let process = built.start.process.clone().unwrap();
    assert_eq!(built.start.init, ["app", "--flag"]);
    assert_eq!((process.uid, process.gid, process.groups.as_slice()), (33, 44, &[7, 8][..]));
    assert_eq!((process.workdir.as_str(), process.stop_signal), ("/srv", 15));
    assert_eq!((process.env["MODE"].as_str(), process.env["HOME"].as_str()), ("production", "/tmp"));
    assert!(process.env["PATH"].contains("/usr/bin"));
    let listing = bench.listing(&built);
    assert!(listing.contains("./srv/with blank/new f 644 33:7 "), "{listing}");
    let nobody = recipe.replace("/srv/link/of/no/use", "/new").replace("\"logs\"", "\"none\"");
    let error = bench.build(&nobody).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(format!("{error:?} {cause}").contains("the image has no group `none`"), "{error:?}: {cause}");
    // The folders above it are as the image has them.
    assert!(listing.contains("./srv d 1775 70000:33 "), "{listing}");
    // Another recipe of the same image shares its layer; and what was built is not built again.
    let other = bench.build("from = { rootfs = 'image.tar' }\ncommand = ['/bin/app']\nuser = '5:mail'\n").unwrap();
    assert_eq!(other.layers[0], built.layers[0]);
    assert_eq!((other.layers.len(), other.start.process.unwrap().gid), (1, 8));
    script(bench.path(), "find cache -name '*.found' | while read -r f; do grep -q init $f; done");
}

#[test]
fn what_can_not_be_started_is_found_when_it_is_built() {
    let bench = Bench::new();
    script(
        bench.path(),
        &format!(
            "{TREE}\nprintf '\\x7fELF%014d\\xb7\\0' 0 > rootfs/bin/arm; chmod 755 rootfs/bin/arm; tar -C rootfs -c . > image.tar"
        ),
    );
    for (lines, said) in [
        ("", "names no command, and it has no /sbin/init"),
        ("command = ['nothing']", "has no program `nothing`; looked for /usr/local/sbin/nothing"),
        ("command = ['/etc/passwd']", "/etc/passwd is no program"),
        ("command = ['arm']", "is a program for another processor (ELF machine 183)"),
        ("command = ['app']\nuser = 'nobody'", "has no user `nobody`"),
        ("command = ['app']\nuser = 'www:none'", "has no group `none`"),
    ] {
        let error = bench.build(&format!("from = {{ rootfs = 'image.tar' }}\n{lines}\n")).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(source.contains(said) && source.contains("app.toml:"), "{lines}: {error}: {source}");
    }
    fs::write(bench.path().join("image.tar"), "no archive at all").unwrap();
    let error = bench.build("from = { rootfs = 'image.tar' }\ncommand = ['app']\n").unwrap_err();
    assert!(error.to_string().contains("image.tar is no tar archive") && error.is_of_the_input(), "{error}");
}

/// An image of two layers, the second of which removes and replaces; with what umoci itself makes of it in
/// `expected/rootfs`.
const UMOCI: &str = r#"
    umoci init --layout layout; umoci new --image layout:app; umoci unpack --image layout:app bundle
    cp -a rootfs/. bundle/rootfs/; rm bundle/rootfs/dev/*; umoci repack --refresh-bundle --image layout:app bundle
    rm -r 'bundle/rootfs/srv/with blank' bundle/rootfs/srv/empty bundle/rootfs/bin/twin; echo new > bundle/rootfs/etc/motd
    rm bundle/rootfs/srv/link; mkdir bundle/rootfs/srv/link; echo in > bundle/rootfs/srv/link/in
    find bundle/rootfs -newermt 2005-01-01 -exec touch -h -d '2002-02-03 04:05:06' {} +
    umoci repack --image layout:app bundle
    umoci config --image layout:app --architecture amd64 --os linux --config.user www --config.workingdir /srv \
        --config.env MODE=image --config.env A=b=c --config.entrypoint app --config.cmd=--flag --config.stopsignal SIGQUIT
    umoci gc --layout layout; umoci unpack --image layout:app expected"#;

#[test]
fn an_oci_image_becomes_the_same_layer_in_whichever_form_it_is_kept() {
    let bench = Bench::new();
    script(bench.path(), &format!("{TREE}\n{UMOCI}"));
    script(
        bench.path(),
        "skopeo() { command skopeo --insecure-policy --tmpdir . \"$@\" >&2; }
         skopeo copy oci:layout:app oci-archive:app.tar; gzip -c app.tar > app.tar.gz
         skopeo copy oci:layout:app docker-archive:saved.tar:app:latest
         b() { STORAGE_DRIVER=vfs buildah --root $PWD/store --runroot $PWD/run \"$@\"; }
         b push --compression-format zstd $(b pull --quiet oci-archive:app.tar) oci:zstd:app
         grep -q tar+zstd zstd/blobs/sha256/*",
    );
    let expected = script(&bench.path().join("expected/rootfs"), LISTING);
    let mut layers = Vec::new();
    for name in ["layout", "app.tar", "app.tar.gz", "saved.tar", "zstd"] {
        let built =
            bench.build(&format!("from = {{ oci = '{name}' }}\n")).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(bench.listing(&built), expected, "{name}");
        let process = built.start.process.unwrap();
        assert_eq!(built.start.init, ["app", "--flag"], "{name}");
        assert_eq!((process.uid, process.gid, process.groups.as_slice()), (33, 44, &[7, 8][..]));
        assert_eq!((process.workdir.as_str(), process.stop_signal), ("/srv", 3));
        assert_eq!((process.env["MODE"].as_str(), process.env["A"].as_str()), ("image", "b=c"));
        layers.push(built.layers[0].1.digest);
    }
    assert!(layers.windows(2).all(|pair| pair[0] == pair[1]), "{layers:?}");
    // The recipe's words come before the image's.
    let own =
        "from = { oci = 'app.tar' }\ncommand = ['/bin/app']\nenv = { MODE = 'recipe' }\nworkdir = '/'\nuser = '0'\n";
    let process = bench.build(own).unwrap().start.process.unwrap();
    assert_eq!((process.env["MODE"].as_str(), process.env["A"].as_str()), ("recipe", "b=c"));
    assert_eq!((process.workdir.as_str(), process.uid), ("/", 0));
}

#[test]
fn a_blob_that_is_not_what_its_name_says_is_refused() {
    let bench = Bench::new();
    script(bench.path(), &format!("{TREE}\n{UMOCI}"));
    let blobs = script(bench.path(), "cd layout/blobs/sha256; ls | sort");
    for blob in blobs.lines() {
        let path = bench.path().join("layout/blobs/sha256").join(blob);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let last = bad.len() - 1;
        bad[last] ^= 1;
        fs::write(&path, bad).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let rack = recipe_of(&bench, "layout");
        // A manifest or configuration is found when the rack is locked, a layer when it is built.
        let error = match from::pin(&rack, scratch.path()) {
            Err(error) => told(&error),
            Ok(_) => bench.build("from = { oci = 'layout' }\n").unwrap_err().to_string(),
        };
        assert!(error.contains("is damaged") && error.contains("layout"), "{blob}: {error}");
        fs::write(&path, good).unwrap();
    }
    bench.build("from = { oci = 'layout' }\n").unwrap();
}

/// An error of a recipe with its places.
fn told(error: &PinError) -> String {
    let PinError::Recipe(wrong) = error else { panic!("{error}") };
    wrong.to_string()
}

fn recipe_of(bench: &Bench, name: &str) -> recipe::Rack {
    let rack = "[rack]\nname = 'r'\nversion = '1'\nbase = 'debian:trixie'\n[guests.g]\nimage = 'app.toml'\nmemory = '64 MiB'\n";
    fs::write(bench.path().join("rack.toml"), rack).unwrap();
    fs::write(bench.path().join("app.toml"), format!("from = {{ oci = '{name}' }}\n")).unwrap();
    recipe::load(&bench.path().join("rack.toml")).unwrap()
}

#[test]
fn of_several_platforms_the_racks_own_is_taken_and_of_several_images_none() {
    let bench = Bench::new();
    script(bench.path(), &format!("{TREE}\n{UMOCI}"));
    // An index of two platforms, as registries have them, put together by buildah.
    script(
        bench.path(),
        "export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
         b() { buildah --root $PWD/store --runroot $PWD/run \"$@\" >&2; }
         skopeo --insecure-policy copy oci:layout:app oci-archive:amd64.tar >&2
         umoci config --image layout:app --architecture arm64; skopeo --insecure-policy copy oci:layout:app oci-archive:arm64.tar >&2
         b manifest create both; b manifest add both oci-archive:amd64.tar; b manifest add both oci-archive:arm64.tar
         b manifest push --all both oci:both:latest",
    );
    let alone = bench.build("from = { oci = 'amd64.tar' }\n").unwrap();
    let both = bench.build("from = { oci = 'both' }\n").unwrap();
    assert_eq!(both.layers[0].1.digest, alone.layers[0].1.digest);
    let scratch = tempfile::tempdir().unwrap();
    let error = told(&from::pin(&recipe_of(&bench, "arm64.tar"), scratch.path()).unwrap_err());
    assert!(error.contains("arm64.tar holds no image for linux/amd64, only for linux/arm64"), "{error}");
    assert!(error.contains("app.toml:1:16: "), "it has the place where the recipe names it: {error}");
    script(
        bench.path(),
        "umoci config --image layout:app --architecture amd64; umoci tag --image layout:app one
         umoci config --image layout:app --config.user root",
    );
    let error = told(&from::pin(&recipe_of(&bench, "layout"), scratch.path()).unwrap_err());
    assert!(error.contains("holds 2 images for linux/amd64 (") && error.contains("one"), "{error}");
}

#[test]
fn a_file_that_two_images_share_is_locked_by_the_name_that_each_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    write("sub/x.tar", "x");
    write("a.toml", "from = { rootfs = 'sub/x.tar' }\n");
    write("sub/b.toml", "from = { rootfs = 'x.tar' }\n");
    let guests = [("a", "a.toml"), ("b", "sub/b.toml")]
        .map(|(name, image)| format!("[guests.{name}]\nimage = '{image}'\nmemory = '64 MiB'\n"));
    write("rack.toml", &format!("[rack]\nname = 'r'\nversion = '1'\nbase = 'debian:trixie'\n{}", guests.concat()));
    let rack = recipe::load(&dir.path().join("rack.toml")).unwrap();
    let pinned = from::pin(&rack, dir.path()).unwrap();
    assert_eq!((pinned["a"].path(), pinned["b"].path()), ("sub/x.tar", "x.tar"));
    assert_eq!(pinned["a"].sha256(), pinned["b"].sha256());
}
