//! Layers from packages: what goes in must come out, the same each time, and nothing may get past the tree.
//! The judges are the kernel, which mounts a layer, fsck.erofs and the machine's own dpkg.

#![allow(clippy::unwrap_used)]

mod accounts;
mod cache;
mod hostile;
mod mini;
mod ordinary_user;
mod twice;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use mini::Workshop;
use rackstick::layers::{
    Additions, Base, Error, Layer, Layers, Package, RecipeFile,
    stage::{
        self,
        protocol::{Changes, Marked},
    },
};

/// Every layer's date. Before any file that a test makes.
const EPOCH: i64 = 1_700_000_000;
const PROGRAM: &str = env!("CARGO_BIN_EXE_rackstick");

struct Bench {
    dir: tempfile::TempDir,
    layers: Layers,
    workshop: Workshop,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layers = Layers::new(&dir.path().join("cache"), Path::new(PROGRAM), EPOCH, 2).unwrap();
        let workshop = Workshop::new(&dir.path().join("packages"));
        Self { dir, layers, workshop }
    }

    fn base(&self) -> Base {
        self.layers.base(&[self.workshop.base()], &|_| ()).unwrap()
    }

    /// The layer of an image that is packages alone.
    fn image(&self, base: &Base, packages: &[Package]) -> Result<Layer, Error> {
        let additions = Additions { packages: packages.to_vec(), ..Additions::default() };
        let layers = self.layers.image("test", base, &additions, &|_| ())?;
        let [(label, layer)] = &layers[..] else { panic!("{layers:?}") };
        assert_eq!(label, "packages of test");
        Ok(layer.clone())
    }

    /// What the kernel sees in a layer, copied out of it; fsck.erofs has no complaints.
    fn unpacked(&self, layer: &Layer) -> PathBuf {
        assert!(rustix::process::geteuid().is_root(), "this test mounts a layer: run it as root");
        let target = self.dir.path().join(layer.digest.to_string());
        if target.exists() {
            return target;
        }
        let script = "fsck.erofs \"$0\" && mount -o loop,ro \"$0\" /mnt && cp -a /mnt \"$1\"";
        let mut copy = Command::new("unshare");
        let done = copy.args(["-m", "sh", "-c", script]).arg(&layer.path).arg(&target).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        target
    }

    /// What a guest sees of a base and the layers above it: the kernel lays one over the other, and all is copied out.
    fn merged(&self, base: &Base, layers: &[(String, Layer)]) -> PathBuf {
        let layers: Vec<&Layer> = layers.iter().map(|(_, layer)| layer).chain([&base.layer]).collect();
        let target = self.dir.path().join(format!("{}-merged", layers[0].digest));
        let mount = |layer: &&Layer| {
            let (path, digest) = (layer.path.display(), layer.digest);
            format!("fsck.erofs '{path}' && mkdir /mnt/{digest} && mount -o loop,ro '{path}' /mnt/{digest}")
        };
        let mounts: Vec<String> = layers.iter().map(mount).collect();
        // The highest first; the base came last.
        let (base, above) = layers.split_last().unwrap();
        let order: Vec<String> =
            above.iter().rev().chain([base]).map(|layer| format!("/mnt/{}", layer.digest)).collect();
        let script = format!(
            "mount -t tmpfs none /mnt && {} && mkdir /mnt/all && mount -t overlay -o ro,lowerdir={} none /mnt/all \
             && cp -a /mnt/all \"$0\"",
            mounts.join(" && "),
            order.join(":")
        );
        let done = Command::new("unshare").args(["-m", "sh", "-c", &script]).arg(&target).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        target
    }

    /// What lies in the cache beside finished layers.
    fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path().join("cache")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| [".work", ".partial", ".again"].iter().any(|end| name.ends_with(end))).collect()
    }
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_package_is_unpacked_as_dpkg_would_and_configured_by_dpkg() {
    let bench = Bench::new();
    let mut draft = bench.workshop.draft("all-kinds");
    let long = format!("/usr/share/{}/{}", "d".repeat(90), "f".repeat(200));
    draft.file(&long, b"long", 0o644).file("/usr/bin/suid", b"x", 0o4755).file("/etc/all/conf", b"conf\n", 0o640).file(
        "/lib/all/old",
        b"moved",
        0o644,
    );
    draft.file("/DEBIAN/conffiles", b"/etc/all/conf\nremove-on-upgrade /etc/all/former\n", 0o644);
    fs::hard_link(draft.path("/usr/bin/suid"), draft.path("/usr/bin/twin")).unwrap();
    symlink("../all/conf", draft.path("/etc/all/link")).unwrap();
    draft.script("preinst", "test \"$1\" = install; test \"$DPKG_MAINTSCRIPT_PACKAGE\" = all-kinds; test ! -e /etc/all; echo > /etc/preinst");
    draft.script(
        "postinst",
        "test -f /etc/preinst; test ! -s /etc/resolv.conf; cat /etc/resolv.conf /etc/all/conf > /etc/seen; chown daemon /etc/seen\n\
         cp /bin/true /usr/bin/capable; setcap cap_net_raw+ep /usr/bin/capable\n\
         hostname > /etc/host; date +%Z > /etc/zone; echo $SOURCE_DATE_EPOCH > /etc/epoch; ls /proc/1 > /dev/null; echo > /tmp/x; echo > /run/x\n\
         sleep 1000 &\n\
         rm /usr/share/dpkg/tupletable",
    );
    let watcher = bench.workshop.draft("watcher");
    watcher.file("/DEBIAN/triggers", b"interest-noawait /usr/share/watched\n", 0o644);
    watcher.script("postinst", "echo $1 >> /etc/watcher");
    let base = bench.layers.base(&[bench.workshop.base(), watcher.build()], &|_| ()).unwrap();
    draft.file("/usr/share/watched/it", b"", 0o644);
    draft.control("Multi-Arch: same");
    let layer = bench.image(&base, &[draft.build()]).unwrap();
    let root = bench.unpacked(&layer);

    let suid = fs::metadata(root.join("usr/bin/suid")).unwrap();
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.nlink()), (0o4755, 0, 2));
    assert_eq!(suid.ino(), fs::metadata(root.join("usr/bin/twin")).unwrap().ino());
    assert_eq!(fs::metadata(root.join("etc/all/conf")).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::read_link(root.join("etc/all/link")).unwrap(), Path::new("../all/conf"));
    assert_eq!(read(root.join("usr/lib/all/old")), "moved");
    assert_eq!(read(root.join(long.strip_prefix('/').unwrap())), "long");
    assert!(!root.join("lib").exists(), "only the base has the symlink");
    assert_eq!(
        (read(root.join("etc/seen")), fs::metadata(root.join("etc/seen")).unwrap().uid()),
        ("conf\n".to_owned(), 1)
    );
    assert_eq!(read(root.join("etc/host")), "rackstick\n");
    assert_eq!((read(root.join("etc/zone")), read(root.join("etc/epoch"))), ("UTC\n".to_owned(), format!("{EPOCH}\n")));
    assert_eq!(read(root.join("etc/watcher")), "configure\ntriggered\n", "unpacking sets off the base's trigger");
    assert!(
        fs::symlink_metadata(root.join("usr/share/dpkg/tupletable")).unwrap().file_type().is_char_device(),
        "a whiteout"
    );
    for absent in [
        "tmp",
        "run",
        "proc",
        "dev",
        "usr/sbin/policy-rc.d",
        "etc/all/conf.dpkg-new",
        "etc/resolv.conf",
        "var/lib/dpkg/lock",
    ] {
        assert!(!root.join(absent).exists(), "{absent}");
    }
    let capability = Command::new("getcap").arg(root.join("usr/bin/capable")).output().unwrap();
    assert!(String::from_utf8_lossy(&capability.stdout).contains("cap_net_raw=ep"), "{capability:?}");
    for path in ["usr/bin/suid", "etc/seen", "etc"] {
        assert!(fs::metadata(root.join(path)).unwrap().mtime() <= EPOCH, "{path}");
    }
    let admin = format!("--admindir={}", root.join("var/lib/dpkg").display());
    let state =
        Command::new("dpkg-query").args([&admin, "-W", "-f=${Package} ${db:Status-Abbrev}\n"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&state.stdout), "all-kinds ii \nmini-base ii \nwatcher ii \n");
    assert!(read(root.join("var/lib/dpkg/info/all-kinds:amd64.list")).starts_with("/.\n/"));
    assert!(read(root.join("var/lib/dpkg/status")).contains("\n /etc/all/former newconffile remove-on-upgrade\n"));
    assert_eq!(bench.leftovers(), [""; 0]);
}

