//! What maintainer scripts make of our layers, compared file by file with what mmdebstrap makes of the same packages;
//! and what the machine's own dpkg and apt say of the result. Needs root, and takes minutes: run by `ci/soak scripts`.

mod archive;
mod database;
mod ours;
mod reasons;
mod theirs;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use archive::Archive;
use ours::Ours;
use reasons::{Difference, REASONS};
use tree::{How, Tree};

use super::{apt::Apt, lock};

/// The command.
const PROGRAM: &str = env!("CARGO_BIN_EXE_rackstick");
/// Some of the sets by their names, with commas between them; all without it.
const CHOSEN: &str = "RACKSTICK_SETS";

/// The releases whose layers are compared, and the sets of each.
const RELEASES: [(&str, &[Set]); 2] = [("trixie", &SETS), ("bookworm", &OF_BOOKWORM)];
/// A set by its name.
type Set = (&'static str, &'static [&'static str]);

/// What labs consist of: accounts by adduser and by sysusers, triggers, alternatives, diversions, questions of debconf.
/// Each is compared with the base that it stands on.
const SETS: [Set; 10] = [
    ("bare", &[]),
    ("database", &["postgresql"]),
    ("dns", &["bind9"]),
    ("files", &["samba"]),
    ("imap", &["dovecot-imapd", "dovecot-lmtpd"]),
    ("mail", &["postfix", "rspamd"]),
    ("network", &["systemd-resolved", "chrony", "nftables", "iptables", "wireguard-tools"]),
    ("php", &["php-fpm", "apache2"]),
    ("shell", &["openssh-server", "cron", "logrotate", "sudo", "molly-guard", "vim-tiny", "python3"]),
    ("web", &["nginx", "ssl-cert", "spamassassin"]),
];
/// What is different in an older release: packages still ship files in `/bin` and `/lib`, and have other scripts.
const OF_BOOKWORM: [Set; 2] = [
    ("bookworm", &[]),
    ("bookworm-web", &["nginx-light", "php-fpm", "openssh-server", "postgresql", "postfix", "bind9", "ssl-cert"]),
];

#[test]
#[ignore = "takes minutes: run by `ci/soak scripts`"]
fn layers_are_what_mmdebstrap_makes_but_for_what_has_a_reason() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts layers, and so does mmdebstrap: run it as root");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = folder.path();
    let named = std::env::var(CHOSEN).ok();
    let is_chosen = |set: &str| named.as_deref().is_none_or(|names| names.split(',').any(|name| name == set));
    let (mut used, mut wrong) = (BTreeSet::new(), String::new());
    for (release, sets) in RELEASES {
        let sets = sets.iter().filter(|(set, _)| is_chosen(set));
        let owned = |packages: &[&str]| packages.iter().map(|name| (*name).to_owned()).collect();
        let sets: BTreeMap<String, Vec<String>> =
            sets.map(|(set, packages)| ((*set).to_owned(), owned(packages))).collect();
        if !sets.is_empty() {
            let folder = folder.join(release);
            std::fs::create_dir(&folder).unwrap();
            compare(&folder, release, &sets, &mut used, &mut wrong);
        }
    }
    for (number, reason) in REASONS.iter().enumerate() {
        if named.is_none() && !used.contains(&number) {
            wrong += &format!("nothing is different for this reason any more: {}\n", reason.why);
        }
    }
    assert!(wrong.is_empty(), "without a reason:\n{wrong}");
}

/// Compares the sets of a release. Notes which reasons were needed, and what has none.
fn compare(
    folder: &Path,
    release: &str,
    sets: &BTreeMap<String, Vec<String>>,
    used: &mut BTreeSet<usize>,
    wrong: &mut String,
) {
    let lock = lock::all(folder, release, sets);
    let base = &lock.bases[&format!("debian:{release}")];
    let archive = Archive::new(folder, &folder.join("rack.toml"), base);
    let apt = Apt::new(folder, release, "");
    let ours = Ours::new(folder, lock.epoch, &archive.packages(base, "base"));
    for set in sets.keys() {
        let packages = archive.packages(base, &format!("image:{set}"));
        let names = packages.iter().map(|package| &package.name).chain(&base.sets["base"]).cloned().collect::<Vec<_>>();
        let mine = ours.make(&folder.join("ours"), set, &packages);
        database::judge(&mine, &apt);
        let theirs = theirs::make(&folder.join("theirs"), &archive, &names, lock.epoch);

        let (one, other) = (Tree::read(&mine), Tree::read(&theirs));
        let all = tree::compare(&one, &other);
        let mut explained: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut unexplained = 0;
        for (path, how) in &all {
            let difference = Difference { ours: &one, theirs: &other, path, how: *how };
            if let Some(reason) = difference.reason() {
                explained.entry(reason).or_default().push(format!("/{}: {how:?}", path.display()));
            } else {
                unexplained += 1;
                let line = format!("{set}: /{}: {how:?}\n{}", path.display(), detail(&difference));
                print!("{line}");
                wrong.push_str(&line);
            }
        }
        let files = one.entries.keys().chain(other.entries.keys()).collect::<BTreeSet<_>>().len();
        let different = all.iter().map(|(path, _)| path).collect::<BTreeSet<_>>().len();
        println!(
            "{set}: {files} files, {} the same, {different} different, {unexplained} without a reason",
            files - different
        );
        for (reason, differences) in &explained {
            println!("{:6}  {}", differences.len(), REASONS[*reason].why);
            differences.iter().for_each(|difference| println!("            {difference}"));
        }
        used.extend(explained.into_keys());
        for tree in [mine, theirs] {
            std::fs::remove_dir_all(tree).unwrap();
        }
    }
}

/// How it looks, of what is short enough to be shown.
fn detail(difference: &Difference) -> String {
    let (one, other) = (difference.ours.entries.get(difference.path), difference.theirs.entries.get(difference.path));
    match (difference.how, one, other) {
        (How::Content, ..) => {
            let files = [difference.ours, difference.theirs].map(|tree| tree.root.join(difference.path));
            let lines = Command::new("diff").arg("-a").args(files).output().unwrap().stdout;
            let lines = String::from_utf8_lossy(&lines).into_owned();
            lines.lines().take(12).map(|line| format!("    {}\n", line.chars().take(160).collect::<String>())).collect()
        }
        (_, Some(one), Some(other)) => format!("    {one:?}\n    {other:?}\n"),
        (_, Some(only), None) | (_, None, Some(only)) => format!("    {only:?}\n"),
        (_, None, None) => String::new(),
    }
}
