//! One rack, booted by `rackstick run`.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use rackstick_api::{
    client::{Client, ClientError},
    rack::{Guest, Request, Status},
};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

pub use crate::machine::{Disk, Network, Nic, Options};
use crate::{image::Image, place, qmp::Qmp, screen::Screen, tool, wait};

/// How long one answer of the API may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a rack may take until all guests are healthy. The goal is 240 s on an idle machine; this one may be busy.
pub const HEALTHY_LIMIT: Duration = Duration::from_secs(480);
/// How long a rack may take until its API answers.
pub const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long a clean end may take.
pub const POWER_OFF_LIMIT: Duration = Duration::from_secs(180);
/// What ends on the console with these words, in order.
const MARKS: [(&str, &str); 3] =
    [("firmware", "BdsDxe: starting Boot"), ("loader", "EFI stub: "), ("kernel", "is PID 1")];
/// How much of a console is shown when a test fails.
const TAIL_LINES: usize = 40;

/// A running rack. Dropped, it is killed; dropped by a panic, it leaves its logs and says where.
#[derive(Debug)]
pub struct Rack {
    folder: PathBuf,
    command: Child,
    started: Instant,
    client: Client,
    forwards: Vec<(String, SocketAddr)>,
    /// When each of [`MARKS`] was first seen on the console, in seconds since power-on.
    marks: Vec<Option<f64>>,
    /// Holds the sockets.
    sockets: TempDir,
    /// Once somebody asked for it.
    qmp: Option<Qmp>,
    /// Locked while the rack runs.
    alone: File,
}

impl Rack {
    /// Boots `image`; logs go to `<target>/rig/<name>/`. Waits while another rack runs: two at once would only
    /// starve each other.
    pub fn start(name: &str, image: &Image, options: Options) -> Self {
        Self::start_in(place::test_folder(name), &image.path, options)
    }

    /// Boots the disk image at `image`, with logs in `folder`.
    pub fn start_in(folder: PathBuf, image: &Path, options: Options) -> Self {
        let alone = File::create(place::rig().join("lock")).expect("the rig's folder can be written");
        flock(&alone, FlockOperation::LockExclusive).expect("a file can be locked");
        // The path of a socket may have 107 bytes at most, and the target folder's may be long.
        let sockets = tempfile::Builder::new().prefix("rackstick-").tempdir().expect("a temporary folder can be made");
        let client = Client::new(sockets.path().join("api"), ANSWER_LIMIT);
        let log = |name| File::create(folder.join(name)).expect("the test's folder can be written");

        let run = tool::rackstick();
        // If this test dies, so does the rack.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(run.get_program()).arg("run").arg(image);
        command.arg("--api").arg(client.path()).arg("--qmp").arg(sockets.path().join("qmp"));
        if options.serial {
            command.arg("--console").arg(folder.join("console.log"));
        }
        if options.screen {
            command.arg("--screen").arg(sockets.path().join("screen"));
        }
        command.args(options.arguments());
        command.env("TMPDIR", &folder).stdout(log("run.out")).stderr(log("run.err"));
        let started = Instant::now();
        let child = command.spawn().unwrap_or_else(|error| panic!("can't start {command:?}: {error}"));
        let mut rack = Self {
            folder,
            command: child,
            started,
            client,
            forwards: Vec::new(),
            marks: vec![None; MARKS.len()],
            sockets,
            qmp: None,
            alone,
        };
        rack.forwards = rack.until("QEMU to start", Duration::from_secs(20), |rack| {
            let said = rack.log("run.err");
            said.lines().any(|line| line.starts_with("api ")).then(|| forwards(&said))
        });
        rack
    }

    /// Where a port of the rack, as `53/udp`, is reached from here.
    #[track_caller]
    pub fn address(&self, port: &str) -> SocketAddr {
        let found = self.forwards.iter().find(|(known, _)| known == port);
        found.unwrap_or_else(|| panic!("{port} is not forwarded, only {:?}", self.forwards)).1
    }

