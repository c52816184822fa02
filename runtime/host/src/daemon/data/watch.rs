//! Looks after the mounted data partition as long as the daemon runs: full, damaged, read-only, pulled out, twice
//! there. Each is said in words, with what to do; the rack goes on with what it has.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use rackstick_linux::uevent::{UeventError, Uevents};
use rustix::fs::StatVfsMountFlags;

use super::{
    MOUNT,
    find::{self, Mounted},
};

/// How often space and errors are looked at; nothing tells of them. Disks that come and go are seen at once.
const INTERVAL: Duration = Duration::from_secs(10);
/// With less space than this, in bytes, it counts as full.
const FULL: u64 = 32 << 20;
/// Files that are looked at to say what takes the space: more would keep a slow disk busy for minutes.
const MOST_FILES: usize = 100_000;
/// Pause after the device events' socket failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// What is wrong, by what it is about.
pub type Problem = (&'static str, Option<String>);

/// What can be wrong, each told apart from the others. The first two also keep guests from being started.
const ABOUT: [&str; 5] = [
    super::ABOUT,
    super::READ_ONLY,
    "file system of the data partition",
    "space on the data partition",
    "twin of the data partition",
];

/// How it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Facts {
    /// The device for people; none if it is gone.
    device: Option<String>,
    /// Other partitions with the same GUID, for people.
    others: Vec<String>,
    /// Whether nothing can be written.
    read_only: bool,
    /// Errors that ext4 found and wrote down, and where in the kernel it found the last.
    errors: u64,
    last_error: String,
    /// Bytes that can still be written, of how many.
    free: u64,
    size: u64,
    /// Bytes that each folder takes, if it was looked at.
    folders: Vec<(String, u64)>,
}

/// Looks now and from then on; `report` gets what is wrong each time and says whether anybody still listens.
pub fn start(guid: String, device: &Path, report: impl Fn(Problem) -> bool + Send + 'static) -> std::io::Result<()> {
    // What is pulled out has no name any more.
    let name = find::describe(device);
    let body = move || {
        let uevents = loop {
            match Uevents::open() {
                Ok(uevents) => break uevents,
                Err(error) => pause(&error),
            }
        };
        let mut others = others(&guid);
        while problems(&Facts::now(&others), &name).into_iter().all(&report) {
            if disks_changed(&uevents) {
                others = self::others(&guid);
            }
        }
    };
    thread::Builder::new().name("data".into()).spawn(body).map(drop)
}

fn pause(error: &UeventError) {
    log::warn!("{error}");
    thread::sleep(FAILURE_PAUSE);
}

/// Returns when a disk came or went, or when it is time to look at the space: then no disk is read, so that one that is
/// at rest stays so.
fn disks_changed(uevents: &Uevents) -> bool {
    super::disks_changed(uevents, Instant::now() + INTERVAL).unwrap_or_else(|error| {
        pause(&error);
        true
    })
}

/// Partitions with the same GUID beside the one that is mounted, for people.
fn others(guid: &str) -> Vec<String> {
    let mounted = find::mounted();
    let is_mounted = |device: &Path| matches!(&mounted, Mounted::Yes(own) if own == device);
    let found = find::candidates(guid);
    found.iter().filter(|other| !is_mounted(&other.device)).map(|other| find::describe(&other.device)).collect()
}

impl Facts {
    fn now(others: &[String]) -> Self {
        let others = others.to_vec();
        let Mounted::Yes(device) = &find::mounted() else { return Self { others, ..Self::default() } };

        let name = device.file_name().unwrap_or_default();
        let ext4 = Path::new("/sys/fs/ext4").join(name);
        let said = |file| fs::read_to_string(ext4.join(file)).unwrap_or_default().trim().to_owned();
        let mut facts = Self {
            device: Some(find::describe(device)),
            others,
            // Kernels too old for these files have no errors to tell.
            errors: said("errors_count").parse().unwrap_or(0),
            last_error: said("last_error_func"),
            ..Self::default()
        };
        match rustix::fs::statvfs(MOUNT) {
            Ok(stat) => {
                // After an error ext4 takes no more writes, and since Linux 6.12 its flags don't tell.
                facts.read_only = stat.f_flag.contains(StatVfsMountFlags::RDONLY)
                    || facts.errors > 0 && touch(&Path::new(MOUNT).join("state")).is_err();
                facts.free = stat.f_bavail.saturating_mul(stat.f_frsize);
                facts.size = stat.f_blocks.saturating_mul(stat.f_frsize);
            }
            Err(error) => {
                facts.errors = facts.errors.max(1);
                facts.last_error = error.to_string();
            }
        }
        if facts.is_full() {
            facts.folders = folders(Path::new(MOUNT));
        }
        facts
    }

