//! A layer that is made a second time, to see whether it becomes the same: at another time of day, and with other
//! process ids. What is different is told by file, with the package that owns or wrote it.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rackstick_image::{
    erofs::read::Layer,
    view::{ReadError, View},
};
use rustix::fs::{MemfdFlags, Timespec, Timestamps, UTIME_NOW, futimens, memfd_create};

use super::super::{
    compare::{Difference, How, Pair, Part},
    configure::failed,
    database,
    tree::Tree,
};
use super::protocol::Failure;

/// Where Debian, Fedora and Arch have the library that gives programs another clock.
const CLOCKS: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];
/// Where a program of the image finds it.
pub const CLOCK: &str = "/run/rackstick-clock.so";
/// How far the other clock is ahead: another year, month, day of the week, hour, minute and second.
const AHEAD: Duration = Duration::from_secs(400 * 86_400 + 5 * 3600 + 7 * 60 + 11);
/// Process ids begin behind this one; each fits into 15 bits, as everywhere.
const PID_BASE: u32 = 20_000;
/// How many files an error shows.
const SHOWN: usize = 20;

/// The library, if it is installed.
pub fn find_clock() -> Option<PathBuf> {
    CLOCKS.into_iter().map(PathBuf::from).find(|path| path.exists())
}

/// What sets a program's clock. Only the time of day: waiting takes as long as ever, and files have the time that they
/// have.
pub fn environment() -> [(&'static str, String); 4] {
    [
        // The C library's allocator goes before those that programs bring: jemalloc (named has it) asks for the time
        // while it holds its lock, and the clock's library, which allocates to answer the first time, would wait for
        // ever.
        ("LD_PRELOAD", format!("{CLOCK}:libc.so.6")),
        ("FAKETIME", format!("+{}", AHEAD.as_secs())),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("NO_FAKE_STAT", "1".to_owned()),
    ]
}

/// Lets the next process of this PID namespace have a high id. See pid_namespaces(7), "/proc/sys/kernel/ns_last_pid".
pub fn skip_pids() -> io::Result<()> {
    fs::write("/proc/sys/kernel/ns_last_pid", PID_BASE.to_string())
}

/// What a stage did, and when each part began, by the clock that files are stamped with. No call tells that clock:
/// since Linux 6.13 it is ahead of `CLOCK_REALTIME_COARSE` where a file's time was asked for between two changes
/// (kernel documentation, filesystems/multigrain-ts). So a file of its own is stamped.
pub struct Diary {
    stamped: File,
    began: RefCell<Vec<(Duration, String)>>,
}

impl Diary {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        let stamped = memfd_create("diary", MemfdFlags::CLOEXEC)?;
        Ok(Self { stamped: stamped.into(), began: RefCell::default() })
    }

    /// Notes what begins now.
    pub fn note(&self, what: &str) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        futimens(&self.stamped, &Timestamps { last_access: now, last_modification: now })?;
        self.began.borrow_mut().push((changed(&self.stamped.metadata()?), what.to_owned()));
        Ok(())
    }

    /// What was being done when a file was last changed; two things if one began in that very tick of the clock.
    fn at(&self, file: &Path) -> Option<String> {
        let changed = changed(&fs::symlink_metadata(file).ok()?);
        let diary = self.began.borrow();
        let next = diary.partition_point(|(began, _)| *began <= changed);
        let last = diary[..next].iter().rev().enumerate();
        let steps = last.take_while(|(number, _)| *number == 0 || (*number == 1 && diary[next - 1].0 == changed));
        let steps: Vec<String> = steps.map(|(_, (_, step))| format!("`{step}`")).collect();
        (!steps.is_empty()).then(|| steps.join(" or "))
    }
}

fn changed(metadata: &fs::Metadata) -> Duration {
    Duration::new(metadata.ctime().try_into().unwrap_or(0), metadata.ctime_nsec().try_into().unwrap_or(0))
}

/// Compares a layer with the one that was made before. `trees` are that of the new one and those below it.
pub fn judge(first: &Path, second: &Path, trees: &[&Path], diary: &Diary) -> Result<(), Failure> {
    let differences = differences(first, second).map_err(failed("comparing a layer with the one before"))?;
    if differences.is_empty() {
        return Ok(());
    }
    let mut owners = HashMap::new();
    for tree in trees.iter().rev() {
        let tree = Tree::open(tree).map_err(failed("the new tree"))?;
        owners.extend(database::owners(&tree).map_err(failed(database::ADMIN))?);
    }
    let mut lines: Vec<String> = differences
        .iter()
        .take(SHOWN)
        .map(|difference| {
            let path = Path::new(std::ffi::OsStr::from_bytes(&difference.path));
            let owner = owners.get(path).map(|package| format!(", of package {package}"));
            let writer = trees.first().and_then(|tree| diary.at(&tree.join(path)));
            let writer = writer.map(|step| format!(", last changed by {step}"));
            let [owner, writer] = [owner, writer].map(Option::unwrap_or_default);
            format!("/{}: {}{owner}{writer}", path.display(), how(&difference.how))
        })
        .collect();
    if differences.len() > SHOWN {
        lines.push(format!("and {} more files", differences.len() - SHOWN));
    }
    Err(Failure::Differs(lines))
}

fn differences(first: &Path, second: &Path) -> io::Result<Vec<Difference>> {
    let (first, second) = (File::open(first)?, File::open(second)?);
    let (first, second) = (View::whole(&first)?, View::whole(&second)?);
    let compare = || -> Result<Vec<Difference>, ReadError> {
        let (first, second) = (Layer::open(first)?, Layer::open(second)?);
        Ok(Pair { a: Some(&first), b: Some(&second) }.compare()?.0)
    };
    compare().map_err(io::Error::other)
}

fn how(how: &How) -> String {
    let part = |part: &Part| match part {
        Part::Kind => "of another kind".to_owned(),
        Part::Content(was, is) if was == is => format!("other content ({is} bytes)"),
        Part::Content(was, is) => format!("other content ({was} bytes, then {is})"),
        Part::Target => "another target".to_owned(),
        Part::Mode(was, is) => format!("mode {was:o}, then {is:o}"),
        Part::Owner(was, is) => format!("owner {}:{}, then {}:{}", was.0, was.1, is.0, is.1),
        Part::Xattrs => "other extended attributes".to_owned(),
    };
    match how {
        How::Gone => "only the first time".to_owned(),
        How::New => "only the second time".to_owned(),
        How::Changed(parts) => parts.iter().map(part).collect::<Vec<_>>().join(", "),
    }
}
