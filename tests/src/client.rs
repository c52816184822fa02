//! What a rack's users use: `dig` and `curl`. And a user who never stops asking.

use std::{
    fmt,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::tool;

/// Whether to ask by UDP or TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// The addresses of a name, asked from the server at `server`; an error says what dig said.
pub fn dig(server: SocketAddr, transport: Transport, name: &str) -> Result<Vec<String>, String> {
    let mut command = Command::new("dig");
    command.args(["+short", "+time=5", "+tries=2", "-p", &server.port().to_string()]);
    command.args([&format!("@{}", server.ip()), name, "A"]);
    command.arg(if transport == Transport::Tcp { "+tcp" } else { "+notcp" });
    let said = tool::run(&mut command);
    let answers: Vec<String> = said.stdout.lines().map(str::to_owned).filter(|line| !line.starts_with(';')).collect();
    if said.success && !answers.is_empty() { Ok(answers) } else { Err(format!("{}{}", said.stdout, said.stderr)) }
}

/// The body of a page of the server at `server`; an error says what curl said.
pub fn curl(server: SocketAddr, path: &str) -> Result<String, String> {
    let url = format!("http://{server}{path}");
    let said = tool::run(Command::new("curl").args(["--silent", "--show-error", "--fail", "--max-time", "10", &url]));
    if said.success { Ok(said.stdout) } else { Err(said.stderr) }
}

/// Asks over and over in a thread of its own until it is stopped.
#[derive(Debug)]
pub struct Asker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

/// What came of all the questions.
#[derive(Debug, Default)]
pub struct Tally {
    /// Questions answered.
    pub answered: u32,
    /// What was said instead of an answer, with the seconds since the begin.
    pub failed: Vec<(f64, String)>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered, {} failed {:?}", self.answered, self.failed.len(), self.failed)
    }
}

impl Asker {
    /// Begins to ask.
    pub fn start(question: impl Fn() -> Result<(), String> + Send + 'static) -> Self {
        /// Between two questions: often enough to notice a restart, seldom enough not to be the load.
        const PAUSE: Duration = Duration::from_millis(500);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (started, mut tally) = (Instant::now(), Tally::default());
            while !stopped.load(Ordering::Relaxed) {
                match question() {
                    Ok(()) => tally.answered += 1,
                    Err(why) => tally.failed.push((started.elapsed().as_secs_f64(), why)),
                }
                thread::park_timeout(PAUSE);
            }
            tally
        });
        Self { stop, thread }
    }

    /// Stops asking.
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().expect("the asker does not panic")
    }
}
