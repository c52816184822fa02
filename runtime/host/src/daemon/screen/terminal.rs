//! One virtual terminal of the machine's screen (Linux, console_codes(4) and ioctl_console(2)): lines are drawn on it
//! and its keys are read. Needs nothing but what every Linux console knows.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
};

use rustix::{
    fs::OFlags,
    ioctl::{IntegerSetter, ioctl},
    termios::{Action, OptionalActions, tcflow, tcgetattr, tcgetwinsize, tcsetattr},
};

use super::frame::{Line, Size, Style};

/// `VT_ACTIVATE`, include/uapi/linux/vt.h.
const VT_ACTIVATE: u32 = 0x5606;
/// The longest sequence that a key sends, with room for a few at once.
const KEYS: usize = 32;
/// What the console sends for F1 and F2.
const F1: &[u8] = b"\x1b[[A";
const F2: &[u8] = b"\x1b[[B";
/// Where the kernel does not know better.
const USUAL: Size = Size { columns: 80, rows: 25 };

/// A terminal.
#[derive(Debug)]
pub struct Terminal {
    file: File,
    /// The rows that it shows, as bytes; a row is written again only when it differs.
    shown: Vec<Vec<u8>>,
    size: Size,
}

impl Terminal {
    /// Takes the virtual terminal with this number: empty, without cursor, without echo.
    pub fn open(number: usize) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(format!("/dev/tty{number}"))?;
        let mut attributes = tcgetattr(&file)?;
        attributes.make_raw();
        tcsetattr(&file, OptionalActions::Now, &attributes)?;
        // Scroll Lock stops a terminal for whoever opens it next, too; stopped and started, it takes words again.
        tcflow(&file, Action::OOff)?;
        tcflow(&file, Action::OOn)?;
        let mut terminal = Self { file, shown: Vec::new(), size: USUAL };
        terminal.write(b"\x1bc\x1b[?25l")?;
        Ok(terminal)
    }

    /// Its size now.
    pub fn size(&mut self) -> Size {
        let size = match tcgetwinsize(&self.file) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
            }
            _ => USUAL,
        };
        if size != self.size {
            self.size = size;
            self.forget();
        }
        size
    }

    /// Draws all rows anew the next time: somebody else has written on it.
    pub fn forget(&mut self) {
        self.shown.clear();
    }

    /// Shows these lines and nothing else.
    pub fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        let size = self.size();
        let mut rows: Vec<Vec<u8>> = lines.iter().take(size.rows).map(|line| row(line, size.columns)).collect();
        rows.resize(size.rows, Vec::new());
        let mut out: Vec<u8> = Vec::new();
        for (index, row) in rows.iter().enumerate().filter(|(index, row)| self.shown.get(*index) != Some(row)) {
            // Emptied first: a full row leaves the cursor on its last character.
            out.extend(format!("\x1b[{};1H\x1b[0m\x1b[2K", index + 1).bytes());
            out.extend(row);
        }
        // Where the kernel's last words begin, should it panic.
        out.extend(format!("\x1b[0m\x1b[{};1H", size.rows).bytes());
        self.write(&out)?;
        self.shown = rows;
        Ok(())
    }

    /// Keeps the last row for this line, and lets what is written scroll above it.
    pub fn scroll_above(&mut self, line: &Line) -> io::Result<()> {
        let size = self.size();
        let mut out = format!("\x1b[{};1H", size.rows).into_bytes();
        out.extend(row(line, size.columns));
        let last = size.rows.saturating_sub(1).max(1);
        out.extend(format!("\x1b[0m\x1b[1;{last}r\x1b[{last};1H").bytes());
        self.write(&out)
    }

    /// Writes a line below what was written.
    pub fn append(&mut self, line: &Line) -> io::Result<()> {
        let columns = self.size().columns;
        let mut out = b"\r\n".to_vec();
        out.extend(row(line, columns));
        out.extend(b"\x1b[0m");
        self.write(&out)
    }

    /// Another handle of it, to read its keys.
    pub fn keys(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }
}

/// Switches between the terminals by F1 and F2, as Alt-F1 and Alt-F2 do without us; ends when the terminal is gone.
pub fn follow_keys(mut keys: File) {
    let mut buffer = [0; KEYS];
    while let Ok(length @ 1..) = keys.read(&mut buffer) {
        let pressed = buffer.get(..length).unwrap_or_default();
        let wanted = [(F1, super::OVERVIEW), (F2, super::LOG)].into_iter().find(|(key, _)| pressed.ends_with(key));
        if let Some((_, number)) = wanted
            && let Err(error) = activate(&keys, number)
        {
            log::warn!("the screen can't be switched to terminal {number}: {error}");
        }
    }
}

fn activate(terminal: &File, number: usize) -> io::Result<()> {
    // SAFETY: VT_ACTIVATE takes a terminal's number as its argument and touches no memory of ours.
    unsafe { ioctl(terminal, IntegerSetter::<VT_ACTIVATE>::new_usize(number)) }?;
    Ok(())
}

/// A line with its colours, cut to `columns`.
fn row(line: &Line, columns: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut room = columns;
    for span in &line.0 {
        let text: String = span.text.chars().filter(char::is_ascii).take(room).collect();
        room -= text.len();
        out.extend(colours(span.style).bytes());
        out.extend(text.bytes());
    }
    out
}

fn colours(style: Style) -> &'static str {
    match style {
        Style::Plain => "\x1b[0m",
        Style::Bar => "\x1b[0;1;37;44m",
        Style::Name => "\x1b[0;1m",
        Style::Good => "\x1b[0;1;32m",
        Style::Attention => "\x1b[0;1;33m",
        Style::Bad => "\x1b[0;1;31m",
        Style::Faint => "\x1b[0;36m",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::screen::frame::Span;

    #[test]
    fn a_row_never_reaches_past_the_terminal() {
        let span = |text: &str| Span { style: Style::Plain, text: text.into() };
        let line = Line(vec![span("abcdef"), span("ghijkl")]);
        assert_eq!(row(&line, 8), b"\x1b[0mabcdef\x1b[0mgh");
        assert_eq!(row(&line, 0), b"\x1b[0m\x1b[0m");
    }
}
