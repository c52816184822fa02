//! How PID 1 speaks: to the kernel's log and the serial consoles, and where it has to, on the screen. It never waits
//! for a terminal: one that stands still (Scroll Lock, XOFF) must not stop PID 1.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
};

use log::Level;
use rackstick_linux::kmsg::Kmsg;
use rustix::{
    fs::OFlags,
    time::{ClockId, clock_gettime},
};

use crate::terminals;

/// The virtual terminal that the overview is on.
const SCREEN: &str = "/dev/tty1";

/// Where PID 1's lines go. What can't be opened takes none: there is nobody to tell.
pub struct Voice {
    kernel: Option<Kmsg>,
    serial: Vec<File>,
}

impl Voice {
    /// Once `/dev`, `/proc` and `/sys` are mounted.
    pub fn open() -> Self {
        Self { kernel: Kmsg::open("rackstick init").ok(), serial: terminals::serial(OFlags::NONBLOCK) }
    }

    /// One that nobody hears.
    #[cfg(test)]
    pub fn silent() -> Self {
        Self { kernel: None, serial: Vec::new() }
    }

    /// Says one line where lines are kept.
    pub fn say(&self, line: fmt::Arguments<'_>) {
        if let Some(kernel) = &self.kernel {
            kernel.write(Level::Info, &line);
        }
        let now = clock_gettime(ClockId::Boottime);
        let line = format!("[{:5}.{:03}] rackstick init: {line}\n", now.tv_sec, now.tv_nsec / 1_000_000);
        for mut console in &self.serial {
            // As above; and one that is full takes what it can.
            let _ = console.write(line.as_bytes());
        }
    }

    /// Says it too on the screen, which nobody else draws on now.
    pub fn show(&self, line: fmt::Arguments<'_>) {
        self.say(line);
        let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
        let screen = OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(SCREEN);
        if let Ok(mut screen) = screen {
            // As above.
            let _ = screen.write(format!("\x1b[H\x1b[0m\x1b[J\r\n rackstick: {line}\r\n").as_bytes());
        }
    }
}
