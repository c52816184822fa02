//! The data partition: found by its GUID, mounted, grown to its disk and looked after; never formatted. What can't be
//! mounted is reported and left as it is.

pub mod find;
mod grow;
mod resize;
mod settle;
mod watch;

use std::{
    io,
    path::{Path, PathBuf},
    sync::mpsc::Sender,
    time::{Duration, Instant},
};

use rackstick_api::rack;
use rackstick_linux::{
    mount::{self, MountError, MountFlags},
    uevent::{Next, UeventError, Uevents},
};
use rustix::io::Errno;

use self::{find::Mounted, watch::human};
use super::{Event, activity::Doing, drivers::Drivers, identity};

/// Where it is mounted.
pub const MOUNT: &str = "/data";
/// What its being there is called among the rack's problems; as long as it is one, no guest is started.
pub const ABOUT: &str = "data partition";
/// What its taking no writes is called among them; as long as it is one, no guest with volumes is started.
pub const READ_ONLY: &str = "writes to the data partition";

/// How long the disk may take to turn up after coldplug: USB sticks and big controllers need many seconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// A layer is read through mappings, never executed; nothing on it may bring devices or raise rights. An error found
/// by ext4 makes it read-only, which keeps what is there.
const FLAGS: MountFlags =
    MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC).union(MountFlags::NOATIME);
const OPTIONS: &str = "errors=remount-ro";

/// Why there is no data partition. The rack stays up and says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No disk has it.
    #[error(
        "no disk holds the data partition {guid}: waited {seconds} s for the data partition's disk, which did not come; \
         is the disk connected, and is its driver in the host?"
    )]
    Missing {
        /// The partition's GUID.
        guid: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Nobody says when disks come.
    #[error("disks can't be waited for: {0}")]
    Uevents(UeventError),
    /// It is there and can't be mounted.
    #[error("the data partition {} can't be mounted, it is left untouched: {source}", device.display())]
    Mount {
        /// The partition's device.
        device: PathBuf,
        /// The cause; large, and this error rare.
        source: Box<MountError>,
    },
    /// It was pulled out, and an earlier daemon had mounted it.
    #[error("the disk of the data partition is gone: plug it in again, then reboot the rack")]
    Gone,
}

/// Brings it up, however long its disk takes to come, and looks after it from then on; false if it can't be used. What
/// comes of it is told to the main loop. A disk may come at any time, and where one can't be mounted another may.
pub fn bring_up(guid: &str, drivers: Option<&Drivers>, events: &Sender<Event>) -> bool {
    // The main loop is gone only when the daemon ends.
    let send = |event| events.send(event).is_ok();
    let doing = Doing::begin(events, "data", "waiting for the data partition");
    let device = loop {
        // Before the look at the disks, so that none is missed between the two.
        let known = drivers.map(Drivers::partitions);
        let error = match mount_it(guid, drivers) {
            Ok(device) => break device,
            Err(error) => error,
        };
        send(Event::Problem(ABOUT.into(), Some(error.to_string())));
        match (error, drivers, known) {
            // It was waited for.
            (Error::Missing { .. }, ..) => {}
            (Error::Mount { .. }, Some(drivers), Some(known)) => drivers.wait_for_partition(known),
            _ => return false,
        }
    };
    drop(doing);
    log::info!("data partition {} is mounted at {MOUNT}", find::describe(&device));
    send(Event::Problem(ABOUT.into(), None));
    // Before any guest may start; what comes later the watch tells.
    send(Event::Problem(READ_ONLY.into(), watch::write_protected(&device)));
    grow_it(&device, events);
    match identity::load_or_make(&Path::new(MOUNT).join("state")) {
        Ok(identity) => send(Event::Identity(identity)),
        Err(error) => send(Event::Problem("identity".into(), Some(error.to_string()))),
    };
    let listener = events.clone();
    let report = move |(about, what): watch::Problem| listener.send(Event::Problem(about.into(), what)).is_ok();
    if let Err(error) = watch::start(guid.to_owned(), &device, report) {
        log::error!("nobody looks after the data partition: no thread can be started: {error}");
    }
    true
}