    /// The rack's API.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// QEMU's monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        let socket = self.sockets.path().join("qmp");
        self.qmp.get_or_insert_with(|| Qmp::connect(&socket))
    }

    /// What the screen shows now; it stays as `<name>.png` beside the logs. The machine needs `Options::screen`.
    pub fn screenshot(&mut self, name: &str) -> Screen {
        let picture = self.folder.join(name);
        Screen::take(self.qmp(), &picture)
    }

    /// Seconds since power-on.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// What the rack wrote to its serial console so far.
    pub fn console(&self) -> String {
        self.log("console.log")
    }

    fn log(&self, name: &str) -> String {
        // Absent until QEMU opens it.
        fs::read(self.folder.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits for something to come true; panics at once if the rack ends meanwhile.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, limit: Duration, mut condition: impl FnMut(&Self) -> Option<T>) -> T {
        wait::until(what, limit, || {
            self.look_for_marks();
            if let Some(value) = condition(self) {
                return Some(value);
            }
            let ended = self.command.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the rack ended ({ended:?}) while waiting for: {what}\n{}", self.log("run.err"));
            None
        })
    }

    /// Waits until the serial console shows `text`.
    #[track_caller]
    pub fn until_console(&mut self, text: &str, limit: Duration) {
        self.until(&format!("`{text}` on the console"), limit, |rack| rack.console().contains(text).then_some(()));
    }

    /// Waits until the screen shows `text`; the last picture stays as `screen.png` beside the logs.
    #[track_caller]
    pub fn until_screen(&mut self, text: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        // Each look takes QEMU long enough.
        while !self.screenshot("screen").shows(text) {
            assert!(Instant::now() < deadline, "after {} s `{text}` is not on the screen", limit.as_secs());
        }
    }

    /// Waits until the rack's status fulfils a condition, and returns that status.
    #[track_caller]
    pub fn until_status(&mut self, what: &str, limit: Duration, condition: impl Fn(&Status) -> bool) -> Status {
        let mut last = String::new();
        self.until(what, limit, |rack| match rack.client.status() {
            Ok(status) if condition(&status) => Some(status),
            Ok(status) => {
                let now = summary(&status);
                if now != last {
                    println!("{:6.1} s {now}", rack.seconds());
                    last = now;
                }
                None
            }
            Err(error @ (ClientError::Malformed { .. } | ClientError::Refused(_))) => panic!("{error}"),
            // Still booting, or between two daemons.
            Err(_) => None,
        })
    }

    /// Waits until every guest is healthy.
    #[track_caller]
    pub fn until_healthy(&mut self) -> Status {
        self.until_healthy_within(HEALTHY_LIMIT)
    }

    /// [`Rack::until_healthy`] for a rack with more than a few guests.
    #[track_caller]
    pub fn until_healthy_within(&mut self, limit: Duration) -> Status {
        let status = self.until_status("all guests healthy", limit, |status| {
            !status.guests.is_empty() && status.guests.iter().all(|guest| guest.healthy)
        });
        println!("all guests healthy {:.1} s after power-on", self.seconds());
        status
    }

    fn look_for_marks(&mut self) {
        if let Some(next) = self.marks.iter().position(Option::is_none)
            && self.console().contains(MARKS[next].1)
        {
            self.marks[next] = Some(self.seconds());
        }
    }

    /// How the rack came up, in one line: what this machine saw of the firmware, the loader and the start of the
    /// kernel's file, which do not tell a virtual machine, and what the rack tells of the rest.
    pub fn boot(&self, status: &Status) -> String {
        let mut seen = Vec::new();
        let mut last = 0.0;
        for ((name, _), mark) in MARKS.iter().zip(&self.marks) {
            seen.push(mark.map_or_else(|| format!("{name} not seen"), |at| format!("{name} {:.1} s", at - last)));
            last = mark.unwrap_or(last);
        }
        let told = status.boot.iter().filter_map(|phase| {
            let end = phase.began_ms + phase.took_ms?;
            Some(format!("{:?} {:.1} to {:.1} s", phase.part, phase.began_ms as f64 / 1e3, end as f64 / 1e3))
        });
        format!("seen: {}; since the kernel began: {}", seen.join(", "), told.collect::<Vec<_>>().join(", "))
    }

    /// Orders the rack to switch itself off and waits for its end.
    #[track_caller]
    pub fn power_off(&mut self) {
        self.client.order(Request::PowerOff).unwrap_or_else(|error| panic!("the rack can't be switched off: {error}"));
        self.until_end(POWER_OFF_LIMIT);
    }

    /// Presses the power button and waits for the rack's end.
    #[track_caller]
    pub fn press_power_button(&mut self) {
        self.qmp().press_power_button();
        self.until_end(POWER_OFF_LIMIT);
    }

    /// Asks `rackstick run` to end, as Ctrl-C does, and waits for the rack's end.
    #[track_caller]
    pub fn interrupt(&mut self) {
        let pid =
            i32::try_from(self.command.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a child has an id");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a child can be signalled");
        self.until_end(POWER_OFF_LIMIT + ANSWER_LIMIT);
    }

    /// Waits until the rack has switched itself off.
    #[track_caller]
    pub fn until_end(&mut self, limit: Duration) {
        let status =
            wait::until("the rack's end", limit, || self.command.try_wait().expect("a child can be waited for"));
        // The test may go on to start another.
        flock(&self.alone, FlockOperation::Unlock).expect("a file can be unlocked");
        assert!(status.success(), "rackstick run ended with {status}:\n{}", self.log("run.err"));
    }

    /// Ends it as a power cut would, but for what the page cache of this machine still writes.
    pub fn kill_hard(mut self) {
        self.kill();
    }

    fn kill(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.command.kill();
        let _ = self.command.wait();
        // QEMU dies by the kernel's hand a moment later; its image stays locked until then.
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(self.client.path()).is_ok() && Instant::now() < deadline {
            thread::yield_now();
        }
    }

    /// Writes what the rack still tells beside its other logs, and shows the end of the console.
    fn dump(&self) {
        let client = Client::new(self.client.path(), Duration::from_secs(3));
        let mut report = String::new();
        match client.status() {
            Ok(status) => {
                report += &format!("{status:#?}\n");
                for guest in &status.guests {
                    let console = client.text(Request::Console { guest: guest.name.clone() });
                    report +=
                        &format!("---- console of {}\n{}\n", guest.name, console.unwrap_or_else(|e| e.to_string()));
                }
            }
            Err(error) => report += &format!("{error}\n"),
        }
        let path = self.folder.join("status.log");
        // The test has failed already; what can't be written is shown below all the same.
        let _ = fs::write(&path, &report);
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        println!("---- end of the rack's console, {:.0} s after power-on", self.seconds());
        lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)).for_each(|line| println!("{line}"));
        println!("---- rackstick run said\n{}---- status\n{report}", self.log("run.err"));
        println!("---- the logs are in {}", self.folder.display());
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        if thread::panicking() {
            self.dump();
        }
        self.kill();
    }
}

/// The guest with this name.
pub fn guest<'a>(status: &'a Status, name: &str) -> &'a Guest {
    let found = status.guests.iter().find(|guest| guest.name == name);
    found.unwrap_or_else(|| panic!("no guest `{name}` in {status:?}"))
}

fn summary(status: &Status) -> String {
    let guests = status.guests.iter().map(|guest| {
        let health = if guest.healthy { "healthy" } else { "not healthy" };
        format!("{} {:?}, {health} {}", guest.name, guest.state, guest.detail)
    });
    format!("{}; {:?}", guests.collect::<Vec<_>>().join("; "), status.problems)
}

/// The lines `lan 53/udp -> 127.0.0.1:10053 dns` of what `rackstick run` prints.
fn forwards(said: &str) -> Vec<(String, SocketAddr)> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" -> ")?;
        let port = left.split_ascii_whitespace().nth(1)?;
        Some((port.to_owned(), right.split_ascii_whitespace().next()?.parse().ok()?))
    };
    said.lines().filter_map(parse).collect()
}
