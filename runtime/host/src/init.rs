//! PID 1: makes `/` a root that guests' user namespaces and `pivot_root` accept, mounts the basics, starts the
//! daemon, reaps, starts the daemon again when it died or hangs, feeds the watchdog, and ends the machine. Nothing
//! else, and it never panics: a PID 1 that ends takes the kernel with it.

mod daemon;
mod say;
pub mod watchdog;

use std::{
    convert::Infallible,
    fmt, fs, io,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rackstick_linux::{mount, power};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
    process::{Pid, Signal, WaitOptions},
    system::RebootCommand,
};

use crate::{
    VERSION,
    daemon::{boot, data::MOUNT as DATA},
    signals,
};
use daemon::Daemon;
use say::Voice;
use watchdog::Watchdog;

/// The signal by which the daemon, done with its guests, has the machine switched off.
pub const POWER_OFF: Signal = Signal::USR1;
/// The signal by which the daemon, done with its guests, has the machine rebooted.
pub const REBOOT: Signal = Signal::USR2;

/// The signal by which the daemon's main loop says that it is well.
pub const WELL: Signal = Signal::HUP;

/// How long the daemon may take to stop its guests once PID 1 was told to end the machine (Ctrl-Alt-Del, SIGTERM);
/// longer than the daemon's own deadlines together.
pub const DAEMON_DEADLINE: Duration = Duration::from_secs(240);
/// How long processes have between the last SIGTERM and SIGKILL. Most need none of it; but where the daemon died before
/// its guests had stopped, this is their power button and all the time that they get.
const TERM_DEADLINE: Duration = Duration::from_secs(60);
/// How long to wait for killed processes to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// How long writing everything out may take. A slow stick needs minutes for what memory holds; a disk that does not
/// answer holds whoever waits for it for ever. Ends before the watchdog's last meal is used up, which can only reset
/// the machine.
const WRITE_DEADLINE: Duration = Duration::from_secs(500);

/// How long the kernel may take to end the machine: it waits for drivers that are starting a device, also for one that
/// never answers, and then there is no watchdog either, which it stops before.
const DEVICE_DEADLINE: Duration = Duration::from_secs(30);

/// The kernel must not choose PID 1 when memory runs out.
const OOM_INIT: &str = "-1000";

#[derive(Clone, Copy)]
enum End {
    PowerOff,
    Reboot,
}

/// Runs PID 1. Returns only if it is not PID 1.
pub fn run() -> ExitCode {
    if !rustix::process::getpid().is_init() {
        eprintln!("rackstick-host init: this is no PID 1; only the kernel starts it");
        return ExitCode::from(2);
    }
    let started = boot::now_ms();
    let root = mount::leave_rootfs();
    let dev = mount::mount("devtmpfs", "devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755");
    let console = take_console();
    let mounted = [root, dev, mount::api_file_systems(), mount::cgroup2("/sys/fs/cgroup")];
    let voice = Voice::open();
    voice.say(format_args!("rackstick-host {VERSION} is PID 1"));
    if let Err(error) = console {
        voice.say(format_args!("the console could not be taken: {error}"));
    }
    for error in mounted.into_iter().filter_map(Result::err) {
        voice.show(format_args!("{error}"));
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_INIT) {
        voice.say(format_args!("PID 1 is not protected from the out-of-memory killer: {error}"));
    }
    // Ctrl-Alt-Del becomes SIGINT instead of an instant reset.
    if let Err(error) = rustix::system::reboot(RebootCommand::CadOff) {
        voice.say(format_args!("Ctrl-Alt-Del stays an instant reset: {error}"));
    }
    let mut watchdog = Watchdog::new();
    let mut daemon = Daemon::new(started, Instant::now());
    let end = supervise(&mut daemon, &mut watchdog, &voice);
    watchdog.last_meal(&voice);
    // It has done what it could, and it does not end by itself.
    daemon.signal(Signal::KILL, &voice);
    finish(end, &voice)
}