#[test]
fn a_preinst_script_finds_what_it_depends_on_configured() {
    let bench = Bench::new();
    let base = bench.base();
    let mut server = bench.workshop.draft("a-server");
    server.control("Pre-Depends: z-tool").file("/usr/share/a-server", b"", 0o644);
    server.script("preinst", "test \"$(cat /etc/z-tool)\" = configured; test ! -e /usr/share/a-server");
    let tool = bench.workshop.draft("z-tool");
    tool.script("postinst", "echo configured > /etc/z-tool");
    bench.image(&base, &[server.build(), tool.build()]).unwrap();
}

#[test]
fn a_preinst_script_runs_where_dpkg_would_run_it() {
    let bench = Bench::new();
    let base = bench.base();
    let packages = ["one", "two"].map(|name| {
        let mut draft = bench.workshop.draft(name);
        draft.control("Multi-Arch: same").file("/DEBIAN/templates", name.as_bytes(), 0o644);
        // As debconf does to learn whose question it is, and where its text stands.
        draft.script(
            "preinst",
            "cat /var/lib/dpkg/tmp.ci/control \"${0%preinst}templates\" > /etc/preinst.$DPKG_MAINTSCRIPT_PACKAGE\n\
             echo $0 >> /etc/scripts; mkdir /var/lib/dpkg/tmp.ci/more",
        );
        draft.build()
    });
    let root = bench.unpacked(&bench.image(&base, &packages).unwrap());
    for name in ["one", "two"] {
        let seen = read(root.join(format!("etc/preinst.{name}")));
        assert!(seen.starts_with(&format!("Package: {name}\n")) && seen.ends_with(&format!("\n{name}")), "{seen}");
        assert_eq!(read(root.join(format!("var/lib/dpkg/info/{name}:amd64.templates"))), name);
    }
    assert_eq!(read(root.join("etc/scripts")), "/var/lib/dpkg/tmp.ci/preinst\n".repeat(2));
    assert!(!root.join("var/lib/dpkg/tmp.ci").exists());
}