/// Whether its disk was pulled out. Asks the kernel only, so that it answers when the disk does not.
pub fn is_gone() -> bool {
    find::mounted() == Mounted::Gone
}

/// How large it is, for the API; none if it is not there.
pub fn status() -> Option<rack::Data> {
    let Mounted::Yes(device) = find::mounted() else { return None };
    let stat = rustix::fs::statvfs(MOUNT).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(rack::Data {
        device: device.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        size_bytes: bytes(stat.f_blocks),
        free_bytes: bytes(stat.f_bavail),
    })
}

/// Waits for the partition and mounts it, if it is not mounted yet.
fn mount_it(guid: &str, drivers: Option<&Drivers>) -> Result<PathBuf, Error> {
    match find::mounted() {
        Mounted::Yes(device) => return Ok(device),
        Mounted::Gone => return Err(Error::Gone),
        Mounted::No => {}
    }
    let uevents = Uevents::open().map_err(Error::Uevents)?;
    let deadline = Instant::now() + DEADLINE;
    let mut settled = false;
    let device = loop {
        match find::candidates(guid).into_iter().next() {
            Some(first) if settled || !first.is_fresh() => break first.device,
            Some(first) => {
                log::info!(
                    "no rack has used {} yet; another that one has may be coming",
                    find::describe(&first.device)
                );
                settle::wait(drivers, &uevents).map_err(Error::Uevents)?;
                settled = true;
                continue;
            }
            None => {}
        }
        if !disks_changed(&uevents, deadline).map_err(Error::Uevents)? {
            return Err(Error::Missing { guid: guid.to_owned(), seconds: DEADLINE.as_secs() });
        }
    };
    mount_at(&device, Path::new(MOUNT)).map_err(|source| Error::Mount { device: device.clone(), source })?;
    Ok(device)
}

/// Waits until a disk or a partition comes, goes or changes, whose disks are then worth a look; false at the deadline.
fn disks_changed(uevents: &Uevents, deadline: Instant) -> Result<bool, UeventError> {
    loop {
        match uevents.next(Some(deadline))? {
            Next::Event(event) if event.subsystem != "block" => {}
            next => return Ok(next != Next::Deadline),
        }
    }
}

/// Mounts it for reading and writing, or where the disk is write-protected for reading.
fn mount_at(device: &Path, target: &Path) -> Result<(), Box<MountError>> {
    match mount::mount("ext4", device, target, FLAGS, OPTIONS) {
        Err(MountError::Mount { source, .. }) if is_write_protected(&source) => {
            mount::mount("ext4", device, target, FLAGS | MountFlags::RDONLY, OPTIONS)
        }
        other => other,
    }
    .map_err(Box::new)
}

/// What mount(2) says of a disk that takes no writes.
fn is_write_protected(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::ACCESS | Errno::ROFS))
}

fn grow_it(device: &Path, events: &Sender<Event>) {
    let started = Instant::now();
    let doing = std::cell::Cell::new(None);
    let begins = |aim| {
        log::info!("the data partition grows to its disk, {}", human(aim));
        doing.set(Some(Doing::begin(events, "growing", "growing the data partition to its disk")));
    };
    let grown = grow::grow(device, Path::new(MOUNT), begins);
    drop(doing);
    let problem = match grown {
        Ok(grow::Outcome { before, now, .. }) if now > before => {
            let took = started.elapsed().as_secs_f32();
            log::info!("the data partition grew from {} to {} in {took:.1} s", human(before), human(now));
            None
        }
        Ok(grow::Outcome { hindered_by: Some(other), .. }) => {
            log::info!("the data partition does not grow to its disk: partition {other} lies behind it");
            None
        }
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    // As in `bring_up`.
    let _ = events.send(Event::Problem("growth of the data partition".into(), problem));
}

#[cfg(test)]
mod tests;
