//! The runtime's log goes where the kernel's goes: `/dev/kmsg`, so that one console shows both in order.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Longest line in bytes; the kernel refuses records above 1024 with their prefix (LOG_LINE_MAX).
const MAX_LINE: usize = 900;

/// The kernel's log, to be written to.
#[derive(Debug)]
pub struct Kmsg {
    tag: &'static str,
    file: File,
}

impl Kmsg {
    /// Opens it. Each line begins with `tag: `.
    ///
    /// # Errors
    /// What the kernel says to opening `/dev/kmsg`: no such file, or no right to.
    pub fn open(tag: &'static str) -> io::Result<Self> {
        // By default the kernel drops all but ten messages in five seconds. Only PID 1 can change that; others need
        // not.
        let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on");
        Ok(Self { tag, file: OpenOptions::new().write(true).open("/dev/kmsg")? })
    }

    /// Writes a message, line by line. There is nobody left to tell if the log itself fails.
    pub fn write(&self, level: Level, message: &fmt::Arguments<'_>) {
        for line in lines(&message.to_string()) {
            // One write is one record.
            let _ = (&self.file).write_all(format!("<{}>{}: {line}\n", priority(level), self.tag).as_bytes());
        }
    }
}

/// Where `log`'s messages go: the kernel's log, or standard error.
struct Logger {
    tag: &'static str,
    kernel: Option<Kmsg>,
}

/// Sends `log`'s messages at `level` and above to the kernel's log, each begun with `tag: `; to standard error where
/// there is no `/dev/kmsg`. The first call counts, later ones do nothing.
pub fn init(tag: &'static str, level: LevelFilter) {
    if log::set_boxed_logger(Box::new(Logger { tag, kernel: Kmsg::open(tag).ok() })).is_ok() {
        log::set_max_level(level);
    }
}

/// The level that the kernel's command line asks for: with its own word `debug` everything, else what an operator
/// needs.
pub fn level() -> LevelFilter {
    let debug =
        fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.split_whitespace().any(|word| word == "debug"));
    if debug { LevelFilter::Debug } else { LevelFilter::Info }
}

/// syslog(3)'s numbers.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        match &self.kernel {
            Some(kernel) => kernel.write(record.level(), record.args()),
            // There is nobody left to tell if that fails too.
            None => {
                let _ = writeln!(io::stderr(), "{}: {}", self.tag, record.args());
            }
        }
    }

    fn flush(&self) {}
}

/// The lines of `text`, long ones cut into pieces.
fn lines(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    for mut line in text.lines() {
        while line.len() > MAX_LINE {
            let (head, tail) = line.split_at(line.floor_char_boundary(MAX_LINE));
            out.push(head);
            line = tail;
        }
        out.push(line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters_and_loses_nothing() {
        let text = format!("{}\nshort", "ä".repeat(1000));
        let cut = lines(&text);
        assert!(cut.iter().all(|line| line.len() <= MAX_LINE));
        assert_eq!(cut.concat(), format!("{}short", "ä".repeat(1000)));
    }
}
