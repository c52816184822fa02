//! Calls to the agent inside a guest. The guest is hostile: one line of bounded length is read within a deadline,
//! and what it says is cut and stripped of control characters before anyone sees it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    time::Duration,
};

use rackstick_api::{
    MAX_LINE,
    agent::{PORT, Request, Response},
};

use super::vsock::{Address, Stream};

/// The most characters of a guest's own words that are shown.
const LONGEST_DETAIL: usize = 200;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("the agent does not answer: {0}")]
    Connect(io::Error),
    /// The connection broke or took too long.
    #[error("the agent broke off: {0}")]
    Broken(io::Error),
    /// It answered with something that is not of the protocol.
    #[error("the agent's answer is no answer: {0}")]
    Malformed(String),
}

/// Asks one guest one thing; takes at most `patience`.
pub fn call(cid: u32, request: Request, patience: Duration) -> Result<Response, Error> {
    let mut stream = Stream::connect(&Address { cid, port: PORT }, patience).map_err(Error::Connect)?;
    let mut line = serde_json::to_string(&request).map_err(|error| Error::Malformed(error.to_string()))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(Error::Broken)?;
    let mut answer = Vec::new();
    let limit = MAX_LINE as u64;
    BufReader::new(stream.take(limit)).read_until(b'\n', &mut answer).map_err(Error::Broken)?;
    serde_json::from_slice(&answer).map_err(|error| Error::Malformed(plain(&error.to_string())))
}

/// Words of a guest, as one short line.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_DETAIL).collect()
}