#[test]
fn what_is_drawn_at_random_is_left_to_the_guest() {
    let bench = Bench::new();
    let base = bench.base();
    // As the real one: the script draws a key unless there is one, and then gives it away.
    let named = bench.workshop.draft("bind9");
    named.file("/usr/sbin/rndc-confgen", b"#!/bin/sh\necho secret > /etc/bind/rndc.key\n", 0o755);
    named.script(
        "postinst",
        "test -s /etc/bind/rndc.key || rndc-confgen -a\nchown daemon /etc/bind/rndc.key; chmod 750 /etc/bind",
    );
    let root = bench.unpacked(&bench.image(&base, &[named.build()]).unwrap());
    assert_eq!(fs::metadata(root.join("etc/bind")).unwrap().mode() & 0o777, 0o750);
    assert!(!root.join("etc/bind/rndc.key").exists());
    assert!(read(root.join("usr/sbin/rndc-confgen")).contains("secret"), "the program itself is whole");
    let unit = "rackstick-generate-rndc-key.service";
    let text = read(root.join("usr/lib/systemd/system").join(unit));
    assert!(
        text.contains("ConditionPathExists=!/etc/bind/rndc.key") && text.contains("Before=named.service"),
        "{text}"
    );
    let needed = root.join("usr/lib/systemd/system/named.service.requires").join(unit);
    assert_eq!(fs::read_link(needed).unwrap(), Path::new("..").join(unit));
}

