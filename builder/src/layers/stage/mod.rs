//! The stage: where packages are unpacked and their scripts run. The command starts itself again in namespaces of its
//! own (user, mounts, processes, network, IPC, host name), so that a build needs no root and reaches nothing of the
//! machine, and so that files get the owners they will have in the guest.
//!
//! Three processes: the builder, which maps ids; the *outer* one, which leaves the namespaces; the *inner* one, PID 1
//! of the new PID namespace, which works. Each program of the image then runs in a fourth ([`program`]).

pub mod again;
pub mod ids;
mod inside;
mod loopback;
mod namespaces;
pub mod program;
pub mod protocol;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
};

use rustix::{mount::MountPropagationFlags, process::Signal};

use self::{
    inside::Work,
    program::Program,
    protocol::{Failure, Message, Mistake, Request, Written},
};

/// The hidden subcommand that makes a process part of a stage.
pub const COMMAND: &str = "__stage";
const OUTER: &str = "outer";
const INNER: &str = "inner";
const ENTER: &str = "enter";
/// Host name of every build.
const HOST_NAME: &[u8] = b"rackstick";
/// Bytes of a request at most; one with 100,000 recipe files has 20 MiB.
const MAX_REQUEST_BYTES: u64 = 256 << 20;

/// Why a stage can't do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be started.
    #[error("a build stage can't be started: {0}")]
    Start(io::Error),
    /// Ids.
    #[error(transparent)]
    Ids(#[from] ids::Error),
    /// The kernel refused the namespaces.
    #[error("{0}")]
    Namespaces(String),
    /// It ended without an answer.
    #[error("a build stage ended ({status}) without an answer; it said: {said}")]
    Died {
        /// Its exit status.
        status: String,
        /// Its stderr.
        said: String,
    },
    /// A program of the image failed.
    #[error("{what} failed ({how}):\n{output}")]
    Script {
        /// What ran.
        what: String,
        /// How it ended.
        how: String,
        /// The end of what it printed.
        output: String,
    },
    /// The recipe does not fit what is in the image.
    #[error("{}", .0.iter().map(|wrong| format!("{} ({})", wrong.message, wrong.hint)).collect::<Vec<_>>().join("\n"))]
    Recipe(Vec<Mistake>),
    /// It was made again, and became another.
    #[error(
        "it came out different when it was made again, at another time of day and with other process ids:\n  {}\nwhat is drawn \
         or noted while packages are installed can't be in an image: leave it to the guest, or tell us of the package",
        .0.join("\n  ")
    )]
    Differs(Vec<String>),
    /// The disk is full.
    #[error("no room left on the disk of the cache while working on {what}")]
    NoSpace {
        /// Of what.
        what: String,
        /// What the system said in the stage's process.
        source: io::Error,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Runs a request in a stage of its own. `program` is the command `rackstick` itself.
pub fn run(program: &Path, request: &Request, step: &dyn Fn(&str)) -> Result<Option<Written>, Error> {
    let mut child = Command::new(program)
        .args([COMMAND, OUTER])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::Start)?;
    let answer = converse(&mut child, request, step);
    if answer.is_err() {
        // It may wait for a request that never comes. If it has ended, so much the better.
        let _ended_already = child.kill();
    }
    let output = child.wait_with_output().map_err(Error::Start)?;
    answer?.unwrap_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::Died { status: output.status.to_string(), said })
    })
}

type Answer = Result<Option<Written>, Error>;

fn converse(child: &mut Child, request: &Request, step: &dyn Fn(&str)) -> Result<Option<Answer>, Error> {
    let lost = || Error::Start(io::ErrorKind::BrokenPipe.into());
    let mut stdin = child.stdin.take();
    let stdout = child.stdout.take().ok_or_else(lost)?;
    for line in BufReader::new(stdout).lines() {
        let message = serde_json::from_str(&line.map_err(Error::Start)?).map_err(|error| Error::Start(error.into()))?;
        match message {
            Message::Unshared => {
                ids::map(child.id())?;
                let mut pipe = stdin.take().ok_or_else(lost)?;
                let request = serde_json::to_vec(request).map_err(|error| Error::Start(error.into()))?;
                pipe.write_all(&request).map_err(Error::Start)?;
            }
            Message::Step(text) => step(&text),
            Message::Done(written) => return Ok(Some(Ok(written))),
            Message::Failed(failure) => return Ok(Some(Err(failure.into()))),
        }
    }
    Ok(None)
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Namespaces(text) => Self::Namespaces(text),
            Failure::Script { what, how, output } => Self::Script { what, how, output },
            Failure::Recipe(mistakes) => Self::Recipe(mistakes),
            Failure::Differs(files) => Self::Differs(files),
            Failure::NoSpace(what) => Self::NoSpace { what, source: io::ErrorKind::StorageFull.into() },
            Failure::Other(text) => Self::Failed(text),
        }
    }
}

/// To be called first in `main`: if this process was started as part of a stage, plays that part and says how it ended.
pub fn part_of_stage() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(COMMAND) {
        return None;
    }
    let result = match arguments.next().as_deref() {
        Some(OUTER) => outer(),
        Some(INNER) => inner(),
        Some(ENTER) => enter(&arguments.next().unwrap_or_default()),
        _ => Err(io::Error::other("this is an inner part of `rackstick build`, not for calling by hand")),
    };
    Some(match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rackstick: {error}");
            ExitCode::FAILURE
        }
    })
}

fn outer() -> io::Result<ExitCode> {
    if let Err(error) = namespaces::leave_all() {
        tell(&Message::Failed(Failure::Namespaces(ids::why_no_namespace(error))))?;
        return Ok(ExitCode::FAILURE);
    }
    tell(&Message::Unshared)?;
    let mut request = Vec::new();
    io::stdin().take(MAX_REQUEST_BYTES).read_to_end(&mut request)?;
    // Leaving the user namespace has undone what was asked before it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::system::sethostname(HOST_NAME)?;
    loopback::switch_on()?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let mut child = Command::new("/proc/self/exe").args([COMMAND, INNER]).stdin(Stdio::piped()).spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(&request)?;
    }
    Ok(if child.wait()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn inner() -> io::Result<ExitCode> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    namespaces::hide_from_programs()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let request: Request = serde_json::from_reader(io::stdin().take(MAX_REQUEST_BYTES))?;
    if request.again.is_some() {
        again::skip_pids()?;
    }
    let diary = again::Diary::new()?;
    let step = |text: String| {
        // Stamping its own memory file can't fail; and if the builder is gone, this process is about to be killed.
        let _gone = diary.note(&text).and_then(|()| tell(&Message::Step(text)));
    };
    let (message, code) = match (Work { request: &request, step: &step, diary: &diary }).run() {
        Ok(written) => (Message::Done(written), ExitCode::SUCCESS),
        Err(failure) => (Message::Failed(failure), ExitCode::FAILURE),
    };
    tell(&message)?;
    Ok(code)
}

fn enter(program: &str) -> io::Result<ExitCode> {
    let program: Program = serde_json::from_str(program)?;
    Err(program.enter())
}

fn tell(message: &Message) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, message)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}
