//! Fetching into the store: in parallel, each file from the first mirror that has it right, going on after an
//! interruption where it stopped, whether within this run or in an earlier one.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rackstick::locked;
use rackstick_image::{digest::Sha256, full};
use sha2::Digest;

use super::{
    Client, Store, StoreError, THREADS,
    http::{self, HttpErrorKind},
};
use crate::{
    archive::Mirrors,
    parallel::each_by,
    progress::{Job, Progress},
};

/// How often all mirrors are tried.
const ROUNDS: u32 = 3;
/// How long to wait before the second round; before the third, four times that.
const PAUSE: Duration = Duration::from_millis(500);
/// An interrupted answer that brought this many bytes does not count as a failure. Less would let a server keep us for
/// as long as it likes.
const LEAST_GAIN: u64 = 64 << 10;
/// Bytes read at once.
const BUFFER: usize = 64 << 10;

/// A file that is to be in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// What it is, for people: `nginx-light 1.26.3-3`.
    pub name: String,
    /// The archive that holds it.
    pub archive: String,
    /// Path below the archive's root.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Hash of its bytes.
    pub sha256: Sha256,
}

/// How fetching one file ended.
enum Outcome {
    Done,
    Gone(Want),
    Failed(StoreError),
    /// Another file failed, so this one was left.
    Left,
}

impl Store {
    /// Sees to it that all these files are in the store, whole and unaltered; each is then at [`Store::path`].
    pub fn obtain(
        &self,
        client: &Client,
        wants: &[Want],
        mirrors: &Mirrors,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let present = each_by(THREADS, wants, |want| verified(&self.path(want.sha256), want.sha256, want.size));
        let mut missing = Vec::new();
        for (want, present) in wants.iter().zip(present) {
            if !present.map_err(|source| StoreError::Io { path: self.path(want.sha256), source })? {
                missing.push(want);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let total = missing.iter().map(|want| want.size).sum();
        self.check_space(total)?;
        let what = match missing.as_slice() {
            [only] => only.name.clone(),
            several => format!("{} files", several.len()),
        };
        let job = progress.bytes("fetching", &what, total);
        let stop = AtomicBool::new(false);
        let outcomes = each_by(THREADS, &missing, |want| {
            if stop.load(Ordering::Relaxed) {
                return Outcome::Left;
            }
            let outcome = self.fetch(client, want, mirrors.roots(&want.archive), &job, &stop);
            if matches!(outcome, Outcome::Failed(_)) {
                stop.store(true, Ordering::Relaxed);
            }
            outcome
        });
        let mut gone = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Failed(error) => return Err(error),
                Outcome::Gone(want) => gone.push(want),
                Outcome::Done | Outcome::Left => {}
            }
        }
        if !gone.is_empty() {
            return Err(StoreError::Gone(gone));
        }
        job.done(&what);
        Ok(())
    }

    fn check_space(&self, needed: u64) -> Result<(), StoreError> {
        if self.free()? < needed {
            return Err(self.io_error(self.folder(), ErrorKind::StorageFull.into(), needed));
        }
        Ok(())
    }

    fn free(&self) -> Result<u64, StoreError> {
        let info = rustix::fs::statvfs(self.folder())
            .map_err(|error| StoreError::Io { path: self.folder().to_owned(), source: error.into() })?;
        Ok(info.f_bavail.saturating_mul(info.f_frsize))
    }

    fn fetch(&self, client: &Client, want: &Want, roots: &[String], job: &Job, stop: &AtomicBool) -> Outcome {
        if roots.is_empty() {
            return Outcome::Failed(StoreError::NoMirror { name: want.name.clone() });
        }
        let target = self.path(want.sha256);
        let path = self.partial().join(want.sha256.to_string());
        let fail = |source: io::Error, length: u64| Outcome::Failed(self.io_error(&path, source, want.size - length));
        let mut partial = match Partial::lock(&path, want.size) {
            Ok(partial) => partial,
            Err(error) => return fail(error, 0),
        };
        // Another builder may have had the lock before us, and finished.
        match verified(&target, want.sha256, want.size) {
            Ok(true) => {
                job.advance(want.size);
                return fs::remove_file(&path).map_or_else(|error| fail(error, 0), |()| Outcome::Done);
            }
            Ok(false) => {}
            Err(error) => return fail(error, 0),
        }
        job.advance(partial.length);
        let mut failures: Vec<Option<Failure>> = roots.iter().map(|_| None).collect();
        for round in 0..ROUNDS {
            if round > 0 {
                std::thread::sleep(PAUSE * 4_u32.pow(round - 1));
            }
            for (root, failure) in roots.iter().zip(&mut failures) {
                if failure.as_ref().is_some_and(|failure| failure.last) {
                    continue;
                }
                let url = format!("{root}/{}", want.path);
                loop {
                    if stop.load(Ordering::Relaxed) {
                        return Outcome::Left;
                    }
                    let before = partial.length;
                    match partial.go_on(client, &url, want, job) {
                        Ok(()) => {
                            return fs::rename(&path, &target).map_or_else(|error| fail(error, 0), |()| Outcome::Done);
                        }
                        Err(Interrupt::Disk(error)) => return fail(error, partial.length),
                        Err(Interrupt::Mirror(new)) => {
                            let gained = partial.length >= before.saturating_add(LEAST_GAIN);
                            *failure = Some(new);
                            if !gained {
                                break;
                            }
                        }
                    }
                }
            }
            if failures.iter().flatten().all(|failure| failure.last) {
                break;
            }
        }
        let failures: Vec<Failure> = failures.into_iter().flatten().collect();
        if failures.iter().all(|failure| failure.gone) {
            return Outcome::Gone(want.clone());
        }
        let attempts = failures.into_iter().map(|failure| failure.why).collect();
        Outcome::Failed(StoreError::Failed { name: want.name.clone(), attempts })
    }

