//! Where things are: the clone, cargo's target folder, the rig's own folder in it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// The clone's root.
pub fn clone() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the clone")
}

/// The folder of one profile's binaries: `<target>/<triple>/release`. Found from the running test's own place,
/// `<target>/<triple>/<profile>/deps/<test>`, so that it is right however the target folder was chosen.
pub fn release() -> PathBuf {
    let test = env::current_exe().expect("a running program has a path");
    test.ancestors().nth(3).expect("a test lies three folders below its triple's").join("release")
}

/// `<target>/rig`: logs of each test, images.
pub fn rig() -> PathBuf {
    let target = release().ancestors().nth(2).expect("release/ lies two folders below target/").to_owned();
    target.join("rig")
}

/// An empty folder for one test's logs and disks, which stays for people to look into.
pub fn test_folder(test: &str) -> PathBuf {
    let folder = rig().join(test);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            panic!("can't empty {}: {error}", folder.display())
        }
        _ => fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("can't make {}: {error}", folder.display())),
    }
    folder
}

/// The builder's cache, beside which ci/setup puts what Debian has no package of.
pub fn cache() -> PathBuf {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    variable("RACKSTICK_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("rackstick")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/rackstick")))
        .expect("HOME names a folder")
}

/// Debian's docker-registry.
pub fn docker_registry() -> PathBuf {
    cache().join("docker-registry/usr/bin/docker-registry")
}

/// A cache of the builder's that knows this user's packages, so that nothing is fetched twice, but no layers: every
/// one is made anew. `RACKSTICK_CACHE` must name it.
pub fn caches_without_layers() -> TempDir {
    // Not in /tmp, which may be small: layers are hundreds of megabytes.
    let fresh = tempfile::Builder::new().prefix("cache-").tempdir_in(rig()).expect("the target folder can be written");
    std::os::unix::fs::symlink(cache().join("store"), fresh.path().join("store")).expect("a new folder can be written");
    fresh
}
