//! Runs one program of the image inside its tree: own mounts with a fresh /proc, /dev, /run and /tmp, nothing of the
//! machine in reach, a fixed environment, output kept, a deadline. The mounts belong to the program alone, so none of
//! this ever gets into a layer.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Seek},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, Mode, OFlags},
    io::{Errno, FdFlags},
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
    pipe::{PipeFlags, SpliceFlags},
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};

use super::{super::tree::Tree, again, namespaces};

/// How long the scripts of one image may take together: stops a script that waits for an answer or a network for ever.
pub const DEADLINE: Duration = Duration::from_secs(900);
/// How much of the end of a program's output an error shows, in bytes.
const OUTPUT_SHOWN: usize = 8192;
/// Where programs are looked for.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Devices that harm nobody and that scripts expect; bound from the machine, since a user namespace may not create any.
const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];
/// Every file that scripts create gets the same mode, whoever builds.
const UMASK: u32 = 0o022;

/// What runs where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    /// The tree.
    pub root: PathBuf,
    /// Programs of the image that do nothing while this runs: each is covered by `true`.
    pub masked: Vec<PathBuf>,
    /// The library that gives it another clock, if it shall have one.
    pub clock: Option<PathBuf>,
    /// Program and arguments.
    pub arguments: Vec<String>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; none if it was killed at the deadline.
    pub status: Option<ExitStatus>,
    /// The end of what it wrote to stdout and stderr.
    pub output: String,
    /// What it wrote to the status descriptor.
    pub notes: String,
}

impl Ended {
    /// Whether it did what it should.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// How it ended, for people.
    pub fn how(&self) -> String {
        match self.status {
            Some(status) => status.to_string(),
            None => format!("stopped after {} s without an end", DEADLINE.as_secs()),
        }
    }
}

/// Bytes of a note at most, and of a pipe that has room for one (pipe(7), "O_DIRECT": each write is a packet of its
/// own).
const ONE_NOTE: usize = 4096;

/// Where a program's status notes go: dpkg's `--status-fd`.
pub const STATUS_FD: &str = "{status-fd}";

impl Program {
    /// Runs it to its end with `environment` beside the fixed one. An argument [`STATUS_FD`] becomes the number of a
    /// descriptor; `note` sees each line written there.
    pub fn run(&self, epoch: i64, environment: &[(&str, &str)], note: &mut dyn FnMut(&str)) -> io::Result<Ended> {
        // Where it counts when a step began there is room for one note: the program waits with the next, and with what
        // comes then, until a note was told.
        let one = if self.clock.is_some() { PipeFlags::DIRECT } else { PipeFlags::empty() };
        let (notes_in, notes_out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | one)?;
        if self.clock.is_some() {
            rustix::pipe::fcntl_setpipe_size(&notes_out, ONE_NOTE)?;
        }
        rustix::fs::fcntl_setfl(&notes_in, OFlags::NONBLOCK)?;
        let mut program = self.clone();
        for argument in &mut program.arguments {
            if argument == STATUS_FD {
                rustix::io::fcntl_setfd(&notes_out, FdFlags::empty())?;
                *argument = std::os::fd::AsRawFd::as_raw_fd(&notes_out).to_string();
            }
        }
        let mut output = File::from(rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC)?);
        let mut child = Command::new("/proc/self/exe")
            .args([super::COMMAND, super::ENTER, &serde_json::to_string(&program)?])
            .env_clear()
            .envs(environment.iter().copied())
            .envs([
                ("PATH", SEARCH_PATH),
                ("HOME", "/root"),
                ("LC_ALL", "C.UTF-8"),
                ("TZ", "UTC"),
                ("DEBIAN_FRONTEND", "noninteractive"),
                ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
                ("SYSTEMD_OFFLINE", "1"),
                ("PERL_HASH_SEED", "0"),
                ("SOURCE_DATE_EPOCH", &epoch.to_string()),
            ])
            .envs(self.clock.iter().flat_map(|_| again::environment()))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .spawn()?;
        drop(notes_out);
        let copy = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut notes =
            Notes { pipe: File::from(notes_in), copy: (File::from(copy.0), copy.1), text: String::new(), told: 0 };
        let ended = wait(&child, &mut notes, note)?;
        if !ended {
            child.kill()?;
        }
        let status = child.wait()?;
        notes.read(note)?;
        output.rewind()?;
        let mut text = Vec::new();
        output.read_to_end(&mut text)?;
        let shown = text.len().saturating_sub(OUTPUT_SHOWN);
        let output = String::from_utf8_lossy(&text[shown..]).trim().to_owned();
        Ok(Ended { status: ended.then_some(status), output, notes: notes.text })
    }

    /// Becomes the program: called in the process that [`Program::run`] started. Returns only if that fails.
    pub fn enter(&self) -> io::Error {
        match self.prepare() {
            Ok(()) => {
                let program = self.arguments.first().map_or("", String::as_str);
                let error = Command::new(program).args(&self.arguments[1..]).exec();
                io::Error::new(error.kind(), format!("`{program}` can't be started: {error}"))
            }
            Err(error) => error,
        }
    }

    fn prepare(&self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::process::setsid()?;
        rustix::process::umask(Mode::from_raw_mode(UMASK));
        namespaces::leave_mounts()?;
        namespaces::give_up_tracing()?;
        // A mount of its own, as pivot_root needs; the tree of a base is a plain folder.
        mount_bind(&self.root, &self.root)?;
        let tree = Tree::open(&self.root)?;
        fill(&tree)?;
        for masked in &self.masked {
            if tree.is_file(masked)? {
                let program = tree.file_handle(masked)?;
                let idle = tree.file_handle(Path::new("/usr/bin/true"))?;
                mount_bind(&idle.1, &program.1)?;
            }
        }
        if let Some(clock) = &self.clock {
            let place = Path::new(again::CLOCK);
            tree.write(place, b"", 0o644)?;
            mount_bind(clock, &tree.file_handle(place)?.1)?;
        }
        std::env::set_current_dir(&self.root)?;
        rustix::process::pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        std::env::set_current_dir("/")?;
        forget_syncs()
    }
}

