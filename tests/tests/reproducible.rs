//! Ring 3: the same recipe and lock give the same bytes in whatever surroundings. Every build has an empty store, so
//! each layer is made anew; only packages come from a vendored folder. The machine's clock is as it is: the command is
//! static, so no library can give it another. What programs see of it in a layer, `--twice` changes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use rackstick_tests::{image::Image, place, tool};

/// Who builds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Root,
    /// A user with subordinate ids, who exists only in the mounts of its build.
    Ordinary,
}

/// Where the store, the recipes and the image lie.
#[derive(Debug, Clone, Copy, PartialEq)]
enum On {
    /// The file system of cargo's target folder.
    Disk,
    /// A new ext4 with blocks of 1 KiB, whose folders have an order of their own.
    Small,
    /// A tmpfs.
    Memory,
}

use On::{Disk, Memory, Small};
use Who::{Ordinary, Root};

/// Time zone, language, umask, CPUs, threads, the folder's name, when the recipes' files were last changed, who, on
/// what, and whether layers are made a second time, when their programs see another time of day and other process ids.
type Surroundings =
    (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str, &'static str, Who, On, bool);

/// The first three are built by `ci/test`.
#[rustfmt::skip]
const ALL: [Surroundings; 20] = [
    ("Pacific/Kiritimati", "C", "077", "0", "1", "a", "1980-01-01", Root, Small, false),
    ("America/St_Johns", "tr_TR.UTF-8", "022", "0,1", "2", "with a blank", "2038-01-19", Ordinary, Disk, false),
    ("Asia/Kathmandu", "C.UTF-8", "002", "0,1", "7", "d/e/e/p", "2026-02-28", Root, Memory, false),
    ("UTC", "POSIX", "027", "0", "1", "umlaut-ä", "1999-12-31", Ordinary, Memory, false),
    ("Europe/Berlin", "de_DE.UTF-8", "000", "0,1", "3", "b", "2020-02-29", Root, Disk, true),
    ("America/New_York", "en_US.UTF-8", "077", "0,1", "16", "C", "2001-09-09", Root, Disk, false),
    ("Asia/Tokyo", "ja_JP.UTF-8", "022", "0", "2", "d", "2106-02-07", Ordinary, Small, false),
    ("Africa/Cairo", "ar_EG.UTF-8", "037", "0,1", "4", "e'quote", "1970-01-02", Root, Memory, true),
    ("Australia/Lord_Howe", "C", "026", "0,1", "1", "f", "2025-06-30", Ordinary, Memory, false),
    ("Pacific/Pago_Pago", "fr_FR.ISO-8859-1", "007", "0,1", "2", "g+h", "2024-12-31", Root, Small, false),
    ("<+1245>-12:45", "C.UTF-8", "077", "0", "5", "i", "2023-10-29", Ordinary, Disk, true),
    (":/nowhere", "xx_XX", "022", "0", "2", "j=k", "2022-03-27", Root, Disk, false),
    ("Asia/Kolkata", "hi_IN", "000", "0,1", "8", "l", "2030-01-01", Ordinary, Memory, false),
    ("America/Caracas", "es_VE.UTF-8", "002", "0,1", "1", "m,n", "2016-12-31", Root, Memory, false),
    ("Antarctica/Troll", "nb_NO.UTF-8", "022", "0", "1", "o:p", "2000-02-29", Root, Disk, false),
    ("Europe/Dublin", "C", "077", "0,1", "2", "q", "1996-02-29", Ordinary, Small, true),
    ("Asia/Pyongyang", "ko_KR.UTF-8", "027", "0", "3", "r%s", "2015-08-15", Root, Disk, false),
    ("Pacific/Chatham", "mi_NZ", "022", "0,1", "32", "s", "2011-12-30", Ordinary, Disk, false),
    ("America/Sao_Paulo", "pt_BR.UTF-8", "017", "0", "2", "t-longer-than-the-others", "2019-02-16", Root, Memory, false),
    ("Etc/GMT+12", "zh_CN.GB18030", "077", "0,1", "2", "u", "2049-12-31", Ordinary, Memory, false),
];

/// Its mount namespace is the build's own. `/mnt` becomes the place of all that it reads and writes, which the user can
/// reach wherever the target folder lies.
const BUILD: &str = r#"
set -e
case $ON in
    Memory) mount -t tmpfs -o size=4g,mode=0755 tmpfs /mnt ;;
    Small)
        truncate -s 4G "$DISK/small"
        mkfs.ext4 -q -b 1024 "$DISK/small"
        mount -o loop "$DISK/small" /mnt
        ;;
    Disk) mount --bind "$DISK" /mnt ;;
