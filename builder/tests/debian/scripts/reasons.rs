//! Why our trees are not mmdebstrap's: the table of reasons. A difference that none explains fails the test.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::tree::{How, Tree};

/// One difference.
pub struct Difference<'a> {
    pub ours: &'a Tree,
    pub theirs: &'a Tree,
    /// From the root.
    pub path: &'a Path,
    pub how: How,
}

/// A reason: at or below which paths, and what must hold of the difference.
pub struct Reason {
    paths: &'static [&'static str],
    holds: fn(&Difference) -> bool,
    pub why: &'static str,
}

/// All of them; each must be needed.
pub const REASONS: &[Reason] = &[
    Reason {
        paths: &["dev", "run"],
        holds: |it| it.how == How::OnlyTheirs,
        why: "the kernel and the guest's init fill these folders at each boot, so in an image they are empty",
    },
    Reason {
        paths: &[
            "etc/fstab",
            "etc/apt",
            "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
            "var/lib/dpkg/arch",
            "var/lib/apt",
            "var/cache/apt",
            "var/log/apt",
        ],
        holds: |it| it.how == How::OnlyTheirs,
        why: "mmdebstrap's own, or left by the apt that it runs; a recipe may bring a list of archives",
    },
    Reason {
        paths: &["etc/hostname", "etc/resolv.conf", "etc/.resolv.conf.systemd-resolved.bak"],
        holds: |it| it.how == How::OnlyTheirs,
        why: "mmdebstrap copies those of this machine; the guest's init writes them",
    },
    Reason {
        paths: &["etc", "var/cache", "var/lib/dpkg", "var/lib/systemd/random-seed", "var/log"],
        holds: |it| it.how == How::OnlyTheirs && is_leftover(it.path),
        why: "locks, logs, backups of files that were just changed, caches: taken away, since no guest reads them (layers/clean.rs)",
    },
    Reason {
        paths: &[""],
        holds: |it| it.how == How::Owner && it.ours.entries[it.path].owner == it.theirs.entries[it.path].owner,
        why: "of the same account by name, whose number follows from the order in which packages are configured",
    },
    Reason {
        paths: &["etc/systemd/system"],
        holds: |it| it.how == How::Target && target(it.ours, it.path) == target(it.theirs, it.path),
        why: "the same unit: systemctl links to /usr/lib, deb-systemd-helper without it to /lib; mmdebstrap configures what is \
              essential before systemd is unpacked",
    },
    Reason {
        paths: &["etc/passwd", "etc/group"],
        holds: |it| it.how == How::Content && accounts(it.ours, it.path) == accounts(it.theirs, it.path),
        why: "the same accounts; their numbers follow from the order in which packages are configured, which dpkg leaves open",
    },
    Reason {
        paths: &[
            "etc/shadow",
            "etc/gshadow",
            "etc/subuid",
            "etc/subgid",
            "etc/shells",
            "var/lib/dpkg/triggers",
            "var/lib/dpkg/diversions",
            "var/lib/dpkg/statoverride",
        ],
        holds: |it| it.how == How::Content && lines(it.ours, it.path) == lines(it.theirs, it.path),
        why: "the same lines, in the order in which packages were unpacked and configured, which dpkg leaves open",
    },
    Reason {
        paths: &["etc/.updated", "var/.updated"],
        holds: |it| it.how == How::OnlyOurs,
        why: "tells systemd that nothing is to be updated at boot (layers/guest.rs)",
    },
    Reason {
        paths: &["etc/systemd/system", "etc/systemd/system-generators"],
        holds: |it| it.how == How::OnlyOurs && (is_masked(it) || is_folder(it)),
        why: "units and generators that make no sense in a guest are masked (layers/guest.rs)",
    },
    Reason {
        paths: &["etc/systemd/system/default.target", "etc/hosts", "usr/lib/systemd/journald.conf.d"],
        holds: |it| matches!(it.how, How::OnlyOurs | How::Content | How::Target),
        why: "made to fit a guest (layers/guest.rs)",
    },
    Reason {
        paths: &["etc/shadow"],
        holds: |it| it.how == How::Content && passwords(it.ours, it.path) == passwords(it.theirs, it.path),
        why: "bookworm's base-passwd makes it, in ours before login.defs is configured: without its limits, which limit nothing",
    },
    Reason {
        paths: &["etc/systemd/system/timers.target.wants", "var/lib/systemd/deb-systemd-helper-enabled"],
        holds: |it| {
            let unit = it.path.file_name().unwrap().to_string_lossy().replace(".dsh-also", "");
            it.how == How::OnlyTheirs && it.ours.entries.contains_key(&Path::new("etc/systemd/system").join(unit))
        },
        why: "a unit that is masked in the layer below is not enabled above it (layers/guest.rs)",
    },
    Reason {
        paths: &["etc/machine-id"],
        holds: |it| matches!(it.how, How::Mode | How::OnlyOurs | How::Content) && it.ours.bytes(it.path).is_empty(),
        why: "empty and read-only: systemd fills it for each boot (layers/guest.rs)",
    },
    Reason {
        paths: &["usr/lib/systemd/system"],
        holds: |it| it.how == How::OnlyOurs && (is_generator(it.path) || is_folder(it)),
        why: "draws at the first boot what the packages' scripts would draw (layers/generators.rs)",
    },
    Reason {
        paths: &[
            "etc/aliases.db",
            "etc/bind/rndc.key",
            "etc/postgresql/15",
            "etc/postgresql/17",
            "etc/ssh",
            "etc/ssl/certs",
            "etc/ssl/private/ssl-cert-snakeoil.key",
            "var/lib/postgresql/15",
            "var/lib/postgresql/17",
        ],
        holds: |it| it.how == How::OnlyTheirs && is_drawn(it),
        why: "drawn at random, so by each guest for itself (layers/generators.rs)",
    },
    Reason {
        paths: &["etc/apt/apt.conf.d/02autoremove-postgresql"],
        holds: |it| {
            it.how == How::Content
                && ["15", "17"].iter().any(|version| {
                    let clusters = format!("    \"^postgresql.*-{version}\";\n");
                    it.theirs.text(it.path).replace(&clusters, "") == it.ours.text(it.path)
                })
        },
        why: "keeps the packages of database clusters, and there is none yet",
    },
    Reason {
        paths: &["etc/postfix/main.cf"],
        holds: |it| {
            let mine = it.ours.text(it.path);
            it.how == How::Content
                && it.theirs.text(it.path).lines().filter(|line| !line.starts_with("myhostname =")).eq(mine.lines())
        },
        why: "the name of the machine that makes the tree, which mmdebstrap shows to scripts; postfix in a guest goes by the guest's",
    },
];

