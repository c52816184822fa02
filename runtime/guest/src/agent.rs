//! The agent: answers the host's requests over vsock, one JSON message a line (`rackstick_api::agent`).

mod dhcp;
mod serve;
mod shutdown;
mod volumes;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rackstick_api::{
    agent::{PORT, Request, Response},
    guest::GuestConfig,
};
use rackstick_linux::health;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

use crate::init::{self, CONFIG_KEPT};

/// The name it runs under. Its `@` tells systemd to let it live until the machine is off (systemd, "Storage Daemons for
/// the Root File System"), so that the host can ask until the end.
pub(crate) const ARGV0: &str = "@rackstick-agent";

/// How long the host may be silent on a connection before it is closed.
const IDLE: Duration = Duration::from_secs(300);
/// How long the host may take to read an answer.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// Connections served at once: a host that forgets to close them can't fill the guest's memory.
const MAX_CONNECTIONS: usize = 4;

/// Serves until the machine is off.
pub(crate) fn run() -> ExitCode {
    // ps(1) would show the file's name, which is `exe`.
    if let Err(error) = rustix::thread::set_name(c"rackstick-agent") {
        log::debug!("can't set the process's name: {error}");
    }
    let config = match init::read_config(Path::new(CONFIG_KEPT)) {
        Ok(config) => config,
        Err(error) => {
            log::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    dhcp::start(&config);
    let listener = match VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT) {
        Ok(listener) => listener,
        Err(error) => {
            log::error!("can't listen on vsock port {PORT}: {error}; the guest needs a vsock device and its driver");
            return ExitCode::FAILURE;
        }
    };
    let config = Arc::new(config);
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, from) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if is_of_the_connection(&error) => continue,
            Err(error) => {
                log::error!("can't accept the host's connections any more: {error}");
                return ExitCode::FAILURE;
            }
        };
        // Processes of this guest can reach the port too, where the kernel has the loopback transport.
        if from.cid() != VMADDR_CID_HOST {
            continue;
        }
        if connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            connections.fetch_sub(1, Ordering::Relaxed);
            log::warn!("the host has {MAX_CONNECTIONS} connections open; another one is refused");
            continue;
        }
        let (config, ours) = (Arc::clone(&config), Arc::clone(&connections));
        let served = thread::Builder::new().spawn(move || {
            if let Err(error) = connection(&stream, &config) {
                log::debug!("connection of the host: {error}");
            }
            ours.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = served {
            connections.fetch_sub(1, Ordering::Relaxed);
            log::warn!("can't serve a connection of the host: {error}");
        }
    }
}

/// Errors of accept(2) that concern one connection only.
fn is_of_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    [ConnectionAborted, ConnectionReset, Interrupted].contains(&error.kind())
}

fn connection(stream: &VsockStream, config: &GuestConfig) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(WRITE_WITHIN))?;
    serve::lines(stream, stream, |request| answer(request, config))
}

fn answer(request: Request, config: &GuestConfig) -> Response {
    match request {
        Request::Status => {
            let volumes = volumes::check(&config.volumes);
            let failure = config.health.as_ref().and_then(|health| health::check(health).err());
            // A volume that can't be written to is the cause of what the check finds, if it finds anything.
            let healthy = failure.is_none() && volumes.iter().all(|found| found.usable);
            let words = volumes.into_iter().map(|found| found.what).chain(failure.map(|failure| failure.to_string()));
            Response::Status {
                healthy,
                detail: words.collect::<Vec<_>>().join("; "),
                memory_available_kib: memory_available_kib().unwrap_or(0),
                addresses: dhcp::addresses(config).unwrap_or_else(|error| {
                    log::warn!("the host is not told the addresses that DHCP gave: {error}");
                    BTreeMap::new()
                }),
            }
        }
        Request::Shutdown => match shutdown::begin() {
            Ok(()) => Response::ShuttingDown,
            Err(error) => Response::Error(format!("can't tell process 1 to shut down: {error}")),
        },
    }
}

/// MemAvailable of proc(5).
fn memory_available_kib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_a_health_check_is_healthy_and_says_its_memory() {
        let config = GuestConfig {
            hostname: "web".into(),
            domain: "lab.internal".into(),
            layers: 1,
            volumes: Vec::new(),
            secrets: Vec::new(),
            interfaces: Vec::new(),
            nameservers: Vec::new(),
            init: vec!["/sbin/init".into()],
            process: None,
            health: None,
        };
        let Response::Status { healthy, detail, memory_available_kib, .. } = answer(Request::Status, &config) else {
            panic!("no status");
        };
        assert!(healthy && detail.is_empty() && memory_available_kib > 1024);
    }
}
