//! From the kernel's first process to the image's own init: drivers, layers, root, networks, names, agent.

mod command;
pub(crate) mod identity;
mod layers;
mod network;
mod secrets;
mod seed;
mod switch;
mod volumes;

use std::{
    convert::Infallible,
    fs,
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rackstick_api::guest::{self, GuestConfig};
use rackstick_linux::{
    coldplug, kmsg,
    modules::{LoadError, Loader},
    mount::{self, MountError},
    netlink::NetlinkError,
    power,
    uevent::{UeventError, Uevents},
};

/// Where the configuration is kept for the agent, once the initrd is gone.
pub(crate) const CONFIG_KEPT: &str = "/run/rackstick/guest.json";

/// How long devices may take to appear. Nested software emulation takes some ten seconds.
const DEVICES_WITHIN: Duration = Duration::from_secs(120);

/// What no alias leads to: file systems are asked for by name.
const FILE_SYSTEMS: [&str; 2] = ["erofs", "overlay"];

/// Why the guest does not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Module(#[from] LoadError),
    #[error(transparent)]
    Uevent(#[from] UeventError),
    #[error(transparent)]
    Network(#[from] NetlinkError),
    #[error("can't {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no configuration of a guest: {source}; host and initrd must be of the same version", path.display())]
    Config { path: PathBuf, source: serde_json::Error },
    #[error("the configuration {}", .0)]
    BadConfig(String),
    #[error(
        "the machine has {found} pmem devices instead of one for each of {wanted} layers; the monitor's configuration and the guest's do not fit each other"
    )]
    Layers { found: usize, wanted: u32 },
    #[error(
        "no network interface has the MAC address {0}; the monitor's configuration and the guest's do not fit each other"
    )]
    NoInterface(String),
    #[error("can't list devices: {0}")]
    Sysfs(#[source] io::Error),
    #[error("secret `{name}` can't be put at {path}: {source}")]
    Secret { name: String, path: String, source: io::Error },
    #[error("volume `{name}` can't be used and was left as it is: {source}")]
    Volume { name: String, source: Box<volumes::VolumeError> },
    #[error(
        "can't start {program} of the image: {source}; it must be a program in the image that this processor can run"
    )]
    Exec { program: String, source: io::Error },
    #[error("can't start the agent: {0}")]
    Agent(#[source] io::Error),
    #[error("can't {what}: {source}")]
    Watch { what: &'static str, source: io::Error },
}

/// Names what was done with which file when an operation fails.
pub(crate) fn file_error(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> InitError {
    let path = path.as_ref().to_owned();
    move |source| InitError::File { what, path, source }
}

/// Brings the guest up. Comes back only if even the reset after a failure fails, and then the kernel panics.
pub(crate) fn run() {
    let Err(error) = bring_up();
    log::error!("{}{error}", guest::CANT_START);
    log::error!("resetting this guest's machine; the rack's status and this console say the same");
    rustix::fs::sync();
    let Err(error) = power::restart();
    log::error!("can't reset the machine: {error}");
}

fn bring_up() -> Result<Infallible, InitError> {
    let mounted = mount::api_file_systems();
    // Whatever the mounts say, the log comes first, so that it can be told.
    kmsg::init("rackstick-guest", kmsg::level());
    mounted?;
    use_console()?;
    let config = read_config(Path::new(guest::PATH))?;

    let events = Uevents::open()?;
    load_drivers()?;
    let deadline = Instant::now() + DEVICES_WITHIN;
    let devices = layers::wait(&events, config.layers, deadline)?;
    let root = Path::new("/newroot");
    layers::mount_root(&devices, root)?;
    volumes::mount(&events, &config.volumes, root, deadline)?;
    identity::write(root, &config)?;
    network::configure(&config.interfaces, deadline)?;
    secrets::place(&config.secrets, Path::new(guest::SECRETS), Path::new("/"))?;
    switch::keep(&config)?;
    log::info!("{}: root of {} layers mounted, starting {}", config.hostname, config.layers, config.init.join(" "));
    switch::into(root, &config)
}

/// The kernel could not open a console for us: the initrd has no device nodes.
fn use_console() -> Result<(), InitError> {
    let path = "/dev/console";
    let console = OpenOptions::new().read(true).write(true).open(path).map_err(file_error("open", path))?;
    rustix::stdio::dup2_stdin(&console)
        .and_then(|()| rustix::stdio::dup2_stdout(&console))
        .and_then(|()| rustix::stdio::dup2_stderr(&console))
        .map_err(|error| file_error("use", path)(error.into()))
}

pub(crate) fn read_config(path: &Path) -> Result<GuestConfig, InitError> {
    let text = fs::read(path).map_err(file_error("read", path))?;
    let config: GuestConfig =
        serde_json::from_slice(&text).map_err(|source| InitError::Config { path: path.to_owned(), source })?;
    if config.layers == 0 {
        return Err(InitError::BadConfig("names no layers, of which the root would be made".to_owned()));
    }
    if config.init.is_empty() {
        return Err(InitError::BadConfig("names no init, which would be started".to_owned()));
    }
    Ok(config)
}

fn load_drivers() -> Result<(), InitError> {
    let loader = Loader::open()?;
    for name in FILE_SYSTEMS {
        loader.load(name)?;
    }
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let report = coldplug::coldplug(&loader, threads).map_err(InitError::Sysfs)?;
    log::debug!("drivers for {} kinds of devices looked for", report.devices);
    // A layer or a network that is missing because of it is an error of its own later.
    for failure in report.failures {
        log::warn!("{failure}");
    }
    Ok(())
}
