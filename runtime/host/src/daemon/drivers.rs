//! Drivers: of the devices that are there, then of those that come. One queue for both: what is found in `/sys` or told
//! by the kernel goes in, a few threads load. What guests wait for goes first, then disks; nobody waits for the rest.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    thread,
    time::{Duration, Instant},
};

use rackstick_image::modules::Module;
use rackstick_linux::{
    coldplug::modaliases,
    modules::{LoadError, Loader, ReadBack},
    uevent::{Next, Uevent, UeventError, Uevents},
};

use super::{Event, plugged};

/// Where the drivers are, in the kernel's tree, that guests wait for; the first are loaded first.
const URGENT: [&str; 7] = [
    "kernel/arch/x86/kvm/",
    "kernel/drivers/virtio/",
    "kernel/drivers/nvme/",
    "kernel/drivers/block/",
    "kernel/drivers/pci/",
    "kernel/drivers/bus/",
    "kernel/drivers/net/",
];
/// Those that may bring a disk with the data partition, each by several layers of drivers: where the data is elsewhere,
/// guests need not wait for them.
const DISKS: [&str; 7] = [
    "kernel/drivers/ata/",
    "kernel/drivers/usb/",
    "kernel/drivers/scsi/",
    "kernel/drivers/mmc/",
    "kernel/drivers/message/",
    "kernel/drivers/target/",
    "kernel/drivers/ufs/",
];
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

/// How soon a driver is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// By its place in [`URGENT`].
    Urgent(usize),
    /// By its place in [`DISKS`].
    Disk(usize),
    Late,
}

impl Rank {
    fn of(module: &Module) -> Self {
        let place = |folders: &[&str]| folders.iter().position(|folder| module.path.starts_with(folder));
        place(&URGENT).map(Self::Urgent).or_else(|| place(&DISKS).map(Self::Disk)).unwrap_or(Self::Late)
    }

    fn is_urgent(self) -> bool {
        matches!(self, Self::Urgent(_))
    }
}

#[derive(Default)]
struct Queue {
    /// In the order in which they are loaded.
    waiting: BTreeMap<(Rank, usize), String>,
    /// How many are being found or loaded: those before [`Rank::Late`], and late ones.
    busy: usize,
    busy_late: usize,
    /// How many were queued so far.
    pushed: usize,
    /// Modules that were queued; those that failed are taken out again once all have been tried.
    seen: HashSet<String>,
    /// Whether all that was there at the start has been tried.
    settled: bool,
    failed: Vec<String>,
    /// Of those, why; not of drivers that only found no hardware.
    failures: Vec<LoadError>,
    /// Modules that could not be read back; tried again when a disk comes.
    absent: BTreeSet<String>,
    /// How many partitions have come since the start.
    partitions: u64,
}

impl Queue {
    fn push(&mut self, name: &str, rank: Rank) {
        if self.seen.insert(name.to_owned()) {
            self.pushed += 1;
            self.waiting.insert((rank, self.pushed), name.to_owned());
        }
    }

    /// The next for a thread that loads only what is urgent, or only what is not. Late ones only when all others are
    /// loaded.
    fn next(&mut self, urgent: bool) -> Option<(Rank, String)> {
        let key = *self.waiting.keys().find(|(rank, _)| rank.is_urgent() == urgent)?;
        if key.0 == Rank::Late && !self.needed_done() {
            return None;
        }
        let name = self.waiting.remove(&key)?;
        *self.busy_of(key.0) += 1;
        Some((key.0, name))
    }

    fn busy_of(&mut self, rank: Rank) -> &mut usize {
        if rank == Rank::Late { &mut self.busy_late } else { &mut self.busy }
    }

    /// Whether all but late ones are loaded.
    fn needed_done(&self) -> bool {
        self.busy == 0 && self.waiting.keys().all(|(rank, _)| *rank == Rank::Late)
    }

    fn done(&self) -> bool {
        self.busy == 0 && self.busy_late == 0 && self.waiting.is_empty()
    }
}