impl Difference<'_> {
    /// The first reason that holds, by its place in [`REASONS`].
    pub fn reason(&self) -> Option<usize> {
        let of = |reason: &Reason| reason.paths.iter().any(|path| self.path.starts_with(path)) && (reason.holds)(self);
        REASONS.iter().position(of)
    }
}

fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let lock = matches!(name, ".pwd.lock" | "lock" | "lock-frontend" | "Lock");
    lock || name.ends_with('-') || name.ends_with("-old") || path.starts_with("var/log") || name == "aux-cache"
}

fn is_masked(it: &Difference) -> bool {
    it.ours.entries[it.path].target.as_deref() == Some(Path::new("/dev/null"))
}

/// A symlink's target on the merged system.
fn target(tree: &Tree, path: &Path) -> PathBuf {
    let target = tree.entries[path].target.as_deref().unwrap();
    target.strip_prefix("/lib").map_or_else(|_| target.to_owned(), |rest| Path::new("/usr/lib").join(rest))
}

/// What is in a folder that only we have is judged by itself.
fn is_folder(it: &Difference) -> bool {
    it.ours.entries[it.path].kind == 'd'
}

fn is_generator(path: &Path) -> bool {
    path.file_name().unwrap().to_str().unwrap().starts_with("rackstick-generate-")
}

/// A key, or a certificate made of one: itself, or the link by its hash.
fn is_drawn(it: &Difference) -> bool {
    let certificate = Path::new("ssl-cert-snakeoil.pem");
    let name = it.path.file_name().unwrap().to_str().unwrap();
    !it.path.starts_with("etc/ssl/certs") && (!it.path.starts_with("etc/ssh") || name.starts_with("ssh_host_"))
        || it.path.ends_with(certificate)
        || it.theirs.entries[it.path].target.as_deref() == Some(certificate)
}

/// The accounts of shadow(5) and their passwords.
fn passwords(tree: &Tree, path: &Path) -> BTreeSet<Vec<String>> {
    tree.text(path).lines().map(|line| line.split(':').take(2).map(str::to_owned).collect()).collect()
}

fn lines(tree: &Tree, path: &Path) -> BTreeSet<String> {
    tree.text(path).lines().map(str::to_owned).collect()
}

/// The accounts of passwd(5) or group(5) without numbers: a user's group by its name.
fn accounts(tree: &Tree, path: &Path) -> BTreeSet<Vec<String>> {
    let groups = tree.ids("etc/group");
    let account = |line: &str| {
        let mut fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        fields.remove(2);
        if path.ends_with("passwd") {
            fields[2] = groups[&fields[2].parse().unwrap()].clone();
        }
        fields
    };
    tree.text(path).lines().map(account).collect()
}
