//! Somebody's archive, made and signed by the tools that people make theirs with: dpkg-deb, apt-ftparchive, gpg.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    apt::run,
    server::{Answer, Server},
};

/// A key pair of GnuPG's, with the public key in a file.
pub struct Key {
    home: tempfile::TempDir,
    pub file: PathBuf,
    pub fingerprint: String,
}

impl Key {
    /// `born` and `expires` as gpg takes them, `20240101T000000` and `never`.
    pub fn new(name: &str, born: &str, expires: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut new = Self { file: home.path().join("key.asc"), home, fingerprint: String::new() };
        new.gpg(born, &["--quick-generate-key", name, "ed25519", "sign", expires]);
        let listed = run(new.command().args(["--with-colons", "--list-keys"]));
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        new.fingerprint = line.split(':').nth(9).unwrap().to_owned();
        run(new.command().arg("--armor").arg("--output").arg(&new.file).arg("--export"));
        new
    }

    fn command(&self) -> Command {
        let mut command = Command::new("gpg");
        command.arg("--homedir").arg(self.home.path());
        command.args(["--batch", "--quiet", "--yes", "--no-tty", "--passphrase", "", "--pinentry-mode", "loopback"]);
        command
    }

    fn gpg(&self, when: &str, args: &[&str]) {
        run(self.command().arg("--faked-system-time").arg(format!("{when}!")).args(args));
    }

    /// Signs a file in clear text.
    fn sign(&self, input: &Path, output: &Path) {
        let when = "20250601T000000";
        self.gpg(when, &["--output", output.to_str().unwrap(), "--clear-sign", input.to_str().unwrap()]);
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // gpg leaves its agent running, which works in this folder.
        run(Command::new("gpgconf").arg("--homedir").arg(self.home.path()).args(["--kill", "all"]));
    }
}

/// An archive behind a server: with the suite `stable` and a component `main`, or a plain folder of packages.
pub struct Archive {
    folder: tempfile::TempDir,
    /// The folder of its signed index.
    suite: &'static str,
    pub server: Server,
}

impl Archive {
    /// One of these packages: name, version, and further fields, a line each.
    pub fn new(packages: &[(&str, &str, &str)]) -> Self {
        let new = Self::of("dists/stable", "pool/main", packages);
        let binary = new.path("dists/stable/main/binary-amd64");
        fs::create_dir_all(&binary).unwrap();
        let index = run(new.ftparchive().args(["packages", "pool"]));
        fs::write(binary.join("Packages"), index).unwrap();
        run(Command::new("gzip").args(["--keep", "--no-name"]).arg(binary.join("Packages")));
        new
    }

    /// A plain folder, whose index is not packed.
    pub fn plain(packages: &[(&str, &str, &str)]) -> Self {
        let new = Self::of(".", ".", packages);
        fs::write(new.path("Packages"), run(new.ftparchive().args(["packages", "."]))).unwrap();
        new
    }

    fn of(suite: &'static str, pool: &str, packages: &[(&str, &str, &str)]) -> Self {
        let new = Self { folder: tempfile::tempdir().unwrap(), suite, server: Server::start() };
        fs::create_dir_all(new.path(suite)).unwrap();
        let pool = new.path(pool);
        fs::create_dir_all(&pool).unwrap();
        for (name, version, fields) in packages {
            let tree = tempfile::tempdir().unwrap();
            let marks = tree.path().join("usr/share/example");
            fs::create_dir_all(&marks).unwrap();
            fs::write(marks.join(name), version).unwrap();
            fs::create_dir(tree.path().join("DEBIAN")).unwrap();
            let control = format!(
                "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n{fields}\
                 Description: a package of a test\n Two lines long.\n"
            );
            fs::write(tree.path().join("DEBIAN/control"), control).unwrap();
            let deb = pool.join(format!("{name}_{version}_all.deb"));
            run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(tree.path()).arg(deb));
        }
        new
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn ftparchive(&self) -> Command {
        let mut command = Command::new("apt-ftparchive");
        command.current_dir(self.folder.path()).args(["-o", "APT::FTPArchive::AlwaysStat=true"]);
        command
    }

    /// Signs the archive with a key, as of 2025-06-01, with further fields of its own, and serves it.
    #[must_use]
    pub fn signed(self, key: &Key, fields: &str) -> Self {
        let mut release = self.ftparchive();
        for (field, value) in [("Suite", "stable"), ("Codename", "stable"), ("Components", "main")] {
            release.arg("-o").arg(format!("APT::FTPArchive::Release::{field}={value}"));
        }
        let release = run(release.args(["release", self.suite]));
        let date = "Date: Sun, 01 Jun 2025 00:00:00 UTC";
        let release: String = release
            .lines()
            .map(|line| if line.starts_with("Date:") { format!("{date}\n{fields}") } else { format!("{line}\n") })
            .map(|line| if line.ends_with('\n') { line } else { line + "\n" })
            .collect();
        let unsigned = self.path(self.suite).join("Release");
        fs::write(&unsigned, release).unwrap();
        key.sign(&unsigned, &self.path(self.suite).join("InRelease"));
        let files = run(Command::new("find").current_dir(self.folder.path()).args(["-type", "f", "-printf", "%P\n"]));
        for file in files.lines() {
            let content = fs::read(self.path(file)).unwrap();
            self.server.answer(&format!("/example/{file}"), vec![Answer::Whole(content)]);
        }
        self
    }

    /// Its root.
    pub fn url(&self) -> String {
        self.server.root("example")
    }
}
