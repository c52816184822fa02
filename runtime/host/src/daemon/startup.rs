//! What is done once after the daemon has started: drivers, and side by side with them what needs only some of them:
//! the data partition, networks, what monitors open. Each part reports; none keeps the API from being served. All of it
//! can be done again by the next daemon on a rack that runs already.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    sync::Arc,
    sync::mpsc::Sender,
    thread,
    time::Duration,
};

use rackstick_api::rack::Part;
use rackstick_image::manifest::Manifest;

use super::{
    Event,
    activity::Doing,
    boot::{self, Watch},
    data,
    drivers::Drivers,
    guest::{process, volumes},
    layers, memory, modprobe, network, secrets,
    spares::{self, Store},
};
use crate::init::watchdog;

// Modules that no device asks for, or that the kernel would ask for one by one through `/sbin/modprobe`, a process each
// time.

/// What the data partition and its layers need; the fast digests first, as a file system keeps those it found.
const DATA_MODULES: [&str; 5] = ["crc32c_intel", "crc32c_generic", "sha256_ssse3", "sha256_generic", "ext4"];
/// What bridges, taps and the firewall need.
const NETWORK_MODULES: [&str; 9] =
    ["tun", "bridge", "nf_tables", "nf_conntrack", "nft_chain_nat", "nft_ct", "nft_fib_inet", "nft_masq", "nft_nat"];
/// What monitors need.
const MONITOR_MODULES: [&str; 3] = ["tun", "vhost_vsock", "vhost_net"];
/// What reading spare files back needs, which must be there before they are dropped.
const SPARES_MODULES: [&str; 4] = ["vfat", "nls_cp437", "nls_ascii", "nls_iso8859_1"];
/// What stands in for a watchdog of the hardware.
const SOFT_WATCHDOG: [&str; 1] = ["softdog"];
/// What reading the boot loader's times needs.
const EFI_MODULES: [&str; 1] = ["efivarfs"];

/// What monitors open.
const DEVICES: [&str; 4] = [KVM, "/dev/net/tun", "/dev/vhost-vsock", "/dev/vhost-net"];
const KVM: &str = "/dev/kvm";
/// Between two tries to bring the networks up.
const NETWORKS_AGAIN: Duration = Duration::from_secs(5);
/// How long uplinks wait for the drivers of all network cards. Some cards take seconds to start; a driver of any kind
/// that never returns, as one of broken hardware may, must not keep the rack off the network.
const NICS_WITHIN: Duration = Duration::from_secs(15);
/// The host's memory is measured once a boot, when its drivers are loaded.
const MEMORY_RECORD: &str = "/run/rackstick/host-memory-kib";

/// Brings the rack up. The main loop is gone only when the daemon ends, so nobody misses what can't be sent then.
pub fn run(manifest: &Arc<Manifest>, events: &Sender<Event>) {
    let problem = |about: &str, what: String| {
        // As above.
        let _ = events.send(Event::Problem(about.into(), Some(what)));
    };
    let spares = match Store::open(&manifest.version) {
        Ok(store) => Some(Arc::new(store)),
        Err(error) => {
            problem("spares", format!("drivers stay in memory: {error}"));
            None
        }
    };
    let watch = Watch::begin(events, Part::Drivers);
    let doing = Doing::begin(events, "drivers", "loading drivers");
    let drivers = match start_drivers(spares.clone(), events) {
        Ok(drivers) => Some(drivers),
        Err(error) => {
            problem("drivers", format!("drivers can't be loaded: {error}"));
            None
        }
    };
    let drivers = drivers.as_deref();
    thread::scope(|scope| {
        scope.spawn(|| open_devices(drivers, watch, doing, events));
        scope.spawn(|| bring_up_networks(manifest, drivers, events));
        scope.spawn(|| bring_up_data(manifest, drivers, events));
        finish(drivers, spares.as_deref(), events);
    });
}