/// The kernel opened the console before `/dev` was mounted, or could not: takes the real one.
fn take_console() -> Result<(), Errno> {
    let open = |mode| rustix::fs::open("/dev/console", mode | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
    let (input, output) = (open(OFlags::RDONLY)?, open(OFlags::WRONLY)?);
    rustix::stdio::dup2_stdin(&input)?;
    rustix::stdio::dup2_stdout(&output)?;
    rustix::stdio::dup2_stderr(&output)
}

/// Keeps the daemon alive, feeds the watchdog and reaps, until the machine is to end.
fn supervise(daemon: &mut Daemon, watchdog: &mut Watchdog, voice: &Voice) -> End {
    let set = signals::Set::of(&[
        libc::SIGCHLD,
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGPWR,
        WELL.as_raw(),
        POWER_OFF.as_raw(),
        REBOOT.as_raw(),
    ]);
    set.block_only();
    // Once asked to end the machine: how, and until when the daemon may take care of its guests.
    let mut ending: Option<(End, Instant)> = None;
    loop {
        let now = Instant::now();
        if let Some((end, deadline)) = ending
            && (!daemon.runs() || now >= deadline)
        {
            return end;
        }
        daemon.advance(now, voice);
        // Guests may still serve from memory. But nobody restarts one that fails, nobody can stop them cleanly or look
        // at the rack from afar, a rack far away stays so, and what the kernel does not get from its disk or driver no
        // guest gets.
        if daemon.is_stuck(now) {
            voice.show(format_args!(
                "the daemon was killed and does not end: the kernel waits for a disk or a driver that does not answer; the \
                 guests are told to shut down, then the machine ends"
            ));
            return ending.map_or(End::Reboot, |(end, _)| end);
        }
        watchdog.feed(now, voice);
        let deadlines = [Some(watchdog.deadline()), daemon.deadline(), ending.map(|(_, deadline)| deadline)];
        let next = deadlines.into_iter().flatten().min();
        let signal = set.wait(next.map(|at| at.saturating_duration_since(now)));
        let now = Instant::now();
        let asked = match signal {
            Some(signal) if signal == POWER_OFF.as_raw() => return End::PowerOff,
            Some(signal) if signal == REBOOT.as_raw() => return End::Reboot,
            Some(libc::SIGTERM | libc::SIGPWR) => Some((End::PowerOff, Signal::TERM)),
            Some(libc::SIGINT) => Some((End::Reboot, Signal::INT)),
            Some(signal) if signal == WELL.as_raw() => {
                daemon.is_well(now);
                None
            }
            _ => None,
        };
        if let Some((end, signal)) = asked {
            ending.get_or_insert((end, now + DAEMON_DEADLINE));
            daemon.signal(signal, voice);
        }
        for (pid, how) in Reaped {
            daemon.reaped(pid, &how, ending.is_some(), now, voice);
        }
    }
}

/// The children that ended and were not yet waited for.
struct Reaped;

impl Iterator for Reaped {
    type Item = (Pid, Ended);

    fn next(&mut self) -> Option<Self::Item> {
        let (pid, status) = rustix::process::wait(WaitOptions::NOHANG).ok()??;
        Some((pid, Ended { code: status.exit_status(), signal: status.terminating_signal() }))
    }
}

struct Ended {
    code: Option<i32>,
    signal: Option<i32>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.signal, self.code) {
            (Some(signal), _) => write!(f, "killed by signal {signal}"),
            (None, Some(code)) => write!(f, "status {code}"),
            (None, None) => write!(f, "status unknown"),
        }
    }
}

/// Ends all processes, writes everything out and ends the machine.
fn finish(end: End, voice: &Voice) -> ! {
    // On the screen the daemon says it, until it ends.
    voice.say(format_args!("stopping the machine"));
    for (signal, patience) in [(libc::SIGTERM, TERM_DEADLINE), (libc::SIGKILL, KILL_DEADLINE)] {
        // SAFETY: kill(2) has no memory effects. -1 is everyone but PID 1 itself and kernel threads.
        let sent = unsafe { libc::kill(-1, signal) };
        if sent == 0 {
            reap_all(patience);
        }
    }
    voice.show(format_args!("writing everything to disk"));
    let written = within(WRITE_DEADLINE, || {
        rustix::fs::sync();
        unmount_data(&Voice::open());
    });
    if !written {
        voice.show(format_args!(
            "a disk does not answer: not everything could be written to it in {} s, and the machine ends without",
            WRITE_DEADLINE.as_secs()
        ));
    }
    loop {
        let ended = match end {
            End::PowerOff => within(DEVICE_DEADLINE, || refused(power::power_off())),
            End::Reboot => within(DEVICE_DEADLINE, || refused(power::restart())),
        };
        if !ended {
            voice.show(format_args!("a device does not let go of the machine, which is reset at once"));
            if let Err(error) = power::reset() {
                voice.show(format_args!("the machine could not be reset: {error}"));
            }
        }
        // PID 1 must not end, whatever happens.
        signals::Set::of(&[libc::SIGCHLD]).wait(Some(KILL_DEADLINE));
    }
}

fn refused(ended: io::Result<Infallible>) {
    let Err(error) = ended;
    Voice::open().show(format_args!("the machine could not be ended: {error}"));
}

/// Does what may never come to an end in a thread of its own; false if it has not ended within `patience`. Where there
/// is no thread to be had it is done here.
fn within(patience: Duration, work: fn()) -> bool {
    let (ended, end) = mpsc::channel();
    let thread = thread::Builder::new().spawn(move || {
        work();
        // Nobody waits any more.
        let _ = ended.send(());
    });
    match thread {
        Ok(_) => end.recv_timeout(patience).is_ok(),
        Err(_) => {
            work();
            true
        }
    }
}

/// Waits until no child is left, at most `patience`.
fn reap_all(patience: Duration) {
    let set = signals::Set::of(&[libc::SIGCHLD]);
    let deadline = Instant::now() + patience;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => continue,
            Err(Errno::CHILD) => return,
            Ok(None) | Err(_) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        set.wait(Some(left));
    }
}

fn unmount_data(voice: &Voice) {
    match rustix::mount::unmount(DATA, UnmountFlags::empty()) {
        // Not mounted, or the folder does not exist.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => {
            voice.say(format_args!("{DATA} could not be unmounted ({error}); it is made read-only"));
            if let Err(error) = rustix::mount::mount_remount(DATA, MountFlags::RDONLY, c"") {
                voice.say(format_args!("{DATA} could not be made read-only: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_not_waited_for_without_end_and_what_ends_no_longer_than_it_takes() {
        let begun = Instant::now();
        assert!(!within(Duration::from_millis(20), || thread::park_timeout(WRITE_DEADLINE)));
        assert!(within(WRITE_DEADLINE, || ()));
        assert!(begun.elapsed() < WRITE_DEADLINE / 4);
        let before = TERM_DEADLINE + KILL_DEADLINE + WRITE_DEADLINE;
        assert!(
            before < Duration::from_secs(watchdog::END_TIMEOUT_S as u64),
            "the watchdog resets what is to switch off"
        );
    }
}
