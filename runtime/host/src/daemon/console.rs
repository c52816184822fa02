//! The daemon's log: lines for people, on every console the kernel has (screen and serial port), whatever the
//! kernel's own log level.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread,
};

use log::{LevelFilter, Log, Metadata, Record};
use rustix::{
    fs::OFlags,
    time::{ClockId, clock_gettime},
};

/// Lines that wait for a slow console; more are dropped there, so that a stopped terminal can't stop the rack.
const QUEUE: usize = 512;

struct Console {
    lines: SyncSender<String>,
}

/// Sends the `log` crate's lines to the consoles; to standard error where there are none.
pub fn start() {
    let consoles: Vec<Console> = devices().into_iter().filter_map(|file| open(file).ok()).collect();
    if log::set_boxed_logger(Box::new(Consoles(consoles))).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// The terminals behind `/dev/console`: the kernel lists all, `/dev/console` itself is only the last.
fn devices() -> Vec<File> {
    let names = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    // A terminal that is listed but can't be opened (a serial port without hardware) is no loss.
    let named = |name: &str| {
        OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(Path::new("/dev").join(name))
    };
    names.split_whitespace().filter_map(|name| named(name).ok()).collect()
}

fn open(mut file: File) -> io::Result<Console> {
    let (lines, waiting) = sync_channel::<String>(QUEUE);
    thread::Builder::new().name("console".into()).spawn(move || {
        // A console that is gone takes no more lines, and there is nobody to tell.
        while let Ok(line) = waiting.recv()
            && file.write_all(line.as_bytes()).is_ok()
        {}
    })?;
    Ok(Console { lines })
}

struct Consoles(Vec<Console>);

impl Log for Consoles {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let now = clock_gettime(ClockId::Boottime);
        let mark = match record.level() {
            log::Level::Error => "ERROR: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        let line = format!("[{:5}.{:03}] rackstick: {mark}{}\n", now.tv_sec, now.tv_nsec / 1_000_000, record.args());
        if self.0.is_empty() {
            // The last place there is.
            let _ = io::stderr().write_all(line.as_bytes());
        }
        for console in &self.0 {
            match console.lines.try_send(line.clone()) {
                // Full: see QUEUE. Disconnected: the console is gone.
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
    }

    fn flush(&self) {}
}