impl Drivers {
    /// Begins to load. `read_back`: how to get at modules that are not in memory any more.
    pub fn start(read_back: ReadBack, events: &Sender<Event>) -> Result<Arc<Self>, Error> {
        let drivers = Arc::new(Self {
            // Before the first look, so that nothing is missed between the two.
            uevents: Uevents::open()?,
            loader: Loader::open()?.with_read_back(read_back),
            reading: Mutex::default(),
            queue: Mutex::new(Queue { busy: 1, ..Queue::default() }),
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
        drivers.finished(Rank::Urgent(0));
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

    /// Waits until `condition` holds; false if it does not though all drivers but late ones are loaded. It is asked
    /// after each driver.
    pub fn wait_for(&self, condition: impl Fn() -> bool) -> bool {
        let mut queue = self.lock();
        loop {
            // In this order: what a driver brought is there before it counts as loaded.
            let done = queue.needed_done();
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
        needed_within(patience, &self.queue, &self.changed)
    }

    /// Waits until the drivers of all devices that were there at the start are loaded, and says what failed.
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

    fn work(&self, urgent: bool) {
        if !urgent && let Err(error) = rustix::process::setpriority_process(None, NICE) {
            log::debug!("drivers that nobody waits for are loaded at full priority: {error}");
        }
        loop {
            let (rank, name) = self.take(urgent);
            let loaded = self.loader.load(&name);
            self.note(name, loaded);
            // What this driver brought is queued before it counts as loaded.
            self.read_events();
            self.finished(rank);
        }
    }

    fn take(&self, urgent: bool) -> (Rank, String) {
        let mut queue = self.lock();
        loop {
            if let Some(next) = queue.next(urgent) {
                return next;
            }
            queue = self.wait(queue);
        }
    }

    fn finished(&self, rank: Rank) {
        let mut queue = self.lock();
        let busy = queue.busy_of(rank);
        *busy = busy.saturating_sub(1);
        self.changed.notify_all();
    }

    fn note(&self, name: String, loaded: Result<(), LoadError>) {
        let mut queue = self.lock();
        let error = match loaded {
            Ok(()) => {
                if queue.settled {
                    log::info!("driver {name} loaded for a device that was plugged in");
                }
                let last = queue.absent.remove(&name) && queue.absent.is_empty();
                drop(queue);
                if last {
                    self.problem(None);
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
        self.problem(Some(format!("the driver {name} is wanted and can't be loaded: {error}")));
    }

    fn problem(&self, what: Option<String>) {
        // The main loop is gone only when the daemon ends.
        let _ = self.events.send(Event::Problem(ABSENT.into(), what));
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
            queue.push(&name, Rank::Urgent(0));
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

/// Waits until all drivers but late ones are loaded, as [`Drivers::wait_at_most`] says.
fn needed_within(patience: Duration, queue: &Mutex<Queue>, changed: &Condvar) -> bool {
    let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = changed.wait_timeout_while(queue, patience, |queue| !queue.needed_done());
    waited.unwrap_or_else(PoisonError::into_inner).0.needed_done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_never_returns_is_not_waited_for_without_end() {
        let (queue, changed) = (Mutex::new(Queue { busy: 1, ..Queue::default() }), Condvar::new());
        assert!(!needed_within(Duration::from_millis(10), &queue, &changed));
        // One that is slow, however, is waited for, and no longer than it takes.
        thread::scope(|scope| {
            let waiting = scope.spawn(|| needed_within(Duration::from_secs(60), &queue, &changed));
            queue.lock().unwrap().busy = 0;
            changed.notify_all();
            assert!(waiting.join().unwrap());
        });
    }

    fn module(path: &str) -> Module {
        Module {
            name: path.rsplit('/').next().unwrap().into(),
            path: path.into(),
            depends: Vec::new(),
            soft_before: Vec::new(),
            soft_after: Vec::new(),
            weak: Vec::new(),
            firmware: Vec::new(),
        }
    }

    #[test]
    fn guests_wait_neither_for_a_slow_disk_nor_for_a_sensor() {
        let mut queue = Queue::default();
        for path in ["kernel/drivers/hwmon/k10temp", "kernel/drivers/ata/ahci", "kernel/arch/x86/kvm/kvm-amd"] {
            let module = module(path);
            queue.push(&module.name, Rank::of(&module));
            queue.push(&module.name, Rank::of(&module));
        }
        let (rank, name) = queue.next(true).unwrap();
        assert_eq!(name, "kvm-amd");
        assert_eq!(queue.next(true), None);
        // Another thread meanwhile, at low priority: the disk, and no sensor before both are done.
        let (disk, name) = queue.next(false).unwrap();
        assert_eq!(name, "ahci");
        assert_eq!(queue.next(false), None);
        for loaded in [rank, disk] {
            assert!(!queue.needed_done());
            *queue.busy_of(loaded) -= 1;
        }
        assert!(queue.needed_done() && !queue.done());
        assert_eq!(queue.next(false), Some((Rank::Late, "k10temp".to_owned())));
        assert!(queue.needed_done() && !queue.done());
    }
}
