//! The gateway's own process. It opens its sockets, gives up every right, and only then reads the first packet. It ends
//! at the first fault, for the daemon to start it again.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    process::ExitCode,
    sync::Arc,
    thread,
};

use dhcproto::v4::SERVER_PORT;
use rackstick_linux::dhcp::socket;
use rustix::{
    net::{AddressFamily, SocketAddrV4, SocketFlags, SocketType, sockopt},
    process::{Gid, Resource, Rlimit, Uid, chdir, chroot, setrlimit},
};

use super::{
    config::{Config, Net},
    dhcp,
    dns::{self, Views},
};
use crate::signals;

/// What it says once it has its sockets.
pub const READY: &[u8; 6] = b"ready\n";
/// Its own user and group.
const ID: u32 = 1900;
/// Where it lives after its start: a folder that is never anything but empty.
const FOLDER: &str = "/run/rackstick/empty";
/// The daemon, from which it has its value, is protected from the out-of-memory killer; this process is not.
const OOM: &str = "0";
/// Files that it may have open: the sockets of some networks, their connections and queries on the way.
const MOST_FILES: u64 = 4096;
/// Connections to it that wait to be accepted.
const BACKLOG: i32 = 32;
const DNS_PORT: u16 = 53;

/// Why it can't serve.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("it was not told what to serve: {0}")]
    Config(io::Error),
    #[error("network {network}: {what} can't be served: {source}")]
    Socket { network: String, what: &'static str, source: io::Error },
    #[error("its rights can't be given up: {0}")]
    Rights(io::Error),
    #[error("no thread can be started: {0}")]
    Thread(io::Error),
}

/// Serves until it is ended.
pub fn run() -> ExitCode {
    signals::Set::of(&[]).block_only();
    // A packet that makes a thread panic must not leave a gateway that serves half of its networks.
    std::panic::set_hook(Box::new(|panic| {
        // Nobody reads it if that fails.
        let _ = writeln!(io::stderr(), "{panic}");
        std::process::exit(101);
    }));
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Error> {
    let mut lines = io::stdin().lines();
    let first = lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())).map_err(Error::Config)?;
    let config: Config = serde_json::from_str(&first).map_err(|error| Error::Config(error.into()))?;
    let sockets = config.networks.iter().map(Sockets::open).collect::<Result<Vec<_>, _>>()?;
    io::stdout().write_all(READY).and_then(|()| io::stdout().flush()).map_err(Error::Config)?;
    give_up_rights().map_err(Error::Rights)?;

    let views = Arc::new(Views::new(&config));
    for (index, (net, Sockets { dhcp, udp, tcp })) in config.networks.iter().zip(sockets).enumerate() {
        let (net, domain) = (net.clone(), config.domain.clone());
        spawn(format!("dhcp {}", net.name), move || dhcp::serve(&dhcp, &net, &domain))?;
        let (of_udp, of_tcp) = (views.clone(), views.clone());
        spawn(format!("udp {index}"), move || dns::udp::serve(&udp, &of_udp, index))?;
        spawn(format!("tcp {index}"), move || dns::tcp::serve(&tcp, &of_tcp, index))?;
    }
    for line in lines {
        let line = line.map_err(Error::Config)?;
        let config: Config = serde_json::from_str(&line).map_err(|error| Error::Config(error.into()))?;
        views.update(&config);
    }
    // The daemon is gone; the next one ends this process when its own serves.
    loop {
        thread::park();
    }
}

fn spawn(name: String, body: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), Error> {
    let named = name.clone();
    let ended = move || {
        if let Err(error) = body() {
            let _ = writeln!(io::stderr(), "{named}: {error}");
            std::process::exit(1);
        }
    };
    thread::Builder::new().name(name).spawn(ended).map(drop).map_err(Error::Thread)
}

/// What one network is served by.
struct Sockets {
    dhcp: UdpSocket,
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    fn open(net: &Net) -> Result<Self, Error> {
        let failed = |what| {
            let network = net.name.clone();
            move |source| Error::Socket { network, what, source }
        };
        let udp = listen(net.gateway, SocketType::DGRAM).map_err(failed("DNS by UDP"))?;
        let tcp = listen(net.gateway, SocketType::STREAM).map_err(failed("DNS by TCP"))?;
        let dhcp = socket(&net.bridge, SERVER_PORT).map_err(failed("DHCP"))?;
        Ok(Self { dhcp, udp: udp.into(), tcp: tcp.into() })
    }
}

/// A socket on the gateway's address, beside that of a gateway that is about to end.
fn listen(address: Ipv4Addr, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(address, DNS_PORT))?;
    if kind == SocketType::STREAM {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// No file system, no capability, no other user's rights, and no way to get any. Called before the first thread.
fn give_up_rights() -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", OOM)?;
    std::fs::create_dir_all(FOLDER)?;
    // Every message of dhcproto draws a number first, of a device that is opened once and out of sight afterwards.
    drop(dhcproto::v4::Message::default());
    chroot(FOLDER)?;
    chdir("/")?;
    setrlimit(Resource::Nofile, Rlimit { current: Some(MOST_FILES), maximum: Some(MOST_FILES) })?;
    let (uid, gid) = (Uid::from_raw(ID), Gid::from_raw(ID));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    // Leaving root takes all capabilities along (capabilities(7)).
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}
