//! The protocol on one connection, whatever carries it.

use std::io::{self, BufRead, BufReader, Read, Write};

use rackstick_api::{
    MAX_LINE,
    agent::{Request, Response},
};

/// Answers each line of `reader` on `writer` until it ends. A line that is no request is answered with an error; one
/// longer than [`MAX_LINE`] ends the connection, as where it ends is not known.
///
/// # Errors
/// Those of `reader` and `writer`; [`io::ErrorKind::InvalidData`] for a line that is too long.
pub(super) fn lines(
    reader: impl Read,
    mut writer: impl Write,
    mut answer: impl FnMut(Request) -> Response,
) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let what = if read == MAX_LINE { "a line is longer than allowed" } else { "a line is cut short" };
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let response = match serde_json::from_slice(&line) {
            Ok(request) => answer(request),
            Err(error) => Response::Error(format!("this is no request: {error}")),
        };
        let mut bytes = serde_json::to_vec(&response)?;
        bytes.push(b'\n');
        writer.write_all(&bytes)?;
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, thread};

    use super::*;

    #[test]
    fn requests_are_answered_line_by_line() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            lines(&theirs, &theirs, |request| match request {
                Request::Status => Response::Status {
                    healthy: true,
                    detail: String::new(),
                    memory_available_kib: 7,
                    addresses: std::collections::BTreeMap::new(),
                },
                Request::Shutdown => Response::ShuttingDown,
            })
        });
        (&ours).write_all(b"\"status\"\n\"nonsense\"\n\"shutdown\"\n").unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let answers: Vec<Response> =
            BufReader::new(&ours).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        assert_eq!(answers.len(), 3);
        assert!(matches!(answers[0], Response::Status { healthy: true, memory_available_kib: 7, .. }));
        assert!(matches!(answers[1], Response::Error(_)));
        assert_eq!(answers[2], Response::ShuttingDown);
        server.join().unwrap().unwrap();
    }

    #[test]
    fn a_line_that_never_ends_ends_the_connection() {
        let mut out = Vec::new();
        let endless = io::repeat(b' ');
        assert!(lines(endless, &mut out, |_| Response::ShuttingDown).is_err());
        assert!(out.is_empty());
        assert!(lines(b"\"status\"".as_slice(), &mut out, |_| Response::ShuttingDown).is_err());
        assert!(out.is_empty());
    }
}
