//! Keeps the gateway's process alive and tells it what changes. A process outlives the daemon that started it; the next
//! daemon starts its own and ends it then, so that guests are answered all the while.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::Ipv4Addr,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{super::News, Order, config::Config};
use crate::{PROGRAM, daemon::guest::process::Process};

/// The first wait before a process that ended is started again; doubled each time.
const RESTART_DELAY: Duration = Duration::from_millis(250);
/// The longest wait before it is started again.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);
/// One that lived this long was well: the next wait is the first again.
const RESTART_FORGIVEN: Duration = Duration::from_secs(60);
/// Its longest message in bytes: one that was taken over can't fill the daemon's memory.
const LONGEST_MESSAGE: u64 = 400;
/// Process id and start time of the process that runs, for the next daemon.
const RECORD: &str = "/run/rackstick/gateway.json";

/// The supervisor.
pub struct Supervisor {
    config: Config,
    own: Sender<Order>,
    running: Option<Running>,
}

struct Running {
    pid: u32,
    since: Instant,
    lines: Sender<Vec<u8>>,
}

impl Supervisor {
    /// One whose process ends by an order to itself.
    pub fn new(config: Config, own: Sender<Order>) -> Self {
        Self { config, own, running: None }
    }

    /// Runs until the daemon ends.
    pub fn run(mut self, orders: &Receiver<Order>, report: impl Fn(News)) {
        if self.config.networks.is_empty() {
            return;
        }
        let problem = |what| report(News::Problem("gateway".into(), what));
        let (mut delay, mut start) = (RESTART_DELAY, Some(Instant::now()));
        loop {
            if start.is_some_and(|at| Instant::now() >= at) {
                match self.start() {
                    Ok(()) => {
                        start = None;
                        problem(None);
                    }
                    Err(error) => {
                        problem(Some(format!(
                            "DHCP and DNS of private networks can't be served: {error}; tried again"
                        )));
                        (start, delay) = (Some(Instant::now() + delay), (delay * 2).min(RESTART_DELAY_MAX));
                    }
                }
            }
            let order = match start {
                Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match order {
                Ok(Order::PassOn(uplink, resolvers)) => self.pass_on(&uplink, &resolvers),
                Ok(Order::Ended(pid, how)) => {
                    if let Some(ended) = self.running.take_if(|running| running.pid == pid) {
                        if ended.since.elapsed() >= RESTART_FORGIVEN {
                            delay = RESTART_DELAY;
                        }
                        problem(Some(format!("the gateway of private networks ended ({how}); it is started again")));
                        (start, delay) = (Some(Instant::now() + delay), (delay * 2).min(RESTART_DELAY_MAX));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn pass_on(&mut self, uplink: &str, resolvers: &[Ipv4Addr]) {
        if self.config.pass_on(uplink, resolvers)
            && let Some(running) = &self.running
            && let Ok(line) = line(&self.config)
        {
            // It has ended if it does not take the line, and gets the whole when it is started again.
            let _ = running.lines.send(line);
        }
    }

    fn start(&mut self) -> io::Result<()> {
        let line = line(&self.config)?;
        let mut child = Command::new(PROGRAM)
            .arg("gateway")
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pid = child.id();
        let (lines, inbox) = channel::<Vec<u8>>();
        if let Some(mut stdin) = child.stdin.take() {
            // A thread, since one that was taken over may not read.
            thread::Builder::new().name("gateway in".into()).spawn(move || {
                for line in inbox {
                    if stdin.write_all(&line).is_err() {
                        return;
                    }
                }
            })?;
        }
        // A receiver that is gone is one whose process ended, and that is told below.
        let _ = lines.send(line);
        let ready = child.stdout.take().ok_or_else(|| io::Error::other("it has no output")).and_then(ready);
        watch(child, self.own.clone())?;
        ready?;
        self.running = Some(Running { pid, since: Instant::now(), lines });
        if let Err(error) = succeed(pid) {
            log::warn!("the gateway before this one can't be ended: {error}");
        }
        Ok(())
    }
}

fn line(config: &Config) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(config)?;
    line.push(b'\n');
    Ok(line)
}

/// Waits until it has its sockets. It says so, or ends.
fn ready(mut stdout: ChildStdout) -> io::Result<()> {
    let mut said = [0; super::process::READY.len()];
    stdout.read_exact(&mut said).map_err(|_| io::Error::other("it ended before it was ready; see the log"))
}

/// Logs what it says, and tells when it has ended.
fn watch(mut child: Child, own: Sender<Order>) -> io::Result<()> {
    thread::Builder::new().name("gateway out".into()).spawn(move || {
        if let Some(stderr) = child.stderr.take() {
            let mut messages = BufReader::new(stderr);
            let mut message = Vec::new();
            while messages.by_ref().take(LONGEST_MESSAGE).read_until(b'\n', &mut message).is_ok_and(|read| read > 0) {
                log::warn!("gateway: {}", String::from_utf8_lossy(&message).trim_end().escape_debug());
                message.clear();
            }
        }
        let ended = child.wait();
        // So PID 1 ends all that runs, when the machine ends.
        if ended.as_ref().is_ok_and(|status| status.signal() == Some(Signal::TERM.as_raw())) {
            return;
        }
        let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
        // The supervisor is gone only when the daemon ends.
        let _ = own.send(Order::Ended(child.id(), how));
    })?;
    Ok(())
}

/// Ends the process of the daemon before, and leaves word of this one for the next.
fn succeed(pid: u32) -> io::Result<()> {
    let own = Process::find(pid)?.map(|process| (process.pid, process.start_time));
    let before = match fs::read(RECORD) {
        Ok(text) => serde_json::from_slice::<(u32, u64)>(&text).ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some((pid, start_time)) = before.filter(|before| Some(*before) != own)
        && let Some(process) = Process::adopt(pid, start_time)?
    {
        process.signal(Signal::KILL)?;
    }
    if let Some(folder) = Path::new(RECORD).parent() {
        fs::create_dir_all(folder)?;
    }
    let new = format!("{RECORD}.new");
    fs::write(&new, serde_json::to_vec(&own)?)?;
    fs::rename(&new, RECORD)
}
