//! Which driver is loaded next, and which are waited for: decisions without a kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use rackstick_image::modules::Module;
use rackstick_linux::modules::LoadError;

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
/// Of the first, those that bring no disk.
const NO_DISKS: [&str; 2] = ["kernel/arch/x86/kvm/", "kernel/drivers/net/"];
/// How long one driver is waited for. Controllers with many disks and some network cards take many seconds to start.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long while another hangs: the kernel lets nobody who brought a driver go before all devices that are being
/// started side by side have answered (`async_synchronize_full`), so all would wait for that one, though their own
/// devices are there.
const PATIENCE_BESIDE_A_HANGING_ONE: Duration = Duration::from_secs(5);

/// How soon a driver is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// By its place in [`URGENT`].
    Urgent(usize),
    /// By its place in [`DISKS`].
    Disk(usize),
    /// Nobody waits for it.
    Late,
}

impl Rank {
    /// Before all others.
    pub const FIRST: Self = Self::Urgent(0);

    /// The module's.
    pub fn of(module: &Module) -> Self {
        let place = |folders: &[&str]| folders.iter().position(|folder| module.path.starts_with(folder));
        place(&URGENT).map(Self::Urgent).or_else(|| place(&DISKS).map(Self::Disk)).unwrap_or(Self::Late)
    }

    fn is_urgent(self) -> bool {
        matches!(self, Self::Urgent(_))
    }

    /// Whether it may bring disks, by itself or by what is behind it.
    fn brings_disks(self) -> bool {
        match self {
            Self::Urgent(place) => URGENT.get(place).is_some_and(|folder| !NO_DISKS.contains(folder)),
            Self::Disk(_) => true,
            Self::Late => false,
        }
    }
}

/// The drivers that are wanted.
#[derive(Default)]
pub struct Queue {
    /// In the order in which they are loaded.
    waiting: BTreeMap<(Rank, usize), String>,
    /// Those that are being loaded and waited for.
    busy: BTreeMap<String, Rank>,
    /// Those that are being loaded for so long that nobody waits for them any more, and whether they had their full
    /// time: the others may only be held up by these.
    hanging: BTreeMap<String, bool>,
    /// Whether all devices that were there at the start are queued.
    looked: bool,
    /// How many were queued so far.
    pushed: usize,
    /// Modules that were queued; those that failed are taken out again once all have been tried.
    pub seen: HashSet<String>,
    /// Whether all that was there at the start has been tried.
    pub settled: bool,
    /// What failed before.
    pub failed: Vec<String>,
    /// Of those, why; not of drivers that only found no hardware.
    pub failures: Vec<LoadError>,
    /// Modules that could not be read back; tried again when a disk comes.
    pub absent: BTreeSet<String>,
    /// How many partitions have come since the start.
    pub partitions: u64,
}

impl Queue {
    /// Queues a module, once.
    pub fn push(&mut self, name: &str, rank: Rank) {
        if self.seen.insert(name.to_owned()) {
            self.pushed += 1;
            self.waiting.insert((rank, self.pushed), name.to_owned());
        }
    }

    /// The next for a thread that loads only what is urgent, or only what is not. Late ones only when all others are
    /// loaded.
    pub fn next(&mut self, urgent: bool) -> Option<String> {
        let key = *self.waiting.keys().find(|(rank, _)| rank.is_urgent() == urgent)?;
        if key.0 == Rank::Late && !self.needed_done() {
            return None;
        }
        let name = self.waiting.remove(&key)?;
        self.busy.insert(name.clone(), key.0);
        Some(name)
    }

    /// How long the one just taken is waited for.
    pub fn patience(&self) -> Duration {
        if self.any_hangs() { PATIENCE_BESIDE_A_HANGING_ONE } else { PATIENCE }
    }

    /// All devices that were there at the start are queued.
    pub fn looked(&mut self) {
        self.looked = true;
    }

    /// A driver has come back, with or without success.
    pub fn finished(&mut self, name: &str) {
        self.busy.remove(name);
        self.hanging.remove(name);
    }

    /// Patience with a driver is at an end; true if it has not come back meanwhile.
    pub fn give_up(&mut self, name: &str, patience: Duration) -> bool {
        let hangs = self.busy.remove(name).is_some();
        if hangs {
            self.hanging.insert(name.to_owned(), patience >= PATIENCE);
        }
        hangs
    }

    /// Whether nobody waits for this one any more.
    pub fn hangs(&self, name: &str) -> bool {
        self.hanging.contains_key(name)
    }

    /// Whether there is one that nobody waits for any more.
    pub fn any_hangs(&self) -> bool {
        !self.hanging.is_empty()
    }

    /// Those that may be what the others are held up by.
    pub fn suspects(&self) -> Vec<String> {
        self.hanging.iter().filter(|(_, had_its_time)| **had_its_time).map(|(name, _)| name.clone()).collect()
    }

