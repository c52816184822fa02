//! PID 1: makes `/` a root that guests' user namespaces and `pivot_root` accept, mounts the basics, starts the
//! daemon, reaps, starts the daemon again when it died, and ends the machine. Nothing else, and it never panics:
//! a PID 1 that ends takes the kernel with it.

use std::{
    fmt, fs,
    io::{self, Write},
    process::{Command, ExitCode},
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
    PROGRAM, STARTED, VERSION,
    daemon::{boot, data::MOUNT as DATA},
    signals,
};

/// The signal by which the daemon, done with its guests, has the machine switched off.
pub const POWER_OFF: Signal = Signal::USR1;
/// The signal by which the daemon, done with its guests, has the machine rebooted.
pub const REBOOT: Signal = Signal::USR2;

/// The first wait before a daemon that died is started again; doubled each time, so that a daemon that can't live
/// does not use up the machine.
const RESTART_DELAY: Duration = Duration::from_millis(250);
/// The longest wait before a daemon that died is started again.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);
/// A daemon that lived this long was well: the next wait is the first again.
const RESTART_FORGIVEN: Duration = Duration::from_secs(60);
/// How long the daemon may take to stop its guests once PID 1 was told to end the machine (Ctrl-Alt-Del, SIGTERM);
/// longer than the daemon's own deadlines together.
pub const DAEMON_DEADLINE: Duration = Duration::from_secs(240);
/// How long processes have between the last SIGTERM and SIGKILL.
const TERM_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait for killed processes to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// The kernel must not choose PID 1 or the daemon when memory runs out.
const OOM_INIT: &str = "-1000";
const OOM_DAEMON: &str = "-900";

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
    take_console();
    say(format_args!("rackstick-host {VERSION} is PID 1"));
    for mounted in [root, dev, mount::api_file_systems(), mount::cgroup2("/sys/fs/cgroup")] {
        if let Err(error) = mounted {
            say(format_args!("{error}"));
        }
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_INIT) {
        say(format_args!("PID 1 is not protected from the out-of-memory killer: {error}"));
    }
    // Ctrl-Alt-Del becomes SIGINT instead of an instant reset.
    if let Err(error) = rustix::system::reboot(RebootCommand::CadOff) {
        say(format_args!("Ctrl-Alt-Del stays an instant reset: {error}"));
    }
    let end = supervise(started);
    finish(end)
}

/// The kernel opened the console before `/dev` was mounted, or could not: takes the real one.
fn take_console() {
    let open = |mode| rustix::fs::open("/dev/console", mode | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
    let (Ok(input), Ok(output)) = (open(OFlags::RDONLY), open(OFlags::WRONLY)) else { return };
    let redirected: Result<(), Errno> = rustix::stdio::dup2_stdin(&input)
        .and_then(|()| rustix::stdio::dup2_stdout(&output))
        .and_then(|()| rustix::stdio::dup2_stderr(&output));
    if let Err(error) = redirected {
        say(format_args!("the console could not be taken: {error}"));
    }
}

/// Prints one line on the console. There is nobody to tell if that fails.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Keeps the daemon alive and reaps, until the machine is to end.
fn supervise(init_started_ms: u64) -> End {
    let set = signals::Set::of(&[
        libc::SIGCHLD,
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGPWR,
        POWER_OFF.as_raw(),
        REBOOT.as_raw(),
    ]);
    set.block_only();
    let mut delay = RESTART_DELAY;
    let mut started = Instant::now();
    let mut daemon = start_daemon(init_started_ms);
    let mut start_again = daemon.is_none().then(|| started + delay);
    // Once asked to end the machine: how, and until when the daemon may take care of its guests.
    let mut ending: Option<(End, Instant)> = None;
    loop {
        let now = Instant::now();
        if let Some((end, deadline)) = ending
            && (daemon.is_none() || now >= deadline)
        {
            return end;
        }
        if start_again.is_some_and(|at| now >= at) {
            started = now;
            daemon = start_daemon(init_started_ms);
            start_again = daemon.is_none().then(|| now + delay);
        }
        let next = ending.map(|(_, deadline)| deadline).or(start_again);
        let signal = set.wait(next.map(|at| at.saturating_duration_since(now)));
        let asked = match signal {
            Some(signal) if signal == POWER_OFF.as_raw() => return End::PowerOff,
            Some(signal) if signal == REBOOT.as_raw() => return End::Reboot,
            Some(libc::SIGTERM | libc::SIGPWR) => Some((End::PowerOff, Signal::TERM)),
            Some(libc::SIGINT) => Some((End::Reboot, Signal::INT)),
            _ => None,
        };
        if let Some((end, signal)) = asked {
            ending.get_or_insert((end, Instant::now() + DAEMON_DEADLINE));
            if let Some(pid) = daemon
                && let Err(error) = rustix::process::kill_process(pid, signal)
            {
                say(format_args!("the daemon could not be told to stop: {error}"));
            }
        }
        for (pid, how) in Reaped {
            if Some(pid) == daemon {
                let lived = started.elapsed();
                delay = if lived >= RESTART_FORGIVEN { RESTART_DELAY } else { (delay * 2).min(RESTART_DELAY_MAX) };
                daemon = None;
                if ending.is_none() {
                    say(format_args!("the daemon ended ({how}) after {} s; it is started again", lived.as_secs()));
                    start_again = Some(Instant::now() + delay);
                }
            }
        }
    }
}

fn start_daemon(init_started_ms: u64) -> Option<Pid> {
    let child = match Command::new(PROGRAM).arg("daemon").env(STARTED, init_started_ms.to_string()).spawn() {
        Ok(child) => child,
        Err(error) => {
            say(format_args!("the daemon could not be started from {PROGRAM}: {error}"));
            return None;
        }
    };
    if let Err(error) = fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_DAEMON) {
        say(format_args!("the daemon is not protected from the out-of-memory killer: {error}"));
    }
    Pid::from_raw(child.id().cast_signed())
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
fn finish(end: End) -> ! {
    say(format_args!("stopping the machine"));
    for (signal, patience) in [(libc::SIGTERM, TERM_DEADLINE), (libc::SIGKILL, KILL_DEADLINE)] {
        // SAFETY: kill(2) has no memory effects. -1 is everyone but PID 1 itself and kernel threads.
        let sent = unsafe { libc::kill(-1, signal) };
        if sent == 0 {
            reap_all(patience);
        }
    }
    rustix::fs::sync();
    unmount_data();
    loop {
        let Err(error) = match end {
            End::PowerOff => power::power_off(),
            End::Reboot => power::restart(),
        };
        say(format_args!("the machine could not be ended: {error}"));
        // PID 1 must not end, whatever happens.
        signals::Set::of(&[libc::SIGCHLD]).wait(Some(KILL_DEADLINE));
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

fn unmount_data() {
    match rustix::mount::unmount(DATA, UnmountFlags::empty()) {
        // Not mounted, or the folder does not exist.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => {
            say(format_args!("{DATA} could not be unmounted ({error}); it is made read-only"));
            if let Err(error) = rustix::mount::mount_remount(DATA, MountFlags::RDONLY, c"") {
                say(format_args!("{DATA} could not be made read-only: {error}"));
            }
        }
    }
}