    fn is_full(&self) -> bool {
        self.free < FULL && !self.read_only
    }
}

/// All that can be wrong, right or not; `name` is what the device was called when it was mounted.
fn problems(facts: &Facts, name: &str) -> [Problem; 5] {
    let [data, writes, file_system, space, twin] = ABOUT;
    if facts.device.is_none() {
        // Of what is gone nothing else is known.
        return [(data, Some(gone(facts, name))), (writes, None), (file_system, None), (space, None), (twin, None)];
    }
    [
        (data, None),
        (writes, read_only(facts, name)),
        (file_system, damaged(facts, name)),
        (space, full(facts, name)),
        (twin, twice(facts, name)),
    ]
}

/// What is wrong with a partition just mounted if it is mounted for reading only.
pub fn write_protected(device: &Path) -> Option<String> {
    let read_only = rustix::fs::statvfs(MOUNT).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    self::read_only(&Facts { read_only, ..Facts::default() }, &find::describe(device))
}

fn gone(facts: &Facts, name: &str) -> String {
    let back = match &facts.others[..] {
        [] => "plug it in again, then reboot the rack".to_owned(),
        [other, ..] => format!("it is back as {other}: reboot the rack to use it"),
    };
    format!(
        "the disk of the data partition, {name}, is gone: guests run only until they need \
         what is not in memory, and nothing is kept; {back}"
    )
}

fn read_only(facts: &Facts, name: &str) -> Option<String> {
    let mend = match facts.errors {
        0 => "is the stick's or card's write protection on? Switch it off and reboot",
        _ => "its file system has errors",
    };
    facts.read_only.then(|| {
        format!(
            "the data partition {name} can't be written to: guests with volumes are not started, all others run, and \
             nothing is kept; {mend}"
        )
    })
}

fn damaged(facts: &Facts, name: &str) -> Option<String> {
    let Facts { errors, last_error, read_only, .. } = facts;
    let state = if *read_only { "it takes no more writes" } else { "it still takes writes" };
    (*errors > 0).then(|| {
        format!(
            "the file system of the data partition {name} has errors ({errors} so far, the last in {last_error}): \
             {state}; copy what matters, then replace the disk or have `e2fsck -f` mend it on another machine"
        )
    })
}

fn full(facts: &Facts, name: &str) -> Option<String> {
    let list = |(folder, bytes): &(String, u64)| format!("{folder} {}", human(*bytes));
    let most: Vec<String> = facts.folders.iter().map(list).collect();
    let most = if most.is_empty() { String::new() } else { format!(" (taken by {})", most.join(", ")) };
    let (free, size) = (human(facts.free), human(facts.size));
    facts.is_full().then(|| {
        format!(
            "the data partition {name} is full: {free} of {size} are free{most}; guests run, but what they write to \
             volumes fails; delete files in the guests, or move the rack to a larger disk"
        )
    })
}

fn twice(facts: &Facts, name: &str) -> Option<String> {
    (!facts.others.is_empty()).then(|| {
        format!(
            "more than one disk holds this rack's data partition: {name} is used, {} is left alone; of those \
             that were there the one most written to was taken; pull out the one that you don't want",
            facts.others.join(" and ")
        )
    })
}

/// A write that changes nothing of meaning.
fn touch(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.set_modified(SystemTime::now())
}