    /// Whether all but late ones are loaded.
    pub fn needed_done(&self) -> bool {
        let late = |rank: &Rank| *rank == Rank::Late;
        self.looked && self.busy.values().all(late) && self.waiting.keys().all(|(rank, _)| late(rank))
    }

    /// Whether all that may bring disks are loaded.
    pub fn disks_done(&self) -> bool {
        self.looked
            && !self.busy.values().chain(self.waiting.keys().map(|(rank, _)| rank)).any(|rank| rank.brings_disks())
    }

    /// Whether all are loaded.
    pub fn done(&self) -> bool {
        self.looked && self.busy.is_empty() && self.waiting.is_empty()
    }
}

/// Waits until all drivers but late ones are loaded, but no longer than `patience`; says whether they are.
pub fn needed_within(patience: Duration, queue: &Mutex<Queue>, changed: &Condvar) -> bool {
    let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = changed.wait_timeout_while(queue, patience, |queue| !queue.needed_done());
    waited.unwrap_or_else(PoisonError::into_inner).0.needed_done()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

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

    fn queue(paths: &[&str]) -> Queue {
        let mut queue = Queue { looked: true, ..Queue::default() };
        for path in paths {
            let module = module(path);
            queue.push(&module.name, Rank::of(&module));
            queue.push(&module.name, Rank::of(&module));
        }
        queue
    }

    #[test]
    fn all_drivers_together_are_not_waited_for_without_end() {
        let (queue, changed) = (Mutex::new(queue(&["kernel/drivers/ata/ahci"])), Condvar::new());
        assert!(!needed_within(Duration::from_millis(10), &queue, &changed));
        // Those that are slow, however, are waited for, and no longer than they take.
        thread::scope(|scope| {
            let waiting = scope.spawn(|| needed_within(Duration::from_secs(60), &queue, &changed));
            let ahci = queue.lock().unwrap().next(false).unwrap();
            queue.lock().unwrap().finished(&ahci);
            changed.notify_all();
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn guests_wait_neither_for_a_slow_disk_nor_for_a_sensor() {
        let mut queue =
            queue(&["kernel/drivers/hwmon/k10temp", "kernel/drivers/ata/ahci", "kernel/arch/x86/kvm/kvm-amd"]);
        assert_eq!((queue.next(true).as_deref(), queue.next(true)), (Some("kvm-amd"), None));
        // Another thread meanwhile, at low priority: the disk, and no sensor before both are done.
        assert_eq!((queue.next(false).as_deref(), queue.next(false)), (Some("ahci"), None));
        for loaded in ["kvm-amd", "ahci"] {
            assert!(!queue.needed_done());
            queue.finished(loaded);
        }
        assert!(queue.needed_done() && !queue.done());
        assert_eq!(queue.next(false).as_deref(), Some("k10temp"));
        assert!(queue.needed_done() && !queue.done());
        queue.finished("k10temp");
        assert!(queue.done());
    }

    #[test]
    fn disks_are_there_when_all_controllers_have_their_drivers_whatever_network_cards_do() {
        let mut queue = queue(&[
            "kernel/drivers/net/igb",
            "kernel/drivers/virtio/virtio_pci",
            "kernel/drivers/usb/xhci",
            "k/drivers/leds",
        ]);
        for controller in ["virtio_pci", "xhci"] {
            assert!(!queue.disks_done());
            assert_eq!(queue.next(controller == "virtio_pci").as_deref(), Some(controller));
            assert!(!queue.disks_done());
            queue.finished(controller);
        }
        assert!(queue.disks_done() && !queue.needed_done());
    }

    #[test]
    fn a_driver_that_never_returns_keeps_no_other_from_being_loaded_or_from_being_done() {
        let mut queue = queue(&["kernel/drivers/ata/ahci", "kernel/drivers/usb/xhci", "kernel/drivers/watchdog/itco"]);
        assert_eq!(queue.next(false).as_deref(), Some("ahci"));
        assert_eq!(queue.patience(), PATIENCE);
        assert!(queue.give_up("ahci", PATIENCE));
        // The next is held up by the first, in the kernel: it gets less time.
        assert_eq!((queue.next(false).as_deref(), queue.patience()), (Some("xhci"), PATIENCE_BESIDE_A_HANGING_ONE));
        queue.finished("xhci");
        assert!(!queue.give_up("xhci", PATIENCE_BESIDE_A_HANGING_ONE), "it has come back");
        assert_eq!((queue.next(false).as_deref(), queue.needed_done()), (Some("itco"), true));
        assert!(queue.give_up("itco", PATIENCE_BESIDE_A_HANGING_ONE));
        assert!(queue.done());
        assert_eq!((queue.hangs("itco"), queue.suspects()), (true, vec!["ahci".to_owned()]));
        // It came back at last: it is no trouble any more.
        queue.finished("ahci");
        queue.finished("itco");
        assert_eq!((queue.any_hangs(), queue.patience()), (false, PATIENCE));
    }
}
