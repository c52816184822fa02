//! Speaks the rack's API through a Unix socket: the daemon's own, or the one behind which a hypervisor keeps the
//! virtio-serial port of a virtual rack. One connection a call, since such a port serves one client at a time.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use crate::{
    MAX_LINE,
    rack::{Answer, Call, Request, Response, Status},
};

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("can't connect to the rack's API at {path}; is the rack running?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the rack's API at {path} broke")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No answer in time.
    #[error("the rack did not answer within {} s through {path}; it may still be starting", limit.as_secs())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// A line that is not of this protocol.
    #[error("the rack's answer through {path} can't be read: {line}")]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// The begin of the line.
        line: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A line beyond [`MAX_LINE`].
    #[error("the rack's answer through {path} is longer than {MAX_LINE} bytes")]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The rack refused.
    #[error("the rack refused: {0}")]
    Refused(String),
    /// An answer of another kind than the request's.
    #[error("the rack answered something else than asked: {0:?}")]
    Unexpected(Box<Response>),
}

/// Speaks to one rack.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    limit: Duration,
}

impl Client {
    /// A client of the API behind `socket` that waits at most `limit` (not zero) for each answer. Connects only when
    /// called.
    pub fn new(socket: impl Into<PathBuf>, limit: Duration) -> Self {
        Self { path: socket.into(), limit }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the rack is.
    pub fn status(&self) -> Result<Status, ClientError> {
        match self.call(Request::Status)? {
            Response::Status(status) => Ok(*status),
            other => Err(ClientError::Unexpected(Box::new(other))),
        }
    }

    /// Asks for text, such as a guest's console.
    pub fn text(&self, request: Request) -> Result<String, ClientError> {
        match self.call(request)? {
            Response::Text(text) => Ok(text),
            other => Err(ClientError::Unexpected(Box::new(other))),
        }
    }

    /// Asks for something to be done.
    pub fn order(&self, request: Request) -> Result<(), ClientError> {
        match self.call(request)? {
            Response::Ok => Ok(()),
            other => Err(ClientError::Unexpected(Box::new(other))),
        }
    }

    /// One call; a [`Response::Error`] comes back as [`ClientError::Refused`].
    pub fn call(&self, request: Request) -> Result<Response, ClientError> {
        let deadline = Instant::now() + self.limit;
        let mut stream = UnixStream::connect(&self.path)
            .map_err(|source| ClientError::Connect { path: self.path.clone(), source })?;
        let id = next_id();
        let call = serde_json::to_string(&Call { id, request }).map_err(|source| self.broken(source.into()))?;
        stream.set_write_timeout(Some(self.limit)).map_err(|source| self.broken(source))?;
        stream.write_all(format!("\n{call}\n").as_bytes()).map_err(|source| self.broken(source))?;

        let mut received = Vec::new();
        loop {
            let line = self.line(&mut stream, &mut received, deadline)?;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let answer: Answer = serde_json::from_slice(&line).map_err(|source| {
                let line = String::from_utf8_lossy(&line).chars().take(200).collect();
                ClientError::Malformed { path: self.path.clone(), line, source }
            })?;
            match answer {
                // An answer to somebody who did not wait for it.
                Answer { id: other, .. } if other != id => {}
                Answer { response: Response::Error(why), .. } => return Err(ClientError::Refused(why)),
                Answer { response, .. } => return Ok(response),
            }
        }
    }

    /// The next line, without its end. `received` keeps what came after it.
    fn line(&self, stream: &mut UnixStream, received: &mut Vec<u8>, deadline: Instant) -> Result<Vec<u8>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(end) = received.iter().skip(searched).position(|byte| *byte == b'\n') {
                let rest = received.split_off(searched + end + 1);
                let mut line = std::mem::replace(received, rest);
                line.pop();
                return Ok(line);
            }
            searched = received.len();
            if searched > MAX_LINE {
                return Err(ClientError::TooLong { path: self.path.clone() });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.timed_out());
            }
            stream.set_read_timeout(Some(left)).map_err(|source| self.broken(source))?;
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer) {
                Ok(0) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(self.timed_out()),
                Err(source) => return Err(self.broken(source)),
            }
        }
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken { path: self.path.clone(), source }
    }

    fn timed_out(&self) -> ClientError {
        ClientError::TimedOut { path: self.path.clone(), limit: self.limit }
    }
}

/// A number that no other call through the same port has had lately, nor one of another process: it only has to
/// be unlikely, not secret.
fn next_id() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let start = (time.as_micros() as u64) ^ (u64::from(std::process::id()) << 40);
    // 0 means "no call"; numbers beyond 2^53 are not safe in every JSON reader.
    (start.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)) & ((1 << 53) - 1)).max(1)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::unix::net::UnixListener,
        thread,
    };

    use super::*;

    /// A rack that answers each call by what `answer` makes of its number.
    fn serve(name: &str, answer: impl Fn(u64) -> String + Send + 'static) -> PathBuf {
        let path = std::env::temp_dir().join(format!("rackstick-{name}-{}", std::process::id()));
        // Left by an earlier process with the same number, if anything.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            for line in BufReader::new(stream).lines() {
                let line = line.unwrap();
                if line.is_empty() {
                    continue;
                }
                let call: Call = serde_json::from_str(&line).unwrap();
                writer.write_all(answer(call.id).as_bytes()).unwrap();
            }
        });
        path
    }

    fn client(path: &Path) -> Client {
        Client::new(path, Duration::from_secs(5))
    }

    fn line(id: u64, response: Response) -> String {
        serde_json::to_string(&Answer { id, response }).unwrap() + "\n"
    }

    #[test]
    fn an_answer_to_somebody_else_is_passed_over() {
        let path = serve("stale", |id| line(id - 1, Response::Text("stale".into())) + "\n" + &line(id, Response::Ok));
        assert!(matches!(client(&path).call(Request::PowerOff), Ok(Response::Ok)));
    }

    #[test]
    fn a_refusal_is_an_error_with_the_racks_reason() {
        let path = serve("refusal", |id| line(id, Response::Error("no guest `x`".into())));
        let error = client(&path).order(Request::Stop { guest: "x".into() }).unwrap_err();
        assert_eq!(error.to_string(), "the rack refused: no guest `x`");
    }

    #[test]
    fn a_rack_that_does_not_answer_is_given_up_on_in_time() {
        let path = serve("silent", |_| String::new());
        let started = Instant::now();
        let error = Client::new(&path, Duration::from_millis(200)).status().unwrap_err();
        assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn an_endless_line_is_not_collected_for_ever() {
        let path = serve("endless", |_| "x".repeat(3 * MAX_LINE));
        assert!(matches!(client(&path).status(), Err(ClientError::TooLong { .. })));
    }
}
