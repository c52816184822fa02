//! What a rack's users use: `dig`, `curl`, `psql`, `swaks` and `smbclient`. And a user who never stops asking.

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

/// What came of a form that was sent to the server at `server`: the status, where it leads to, and the body.
pub fn send_form(server: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Result<(u16, String, String), String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "\n%{http_code} %{redirect_url}"]);
    for (name, value) in fields {
        command.args(["--data-urlencode", &format!("{name}={value}")]);
    }
    let said = tool::run(command.arg(format!("http://{server}{path}")));
    if !said.success {
        return Err(said.stderr);
    }
    let (body, last) = said.stdout.rsplit_once('\n').ok_or("curl wrote no status")?;
    let (status, leads_to) = last.split_once(' ').ok_or("curl wrote no status")?;
    Ok((status.parse().map_err(|_| format!("no status: {last}"))?, leads_to.to_owned(), body.to_owned()))
}

/// The rows of a query, fields parted by `|`; an error says what psql said.
pub fn psql(server: SocketAddr, database: &str, user: &str, password: &str, query: &str) -> Result<String, String> {
    let place = format!(
        "host={} port={} dbname={database} user={user} sslmode=require connect_timeout=30",
        server.ip(),
        server.port()
    );
    let mut command = Command::new("psql");
    command.args([
        "--no-psqlrc",
        "--no-password",
        "--quiet",
        "--tuples-only",
        "--no-align",
        "--command",
        query,
        &place,
    ]);
    let said = tool::run(command.env("PGPASSWORD", password));
    if said.success { Ok(said.stdout) } else { Err(said.stderr) }
}

/// Hands a message to the mail server; an error says what the server answered.
pub fn send_mail(server: SocketAddr, to: &str, subject: &str, body: &str) -> Result<(), String> {
    let (server, subject) = (server.to_string(), format!("Subject: {subject}"));
    let from = ["--from", "somebody@example.org", "--helo", "client.example.org"];
    let message = ["--to", to, "--header", &subject, "--body", body];
    let said = tool::run(Command::new("swaks").args(["--timeout", "60", "--server", &server]).args(from).args(message));
    // Swaks marks answers that refuse something.
    let refused = |line: &&str| line.starts_with("<** ") || line.starts_with("*** ");
    if said.success { Ok(()) } else { Err(said.stdout.lines().chain(said.stderr.lines()).filter(refused).collect()) }
}

/// What an IMAP server answers to a command on the user's inbox; an error says what curl said. Its certificate is its
/// own.
pub fn imap(server: SocketAddr, user: &str, password: &str, command: &str) -> Result<String, String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--insecure", "--user", &format!("{user}:{password}")]);
    let said = tool::run(curl.args(["--request", command, &format!("imaps://{server}/INBOX")]));
    if said.success { Ok(said.stdout) } else { Err(said.stderr) }
}

/// The first message in the user's inbox, as it is.
pub fn first_mail(server: SocketAddr, user: &str, password: &str) -> Result<String, String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--insecure", "--user", &format!("{user}:{password}")]);
    let said = tool::run(curl.arg(format!("imaps://{server}/INBOX/;MAILINDEX=1")));
    if said.success { Ok(said.stdout) } else { Err(said.stderr) }
}

/// What smbclient prints for commands on a shared folder; an error says what it said.
pub fn smb(server: SocketAddr, share: &str, user: &str, password: &str, commands: &str) -> Result<String, String> {
    let (service, port) = (format!("//{}/{share}", server.ip()), server.port().to_string());
    let mut command = Command::new("smbclient");
    command.args([&service, "--port", &port, "--timeout", "60", "--command", commands]);
    let said = tool::run(command.args(["--user", &format!("{user}%{password}")]));
    if said.success { Ok(said.stdout) } else { Err(said.stdout + &said.stderr) }
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
