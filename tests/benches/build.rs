//! How long builds take: all of a rack, and what is left to do after a change. Beside them mkosi, where it is
//! installed, which builds one bootable image with the same web server.

#![allow(clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use rackstick_tests::{
    bench::{Measure, report},
    memory, place,
    recipe::Recipes,
    tool,
};
use tempfile::TempDir;

/// Interleaved, so that another load on this machine strikes all measures.
const RUNS: usize = 3;
/// A rack with one guest, as small as one can be written down.
const ONE_GUEST: &str = "\
[rack]
name = \"one\"
version = \"1\"
base = \"debian:trixie\"

[networks.lan]
uplink = \"auto\"

[guests.web]
image = \"images/nginx.toml\"
memory = \"256 MiB\"
address = { lan = \"dhcp\" }
";
/// Its image.
const NGINX: &str = "packages = [\"nginx-light\"]\nservices = [\"nginx\"]\n";

fn main() {
    let recipes = Recipes::copy();
    let (lab, one) = (recipes.path("lab.toml"), recipes.path("one.toml"));
    for (path, text) in [("one.toml", ONE_GUEST), ("images/nginx.toml", NGINX)] {
        fs::write(recipes.path(path), text).expect("a copy can be written");
    }
    let mkosi = Mkosi::installed();
    // Packages are fetched before time is measured, and looking at memory takes some.
    let memory = Build::cold().peak(&lab);
    Build::cold().run(&one);
    if let Some(mkosi) = &mkosi {
        mkosi.run();
    }

    let mut seconds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut ratio = Vec::new();
    for run in 0..RUNS {
        let mut note = |what, value| seconds.entry(what).or_default().push(value);
        let build = Build::cold();
        note("whole", build.run(&lab));
        note("nothing", build.run(&lab));

        let page = recipes.path("images/web/index.html");
        let before = fs::read_to_string(&page).expect("the recipe has a page");
        fs::write(&page, format!("{before}<!-- {run} -->\n")).expect("a copy can be written");
        note("file", build.run(&lab));

        let image = recipes.path("images/dns.toml");
        let (text, lock) = (fs::read(&image).expect("a recipe"), fs::read(recipes.path("lab.lock")).expect("a lock"));
        recipes.edit("images/dns.toml", "\"bind9\"", "\"bind9\", \"hello\"");
        tool::output(tool::rackstick().arg("lock").arg(&lab));
        // Fetches it into the store that all builds share.
        let vendored = TempDir::new_in(place::rig()).expect("a folder can be made");
        tool::output(tool::rackstick().arg("vendor").arg(vendored.path()).arg(&lab));
        note("package", build.run(&lab));
        for (path, content) in [(page, before.into_bytes()), (image, text), (recipes.path("lab.lock"), lock)] {
            fs::write(path, content).expect("a copy can be written");
        }

        forget_unpacked();
        let alone = Build::cold().run(&one);
        note("one", alone);
        if let Some(mkosi) = &mkosi {
            let theirs = mkosi.run();
            note("mkosi", theirs);
            ratio.push(alone / theirs);
        }
        // Last, since it leaves all packages unpacked, for the next run.
        forget_unpacked();
        note("packed", Build::cold().run(&lab));
    }
    let mut median =
        |key, measure, goal| Measure::median(measure, seconds.remove(key).expect("every run measures it"), "s", goal);
    let mut measures = vec![
        median("whole", "whole lab, no layers cached", "<= 30"),
        median("packed", "whole lab, packages not unpacked either", ""),
        median("package", "after adding one package to one image", "<= 5"),
        median("file", "after changing one file", "<= 2"),
        median("nothing", "nothing changed", "<= 0.3"),
        median("one", "one guest with nginx, only packages cached, not unpacked", ""),
        Measure::median("memory of all processes of the whole lab's build", vec![memory], "MiB", "<= 512"),
    ];
    if mkosi.is_some() {
        let theirs = median("mkosi", "mkosi: one image with nginx, packages cached", "");
        measures[5].peers.insert("mkosi", theirs.value);
        measures.push(theirs);
        measures.push(Measure::median("ours to mkosi's", ratio, "", "<= 0.25"));
    } else {
        println!(
            "mkosi is not installed (mkosi and systemd-boot, of Debian 13 or bookworm-backports): no peer is measured"
        );
    }
    report("build", &measures);
}

/// Leaves of all packages only what was fetched, which is what others keep of theirs.
fn forget_unpacked() {
    fs::remove_dir_all(place::cache().join("store/unpacked-1")).expect("builds unpack packages");
}

/// A cache and an output folder.
struct Build {
    caches: TempDir,
    out: TempDir,
}

impl Build {
    /// Only packages are there.
    fn cold() -> Self {
        Self {
            caches: place::caches_without_layers(),
            out: TempDir::new_in(place::rig()).expect("a folder can be made"),
        }
    }

    fn command(&self, recipe: &Path) -> Command {
        let mut command = tool::rackstick();
        command.arg("build").arg(recipe).arg("-o").arg(self.out.path());
        command.env("RACKSTICK_CACHE", self.caches.path());
        command
    }

    /// Seconds.
    fn run(&self, recipe: &Path) -> f64 {
        let mut command = self.command(recipe);
        let started = Instant::now();
        tool::output(&mut command);
        started.elapsed().as_secs_f64()
    }

    /// MiB that all of its processes take at once when they take most.
    fn peak(&self, recipe: &Path) -> f64 {
        let mut child = self.command(recipe).stdout(Stdio::null()).spawn().expect("the command was compiled");
        let (status, peak) = memory::peak_mib(&mut child);
        assert!(status.success(), "the build failed");
        peak
    }
}

/// A folder in which mkosi builds.
struct Mkosi(TempDir);

impl Mkosi {
    fn installed() -> Option<Self> {
        let answers = |program| Command::new(program).arg("--version").output().is_ok_and(|said| said.status.success());
        if !(answers("mkosi") && answers("bootctl")) {
            return None;
        }
        let folder = TempDir::new_in(place::rig()).expect("a folder can be made");
        let write = |path: &str, text: String| {
            let path = folder.path().join(path);
            let parent: PathBuf = path.parent().expect("it is in the folder").into();
            fs::create_dir_all(parent).and_then(|()| fs::write(path, text)).expect("a folder can be written");
        };
        let archive = "source ci/lib.sh; debian_archive";
        let archive = tool::output(Command::new("bash").args(["-c", archive]).current_dir(place::clone()));
        // Without the archive of debugging symbols, which few mirrors have.
        write(
            "mkosi.pkgmngr/etc/apt/sources.list.d/mkosi.sources",
            format!(
                "Types: deb\nURIs: {}\nSuites: trixie\nComponents: main\nSigned-By: \
                 /usr/share/keyrings/debian-archive-keyring.gpg\n",
                archive.trim()
            ),
        );
        write(
            "mkosi.conf",
            "[Distribution]\nDistribution=debian\nRelease=trixie\n[Output]\nFormat=disk\nOutputDirectory=out\n\
             CacheDirectory=cache\n[Content]\nBootable=yes\nBootloader=systemd-boot\nPackages=linux-image-amd64,systemd,\
             systemd-sysv,systemd-boot,udev,dbus,nginx-light\n"
                .to_owned(),
        );
        for name in ["out", "cache"] {
            fs::create_dir(folder.path().join(name)).expect("a folder can be written");
        }
        Some(Self(folder))
    }

    /// Seconds.
    fn run(&self) -> f64 {
        let started = Instant::now();
        tool::output(Command::new("mkosi").args(["--force", "build"]).current_dir(self.0.path()));
        started.elapsed().as_secs_f64()
    }
}
