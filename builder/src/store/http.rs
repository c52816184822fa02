//! HTTP, the little that archives need: read a small file whole, or a large one from an offset on (RFC 9110, section
//! 14). Proxies come from the environment (`http_proxy`, `https_proxy`, `no_proxy`). URLs of files of this machine are
//! read too; their paths stand there as they are.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    time::Duration,
};

use ureq::{Agent, Body, ResponseExt, config::ConfigBuilder, http::Response, typestate::AgentScope};

use crate::{
    archive::FILE,
    registry::{ACCEPT, ChallengeError, Session},
};

/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(15);
/// How long to wait for the head of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long one answer's body may take. A large file on a slow line takes several answers, each going on where the last
/// one ended; what this stops is a server that never ends.
const BODY: Duration = Duration::from_secs(60);
/// Connections kept open per mirror: as many as there are threads that fetch.
const IDLE: usize = super::THREADS;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {kind}")]
pub struct HttpError {
    /// What was asked for.
    pub url: String,
    /// How it failed.
    pub kind: HttpErrorKind,
}

/// How a request failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpErrorKind {
    /// The server has no such file.
    #[error("not found")]
    NotFound,
    /// The server answered with another error.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// There is no answer, or it broke off.
    #[error("{0}")]
    Transport(String),
    /// A registry wants to know who asks.
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    /// The answer is longer than it may be.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(u64),
    /// The answer's range is not the one asked for.
    #[error("the server answered with another range than asked for (`{0}`)")]
    Range(String),
}

/// A client; it keeps connections open.
pub struct Client {
    agent: Agent,
    /// With the registry that it is for, if it is for one.
    session: Option<Session>,
}

/// The body of an answer.
pub struct Part {
    /// Where in the file it begins: the offset asked for, or 0 if the server knows no ranges.
    pub start: u64,
    /// The bytes.
    pub body: Box<dyn Read + Send>,
}

impl Client {
    /// A client.
    pub fn new() -> Self {
        Self::patient(ANSWER, BODY)
    }

    /// A client that waits for so long for an answer and for its end.
    pub fn patient(answer: Duration, body: Duration) -> Self {
        Self { agent: Self::config(answer, body).build().new_agent(), session: None }
    }

    /// A client for one registry. Whatever it leads to is asked by HTTPS, or is on this very machine, which no proxy
    /// knows.
    pub fn of_registry(session: Session) -> Self {
        let config = Self::config(ANSWER, BODY);
        let config = if session.is_plain() { config.proxy(None) } else { config.https_only(true) };
        Self { agent: config.build().new_agent(), session: Some(session) }
    }

    fn config(answer: Duration, body: Duration) -> ConfigBuilder<AgentScope> {
        Agent::config_builder()
            .user_agent(concat!("rackstick/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(answer))
            .timeout_recv_body(Some(body))
            .max_idle_connections(2 * IDLE)
            .max_idle_connections_per_host(IDLE)
    }

    /// Reads a file of at most `limit` bytes. Asks a second time if the first question was lost on its way.
    pub fn read(&self, url: &str, limit: u64) -> Result<Vec<u8>, HttpError> {
        match self.read_once(url, limit) {
            Err(HttpError { kind: HttpErrorKind::Transport(_), .. }) => self.read_once(url, limit),
            result => result,
        }
    }

    fn read_once(&self, url: &str, limit: u64) -> Result<Vec<u8>, HttpError> {
        let fail = |kind| HttpError { url: url.to_owned(), kind };
        let mut bytes = Vec::new();
        let mut body = self.part(url, 0)?.body.take(limit.saturating_add(1));
        body.read_to_end(&mut bytes).map_err(|error| fail(HttpErrorKind::Transport(broken(&error))))?;
        if bytes.len() as u64 > limit {
            return Err(fail(HttpErrorKind::TooLarge(limit)));
        }
        Ok(bytes)
    }

    /// Begins to read a file from an offset on.
    pub fn part(&self, url: &str, offset: u64) -> Result<Part, HttpError> {
        let fail = |kind| HttpError { url: url.to_owned(), kind };
        if let Some(path) = url.strip_prefix(FILE) {
            return file(path, offset).map_err(fail);
        }
        let mut answer = self.ask(url, offset).map_err(|error| fail(transport(&error)))?;
        // To whom it led us, nobody says who asks.
        if let (Some(session), 401) = (&self.session, answer.status().as_u16())
            && session.is_with(answer.get_uri())
        {
            let challenges =
                answer.headers().get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok());
            let challenges: Vec<&str> = challenges.collect();
            session.answer(&self.agent, &challenges.join(", ")).map_err(|error| fail(error.into()))?;
            answer = self.ask(url, offset).map_err(|error| fail(transport(&error)))?;
            if matches!(answer.status().as_u16(), 401 | 403) {
                return Err(fail(session.refused().into()));
            }
        }
        let answer = check(answer).map_err(fail)?;
        let start = match answer.status().as_u16() {
            206 => {
                let range = answer.headers().get("content-range").and_then(|value| value.to_str().ok()).unwrap_or("");
                if range.strip_prefix("bytes ").and_then(|range| range.split('-').next()) != Some(&offset.to_string()) {
                    return Err(fail(HttpErrorKind::Range(range.to_owned())));
                }
                offset
            }
            _ => 0,
        };
        Ok(Part { start, body: Box::new(answer.into_body().into_reader()) })
    }

    fn ask(&self, url: &str, offset: u64) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if offset > 0 {
            request = request.header("Range", format!("bytes={offset}-"));
        }
        if let Some(session) = &self.session {
            request = request.header("Accept", ACCEPT);
            if let Some(authorization) = session.authorization() {
                request = request.header("Authorization", authorization);
            }
        }
        request.call()
    }
}

/// A file of this machine from an offset on.
fn file(path: &str, offset: u64) -> Result<Part, HttpErrorKind> {
    let open = || -> io::Result<File> {
        let mut file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    };
    match open() {
        Ok(file) => Ok(Part { start: offset, body: Box::new(file) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(HttpErrorKind::NotFound),
        Err(error) => Err(HttpErrorKind::Transport(error.to_string())),
    }
}

fn check(answer: Response<Body>) -> Result<Response<Body>, HttpErrorKind> {
    match answer.status().as_u16() {
        200 | 206 => Ok(answer),
        404 | 410 => Err(HttpErrorKind::NotFound),
        status => Err(HttpErrorKind::Status(status)),
    }
}

fn transport(error: &ureq::Error) -> HttpErrorKind {
    HttpErrorKind::Transport(match error {
        ureq::Error::Io(error) => broken(error),
        ureq::Error::Timeout(what) => format!("no answer in time ({what})"),
        ureq::Error::HostNotFound => "the host's name can't be resolved".to_owned(),
        other => other.to_string(),
    })
}

/// Why a connection broke.
pub fn broken(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "the connection was refused: the mirror is down".to_owned(),
        io::ErrorKind::UnexpectedEof => "the connection was cut short".to_owned(),
        _ => error.to_string(),
    }
}
