//! The machine's watchdog (Linux, Documentation/watchdog/watchdog-api.rst): fed as long as PID 1 runs. A machine whose
//! PID 1 or kernel is frozen is reset by it.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Write},
    time::{Duration, Instant},
};

use rustix::ioctl::{Getter, Updater, ioctl};

use super::say::Voice;

/// `WDIOC_SETTIMEOUT` and `WDIOC_GETTIMEOUT`, include/uapi/linux/watchdog.h: `_IOWR('W', 6, int)`, `_IOR('W', 7, int)`.
const SET_TIMEOUT: u32 = 0xc004_5706;
const GET_TIMEOUT: u32 = 0x8004_5707;

/// The first watchdog that the kernel has.
pub const DEVICE: &str = "/dev/watchdog0";
/// Without food for so long, the machine is reset. Long enough for a host that swaps or whose disk is slow.
const TIMEOUT_S: i32 = 30;
/// What the end of the machine may take: processes ended, everything written to a slow stick. No watchdog here takes
/// much more (iTCO: 613 s).
pub(super) const END_TIMEOUT_S: i32 = 600;
/// It is fed so many times within its timeout.
const MEALS: u32 = 3;
/// Between two looks for a watchdog whose driver may come.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The watchdog, there or not yet.
pub struct Watchdog {
    device: Option<(File, Duration)>,
    next: Instant,
    /// Said once, not at every look.
    refused: bool,
}

impl Watchdog {
    /// None is open yet: drivers are the daemon's.
    pub fn new() -> Self {
        Self { device: None, next: Instant::now(), refused: false }
    }

    /// When [`Watchdog::feed`] is to be called at the latest.
    pub fn deadline(&self) -> Instant {
        self.next
    }

    /// Feeds it if it is time, or takes it if it has come.
    pub fn feed(&mut self, now: Instant, voice: &Voice) {
        if now < self.next {
            return;
        }
        match &mut self.device {
            Some((device, pause)) => {
                if let Err(error) = device.write_all(b"\0") {
                    voice.say(format_args!("the watchdog can't be fed: {error}"));
                }
                self.next = now + *pause;
            }
            None => {
                match open() {
                    Ok((device, timeout)) => {
                        voice.say(format_args!(
                            "watchdog {} resets the machine once PID 1 has been still for {timeout} s",
                            identity()
                        ));
                        self.device = Some((device, pause(timeout)));
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) if !self.refused => {
                        self.refused = true;
                        voice.say(format_args!("{DEVICE} can't be used: {error}"));
                    }
                    Err(_) => {}
                }
                self.next = now + self.device.as_ref().map_or(LOOK_AGAIN, |(_, pause)| *pause);
            }
        }
    }

    /// The machine ends: from now on it is not fed any more, and an end that takes too long is a reset.
    pub fn last_meal(&mut self, voice: &Voice) {
        let Some((device, _)) = &mut self.device else { return };
        // A watchdog that can't wait so long goes on with what it has.
        let timeout = set_timeout(device, END_TIMEOUT_S).or_else(|_| get_timeout(device));
        if let Err(error) = device.write_all(b"\0") {
            voice.say(format_args!("the watchdog can't be fed: {error}"));
        }
        if let Ok(timeout) = timeout {
            voice.say(format_args!("the watchdog resets the machine if it has not ended in {timeout} s"));
        }
    }
}

/// The watchdog and its timeout in seconds. It is armed by being opened, and stays so: nothing here disarms it.
fn open() -> io::Result<(File, i32)> {
    let device = OpenOptions::new().write(true).open(DEVICE)?;
    // Some know only one timeout.
    let timeout = set_timeout(&device, TIMEOUT_S).or_else(|_| get_timeout(&device))?;
    Ok((device, timeout))
}

/// Asks for a timeout in seconds; the driver says which it took.
fn set_timeout(device: &File, mut seconds: i32) -> io::Result<i32> {
    // SAFETY: WDIOC_SETTIMEOUT reads and writes one int, which outlives the call.
    unsafe { ioctl(device, Updater::<SET_TIMEOUT, i32>::new(&mut seconds)) }?;
    Ok(seconds)
}

fn get_timeout(device: &File) -> io::Result<i32> {
    // SAFETY: WDIOC_GETTIMEOUT writes one int.
    Ok(unsafe { ioctl(device, Getter::<GET_TIMEOUT, i32>::new()) }?)
}

/// How long to wait between two meals.
fn pause(timeout_s: i32) -> Duration {
    Duration::from_secs(u64::try_from(timeout_s).unwrap_or_default().max(1)) / MEALS
}

/// Its name, for people.
fn identity() -> String {
    std::fs::read_to_string("/sys/class/watchdog/watchdog0/identity")
        .map_or_else(|_| DEVICE.to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_well_within_any_timeout() {
        for timeout in [i32::MIN, -1, 0, 1, 30, i32::MAX] {
            let pause = pause(timeout);
            assert!(!pause.is_zero());
            assert!(pause * 2 < Duration::from_secs(timeout.max(1) as u64), "{timeout}");
        }
    }
}
