//! What the tests of several formats need: other people's tools, and mounts that go away again.

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Runs a program to its end and returns what it said on both outputs; panics if it fails or is missing.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").env("TZ", "UTC");
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}: run ci/setup"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

/// Panics unless two sparse files have the same bytes; does not read what is a hole in both.
pub(crate) fn assert_same(a: &Path, b: &Path) {
    use rustix::{fs::SeekFrom, io::Errno};
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let size = a.metadata().unwrap().len();
    assert_eq!(size, b.metadata().unwrap().len());
    let next = |file: &File, from: u64| match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Err(Errno::NXIO) => size,
        other => other.unwrap(),
    };
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < size {
        at = next(&a, at).min(next(&b, at));
        let length = (size - at).min(1 << 20) as usize;
        a.read_exact_at(&mut left[..length], at).unwrap();
        b.read_exact_at(&mut right[..length], at).unwrap();
        assert!(left[..length] == right[..length], "different bytes within 1 MiB from {at}");
        at += length as u64;
    }
}

const HUGE: (&[u8; 12], u64) = (b"near the end", (4 << 30) + 12_345);

/// Makes a file of this size, more than 4 GiB, that is a hole but for a few bytes behind those.
pub(crate) fn make_huge(path: &Path, size: u64) {
    let file = File::create(path).unwrap();
    file.write_all_at(HUGE.0, HUGE.1).unwrap();
    file.set_len(size).unwrap();
}

/// Panics unless a file reads as the one of [`make_huge`].
pub(crate) fn assert_huge(path: &Path, size: u64) {
    let file = File::open(path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let mut read = [0xff; 14];
    file.read_exact_at(&mut read, HUGE.1 - 1).unwrap();
    assert_eq!(&read, b"\0near the end\0");
    let mut last = [0xff; 20];
    file.read_exact_at(&mut last, size - 20).unwrap();
    assert_eq!(last, [0; 20]);
}

/// Damages of a file, one after the other and each undone before the next: a bit is flipped, or a byte becomes 0 or
/// 255. The same places give the same damages.
pub(crate) struct Flips<'a, P> {
    file: &'a File,
    places: P,
}

/// One damage, there until it was judged.
pub(crate) struct Flip<'a> {
    file: &'a File,
    /// Where it is.
    pub at: u64,
    was: u8,
}

impl<'a, P: Iterator<Item = u64>> Flips<'a, P> {
    pub(crate) fn new(file: &'a File, places: impl IntoIterator<IntoIter = P>) -> Self {
        Self { file, places: places.into_iter() }
    }
}

impl<'a, P: Iterator<Item = u64>> Iterator for Flips<'a, P> {
    type Item = Flip<'a>;

    fn next(&mut self) -> Option<Flip<'a>> {
        let (file, at) = (self.file, self.places.next()?);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        let [was] = byte;
        let flipped = was ^ 1 << (at % 8);
        let now = match at % 5 {
            0 if was != 0 => 0,
            1 if was != 0xff => 0xff,
            _ => flipped,
        };
        file.write_all_at(&[now], at).unwrap();
        Some(Flip { file, at, was })
    }
}

impl Flip<'_> {
    /// What comes of it; then it is undone.
    pub(crate) fn judge<T>(self, judge: impl FnOnce() -> T) -> T {
        let judged = judge();
        self.file.write_all_at(&[self.was], self.at).unwrap();
        judged
    }
}

/// A file system image mounted through a loop device by this machine's kernel (needs root), until dropped.
pub(crate) struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Mounts `image` at the new folder `at`; `options` as for `mount -o`.
    pub(crate) fn new(file_system: &str, options: &str, image: &Path, at: PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        let options = format!("loop,{options}");
        run(
            "mount",
            [OsStr::new("-t"), file_system.as_ref(), "-o".as_ref(), options.as_ref(), image.as_ref(), at.as_ref()],
        );
        Self { at }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.at).status();
        if !std::thread::panicking() {
            assert!(status.unwrap().success(), "umount {}", self.at.display());
        }
    }
}
