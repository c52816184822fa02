//! PID 1 of an image without an init of its own: runs the recipe's command as its user, reaps what is left over, and
//! switches the guest off when the command ends or the guest is to stop.

use std::{
    convert::Infallible,
    fmt, fs,
    io::{self, Write},
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use rackstick_api::guest::{COMMAND_ENDED, GuestConfig, Process};
use rackstick_linux::{
    buttons::Buttons,
    mount::{self, MountFlags},
    power,
};
use rustix::{
    fs::{Gid, Uid},
    io::Errno,
    process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, wait},
};
use signal_hook::{
    consts::{SIGCHLD, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{InitError, file_error};

/// How long the command may take to end once it was asked to: less than the rack waits before it presses the power
/// button.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// How long what was killed may take to be gone.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// What PID 1 hears.
enum Event {
    /// A process has ended.
    Child,
    /// The guest is to stop.
    Stop,
}

/// How the command ended.
enum Ended {
    Status(i32),
    Signal(i32),
    /// Nothing can be heard of it any more.
    Unknown,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Status(status) => write!(f, "exit status {status}"),
            Ended::Signal(signal) => write!(f, "killed by signal {signal}"),
            Ended::Unknown => f.write_str("nothing is heard of it any more"),
        }
    }
}

/// Runs the command to its end, then switches the machine off. Comes back only if something of that fails.
pub(super) fn run(config: &GuestConfig, process: &Process) -> Result<Infallible, InitError> {
    prepare(process)?;
    let (sender, events) = mpsc::channel();
    listen(sender)?;
    let command = start(config, process)?;
    log::info!("{}: the command is process {command}", config.hostname);

    let (ended, asked) = attend(command, process.stop_signal, &events);
    let asked = if asked { ", as the guest was asked to stop" } else { "" };
    // On a line of its own, whatever the command wrote last, and out before the machine is off. There is nobody to tell
    // if the console fails.
    let _ = writeln!(io::stdout(), "\n{COMMAND_ENDED}{ended}{asked}");
    let _ = rustix::termios::tcdrain(io::stdout());
    end_all();
    for volume in config.volumes.iter().rev() {
        if let Err(error) = mount::unmount(&volume.mount, false) {
            log::warn!("volume `{}`: {error}; it is synced only", volume.name);
        }
    }
    rustix::fs::sync();
    power::power_off().map_err(|source| InitError::Watch { what: "switch the machine off", source })
}

/// What programs expect of a machine, and udev and systemd do elsewhere.
fn prepare(process: &Process) -> Result<(), InitError> {
    mount::mount("tmpfs", "tmpfs", "/tmp", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777")?;
    for (name, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        match symlink(Path::new("/proc/self").join(target), Path::new("/dev").join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(file_error("make the link", Path::new("/dev").join(name))(error));
            }
            _ => {}
        }
    }
    // The guest is there for this one program, which need not be root to serve on a low port.
    let ports = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    fs::write(ports, "0").map_err(file_error("write", ports))?;
    let workdir = Path::new(&process.workdir);
    if !workdir.is_dir() {
        fs::create_dir_all(workdir).map_err(file_error("make the folder", workdir))?;
    }
    // Else a program that is not root could not open its own /dev/stdout.
    let console = io::stdout();
    rustix::fs::fchown(&console, Some(Uid::from_raw(process.uid)), Some(Gid::from_raw(process.gid)))
        .map_err(|error| file_error("give to its user:", "/dev/console")(error.into()))
}