#[test]
fn what_a_recipe_asks_for_beside_packages_is_a_small_layer_of_its_own_above_theirs() {
    let bench = Bench::new();
    let ground = bench.workshop.draft("ground");
    for path in ["/usr/share/ground/kept", "/usr/share/ground/removed", "/usr/share/gone/x", "/usr/share/new/of-base"] {
        ground.file(path, path.as_bytes(), 0o644);
    }
    let base = bench.layers.base(&[bench.workshop.base(), ground.build()], &|_| ()).unwrap();
    let draft = bench.workshop.draft("packed");
    draft.file("/usr/share/packed/kept", b"kept", 0o600).file("/usr/share/packed/hidden", &vec![7; 1 << 20], 0o644);
    // Whiteouts in the layer of packages, and a folder of it that hides one of the base.
    draft.script(
        "postinst",
        "rm /usr/share/ground/removed; rm -r /usr/share/gone /usr/share/new; mkdir /usr/share/new; echo packed > /usr/share/new/x\n\
         mkdir -p /var/log/packed; echo log > /var/log/packed/log; echo > /etc/passwd-",
    );
    let packages = vec![draft.build()];
    let page = bench.dir.path().join("page");
    let marked = |value| Marked { value, mark: 0 };
    let script = "rm /usr/share/packed/hidden; rm -r /usr/share/new; mkdir /usr/share/new; echo own > /usr/share/new/y\n\
                  chmod 640 /usr/share/packed/kept; cp /srv/page /srv/copy; test ! -e /usr/share/ground/removed";
    let commands = vec![marked(["sh", "-ec", script].map(str::to_owned).to_vec())];
    let file = RecipeFile { path: "/srv/page".into(), source: page.clone(), ..RecipeFile::default() };
    let additions = Additions {
        packages: packages.clone(),
        files: vec![file],
        changes: Changes { commands, ..Changes::default() },
    };

    let steps = Mutex::new(Vec::new());
    let step = |text: &str| steps.lock().unwrap().push(text.to_owned());
    let mut built = Vec::new();
    for text in ["first", "second", "first"] {
        fs::write(&page, text).unwrap();
        let layers = bench.layers.image("one", &base, &additions, &step).unwrap();
        let root = bench.merged(&base, &layers);
        assert_eq!((read(root.join("srv/page")), read(root.join("srv/copy"))), (text.to_owned(), text.to_owned()));
        let names = |folder: &str| {
            let mut names: Vec<_> =
                fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names("usr/share/ground"), ["kept"]);
        assert_eq!(names("usr/share/new"), ["y"], "neither what the base nor what the package had there");
        assert_eq!(names("usr/share/packed"), ["kept"]);
        assert_eq!(fs::metadata(root.join("usr/share/packed/kept")).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(names("var/log/packed"), [""; 0], "logs of packages are cleaned away");
        assert!(!root.join("usr/share/gone").exists() && !root.join("etc/passwd-").exists());
        fs::remove_dir_all(root).unwrap();
        let labels: Vec<&str> = layers.iter().map(|(label, _)| label.as_str()).collect();
        assert_eq!(labels, ["packages of one", "one"]);
        assert!(layers[0].1.size > 1 << 20 && layers[1].1.size < 1 << 17, "{layers:?}");
        built.push(layers);
        let configured = steps.lock().unwrap().iter().filter(|step| step.contains("packed")).count();
        assert_eq!(configured > 0, built.len() == 1, "{:?}", steps.lock().unwrap());
        steps.lock().unwrap().clear();
    }
    assert_eq!(built[0], built[2]);
    assert_eq!(built[0][0].1, built[1][0].1, "another page, the same layer of packages");
    assert_ne!(built[0][1].1, built[1][1].1);

    // Images with the same packages share their layer, and one without any has none.
    let other = Additions { packages, ..Additions::default() };
    assert_eq!(bench.layers.image("two", &base, &other, &step).unwrap()[0].1, built[0][0].1);
    assert_eq!(*steps.lock().unwrap(), [""; 0]);
    assert_eq!(bench.layers.image("three", &base, &Additions::default(), &step).unwrap(), []);
    let file = RecipeFile { path: "/srv/page".into(), source: page, ..RecipeFile::default() };
    let files = Additions { files: vec![file], ..Additions::default() };
    let layers = bench.layers.image("four", &base, &files, &step).unwrap();
    assert_eq!((layers.len(), layers[0].0.as_str()), (1, "four"));
    assert_eq!(read(bench.merged(&base, &layers).join("usr/share/gone/x")), "/usr/share/gone/x");
    assert_eq!(bench.leftovers(), [""; 0]);
}

#[test]
fn a_script_that_fails_is_shown_and_leaves_no_layer() {
    let bench = Bench::new();
    let base = bench.base();
    let before = fs::read_dir(bench.dir.path().join("cache")).unwrap().count();
    let bad = |name: &str, script: &str| {
        let draft = bench.workshop.draft(name);
        draft.script(script, "echo the disk is not round; exit 3");
        draft.build()
    };
    let fine = bench.workshop.draft("fine").build();
    for (package, what) in [
        (bad("bad-preinst", "preinst"), "the preinst script of package bad-preinst"),
        (bad("bad-postinst", "postinst"), "the scripts of package bad-postinst"),
    ] {
        let error = bench.image(&base, &[fine.clone(), package]).unwrap_err();
        let Error::Stage { label, source: stage::Error::Script { what: found, how, output } } = error else {
            panic!("{error}");
        };
        assert_eq!((label.as_str(), found.as_str()), ("test", what));
        assert!(output.contains("the disk is not round"), "{how}: {output}");
        assert_eq!(bench.leftovers(), [""; 0]);
    }
    let layers = fs::read_dir(bench.dir.path().join("cache")).unwrap();
    let locks = layers.filter(|entry| entry.as_ref().unwrap().path().extension().unwrap() == "lock").count();
    assert_eq!(
        fs::read_dir(bench.dir.path().join("cache")).unwrap().count(),
        before + locks - 1,
        "locks are all that is new"
    );
}

/// The stage's process sees a tmpfs of 8 MiB in place of the cache.
#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts a small tmpfs: run it as root");
    let bench = Bench::new();
    let cache = bench.dir.path().join("small");
    let wrapper = bench.dir.path().join("wrapper");
    let script = format!(
        "#!/bin/sh\nexec /usr/bin/unshare -m /bin/sh -c '/bin/mount -t tmpfs -o size=8m,mode=0755 none {} && exec {PROGRAM} \"$@\"' sh \"$@\"\n",
        cache.display()
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let layers = Layers::new(&cache, &wrapper, EPOCH, 2).unwrap();
    let draft = bench.workshop.draft("large");
    draft.file("/usr/share/large", &vec![1; 32 << 20], 0o644);
    let error = layers.base(&[draft.build()], &|_| ()).unwrap_err();
    let Error::Stage { source: stage::Error::NoSpace { what, .. }, .. } = &error else { panic!("{error:?}") };
    assert!(what.contains("/usr/share/large"), "{what}");
    assert!(rackstick_image::full::is_behind(&error), "else nobody says what to do");
}
