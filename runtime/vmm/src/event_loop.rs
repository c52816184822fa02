//! The threads beside the vCPUs: event loops that devices are served by, and the main thread's wait for the end.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{Arc, Mutex},
    thread,
};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::{ending::Ending, exit::Exit, irq::IrqLine};

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// Why the machine's threads can't be started.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// epoll failed.
    #[error("cannot wait for events: {0}")]
    Events(#[from] event_manager::Error),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Serves `device` by a thread of its own, so that what it waits for holds nobody else up.
pub fn spawn(name: &str, device: Subscriber, ending: Arc<Ending>) -> Result<(), LoopError> {
    let mut events = EventManager::new()?;
    events.add_subscriber(device);
    let serve = move || loop {
        if let Err(error) = events.run() {
            ending.report(Exit::Error { message: format!("cannot wait for events: {error}") });
            return;
        }
    };
    let spawned = thread::Builder::new().name(name.into()).spawn(serve);
    spawned.map_err(|source| LoopError::System { what: "start a thread", source })?;
    Ok(())
}

/// Serves `devices` and SIGTERM by this thread until the machine has ended, and returns why.
/// SIGTERM presses the power button, whose line is `button`.
pub fn run(
    devices: Vec<Subscriber>,
    button: Arc<IrqLine>,
    signals: Signals,
    ending: Arc<Ending>,
) -> Result<Exit, LoopError> {
    let mut events: EventManager<Subscriber> = EventManager::new()?;
    for device in devices {
        events.add_subscriber(device);
    }
    events.add_subscriber(Arc::new(Mutex::new(Control { button, signals, ending: ending.clone() })));
    loop {
        if let Some(exit) = ending.reason() {
            return Ok(exit);
        }
        events.run()?;
    }
}

/// SIGTERM as a file descriptor.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks SIGTERM in this thread and all that it starts, and makes it readable instead.
    pub fn block() -> Result<Self, LoopError> {
        let failed = |what| LoopError::System { what, source: io::Error::last_os_error() };
        // SAFETY: a signal set is plain data, and `sigemptyset` makes it a valid one.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a valid set for all three calls; SIGTERM exists.
        let fd = unsafe {
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(failed("block SIGTERM"));
            }
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(failed("wait for SIGTERM"));
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes one signal; false if there is none.
    fn take(&self) -> bool {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&self.0, &mut info).is_ok()
    }
}

/// What the main thread waits for beside devices.
struct Control {
    button: Arc<IrqLine>,
    signals: Signals,
    ending: Arc<Ending>,
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps) {
        for fd in [self.signals.0.as_raw_fd(), self.ending.event().as_raw_fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                self.ending.report(Exit::Error { message: format!("cannot wait for the end: {error}") });
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.signals.0.as_raw_fd() {
            while self.signals.take() {
                self.button.trigger();
            }
        }
    }
}
