//! Whether a file is what it was, told by what its file system says of it, without reading it, as git's index does. A
//! time of change (ctime) can't be set by anybody: it moves with whatever is done to a file or its name.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// The coarsest clock of file systems: FAT's.
const COARSEST: Duration = Duration::from_secs(2);
/// How often to look whether a file system's clock has moved on. Linux moves it every 1 to 10 ms.
const PAUSE: Duration = Duration::from_millis(1);

/// What a file system says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds since 1970, and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Stamp {
    /// Waits until files in `folder` that change get a later time than these changed at; false if that doesn't come.
    /// Before, a file could change once more within one tick of the clock, and keep its stamp.
    pub fn wait_until_past<'a>(stamps: impl IntoIterator<Item = &'a Self>, folder: &Path) -> io::Result<bool> {
        let Some(newest) = stamps.into_iter().map(|stamp| stamp.changed).max() else { return Ok(true) };
        let started = Instant::now();
        loop {
            // Only the file system itself knows its clock and how fine it is.
            let now = Self::from(tempfile::tempfile_in(folder)?.metadata()?).changed;
            if now > newest {
                return Ok(true);
            }
            if started.elapsed() > COARSEST {
                return Ok(false);
            }
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_change_right_after_the_wait_shows_even_if_size_and_time_of_modification_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let stamp = || Stamp::from(fs::metadata(&path).unwrap());
        for _ in 0..50 {
            fs::write(&path, "one").unwrap();
            let before = stamp();
            assert!(Stamp::wait_until_past([&before], folder.path()).unwrap());
            assert_eq!(stamp(), before, "nothing happened to it");
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, "two").unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
            let after = stamp();
            assert_eq!((after.modified, after.size), (before.modified, before.size));
            assert_ne!(after, before);
        }
    }

    #[test]
    fn a_clock_that_stands_before_a_files_time_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let future = Stamp { device: 0, inode: 0, size: 0, modified: (0, 0), changed: (i64::MAX, 0) };
        assert!(!Stamp::wait_until_past([&future], folder.path()).unwrap());
        assert!(Stamp::wait_until_past([], folder.path()).unwrap());
    }
}
