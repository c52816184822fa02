//! The daemon's log: lines for people, on every serial console the kernel has, whatever the kernel's own log level, and
//! in the kernel's log, where the screen finds them among the kernel's own.

use std::{
    fs::File,
    io::{self, Write},
    panic,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread,
};

use log::{LevelFilter, Log, Metadata, Record};
use rackstick_linux::kmsg::Kmsg;
use rustix::{
    fs::OFlags,
    time::{ClockId, clock_gettime},
};

use crate::terminals;

/// Lines that wait for a slow console; more are dropped there, so that a stopped terminal can't stop the rack.
const QUEUE: usize = 512;

struct Console {
    lines: SyncSender<String>,
}

/// Sends the `log` crate's lines, and what a panic says, to the serial consoles and to the kernel's log; to standard
/// error where there is neither.
pub fn start() {
    let consoles = terminals::serial(OFlags::empty()).into_iter().filter_map(|file| open(file).ok()).collect();
    let log = Consoles { consoles, kernel: Kmsg::open("rackstick") };
    if log::set_boxed_logger(Box::new(log)).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    panic::set_hook(Box::new(|info| log::error!("the daemon has a bug: {info}")));
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

struct Consoles {
    consoles: Vec<Console>,
    kernel: io::Result<Kmsg>,
}

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
        match &self.kernel {
            Ok(kernel) => kernel.write(record.level(), record.args()),
            // The last place there is.
            Err(_) if self.consoles.is_empty() => {
                let _ = io::stderr().write_all(line.as_bytes());
            }
            Err(_) => {}
        }
        for console in &self.consoles {
            match console.lines.try_send(line.clone()) {
                // Full: see QUEUE. Disconnected: the console is gone.
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
    }

    fn flush(&self) {}
}
