//! Drivers: of the devices that are there, then of those that come. One queue for both: what is found in `/sys` or told
//! by the kernel goes in, a few threads load. What guests wait for goes first, then disks; nobody waits for the rest.

mod queue;

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Sender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rackstick_image::modules::Module;
use rackstick_linux::{
    coldplug::modaliases,
    modules::{LoadError, Loader, ReadBack},
    uevent::{Next, Uevent, UeventError, Uevents},
};

use self::queue::{Queue, Rank};
use super::{Event, plugged};

/// How much the threads that load disks' and all other drivers yield to what guests wait for (nice(2)).
const NICE: i32 = 10;
/// Threads of each kind for each processor: some wait for their hardware while others compute.
const THREADS_PER_CPU: usize = 2;
/// More threads than this only wait for each other in the kernel's module loader.
const MOST_THREADS: usize = 8;
/// Drivers that fail are named one by one up to here: a broken host would fill the screen.
const MOST_NAMED_FAILURES: usize = 8;
/// Pause after the device events' socket failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// What the problem of drivers that can't be had is about.
const ABSENT: &str = "absent drivers";
/// What the problem of drivers that don't come back is about.
const HANGING: &str = "hanging drivers";

/// Why no drivers can be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The modules.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel's events.
    #[error(transparent)]
    Uevent(#[from] UeventError),
    /// `/sys`, or a thread.
    #[error("no device can be looked at: {0}")]
    Io(#[from] io::Error),
}

/// The rack's drivers.
pub struct Drivers {
    loader: Loader,
    uevents: Uevents,
    /// Held while events are read and queued, so that whoever has it knows that none is in between.
    reading: Mutex<()>,
    queue: Mutex<Queue>,
    /// Something about the queue changed.
    changed: Condvar,
    events: Sender<Event>,
}

impl Drivers {
    /// Begins to load. `read_back`: how to get at files that are not in memory any more.
    pub fn start(read_back: ReadBack, events: &Sender<Event>) -> Result<Arc<Self>, Error> {
        let drivers = Arc::new(Self {
            // Before the first look, so that nothing is missed between the two.
            uevents: Uevents::open()?,
            loader: Loader::open()?.with_read_back(read_back),
            reading: Mutex::default(),
            queue: Mutex::default(),
            changed: Condvar::new(),
            events: events.clone(),
        });
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let threads = (cpus * THREADS_PER_CPU).min(MOST_THREADS);
        for (name, urgent) in [("urgent driver", true), ("driver", false)] {
            for _ in 0..threads {
                let drivers = drivers.clone();
                thread::Builder::new().name(name.into()).spawn(move || drivers.work(urgent))?;
            }
        }
        let follower = drivers.clone();
        thread::Builder::new().name("hotplug".into()).spawn(move || follower.follow())?;
        drivers.look()?;
        drivers.lock().looked();
        drivers.changed.notify_all();
        Ok(drivers)
    }

    /// What modules there are.
    pub fn modules(&self) -> &[Module] {
        self.loader.index().modules()
    }

    /// Loads these modules now, on the caller's thread; what fails is logged.
    pub fn load(&self, names: &[&str]) {
        for name in names {
            if let Err(error) = self.load_one(name) {
                log::warn!("{error}");
            }
        }
    }

    /// Loads one module, or what has this alias, as the kernel asks for it.
    pub fn load_one(&self, name: &str) -> Result<(), LoadError> {
        let loaded = self.loader.load(name);
        if let Err(error) = &loaded
            && error.is_absent()
        {
            self.miss(name, error);
        }
        loaded
    }

    /// Waits until `condition` holds; false if it does not though all drivers but late ones are loaded or hang. It is
    /// asked after each driver.
    pub fn wait_for(&self, condition: impl Fn() -> bool) -> bool {
        self.wait_until(Queue::needed_done, condition)
    }

    /// Waits until `condition` holds; false if it does not though no driver hangs any more. It is asked after each
    /// driver.
    pub fn wait_for_hanging(&self, condition: impl Fn() -> bool) -> bool {
        self.wait_until(|queue| !queue.any_hangs(), condition)
    }

    fn wait_until(&self, done: impl Fn(&Queue) -> bool, condition: impl Fn() -> bool) -> bool {
        let mut queue = self.lock();
        loop {
            // In this order: what the last driver brought is there before it counts as loaded.
            let done = done(&queue);
            if condition() {
                return true;
            }
            if done {
                return false;
            }
            queue = self.wait(queue);
        }
    }

    /// Waits until all drivers but late ones are loaded, but no longer than `patience`; says whether they are.
    pub fn wait_at_most(&self, patience: Duration) -> bool {
        queue::needed_within(patience, &self.queue, &self.changed)
    }

    /// Waits until all drivers that may bring disks are loaded or hang.
    pub fn wait_for_disks(&self) {
        self.wait_until(Queue::disks_done, || false);
    }

    /// Waits until the drivers of all devices that were there at the start are loaded or hang, and says what failed.
    pub fn settle(&self) {
        let mut queue = self.lock();
        while !queue.done() {
            queue = self.wait(queue);
        }
        queue.settled = true;
        for name in std::mem::take(&mut queue.failed) {
            queue.seen.remove(&name);
        }
        let failures = std::mem::take(&mut queue.failures);
        drop(queue);
        for failure in failures.iter().take(MOST_NAMED_FAILURES) {
            log::warn!("{failure}");
        }
        if failures.len() > MOST_NAMED_FAILURES {
            log::warn!("and {} drivers more failed", failures.len() - MOST_NAMED_FAILURES);
        }
    }

    /// How many partitions have come since the start, for [`Drivers::wait_for_partition`].
    pub fn partitions(&self) -> u64 {
        self.lock().partitions
    }

    /// Waits until more than `known` partitions have come.
    pub fn wait_for_partition(&self, known: u64) {
        let mut queue = self.lock();
        while queue.partitions <= known {
            queue = self.wait(queue);
        }
    }

    /// Queues what drives the devices that are there.
    fn look(&self) -> io::Result<()> {
        modaliases()?.iter().for_each(|modalias| self.queue_modalias(modalias));
        Ok(())
    }

    fn queue_modalias(&self, modalias: &str) {
        let found = self.loader.index().by_alias(modalias);
        if found.is_empty() {
            return;
        }
        let mut queue = self.lock();
        for module in found {
            queue.push(&module.name, Rank::of(module));
        }
        self.changed.notify_all();
    }

    fn work(self: &Arc<Self>, urgent: bool) {
        if !urgent && let Err(error) = rustix::process::setpriority_process(None, NICE) {
            log::debug!("drivers that nobody waits for are loaded at full priority: {error}");
        }
        loop {
            let (name, patience) = self.take(urgent);
            let (come_back, back) = sync_channel(1);
            let (drivers, loading) = (self.clone(), name.clone());
            // A thread for each: one that hangs in the kernel keeps none of those that load the others.
            let thread = thread::Builder::new().name(name.clone()).spawn(move || {
                drivers.bring(&loading);
                // Nobody waits any more.
                let _ = come_back.send(());
            });
            match thread {
                Ok(_) if back.recv_timeout(patience).is_ok() => {}
                Ok(_) => self.give_up(&name, patience),
                Err(error) => {
                    log::warn!("{name}: it is waited for without end, as no thread can be started for it: {error}");
                    self.bring(&name);
                }
            }
        }
    }

    /// Loads a driver.
    fn bring(&self, name: &str) {
        let loaded = self.loader.load(name);
        self.note(name.to_owned(), loaded);
        // What this driver brought is queued before it counts as loaded.
        self.read_events();
        let mut queue = self.lock();
        let hung = queue.hangs(name);
        queue.finished(name);
        let suspects = queue.suspects();
        drop(queue);
        self.changed.notify_all();
        if hung {
            self.tell_hanging(&suspects);
        }
    }

    fn take(&self, urgent: bool) -> (String, Duration) {
        let mut queue = self.lock();
        loop {
            if let Some(next) = queue.next(urgent) {
                return (next, queue.patience());
            }
            queue = self.wait(queue);
        }
    }

    /// A driver has not come back in time: it is not waited for any more.
    fn give_up(&self, name: &str, patience: Duration) {
        let mut queue = self.lock();
        let hangs = queue.give_up(name, patience);
        let suspects = queue.suspects();
        drop(queue);
        self.changed.notify_all();
        if hangs {
            log::warn!("driver {name} has not come back after {} s; it is not waited for", patience.as_secs());
            self.tell_hanging(&suspects);
        }
    }

    fn tell_hanging(&self, names: &[String]) {
        let what = (!names.is_empty()).then(|| {
            format!(
                "drivers wait for a device that does not answer ({}): the rack goes on without them; look for a broken disk or card \
                 that one of them drives, and take it out",
                names.join(", ")
            )
        });
        self.problem(HANGING, what);
    }

    fn note(&self, name: String, loaded: Result<(), LoadError>) {
        let mut queue = self.lock();
        let error = match loaded {
            Ok(()) => {
                if queue.hangs(&name) {
                    log::info!("driver {name} has come back");
                } else if queue.settled {
                    log::info!("driver {name} loaded for a device that was plugged in");
                }
                let last = queue.absent.remove(&name) && queue.absent.is_empty();
                drop(queue);
                if last {
                    self.problem(ABSENT, None);
                }
                return;
            }
            Err(error) => error,
        };
        if queue.settled {
            queue.seen.remove(&name);
        } else {
            queue.failed.push(name.clone());
        }
        if error.is_absent() {
            drop(queue);
            self.miss(&name, &error);
        } else if error.is_no_device() {
            log::debug!("{name}: {error}");
        } else if queue.settled {
            log::warn!("{error}");
        } else {
            queue.failures.push(error);
        }
    }

    /// A module can't be had now.
    fn miss(&self, name: &str, error: &LoadError) {
        self.lock().absent.insert(name.to_owned());
        self.problem(ABSENT, Some(format!("the driver {name} is wanted and can't be loaded: {error}")));
    }

    fn problem(&self, about: &str, what: Option<String>) {
        // The main loop is gone only when the daemon ends.
        let _ = self.events.send(Event::Problem(about.into(), what));
    }

    /// Follows the kernel's events for ever.
    fn follow(&self) {
        loop {
            if let Err(error) = self.uevents.wait() {
                log::warn!("{error}");
                thread::sleep(FAILURE_PAUSE);
            }
            self.read_events();
        }
    }

    /// Queues what has come.
    fn read_events(&self) {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.uevents.next(Some(Instant::now())) {
                Ok(Next::Event(event)) => self.event(&event),
                Ok(Next::Deadline) => return,
                Ok(Next::Lost) => {
                    if let Err(error) = self.look() {
                        log::warn!("devices can't be looked at again: {error}");
                    }
                }
                Err(error) => {
                    log::warn!("{error}");
                    return;
                }
            }
        }
    }

    fn event(&self, event: &Uevent) {
        if self.lock().settled
            && let Some(words) = plugged::words(event)
        {
            log::info!("{words}");
        }
        if event.action == "add"
            && let Some(modalias) = event.modalias()
        {
            self.queue_modalias(modalias);
        }
        if event.action == "add" && event.subsystem == "block" && event.variables.contains_key("PARTN") {
            self.partition_came();
        }
        if matches!(event.subsystem.as_str(), "input" | "virtio-ports") {
            // As above.
            let _ = self.events.send(Event::Devices);
        }
    }

    /// A disk may hold what was missing.
    fn partition_came(&self) {
        let mut queue = self.lock();
        queue.partitions += 1;
        let absent: Vec<String> = queue.absent.iter().cloned().collect();
        for name in absent {
            queue.push(&name, Rank::FIRST);
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }
}
