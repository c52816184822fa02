//! A small HTTP server for tests, that can misbehave: each path has a list of answers, of which the last is repeated.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// How a request is answered.
#[derive(Clone)]
pub enum Answer {
    /// As it should be; ranges are known.
    Whole(Vec<u8>),
    /// All, whatever range is asked for.
    NoRanges(Vec<u8>),
    /// So many bytes, then the connection is cut; ranges are known.
    Cut(Vec<u8>, usize),
    /// So many bytes at a time, with a pause before each; ranges are known.
    Slow(Vec<u8>, usize, Duration),
    /// So many bytes, and then nothing more while the connection stays open.
    Stall(Vec<u8>, usize),
    /// A challenge, unless the request's `Authorization` is this; then all.
    Guarded(String, String, Vec<u8>),
    /// It is somewhere else.
    Redirect(String),
    /// Only a status.
    Status(u16),
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Vec<Answer>>,
    requests: Vec<String>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                // A client that goes away is no concern of the server's.
                thread::spawn(move || serve(stream.unwrap(), &state).ok());
            }
        });
        Self { address, state }
    }

    /// The root of the archive with this name.
    pub fn root(&self, archive: &str) -> String {
        format!("http://{}/{archive}", self.address)
    }

    /// What a path (with its archive's name) answers, one after the other.
    pub fn answer(&self, path: &str, answers: Vec<Answer>) {
        self.state.lock().unwrap().answers.insert(path.to_owned(), answers);
    }

    /// All requests so far: the path, and the start of the range if one was asked for.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

/// The root of an archive on a port where nobody listens.
pub fn nobody(archive: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/{archive}", listener.local_addr().unwrap())
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let path = head[0].split(' ').nth(1).unwrap().to_owned();
        let mut headers = head.iter().map(|line| line.to_ascii_lowercase());
        let authorization = head.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("authorization").then(|| value.to_owned())
        });
        let range = headers.find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
        let answer = {
            let mut state = state.lock().unwrap();
            let asked = range.map_or(path.clone(), |start: usize| format!("{path} from {start}"));
            state.requests.push(asked);
            match state.answers.get_mut(&path) {
                None => Answer::Status(404),
                Some(answers) if answers.len() > 1 => answers.remove(0),
                Some(answers) => answers[0].clone(),
            }
        };
        let answer = match answer {
            Answer::Guarded(challenge, wanted, bytes) => {
                if authorization != Some(wanted) {
                    write!(
                        stream,
                        "HTTP/1.1 401 Status\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n"
                    )?;
                    continue;
                }
                Answer::Whole(bytes)
            }
            other => other,
        };
        let (bytes, ranges) = match &answer {
            Answer::Guarded(..) => unreachable!("answered above"),
            Answer::Redirect(url) => {
                write!(stream, "HTTP/1.1 307 Status\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n")?;
                continue;
            }
            Answer::Status(status) => {
                write!(stream, "HTTP/1.1 {status} Status\r\nContent-Length: 0\r\n\r\n")?;
                continue;
            }
            Answer::NoRanges(bytes) => (bytes, false),
            Answer::Whole(bytes) | Answer::Cut(bytes, _) | Answer::Slow(bytes, ..) | Answer::Stall(bytes, _) => {
                (bytes, true)
            }
        };
        let start = range.filter(|_| ranges).unwrap_or(0);
        if start > 0 && start >= bytes.len() {
            write!(stream, "HTTP/1.1 416 Range\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let body = &bytes[start..];
        match start {
            0 => write!(stream, "HTTP/1.1 200 OK\r\n")?,
            _ => write!(
                stream,
                "HTTP/1.1 206 Partial\r\nContent-Range: bytes {start}-{}/{}\r\n",
                bytes.len() - 1,
                bytes.len()
            )?,
        }
        write!(stream, "Content-Length: {}\r\n\r\n", body.len())?;
        match answer {
            Answer::Cut(_, count) => {
                stream.write_all(&body[..count.min(body.len())])?;
                return stream.shutdown(std::net::Shutdown::Both);
            }
            Answer::Slow(_, count, pause) => {
                for piece in body.chunks(count) {
                    thread::sleep(pause);
                    stream.write_all(piece)?;
                }
            }
            Answer::Stall(_, count) => {
                stream.write_all(&body[..count.min(body.len())])?;
                // Until the client hangs up.
                reader.read_line(&mut String::new())?;
                return Ok(());
            }
            _ => stream.write_all(body)?,
        }
    }
}
