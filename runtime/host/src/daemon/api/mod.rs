//! Serves the rack's API: calls come in line by line, each is answered by the main loop.

mod port;
mod socket;

use std::{
    io::{self, BufRead, Read, Write},
    sync::mpsc::{Sender, channel},
};

use rackstick_api::{
    MAX_LINE,
    rack::{Answer, Call, Process, Request, Response, Watched},
};
use rustix::process::{Signal, getpid, kill_process};

pub use port::Port;
pub use socket::listen;

use super::{Event, MachineEnd, freeze};

/// Answers calls until the client leaves.
fn serve(mut reader: impl BufRead, mut writer: impl Write, events: &Sender<Event>) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_LINE as u64 + 1;
        if (&mut reader).take(limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let whole = line.last() == Some(&b'\n');
        if !whole && line.len() <= MAX_LINE {
            // The client left in the middle of a line.
            return Ok(());
        }
        if let Some((answer, end)) = answer(&line, events) {
            let written = writer.write_all(&answer);
            // Only now, so that the client has its answer; but also if it has left.
            match end {
                Some(End::Killed) => kill_process(getpid(), Signal::KILL)?,
                Some(End::Frozen) => freeze::freeze(getpid())?,
                // The main loop is gone only when the daemon ends.
                Some(End::Machine(how)) => drop(events.send(Event::End(how))),
                None => {}
            }
            written?;
        }
        if !whole {
            // Too long: where the next call begins can't be known.
            return Ok(());
        }
    }
}

/// How this daemon is asked to end once it has answered.
#[derive(Debug, Clone, Copy)]
enum End {
    Killed,
    Frozen,
    Machine(MachineEnd),
}

impl End {
    fn of(request: &Request) -> Option<Self> {
        match request {
            Request::Kill { process: Process::Daemon } => Some(Self::Killed),
            Request::Freeze { process: Watched::Daemon } => Some(Self::Frozen),
            Request::PowerOff => Some(Self::Machine(MachineEnd::PowerOff)),
            Request::Reboot => Some(Self::Machine(MachineEnd::Reboot)),
            _ => None,
        }
    }
}

/// The answer to one line, as a line, and whether it is the last thing this daemon does; none to an empty one.
fn answer(line: &[u8], events: &Sender<Event>) -> Option<(Vec<u8>, Option<End>)> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return None;
    }
    let mut end = None;
    let answer = match serde_json::from_slice::<Call>(line) {
        Ok(Call { id, request }) => {
            end = End::of(&request);
            Answer { id, response: ask(request, events) }
        }
        Err(error) => Answer { id: 0, response: Response::Error(format!("this is no call: {error}")) },
    };
    let mut text = serde_json::to_vec(&answer).unwrap_or_default();
    if text.len() >= MAX_LINE {
        let response = Response::Error(format!("the answer has {} bytes, more than a line may have", text.len()));
        text = serde_json::to_vec(&Answer { id: answer.id, response }).unwrap_or_default();
    }
    text.push(b'\n');
    Some((text, end))
}

fn ask(request: Request, events: &Sender<Event>) -> Response {
    let (reply, answered) = channel();
    let gone = || Response::Error("the daemon is ending".into());
    match events.send(Event::Api(request, reply)) {
        Ok(()) => answered.recv().unwrap_or_else(|_| gone()),
        Err(_) => gone(),
    }
}

/// The end of a guest's console as text that fits one line of the protocol: control characters that could steer a
/// terminal are left out, and so is the beginning where it is too long.
pub fn console_text(bytes: &[u8]) -> String {
    /// Room for the rest of the answer.
    const REST: usize = 256;
    let text = String::from_utf8_lossy(bytes);
    let plain: Vec<char> = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    let mut room = MAX_LINE - REST;
    let mut start = plain.len();
    for (index, c) in plain.iter().enumerate().rev() {
        // JSON writes these as two bytes.
        let size = if matches!(c, '\n' | '\t' | '"' | '\\') { 2 } else { c.len_utf8() };
        let Some(left) = room.checked_sub(size) else { break };
        (room, start) = (left, index);
    }
    plain.iter().skip(start).collect()
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    /// What a client hears that sends these bytes to a rack that answers every request with its text.
    fn talk(input: &[u8]) -> String {
        let (events, requests) = mpsc::channel();
        let mut output = Vec::new();
        thread::scope(|scope| {
            scope.spawn(move || {
                while let Ok(Event::Api(request, reply)) = requests.recv() {
                    reply.send(Response::Text(format!("{request:?}"))).unwrap();
                }
            });
            serve(input, &mut output, &events).unwrap();
            drop(events);
        });
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn calls_are_answered_with_their_number_and_empty_lines_with_nothing() {
        let output =
            talk(b"\n{\"id\":7,\"request\":\"status\"}\n\n{\"id\":8,\"request\":{\"stop\":{\"guest\":\"x\"}}}\n");
        let answers: Vec<Answer> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(answers[0], Answer { id: 7, response: Response::Text("Status".into()) });
        assert_eq!(answers[1].id, 8);
        assert_eq!(answers.len(), 2);
    }

    #[test]
    fn nonsense_is_refused_and_the_next_call_still_answered() {
        let output = talk(b"nonsense\n{\"id\":1,\"request\":\"status\"}\n");
        let answers: Vec<Answer> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(matches!(&answers[0], Answer { id: 0, response: Response::Error(_) }));
        assert_eq!(answers[1].id, 1);
    }

    #[test]
    fn an_endless_line_ends_the_connection() {
        let output = talk(&vec![b'x'; 3 * MAX_LINE]);
        assert_eq!(output.lines().count(), 1, "{output}");
    }

    #[test]
    fn any_console_fits_one_answer_and_can_not_steer_a_terminal() {
        for byte in [b'x', b'\n', b'"', 0x1b, 0xff, 0] {
            let text = console_text(&vec![byte; 2 * MAX_LINE]);
            assert!(!text.contains('\u{1b}'));
            let answer = Answer { id: u64::MAX, response: Response::Text(text) };
            assert!(serde_json::to_vec(&answer).unwrap().len() < MAX_LINE);
        }
        assert!(console_text(b"first\nlast\n").ends_with("last\n"));
    }
}