fn start_drivers(spares: Option<Arc<Store>>, events: &Sender<Event>) -> Result<Arc<Drivers>, super::drivers::Error> {
    let read_back = Box::new(move |module: &_| match &spares {
        Some(store) => store.read_back(module).map_err(|error| error.to_string()),
        None => Err("the initramfs does not hold it".to_owned()),
    });
    let drivers = Drivers::start(read_back, events)?;
    modprobe::listen(drivers.clone())?;
    Ok(drivers)
}

/// Makes what monitors open, and lets them open it, which are not root.
fn open_devices(drivers: Option<&Drivers>, watch: Watch, doing: Doing<'_>, events: &Sender<Event>) {
    let send = |event| events.send(event).is_ok();
    if let Some(drivers) = drivers {
        drivers.load(&MONITOR_MODULES);
        drivers.wait_for(|| Path::new(KVM).exists());
    }
    give_devices(events);
    if let Some(drivers) = drivers {
        drivers.wait_for(|| false);
    }
    watch.end();
    drop(doing);
    send(Event::Devices);
    // KVM's own driver may be among those that are no longer waited for.
    if let Some(drivers) = drivers
        && !Path::new(KVM).exists()
        && drivers.wait_for_hanging(|| Path::new(KVM).exists())
    {
        give_devices(events);
    }
}

/// Lets monitors open what they need, and says whether virtual machines can run.
fn give_devices(events: &Sender<Event>) {
    let send = |event| events.send(event).is_ok();
    let given = chown_devices().err().map(|error| error.to_string());
    send(Event::Problem("devices".into(), given));
    send(Event::Kvm(Path::new(KVM).exists()));
}

fn chown_devices() -> io::Result<()> {
    for device in DEVICES.into_iter().filter(|device| Path::new(device).exists()) {
        chown(device, Some(0), Some(process::GROUP))?;
        fs::set_permissions(device, fs::Permissions::from_mode(0o660))?;
    }
    Ok(())
}

fn bring_up_networks(manifest: &Arc<Manifest>, drivers: Option<&Drivers>, events: &Sender<Event>) {
    let send = |event| events.send(event).is_ok();
    let watch = Watch::begin(events, Part::Networks);
    let doing = Doing::begin(events, "networks", "bringing up the networks");
    if let Some(drivers) = drivers {
        drivers.load(&NETWORK_MODULES);
    }
    while let Err(error) = network::bring_up(manifest, process::uid) {
        if !send(Event::Problem("networks".into(), Some(error.to_string()))) {
            return;
        }
        // Not a wait for a condition: a kernel that refuses is not asked without pause.
        thread::sleep(NETWORKS_AGAIN);
    }
    send(Event::Problem("networks".into(), None));
    send(Event::NetworksUp);
    watch.end();
    drop(doing);
    let news = events.clone();
    let report = move |change| {
        let _ = match change {
            network::News::Problem(about, what) => news.send(Event::Problem(about, what)),
            network::News::Activity(about, what) => news.send(Event::Activity(about, what)),
            network::News::Address(network, address) => news.send(Event::Address(network, address)),
        };
    };
    // Guests start now, and ask for their addresses.
    let started = network::start_gateway(manifest, report.clone()).and_then(|gateway| {
        // Which NIC is the uplink must not depend on whose driver came first. Guests don't wait for it.
        if drivers.is_some_and(|drivers| !drivers.wait_at_most(NICS_WITHIN)) {
            log::warn!(
                "drivers are not loaded after {} s; uplinks take the cards that are there",
                NICS_WITHIN.as_secs()
            );
        }
        network::start_uplinks(manifest, gateway, report)
    });
    if let Err(error) = started {
        send(Event::Problem("uplinks".into(), Some(error.to_string())));
    }
}