struct Notes {
    pipe: File,
    /// Where a note is looked at before it leaves the pipe.
    copy: (File, OwnedFd),
    text: String,
    told: usize,
}

impl Notes {
    /// Tells what is there, and only then takes it; the pipe does not block.
    fn read(&mut self, note: &mut dyn FnMut(&str)) -> io::Result<bool> {
        let mut buffer = [0; ONE_NOTE];
        loop {
            let there = match rustix::pipe::tee(&self.pipe, &self.copy.1, ONE_NOTE, SpliceFlags::NONBLOCK) {
                Ok(0) => return Ok(false),
                Ok(there) => there,
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
            };
            self.copy.0.read_exact(&mut buffer[..there])?;
            self.text.push_str(&String::from_utf8_lossy(&buffer[..there]));
            while let Some(end) = self.text[self.told..].find('\n') {
                note(&self.text[self.told..self.told + end]);
                self.told += end + 1;
            }
            self.pipe.read_exact(&mut buffer[..there])?;
        }
    }
}

/// Waits for the program's end and takes its notes meanwhile; false if the deadline came first. Waits for the program,
/// not for its output's end: a daemon that a script left behind may hold that open.
fn wait(child: &std::process::Child, notes: &mut Notes, note: &mut dyn FnMut(&str)) -> io::Result<bool> {
    let pid = Pid::from_child(child);
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let end = Instant::now() + DEADLINE;
    let mut open = true;
    loop {
        let Some(left) = end.checked_duration_since(Instant::now()) else {
            return Ok(false);
        };
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) };
        let pipe = notes.pipe.try_clone()?;
        let mut waited = vec![PollFd::new(&process, PollFlags::IN)];
        if open {
            waited.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
        }
        match poll(&mut waited, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = !waited[0].revents().is_empty();
        open = open && notes.read(note)?;
        if ended {
            return Ok(true);
        }
    }
}

/// Mounts what programs expect beside the tree's own files.
fn fill(tree: &Tree) -> io::Result<()> {
    let nowhere = MountFlags::NOSUID | MountFlags::NODEV;
    let on = |path: &str, kind: &str, flags: MountFlags, options: Option<&str>| -> io::Result<()> {
        let (_open, target) = tree.handle(Path::new(path))?;
        let options = options.map(CString::new).transpose()?;
        mount(kind, &target, kind, flags, options.as_deref())
            .map_err(|error| io::Error::new(error.kind(), format!("{path} can't be mounted for the scripts: {error}")))
    };
    on("/proc", "proc", nowhere | MountFlags::NOEXEC, None)?;
    on("/run", "tmpfs", nowhere, Some("mode=0755"))?;
    on("/tmp", "tmpfs", nowhere, Some("mode=1777"))?;
    on("/dev", "tmpfs", MountFlags::NOSUID, Some("mode=0755"))?;
    // Everybody's, as on every Debian: scripts become other users, too.
    for folder in ["/run/lock", "/dev/shm"] {
        tree.create_dirs(Path::new(folder), &mut |_| ())?;
        on(folder, "tmpfs", nowhere, Some("mode=1777"))?;
    }
    for name in DEVICES {
        let path = Path::new("/dev").join(name);
        tree.write(&path, b"", 0o666)?;
        mount_bind(&path, &tree.file_handle(&path)?.1)?;
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        tree.symlink(Path::new(target), &Path::new("/dev").join(link))?;
    }
    Ok(())
}

/// Makes the calls that wait for the disk do nothing: the tree is thrown away when the machine loses power, and dpkg
/// makes thousands of them.
fn forget_syncs() -> io::Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let calls = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync, libc::SYS_syncfs, libc::SYS_msync];
    let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(0), arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}
