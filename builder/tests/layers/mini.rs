//! Small Debian packages made on the spot, and a base of this machine's own dpkg and shell: enough for real maintainer
//! scripts to run, without a network.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use rackstick::layers::Package;

/// What dpkg needs to configure packages, and what the scripts of the tests use.
const PROGRAMS: &[&str] = &[
    "sh",
    "dpkg",
    "dpkg-query",
    "dpkg-deb",
    "dpkg-divert",
    "dpkg-trigger",
    "rm",
    "mv",
    "cp",
    "mkdir",
    "cat",
    "ln",
    "true",
    "tar",
    "diff",
    "chown",
    "chmod",
    "date",
    "hostname",
    "id",
    "touch",
    "sleep",
    "ldconfig",
    "start-stop-daemon",
    "setcap",
    "ls",
    "env",
    "getent",
    "stat",
    // Needs libm, as does the library that gives programs another clock.
    "awk",
];

/// Makes packages in a folder.
pub struct Workshop {
    pub folder: PathBuf,
}

/// A package that is being made.
pub struct Draft {
    folder: PathBuf,
    name: String,
    control: String,
}

impl Workshop {
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        Self { folder: folder.to_owned() }
    }

    pub fn draft(&self, name: &str) -> Draft {
        let folder = self.folder.join(name);
        fs::create_dir_all(folder.join("DEBIAN")).unwrap();
        let control = format!(
            "Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: Nobody <nobody@localhost>\nDescription: a test\n"
        );
        Draft { folder, name: name.to_owned(), control }
    }

    /// A package with this machine's programs, on which scripts can run.
    pub fn base(&self) -> Package {
        let draft = self.draft("mini-base");
        let mut files = BTreeSet::new();
        for program in PROGRAMS {
            let folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
            let found = folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists());
            let found = found.unwrap_or_else(|| panic!("this machine has no `{program}`: see ci/setup"));
            let libraries = Command::new("ldd").arg(&found).output().unwrap();
            for word in
                String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|word| word.starts_with('/'))
            {
                files.insert(PathBuf::from(word));
            }
            files.insert(found);
        }
        for file in files {
            // As packages before merged /usr had it: the unpacker must bring it where it belongs.
            let target = draft.folder.join(file.strip_prefix("/").unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(&file, &target).unwrap();
        }
        draft.file("/usr/share/dpkg/cputable", &fs::read("/usr/share/dpkg/cputable").unwrap(), 0o644);
        draft.file("/usr/share/dpkg/tupletable", &fs::read("/usr/share/dpkg/tupletable").unwrap(), 0o644);
        draft.file("/etc/passwd", b"root:*:0:0:root:/root:/bin/sh\ndaemon:*:1:1::/:/bin/false\n", 0o644);
        draft.file("/etc/group", b"root:*:0:\ndaemon:*:1:\n", 0o644);
        draft.build()
    }
}

impl Draft {
    pub fn file(&self, path: &str, content: &[u8], mode: u32) -> &Self {
        let target = self.folder.join(path.strip_prefix('/').unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(&target, content).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path.strip_prefix('/').unwrap())
    }

    pub fn control(&mut self, line: &str) -> &mut Self {
        self.control.push_str(line);
        self.control.push('\n');
        self
    }

    pub fn script(&self, name: &str, body: &str) -> &Self {
        self.file(&format!("/DEBIAN/{name}"), format!("#!/bin/sh\nset -e\n{body}\n").as_bytes(), 0o755)
    }

    /// Has dpkg-deb make it.
    pub fn build(&self) -> Package {
        fs::write(self.folder.join("DEBIAN/control"), &self.control).unwrap();
        let deb = self.folder.with_extension("deb");
        let made = Command::new("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", "1600000000")
            .args(["-Zxz", "-z0", "--root-owner-group", "--build"])
            .args([&self.folder, &deb])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        package(&self.name, deb)
    }

    /// Makes it by hand, with the entries of `data` as they are: dpkg-deb would not.
    pub fn build_hostile(&self, data: &[u8]) -> Package {
        let mut control = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(self.control.len() as u64);
        header.set_mode(0o644);
        control.append_data(&mut header, "./control", self.control.as_bytes()).unwrap();
        let deb = self.folder.with_extension("deb");
        let mut archive = ar::Builder::new(fs::File::create(&deb).unwrap());
        let members: [(&str, &[u8]); 3] =
            [("debian-binary", b"2.0\n"), ("control.tar", &control.into_inner().unwrap()), ("data.tar", data)];
        for (name, bytes) in members {
            archive.append(&ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64), bytes).unwrap();
        }
        package(&self.name, deb)
    }
}

fn package(name: &str, deb: PathBuf) -> Package {
    let sha256 = rackstick_image::digest::Sha256::of_file(&deb).unwrap();
    Package { name: name.to_owned(), version: "1".to_owned(), sha256, deb }
}

/// One entry of a tar archive with a path that no tar program would write.
pub fn entry(archive: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    archive.append(&header, content).unwrap();
}
