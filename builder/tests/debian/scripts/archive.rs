//! The packages of a lock as an archive of their own, so that nobody can take another version of them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rackstick::layers::Package;
use rackstick_image::lock::Base;

use super::super::apt::run;

/// What apt and mmdebstrap know it by, whatever the release is.
pub const SUITE: &str = "locked";

/// A folder with all of them.
pub struct Archive(PathBuf);

impl Archive {
    /// Of the rack whose recipe this is, those of a base; what the user's store lacks is fetched.
    pub fn new(folder: &Path, recipe: &Path, base: &Base) -> Self {
        let new = Self(folder.join("archive"));
        run(Command::new(super::PROGRAM).arg("vendor").args([&new.0, recipe]));
        // A suite's archive: mmdebstrap asks apt what is essential in it. What is in packages, apt knows from dpkg-deb
        // alone.
        let suite = new.0.join("dists").join(SUITE);
        fs::create_dir_all(suite.join("main/binary-amd64")).unwrap();
        let index = |arguments: &[&str], file: &str| {
            let text = run(Command::new("apt-ftparchive").args(arguments).current_dir(&new.0));
            fs::write(suite.join(file), text).unwrap();
        };
        let packages = "main/binary-amd64/Packages";
        index(&["packages", "."], packages);
        // The rack's own base is there too, maybe with other versions.
        let files: BTreeSet<String> =
            base.packages.values().map(|package| format!("Filename: ./{}/{}", package.archive, package.path)).collect();
        let text = fs::read_to_string(suite.join(packages)).unwrap();
        let of_base = text.split("\n\n").filter(|stanza| stanza.lines().any(|line| files.contains(line)));
        fs::write(suite.join(packages), of_base.map(|stanza| format!("{stanza}\n\n")).collect::<String>()).unwrap();
        let names = ["Suite", "Codename"].map(|field| format!("-oAPT::FTPArchive::Release::{field}={SUITE}"));
        index(&[&names[0], &names[1], "release", &format!("dists/{SUITE}")], "Release");
        new
    }

    /// A line of sources.list(5).
    pub fn source(&self) -> String {
        format!("deb [trusted=yes] copy://{} {SUITE} main", self.0.display())
    }

    /// One of the base's sets, as layers are made of it.
    pub fn packages(&self, base: &Base, set: &str) -> Vec<Package> {
        let package = |(name, locked): (&String, &rackstick_image::lock::Package)| {
            let deb = fs::canonicalize(self.0.join(&locked.archive).join(&locked.path)).unwrap();
            Package { name: name.clone(), version: locked.version.clone(), sha256: locked.sha256, deb }
        };
        base.set(set).map(package).collect()
    }
}