/// Sends what happens. From here on no signal ends this process, which would be the kernel's end.
fn listen(sender: Sender<Event>) -> Result<(), InitError> {
    let failed = |what| move |source| InitError::Watch { what, source };
    let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGINT]).map_err(failed("be told of processes that end"))?;
    let button = sender.clone();
    let pressed = move || {
        // The main thread ends only with the machine.
        let _ = button.send(Event::Stop);
    };
    // A guest whose button can't be heard is stopped by its agent alone.
    if let Err(error) = Buttons::default().look(pressed) {
        log::warn!("the power button can't be listened to: {error}");
    }
    let told = move || {
        for signal in signals.forever() {
            let event = if signal == SIGCHLD { Event::Child } else { Event::Stop };
            // The main thread ends only with the machine.
            let _ = sender.send(event);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(told).map_err(failed("start a thread"))?;
    Ok(())
}

fn start(config: &GuestConfig, process: &Process) -> Result<u32, InitError> {
    let (program, arguments) =
        config.init.split_first().ok_or_else(|| InitError::BadConfig("names no command".to_owned()))?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&process.env).current_dir(&process.workdir).stdin(Stdio::null());
    let groups: Vec<Gid> = process.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    // SAFETY: between fork and exec only system calls are made: setsid, setgroups, setresgid, setresuid.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::thread::set_thread_groups(&groups)?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(|source| InitError::Exec { program: program.clone(), source })?;
    Ok(child.id())
}

/// Reaps until the command has ended; asks it to when the guest is to stop, and makes it at the deadline. Says whether
/// it was asked.
fn attend(command: u32, stop_signal: u8, events: &Receiver<Event>) -> (Ended, bool) {
    let mut deadline: Option<Instant> = None;
    let mut asked = false;
    loop {
        let event = match deadline {
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(Event::Child) => {
                if let Some(ended) = reap(command) {
                    return (ended, asked);
                }
            }
            Ok(Event::Stop) if asked => {}
            Ok(Event::Stop) => {
                asked = true;
                deadline = Some(Instant::now() + STOP_WITHIN);
                signal(command, named(stop_signal));
            }
            Err(RecvTimeoutError::Timeout) => {
                log::warn!("the command has not ended within {} s; it is killed", STOP_WITHIN.as_secs());
                deadline = None;
                signal(command, Signal::KILL);
            }
            // Both threads are gone: nothing would ever be heard of again.
            Err(RecvTimeoutError::Disconnected) => return (Ended::Unknown, asked),
        }
    }
}

/// Takes the status of every process that has ended; returns the command's if it is among them.
fn reap(command: u32) -> Option<Ended> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_nonzero().get().cast_unsigned() == command {
            let signal = status.terminating_signal().unwrap_or_default();
            ended = Some(status.exit_status().map_or(Ended::Signal(signal), Ended::Status));
        }
    }
    ended
}

fn signal(command: u32, signal: Signal) {
    // It is not reaped yet, so the number is still its own.
    let sent = Pid::from_raw(command.cast_signed()).map_or(Ok(()), |pid| kill_process(pid, signal));
    if let Err(error) = sent {
        log::warn!("the command can't be told to end: {error}");
    }
}

fn named(number: u8) -> Signal {
    match i32::from(number) {
        // SAFETY: a signal that Linux has, and none of those that the C library keeps for itself (32 and 33).
        number @ (1..=31 | 34..=64) => unsafe { Signal::from_raw_unchecked(number) },
        _ => Signal::TERM,
    }
}

/// Kills every other process, and waits until they are gone.
fn end_all() {
    // With the number of init this means all processes but itself (kill(2)).
    match kill_process_group(Pid::INIT, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => log::warn!("what still runs can't be killed: {error}"),
    }
    let (gone, all_gone) = mpsc::channel();
    let waited = thread::Builder::new().name("reaper".into()).spawn(move || {
        while !matches!(wait(WaitOptions::empty()), Err(Errno::CHILD)) {}
        // Too late for the main thread, if nobody listens.
        let _ = gone.send(());
    });
    if waited.is_ok() && all_gone.recv_timeout(KILL_WITHIN).is_err() {
        log::warn!("some processes did not end within {} s", KILL_WITHIN.as_secs());
    }
}

#[cfg(test)]
mod tests;