/// What each folder takes, the most first.
fn folders(root: &Path) -> Vec<(String, u64)> {
    use std::os::unix::fs::MetadataExt;
    let mut left = MOST_FILES;
    let mut found = Vec::new();
    // What can't be read here is no less full: the sums are for orientation.
    for top in fs::read_dir(root).into_iter().flatten().flatten() {
        let mut bytes = 0_u64;
        let mut open = vec![top.path()];
        while let Some(path) = open.pop() {
            let Some(remaining) = left.checked_sub(1) else { break };
            left = remaining;
            let Ok(metadata) = path.symlink_metadata() else { continue };
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
        }
        found.push((top.file_name().to_string_lossy().into_owned(), bytes));
    }
    found.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    // Empty ones say nothing.
    found.retain(|(_, bytes)| *bytes >= 1 << 20);
    found
}

/// A size in bytes for people.
pub fn human(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")];
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit).unwrap_or((1 << 10, "KiB"));
    let (whole, tenth) = (bytes / unit, bytes % unit * 10 / unit);
    if whole < 10 { format!("{whole}.{tenth} {name}") } else { format!("{whole} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(facts: &Facts) -> Vec<String> {
        problems(facts, "sda2 (Ultra)").into_iter().filter_map(|(_, what)| what).collect()
    }

    fn well() -> Facts {
        Facts { device: Some("sda2 (Ultra)".into()), free: 7 << 30, size: 8 << 30, ..Facts::default() }
    }

    #[track_caller]
    fn assert_says(facts: &Facts, words: &[&str]) {
        let said = said(facts);
        let [only] = &said[..] else { panic!("one problem, not {said:?}") };
        assert!(words.iter().all(|word| only.contains(word)), "{only}");
    }

    #[test]
    fn a_partition_that_is_well_has_no_problem() {
        assert_eq!(said(&well()), [""; 0]);
    }

    #[test]
    fn a_full_partition_is_reported_with_what_fills_it() {
        let folders = vec![("volumes".to_owned(), 7 << 30), ("layers".to_owned(), 700 << 20)];
        let facts = Facts { free: 5 << 20, folders, ..well() };
        assert_says(&facts, &["full", "5.0 MiB of 8.0 GiB", "volumes 7.0 GiB, layers 700 MiB", "larger disk"]);
    }

    #[test]
    fn an_error_of_the_file_system_is_reported_with_what_to_do() {
        let facts = Facts { errors: 3, last_error: "ext4_lookup".into(), ..well() };
        assert_says(&facts, &["sda2", "3 so far", "ext4_lookup", "still takes writes", "e2fsck"]);
        let said = said(&Facts { read_only: true, free: 0, ..facts });
        let [writes, errors] = &said[..] else { panic!("two problems, not {said:?}") };
        assert!(writes.contains("guests with volumes are not started") && writes.contains("has errors"), "{writes}");
        assert!(errors.contains("takes no more writes") && errors.contains("e2fsck"), "{errors}");
    }

    #[test]
    fn write_protection_is_reported_and_is_no_damage() {
        assert_says(&Facts { read_only: true, ..well() }, &["write protection", "guests with volumes are not started"]);
    }

    #[test]
    fn a_stick_that_is_pulled_is_reported_and_so_is_its_return() {
        let gone = Facts { device: None, free: 0, size: 0, ..well() };
        assert_says(&gone, &["sda2 (Ultra)", "is gone", "nothing is kept", "plug it in again"]);
        assert_says(&Facts { others: vec!["sdb2 (Ultra)".into()], ..gone }, &["is gone", "back as sdb2 (Ultra)"]);
    }

    #[test]
    fn two_sticks_of_one_rack_are_both_named() {
        let facts = Facts { others: vec!["sdb2 (Flash)".into()], ..well() };
        assert_says(&facts, &["sda2 (Ultra) is used", "sdb2 (Flash) is left alone", "pull out"]);
    }

    #[test]
    fn folders_are_told_by_what_they_take() {
        let root = tempfile::tempdir().unwrap();
        for (folder, bytes) in [("log", 2 << 20), ("volumes/a", 5 << 20), ("state", 10)] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
            fs::write(root.path().join(folder).join("file"), vec![1; bytes]).unwrap();
        }
        let found = folders(root.path());
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["volumes", "log"]);
        assert!(found[0].1 >= 5 << 20);
    }

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [(0, "0.0 KiB"), (1536 << 20, "1.5 GiB"), (20 << 30, "20 GiB"), (3 << 40, "3.0 TiB")] {
            assert_eq!(human(bytes), text);
        }
    }
}
