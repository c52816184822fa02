//! Ring 3: images in a registry, asked for from Debian's docker-registry on this machine. That the same image boots is
//! shown by `inputs.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rackstick_image::digest::Sha256;
use rackstick_tests::{place, recipe::Recipes, tool};
use serde_json::Value;
use tempfile::TempDir;

/// How long a registry may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// `rack`, `secret`, as `htpasswd -B` writes them.
const ACCOUNTS: &str = "rack:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
/// `rack:secret` and `rack:guess` in base64, as `podman login` keeps them.
const RIGHT: &str = "cmFjazpzZWNyZXQ=";
const WRONG: &str = "cmFjazpndWVzcw==";
/// Where the recipe names its image.
const FROM: &str = r#"from = { oci = "appliance.tar" }"#;

/// Makes another image of the first.
const OTHER: &str = "set -e; skopeo --insecure-policy copy --quiet oci-archive:appliance.tar oci:layout:x
    umoci config --image layout:x --config.cmd=-h
    skopeo --insecure-policy copy --quiet oci:layout:x oci-archive:other.tar";

/// A registry that ends when dropped.
struct Registry {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
    credentials: Option<&'static str>,
}

impl Registry {
    /// `credentials`: with whom alone it talks.
    fn start(credentials: Option<&'static str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let accounts = folder.path().join("accounts");
        fs::write(&accounts, ACCOUNTS).unwrap();
        let auth = match credentials {
            Some(_) => format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", accounts.display()),
            None => String::new(),
        };
        let config = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\nhttp: {{ addr: \"{address}\" }}\n{auth}",
            folder.path().join("files").display()
        );
        fs::write(folder.path().join("config.yml"), config).unwrap();
        let mut command = Command::new(place::docker_registry());
        command.arg("serve").arg(folder.path().join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut new = Self { child: command.spawn().unwrap(), address, folder, credentials };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < START_LIMIT, "the registry does not start");
            assert!(new.child.try_wait().unwrap().is_none(), "the registry ended");
            std::thread::sleep(Duration::from_millis(50));
        }
        new
    }

    fn reference(&self) -> String {
        format!("{}/team/page:1", self.address)
    }

    /// Puts an OCI archive there.
    fn push(&self, archive: &Path) {
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        copy.args(self.credentials.map(|credentials| format!("--dest-creds={credentials}")));
        copy.arg(format!("oci-archive:{}", archive.display())).arg(format!("docker://{}", self.reference()));
        tool::output(&mut copy);
    }

    /// Where it keeps a file.
    fn file(&self, hash: Sha256) -> PathBuf {
        let hash = hash.to_string();
        self.folder.path().join("files/docker/registry/v2/blobs/sha256").join(&hash[..2]).join(&hash).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }
}

/// `recipes/appliance.toml`, its image in a file beside it, and the lock of its base alone.
fn recipes() -> Recipes {
    let recipes = Recipes::copy();
    tool::output(Command::new(place::clone().join("ci/appliance")).arg(recipes.path("images/appliance.tar")));
    fs::copy(place::clone().join("tests/recipes/bare.lock"), recipes.path("appliance.lock")).unwrap();
    recipes
}

/// The command, with a login or without any.
fn rackstick(login: &Path) -> Command {
    let mut command = tool::rackstick();
    command.env("REGISTRY_AUTH_FILE", login);
    command
}

/// What `rackstick lock` says; no archive is asked.
fn lock(recipes: &Recipes, login: &Path) -> tool::Said {
    let rack = recipes.path("appliance.toml");
    tool::run(rackstick(login).arg("lock").arg(rack).args(["--mirror", "http://127.0.0.1:1/debian"]))
}

/// The layers of the rack's image.
fn layers(recipes: &Recipes, mirror: &[&Path]) -> Value {
    let out = tempfile::tempdir().unwrap();
    let mut build = rackstick(Path::new("none"));
    build.arg("build").arg(recipes.path("appliance.toml")).arg("-o").arg(out.path());
    for mirror in mirror {
        build.arg("--mirror").arg(mirror);
    }
    tool::output(&mut build);
    let manifest = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path());
    let is_manifest = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".json") && !name.contains(".spdx.") && !name.contains(".provenance.")
    };
    let manifest = manifest.into_iter().find(is_manifest).unwrap();
    let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    let layers = &manifest["images"]["appliance"]["layers"];
    let digests: Vec<_> = layers.as_array().unwrap().iter().map(|layer| layer["digest"].clone()).collect();
    assert!(!digests.is_empty());
    digests.into()
}

/// Puts a file into the image that no build has seen: to make its layer, the image's own files are needed.
fn add_a_file(recipes: &Recipes, name: &str) {
    let image = recipes.path("images/appliance.toml");
    // The folder has a random name.
    let file = format!("\n[[files]]\npath = \"/srv/{name}\"\ncontent = \"{}\"\n", image.display());
    fs::write(&image, fs::read_to_string(&image).unwrap() + &file).unwrap();
}

/// The hashes and sizes of the image's files in the lock, the manifest first.
fn pinned(recipes: &Recipes) -> Vec<(Sha256, u64)> {
    let text = fs::read_to_string(recipes.path("appliance.lock")).unwrap();
    let lock: rackstick_image::lock::Lock = toml::from_str(&text).unwrap();
    lock.inputs["appliance"].blobs().map(|blob| (blob.sha256, blob.size)).collect()
}