esac
mkdir /mnt/bin /mnt/vendor
cp "$BINARIES"/rackstick "$BINARIES"/rackstick-host "$BINARIES"/rackstick-vmm "$BINARIES"/rackstick-guest /mnt/bin
mount --bind "$VENDOR" /mnt/vendor
if [ "$USER_ID" != 0 ]; then
    echo "builder:300000:65536" > /mnt/ids
    { cat /etc/passwd; echo "builder:x:$USER_ID:$USER_ID::/:/bin/sh"; } > /mnt/users
    mount --bind /mnt/ids /etc/subuid
    mount --bind /mnt/ids /etc/subgid
    mount --bind /mnt/users /etc/passwd
fi
mkdir -p "/mnt/$FOLDER"
cp -r "$RECIPES" "/mnt/$FOLDER/recipes"
find "/mnt/$FOLDER/recipes" -exec touch -d "$CHANGED" {} +
chown -R "$USER_ID:$USER_ID" "/mnt/$FOLDER"
cd "/mnt/$FOLDER"
umask "$UMASK"
export RACKSTICK_CACHE="/mnt/$FOLDER/cache"
setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups -- taskset --cpu-list "$CPUS" \
    /mnt/bin/rackstick build recipes/pair.toml -o out --mirror /mnt/vendor --jobs "$JOBS" $TWICE >&2
diff -rq "$EXPECTED" out
"#;

#[test]
fn three_builds_in_other_surroundings_are_the_same() {
    compare(&ALL[..3]);
}

#[test]
#[ignore = "takes many minutes: run by `ci/soak reproducible`"]
fn twenty_builds_in_other_surroundings_are_the_same() {
    compare(&ALL);
}

fn compare(all: &[Surroundings]) {
    assert!(rustix::process::geteuid().is_root(), "this test mounts, and becomes another user: run it as root");
    let expected = Image::pair().path.parent().unwrap();
    let files = fs::read_dir(expected).unwrap().count();
    assert_eq!(files, 5, "image, manifest, block map, SBOM, provenance lie in {}", expected.display());
    for surroundings in all {
        let started = std::time::Instant::now();
        build(surroundings, expected);
        println!("{surroundings:?}: {} s", started.elapsed().as_secs());
    }
}

/// Builds, and panics if any file is not as expected.
fn build(surroundings: &Surroundings, expected: &Path) {
    let &(zone, language, umask, cpus, jobs, folder, changed, who, on, twice) = surroundings;
    let disk = tempfile::Builder::new().prefix("reproducible-").tempdir_in(place::rig()).unwrap();
    fs::set_permissions(disk.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let binaries = PathBuf::from(tool::rackstick().get_program()).parent().unwrap().to_owned();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", BUILD]);
    command.env("DISK", disk.path()).env("BINARIES", binaries).env("VENDOR", vendor()).env("EXPECTED", expected);
    command.env("RECIPES", place::clone().join("tests/recipes")).env("FOLDER", folder).env("UMASK", umask);
    command.env("CPUS", cpus).env("JOBS", jobs).env("TWICE", if twice { "--twice" } else { "" });
    command.env("USER_ID", if who == Root { "0" } else { "4242" }).env("ON", format!("{on:?}")).env("CHANGED", changed);
    command.env("TZ", zone).env("LC_ALL", language).env("LANG", language);
    let said = tool::run(&mut command);
    assert!(said.success, "{surroundings:?}: {}{}", said.stdout, said.stderr);
}

/// The rack's packages, once per test program.
fn vendor() -> PathBuf {
    static VENDOR: OnceLock<PathBuf> = OnceLock::new();
    VENDOR
        .get_or_init(|| {
            let folder = place::rig().join("vendor");
            let recipe = place::clone().join("tests/recipes/pair.toml");
            tool::output(tool::rackstick().arg("vendor").arg(&folder).arg(recipe));
            folder
        })
        .clone()
}