    /// Why a file of the store can't be written, of which and of others `needed` bytes are still to come.
    pub(super) fn io_error(&self, path: &Path, source: io::Error, needed: u64) -> StoreError {
        if !full::is_behind(&source) {
            return StoreError::Io { path: path.to_owned(), source };
        }
        self.free().map_or_else(
            |error| error,
            |free| StoreError::NoSpace { folder: self.folder().to_owned(), needed, free, source },
        )
    }
}

/// A mirror's last failure.
struct Failure {
    /// What happened, with the URL.
    why: String,
    /// Whether asking again is useless.
    last: bool,
    /// Whether the mirror has no such file.
    gone: bool,
}

/// Why an attempt ended.
enum Interrupt {
    Mirror(Failure),
    Disk(io::Error),
}

/// A file that is being fetched, locked against other builders.
struct Partial {
    file: File,
    length: u64,
    hasher: sha2::Sha256,
}

impl Partial {
    /// Opens and locks the file, and takes over what an interrupted run left in it.
    fn lock(path: &Path, size: u64) -> io::Result<Self> {
        // Whoever had the lock may have given the file its final name.
        let mut new = Self { file: locked::open(path)?, length: 0, hasher: sha2::Sha256::new() };
        new.length = io::copy(&mut (&new.file).take(size.saturating_add(1)), &mut new.hasher)?;
        if new.length >= size {
            // Either too long, or whole and yet not finished: then its hash was wrong.
            new.restart()?;
        }
        Ok(new)
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.length = 0;
        self.hasher.reset();
        Ok(())
    }

    /// Fetches what is still missing and checks the whole. What was received stays, unless it is wrong.
    fn go_on(&mut self, client: &Client, url: &str, want: &Want, job: &Job) -> Result<(), Interrupt> {
        let failure = |why: String, last| Interrupt::Mirror(Failure { why, last, gone: false });
        let part = client.part(url, self.length).map_err(|error| {
            let gone = matches!(error.kind, HttpErrorKind::NotFound);
            let last = gone || matches!(error.kind, HttpErrorKind::Status(400..500) | HttpErrorKind::Challenge(_));
            Interrupt::Mirror(Failure { why: error.to_string(), last, gone })
        });
        let mut part = match part {
            Ok(part) => part,
            Err(interrupt) => {
                // If the server dislikes the range, it may still like the whole.
                if self.length > 0 && matches!(&interrupt, Interrupt::Mirror(failure) if failure.last && !failure.gone)
                {
                    self.forget(job)?;
                    return Err(failure(format!("{url}: the server can't go on with an interrupted file"), false));
                }
                return Err(interrupt);
            }
        };
        if part.start != self.length {
            self.forget(job)?;
        }
        let from_start = self.length == 0;
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match part.body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    let why = format!("{url}: {} after {} of {} bytes", http::broken(&error), self.length, want.size);
                    return Err(failure(why, false));
                }
            };
            let bytes = &buffer[..count];
            if self.length + count as u64 > want.size {
                self.forget(job)?;
                return Err(failure(format!("{url}: the file is larger than {} bytes", want.size), from_start));
            }
            self.file.write_all(bytes).map_err(Interrupt::Disk)?;
            self.hasher.update(bytes);
            self.length += count as u64;
            job.advance(count as u64);
        }
        if self.length < want.size {
            let why = format!("{url}: cut short after {} of {} bytes", self.length, want.size);
            return Err(failure(why, false));
        }
        let found = Sha256(self.hasher.finalize_reset().into());
        if found != want.sha256 {
            self.forget(job)?;
            let why = format!("{url}: wrong content: its SHA-256 is {found}, not {}", want.sha256);
            return Err(failure(why, from_start));
        }
        Ok(())
    }

    fn forget(&mut self, job: &Job) -> Result<(), Interrupt> {
        job.retreat(self.length);
        self.restart().map_err(Interrupt::Disk)
    }
}

/// Whether a file is there with this content. If so, its time of modification says from now on that it was used.
fn verified(path: &Path, hash: Sha256, size: u64) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let right = file.metadata()?.len() == size && Sha256::of_reader(&file)? == hash;
    if right {
        locked::touch(&file)?;
    }
    Ok(right)
}
