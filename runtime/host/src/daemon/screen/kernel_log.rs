//! The kernel's log, which the runtime's own lines are part of, on a terminal of its own (Linux,
//! Documentation/ABI/testing/dev-kmsg).

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Read},
};

use rustix::io::Errno;

use super::{
    frame::{Line, Span, Style},
    terminal::Terminal,
    text::plain,
};

/// No record is longer: the largest buffer that kernels fill for a reader (CONSOLE_EXT_LOG_MAX).
const RECORD: usize = 8192;
/// Records below this level are written to the foreground terminal by the kernel itself, over whatever is there: the
/// `loglevel` of the host's command line.
const CONSOLE_LEVEL: u8 = 3;

/// One record.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    level: u8,
    microseconds: u64,
    message: &'a str,
}

impl<'a> Record<'a> {
    /// `priority,sequence,microseconds,flags;message`, and lines with more about it, which begin with a space.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (head, rest) = text.split_once(';')?;
        let mut fields = head.split(',');
        let priority: u32 = fields.next()?.parse().ok()?;
        let microseconds = fields.nth(1)?.parse().ok()?;
        let message = rest.lines().next().unwrap_or_default();
        Some(Self { level: (priority & 7) as u8, microseconds, message })
    }

    fn line(&self) -> Line {
        let (seconds, rest) = (self.microseconds / 1_000_000, self.microseconds / 1000 % 1000);
        let style = match self.level {
            0..=3 => Style::Bad,
            4 => Style::Attention,
            _ => Style::Plain,
        };
        Line(vec![
            Span { style: Style::Faint, text: format!("[{seconds:5}.{rest:03}] ") },
            Span { style, text: plain(self.message) },
        ])
    }
}

/// Writes every record, from the oldest that the kernel still has, to the terminal; `disturbed` is called when the
/// kernel has written over the terminals by itself. Ends only if the log can't be read or shown.
pub fn follow(mut terminal: Terminal, disturbed: impl Fn()) -> io::Result<Infallible> {
    let hint = " F1 goes back to the overview. This is the log of the kernel and of the rack, newest last.";
    terminal.scroll_above(&Line(vec![Span { style: Style::Faint, text: hint.into() }]))?;
    let mut log = File::open("/dev/kmsg")?;
    let mut buffer = [0; RECORD];
    loop {
        let length = match log.read(&mut buffer) {
            Ok(length) => length,
            // Overwritten before it was read; the next read goes on with what is there.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PIPE) => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let Some(record) = Record::parse(buffer.get(..length).unwrap_or_default()) else { continue };
        terminal.append(&record.line())?;
        if record.level < CONSOLE_LEVEL {
            disturbed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_without_what_hangs_on_it() {
        let record = Record::parse(b"30,339,5140900,-;rackstick: ready\n SUBSYSTEM=pci\n").unwrap();
        assert_eq!(record, Record { level: 6, microseconds: 5_140_900, message: "rackstick: ready" });
        let text: String = record.line().0.into_iter().map(|span| span.text).collect();
        assert_eq!(text, "[    5.140] rackstick: ready");
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        for bytes in [&b""[..], b";", b"6,1;x", b"x,1,2,-;y", b"\xff,1,2;y"] {
            assert_eq!(Record::parse(bytes), None);
        }
    }
}