#[test]
fn an_image_of_a_registry_is_that_of_its_archive_and_stays_what_it_was_locked_as() {
    let recipes = recipes();
    let nobody = recipes.path("nobody");
    assert!(lock(&recipes, &nobody).success);
    let of_archive = layers(&recipes, &[]);

    let registry = Registry::start(None);
    let archive = recipes.path("images/appliance.tar");
    registry.push(&archive);
    let from = format!("from = {{ registry = \"{}\" }}", registry.reference());
    recipes.edit("images/appliance.toml", FROM, &from);
    let said = lock(&recipes, &nobody);
    assert!(said.success && said.stdout.contains("images not made of packages: 1"), "{said:?}");
    assert_eq!(layers(&recipes, &[]), of_archive);

    // Somebody moves the tag: nothing changes here, and the registry may as well be gone.
    let first = pinned(&recipes);
    tool::output(Command::new("bash").args(["-c", OTHER]).current_dir(recipes.path("images")));
    registry.push(&recipes.path("images/other.tar"));
    let said = lock(&recipes, &nobody);
    assert!(said.success && said.stdout.contains("was left as it is"), "{said:?}");
    assert_eq!(pinned(&recipes), first);

    // What was vendored is enough, without the registry and after the store has lost it.
    let vendored = recipes.path("vendored");
    tool::output(rackstick(&nobody).arg("vendor").arg(&vendored).arg(recipes.path("appliance.toml")));
    let store = place::cache().join("store/sha256");
    let stored = |hash: &Sha256| store.join(hash.to_string());
    let lose = || first.iter().for_each(|(hash, _)| fs::remove_file(stored(hash)).unwrap());
    lose();

    // As long as all that is made of it is kept, nothing of it is needed.
    assert_eq!(layers(&recipes, &[]), of_archive);
    assert!(!first.iter().any(|(hash, _)| stored(hash).exists()));

    // A damaged file is refused with its hash, wherever it comes from.
    add_a_file(&recipes, "one");
    let (layer, size) = first[2];
    fs::write(registry.file(layer), vec![7; usize::try_from(size).unwrap()]).unwrap();
    let out = tempfile::tempdir().unwrap();
    let build = || {
        let mut build = rackstick(&nobody);
        build.arg("build").arg(recipes.path("appliance.toml")).arg("-o").arg(out.path());
        build
    };
    let said = tool::run(&mut build());
    assert!(!said.success && said.stderr.contains("wrong content: its SHA-256 is"), "{said:?}");
    fs::remove_file(registry.file(layer)).unwrap();
    let said = tool::run(&mut build());
    assert!(!said.success && said.stderr.contains("the registry no longer has all files of"), "{said:?}");
    drop(registry);
    let above =
        |layers: &Value| layers.as_array().unwrap().strip_prefix(&of_archive.as_array().unwrap()[..]).unwrap().len();
    assert_eq!(above(&layers(&recipes, &[&vendored])), 1, "the recipe's file");

    // So is one that rots in the store: it is found when it is needed, and fetched again.
    fs::write(stored(&layer), vec![7; usize::try_from(size).unwrap()]).unwrap();
    assert_eq!(above(&layers(&recipes, &[&vendored])), 1);
    assert_ne!(Sha256::of_file(&stored(&layer)).unwrap(), layer, "nobody needed it");
    add_a_file(&recipes, "two");
    assert_eq!(above(&layers(&recipes, &[&vendored])), 1);
    assert_eq!(Sha256::of_file(&stored(&layer)).unwrap(), layer);
    lose();
}

#[test]
fn a_private_registry_is_asked_as_whom_the_machine_is_logged_in() {
    let registry = Registry::start(Some("rack:secret"));
    let recipes = recipes();
    registry.push(&recipes.path("images/appliance.tar"));
    let from = format!("from = {{ registry = \"{}\" }}", registry.reference());
    recipes.edit("images/appliance.toml", FROM, &from);
    let login = |credentials: &str| {
        let path = recipes.path("auth.json");
        let text = format!(r#"{{"auths": {{"{}": {{"auth": "{credentials}"}}}}}}"#, registry.address);
        fs::write(&path, text).unwrap();
        path
    };
    let said = lock(&recipes, &recipes.path("nobody"));
    assert!(!said.success && said.stderr.contains("lets only some people have it: log in with"), "{said:?}");
    let said = lock(&recipes, &login(WRONG));
    assert!(!said.success && said.stderr.contains("and not whom this machine is logged in as"), "{said:?}");
    let right = login(RIGHT);
    let said = lock(&recipes, &right);
    assert!(said.success, "{said:?}");
    assert_eq!(pinned(&recipes).len(), 3);
    // What it fetches is asked for by the same login.
    tool::output(rackstick(&right).arg("vendor").arg(recipes.path("vendored")).arg(recipes.path("appliance.toml")));

    recipes.edit("images/appliance.toml", "/page:1", "/pages:1");
    let said = lock(&recipes, &right);
    assert!(!said.success && said.stderr.contains("team/pages/manifests/1: not found"), "{said:?}");
}