fn bring_up_data(manifest: &Manifest, drivers: Option<&Drivers>, events: &Sender<Event>) {
    let watch = Watch::begin(events, Part::Data);
    if let Some(drivers) = drivers {
        drivers.load(&DATA_MODULES);
    }
    if !data::bring_up(&manifest.data_partition, drivers, events) {
        return;
    }
    // Before any layer is reported, since no guest starts without its layers.
    if let Err(error) = volumes::claim(manifest)
        && events.send(Event::Problem("volumes".into(), Some(error.to_string()))).is_err()
    {
        return;
    }
    if !bring_up_secrets(manifest, events) {
        return;
    }
    let _doing = Doing::begin(events, "layers", "checking the guests' layers");
    for blob in layers::of_guests(manifest) {
        let checked = layers::check(&layers::path(&blob.digest), blob).map_err(|error| error.to_string());
        if events.send(Event::Layer(blob.digest, checked)).is_err() {
            return;
        }
    }
    watch.end();
}

/// The secrets of guests, if any wants some; false if nobody listens any more.
fn bring_up_secrets(manifest: &Manifest, events: &Sender<Event>) -> bool {
    if manifest.images.values().all(|image| image.secrets.is_empty()) {
        return true;
    }
    let (values, problem) = secrets::bring_up();
    let send = |event| events.send(event).is_ok();
    send(Event::Problem("secrets".into(), problem.map(|error| error.to_string()))) && send(Event::Secrets(values))
}

/// What nobody waits for, once all drivers are loaded: how long it took, memory given back and measured.
fn finish(drivers: Option<&Drivers>, spares: Option<&Store>, events: &Sender<Event>) {
    let send = |event| events.send(event).is_ok();
    if let Some(drivers) = drivers {
        drivers.wait_for(|| false);
        let watch = Watch::begin(events, Part::LateDrivers);
        drivers.settle();
        watch.end();
        drivers.load(&EFI_MODULES);
        // A frozen kernel needs a watchdog of the hardware, but a frozen PID 1 is noticed by the kernel's own as well.
        if !Path::new(watchdog::DEVICE).exists() {
            log::info!("the machine has no watchdog; the kernel's own takes its place");
            drivers.load(&SOFT_WATCHDOG);
        }
    }
    boot::tell_earlier(events);
    let partitions = drivers.map(Drivers::partitions);
    let mut dropped = drop_spares(drivers, spares);
    match host_memory() {
        Ok(kib) => send(Event::HostMemory(kib)),
        Err(error) => {
            send(Event::Problem("memory".into(), Some(format!("the host's memory can't be measured: {error}"))))
        }
    };
    // The disk that the rack was started from may be one of those that take long to turn up.
    if let (Some(drivers), Some(mut known)) = (drivers, partitions) {
        while !dropped {
            drivers.wait_for_partition(known);
            known = drivers.partitions();
            dropped = drop_spares(Some(drivers), spares);
        }
    }
}

/// Takes out of memory what no driver needs any more; true if that is done or will never be.
fn drop_spares(drivers: Option<&Drivers>, spares: Option<&Store>) -> bool {
    let (Some(drivers), Some(spares)) = (drivers, spares) else { return true };
    drivers.load(&SPARES_MODULES);
    match spares.drop_unneeded(drivers.modules()) {
        Ok(bytes) => {
            log::info!("{} MiB of drivers that no device wants are no longer in memory", bytes >> 20);
            true
        }
        Err(error @ spares::Error::NoUki { .. }) => {
            log::info!("all drivers stay in memory for now: {error}");
            false
        }
        Err(error) => {
            log::warn!("not all drivers that no device wants could be dropped from memory: {error}");
            true
        }
    }
}

fn host_memory() -> io::Result<u64> {
    match fs::read_to_string(MEMORY_RECORD) {
        Ok(text) => return text.trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let kib = memory::host_kib()?;
    log::info!("the host uses {} MiB of memory beside its guests", kib >> 10);
    if let Some(folder) = Path::new(MEMORY_RECORD).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(MEMORY_RECORD, kib.to_string())?;
    Ok(kib)
}
