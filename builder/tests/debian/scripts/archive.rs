//! The packages of a lock as an archive of their own, so that nobody can take another version of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rackstick::layers::Package;
use rackstick_image::lock::Lock;

use super::super::apt::run;

/// A folder with all of them.
pub struct Archive(PathBuf);

impl Archive {
    /// Of the rack whose recipe this is; what the user's store lacks is fetched.
    pub fn new(folder: &Path, recipe: &Path) -> Self {
        let new = Self(folder.join("archive"));
        run(Command::new(super::PROGRAM).arg("vendor").args([&new.0, recipe]));
        // A suite's archive: mmdebstrap asks apt what is essential in trixie. What is in packages, apt knows from dpkg-deb alone.
        let suite = new.0.join("dists/trixie");
        fs::create_dir_all(suite.join("main/binary-amd64")).unwrap();
        let index = |arguments: &[&str], file: &str| {
            let text = run(Command::new("apt-ftparchive").args(arguments).current_dir(&new.0));
            fs::write(suite.join(file), text).unwrap();
        };
        index(&["packages", "."], "main/binary-amd64/Packages");
        let names = ["Suite", "Codename"].map(|field| format!("-oAPT::FTPArchive::Release::{field}=trixie"));
        index(&[&names[0], &names[1], "release", "dists/trixie"], "Release");
        new
    }

    /// A line of sources.list(5).
    pub fn source(&self) -> String {
        format!("deb [trusted=yes] copy://{} trixie main", self.0.display())
    }

    /// One of the lock's sets, as layers are made of it.
    pub fn packages(&self, lock: &Lock, set: &str) -> Vec<Package> {
        let package = |name: &String| {
            let locked = &lock.packages[name];
            let deb = fs::canonicalize(self.0.join(&locked.archive).join(&locked.path)).unwrap();
            Package { name: name.clone(), version: locked.version.clone(), sha256: locked.sha256, deb }
        };
        lock.sets[set].iter().map(package).collect()
    }
}
