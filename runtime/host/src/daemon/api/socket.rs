//! The API on a Unix socket, for what runs on the rack itself.

use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::Sender,
    },
    thread,
    time::Duration,
};

use rackstick_api::rack::SOCKET;

use super::{Event, serve};
use crate::daemon::private_socket;

/// The most clients at once: one that opens connections without end can't use up the daemon's memory.
const MOST_CLIENTS: usize = 32;
/// A client that does not read its answers is dropped after this.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a failed accept, such as for want of file descriptors.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// Listens on the socket, in a thread of its own.
pub fn listen(events: Sender<Event>) -> io::Result<()> {
    let listener = private_socket::bind(Path::new(SOCKET))?;
    thread::Builder::new().name("api".into()).spawn(move || accept(&listener, &events))?;
    Ok(())
}

fn accept(listener: &UnixListener, events: &Sender<Event>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let served = listener.accept().and_then(|(stream, _)| {
            if clients.load(Ordering::Relaxed) >= MOST_CLIENTS {
                return Ok(());
            }
            stream.set_write_timeout(Some(WRITE_PATIENCE))?;
            let (count, events) = (clients.clone(), events.clone());
            count.fetch_add(1, Ordering::Relaxed);
            let served = thread::Builder::new().name("api client".into()).spawn(move || {
                if let Err(error) = one(&stream, &events) {
                    log::debug!("a client of the API: {error}");
                }
                count.fetch_sub(1, Ordering::Relaxed);
            });
            if served.is_err() {
                clients.fetch_sub(1, Ordering::Relaxed);
            }
            served.map(drop)
        });
        if let Err(error) = served {
            log::warn!("the API's socket: {error}");
            thread::sleep(FAILURE_PAUSE);
        }
    }
}

fn one(stream: &UnixStream, events: &Sender<Event>) -> io::Result<()> {
    serve(io::BufReader::new(stream), stream, events)
}
