//! What is done once after the daemon has started, in order: drivers, memory measured, networks, KVM, the data
//! partition, layers. Each step reports; none keeps the API from being served. All of it can be done again by the
//! next daemon on a rack that runs already.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    sync::Arc,
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use rackstick_image::manifest::Manifest;
use rackstick_linux::{
    coldplug::coldplug,
    modules::{LoadError, Loader},
    uevent::{Next, UeventError, Uevents},
};

use super::{
    Event,
    activity::Doing,
    data,
    guest::{process, volumes},
    layers, memory, network,
};

/// Modules that no device asks for, or that the kernel would ask for one by one through `/sbin/modprobe`, a process
/// that reads the whole index each time: what monitors, bridges, the firewall and the data partition need.
const MODULES: [&str; 14] = [
    "ext4",
    "tun",
    "vhost_vsock",
    "vhost_net",
    "bridge",
    "nf_tables",
    "nf_conntrack",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_masq",
    "nft_nat",
    "crc32c_generic",
    "sha256_generic",
];
/// What monitors open.
const DEVICES: [&str; 4] = ["/dev/kvm", "/dev/net/tun", "/dev/vhost-vsock", "/dev/vhost-net"];
/// The host's memory is measured once a boot: later, guests and their layers are part of it.
const MEMORY_RECORD: &str = "/run/rackstick/host-memory-kib";
/// More threads than this only wait for each other in the kernel's module loader.
const MOST_COLDPLUG_THREADS: usize = 8;
/// Drivers that fail are named one by one up to here: a broken host would fill the screen.
const MOST_NAMED_FAILURES: usize = 8;
/// Pause after the device events' socket failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum DriverError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Uevent(#[from] UeventError),
    #[error("no device can be looked at: {0}")]
    Io(#[from] io::Error),
}

/// Brings the rack up. The main loop is gone only when the daemon ends, so nobody misses what can't be sent then.
pub fn run(manifest: &Arc<Manifest>, events: &Sender<Event>) {
    let send = |event| events.send(event).is_ok();
    if let Err(error) = drivers(events) {
        send(Event::Problem("drivers".into(), Some(format!("drivers can't be loaded: {error}"))));
    }
    send(Event::Devices);
    match host_memory() {
        Ok(kib) => send(Event::HostMemory(kib)),
        Err(error) => {
            send(Event::Problem("memory".into(), Some(format!("the host's memory can't be measured: {error}"))))
        }
    };
    let kvm = Path::new("/dev/kvm").exists();
    send(Event::Kvm(kvm));
    if let Err(error) = give_devices() {
        send(Event::Problem("devices".into(), Some(error.to_string())));
    }
    // Reading layers and setting up networks have nothing to do with each other.
    thread::scope(|scope| {
        scope.spawn(|| check_layers(manifest, events));
        bring_up_networks(manifest, events);
    });
}

fn bring_up_networks(manifest: &Arc<Manifest>, events: &Sender<Event>) {
    let send = |event| events.send(event).is_ok();
    let doing = Doing::begin(events, "networks", "bringing up the networks");
    match network::bring_up(manifest, process::uid) {
        Ok(()) => send(Event::NetworksUp),
        Err(error) => send(Event::Problem("networks".into(), Some(error.to_string()))),
    };
    drop(doing);
    let news = events.clone();
    let report = move |change| {
        let _ = match change {
            network::News::Problem(about, what) => news.send(Event::Problem(about, what)),
            network::News::Activity(about, what) => news.send(Event::Activity(about, what)),
            network::News::Address(network, address) => news.send(Event::Address(network, address)),
        };
    };
    if let Err(error) = network::start_uplinks(manifest, report) {
        send(Event::Problem("uplinks".into(), Some(error.to_string())));
    }
}

/// Loads the drivers of what is there, and from now on of what comes.
fn drivers(events: &Sender<Event>) -> Result<(), DriverError> {
    let _doing = Doing::begin(events, "drivers", "loading drivers");
    let started = Instant::now();
    let uevents = Uevents::open()?;
    let loader = Arc::new(Loader::open()?);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_COLDPLUG_THREADS);
    let report = coldplug(&loader, threads)?;
    for module in MODULES {
        if let Err(error) = loader.load(module) {
            log::warn!("{error}");
        }
    }
    log::info!("drivers for {} kinds of devices loaded in {:.1} s", report.devices, started.elapsed().as_secs_f32());
    for failure in report.failures.iter().take(MOST_NAMED_FAILURES) {
        log::warn!("{failure}");
    }
    if report.failures.len() > MOST_NAMED_FAILURES {
        log::warn!("and {} drivers more failed", report.failures.len() - MOST_NAMED_FAILURES);
    }
    let events = events.clone();
    thread::Builder::new().name("hotplug".into()).spawn(move || follow(&uevents, &loader, &events))?;
    Ok(())
}

fn follow(uevents: &Uevents, loader: &Loader, events: &Sender<Event>) {
    loop {
        let loaded = match uevents.next(None) {
            Ok(Next::Event(event)) => {
                let modalias = event.modalias().filter(|_| event.action == "add");
                let loaded = modalias.map_or(Ok(()), |modalias| loader.load_modalias(modalias));
                let named = matches!(event.subsystem.as_str(), "input" | "virtio-ports") && event.action != "remove";
                if named && events.send(Event::Devices).is_err() {
                    return;
                }
                loaded
            }
            Ok(Next::Lost) => match coldplug(loader, 1) {
                Ok(report) => report.failures.into_iter().next().map_or(Ok(()), Err),
                Err(error) => {
                    log::warn!("devices can't be looked at again: {error}");
                    Ok(())
                }
            },
            Ok(Next::Deadline) => Ok(()),
            Err(error) => {
                log::warn!("{error}");
                thread::sleep(FAILURE_PAUSE);
                Ok(())
            }
        };
        match loaded {
            Err(error) if !error.is_no_device() => log::warn!("{error}"),
            _ => {}
        }
    }
}

fn host_memory() -> io::Result<u64> {
    match fs::read_to_string(MEMORY_RECORD) {
        Ok(text) => return text.trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // What coldplug read and wrote is clean only after this.
    rustix::fs::sync();
    let kib = memory::used_kib()?;
    log::info!("the host uses {} MiB of memory before any guest", kib >> 10);
    if let Some(folder) = Path::new(MEMORY_RECORD).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(MEMORY_RECORD, kib.to_string())?;
    Ok(kib)
}

/// Lets monitors, which are not root, open what they need.
fn give_devices() -> io::Result<()> {
    for device in DEVICES.into_iter().filter(|device| Path::new(device).exists()) {
        chown(device, Some(0), Some(process::GROUP))?;
        fs::set_permissions(device, fs::Permissions::from_mode(0o660))?;
    }
    Ok(())
}

fn check_layers(manifest: &Manifest, events: &Sender<Event>) {
    if !data::bring_up(&manifest.data_partition, events) {
        return;
    }
    // Before any layer is reported, since no guest starts without its layers.
    if let Err(error) = volumes::claim(manifest)
        && events.send(Event::Problem("volumes".into(), Some(error.to_string()))).is_err()
    {
        return;
    }
    let _doing = Doing::begin(events, "layers", "checking the guests' layers");
    for blob in layers::of_guests(manifest) {
        let checked = layers::check(&layers::path(&blob.digest), blob).map_err(|error| error.to_string());
        if events.send(Event::Layer(blob.digest, checked)).is_err() {
            return;
        }
    }
}
