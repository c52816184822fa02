//! The API on a virtio-serial port, where the rack is itself a virtual machine (virtio 1.2, section 5.3).
//!
//! Such a port is always hung up while nobody is connected on the other side, so a plain poll would spin: an
//! edge-triggered one wakes only when something changes. That a client came or left is told on another queue than its
//! bytes are: a call may be here, and answered, before the port knows of the client, and hung up until then.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use rackstick_api::rack::VIRTIO_PORT;
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    fs::OFlags,
    io::Errno,
};

use super::{Event, serve};

/// How long an answer may wait for a client that does not read, or has left.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Serves the port once it turns up.
#[derive(Default)]
pub struct Port {
    served: bool,
}

impl Port {
    /// Serves the port if it is there now and was not before. To be called again when devices turn up.
    pub fn look(&mut self, events: &Sender<Event>) -> io::Result<()> {
        if self.served {
            return Ok(());
        }
        let Some(file) = find()? else { return Ok(()) };
        let waiting = Waiting::new(file)?;
        let events = events.clone();
        thread::Builder::new().name("api port".into()).spawn(move || {
            let error = run(waiting, &events);
            log::error!("the API's virtio-serial port can no longer be served: {error}");
        })?;
        self.served = true;
        log::info!("the API is served on the virtio-serial port {VIRTIO_PORT}");
        Ok(())
    }
}

fn find() -> io::Result<Option<File>> {
    let ports = match fs::read_dir("/sys/class/virtio-ports") {
        Ok(ports) => ports,
        // Not a virtual machine, or not one with such a port.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for port in ports.flatten() {
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim_end() == VIRTIO_PORT {
            let flags = OFlags::NONBLOCK.bits().cast_signed();
            let path = Path::new("/dev").join(port.file_name());
            return OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map(Some);
        }
    }
    Ok(None)
}

fn run(mut waiting: Waiting, events: &Sender<Event>) -> io::Error {
    loop {
        // The end of one client is not the end of the port.
        let served = waiting.try_clone().and_then(|reader| {
            let writer = Writer(waiting.try_clone()?);
            serve(BufReader::new(reader), writer, events)
        });
        match served {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => log::warn!("a client of the API does not read"),
            Err(error) => return error,
        }
        if let Err(error) = waiting.change(None) {
            return error;
        }
    }
}

/// The port, with a way to wait without spinning. What its clones wait for is the same: all belong to one thread, and
/// each tries again before it waits, so that no change is lost to another.
struct Waiting {
    file: File,
    changes: rustix::fd::OwnedFd,
}

impl Waiting {
    fn new(file: File) -> io::Result<Self> {
        let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&changes, &file, EventData::new_u64(0), EventFlags::IN | EventFlags::OUT | EventFlags::ET)?;
        Ok(Self { file, changes })
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, changes: self.changes.try_clone()? })
    }

    /// Waits until something about the port has changed since the last call: true, or false after `limit`.
    fn change(&mut self, limit: Option<Duration>) -> io::Result<bool> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut events = Vec::with_capacity(1);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
            match epoll::wait(&self.changes, spare_capacity(&mut events), left.as_ref()) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Read for Waiting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.change(None)?;
                }
                other => return other,
            }
        }
    }
}

/// The port's writing side: gives a client that does not read some time, not for ever.
struct Writer(Waiting);

impl Write for Writer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let deadline = Instant::now() + WRITE_PATIENCE;
        loop {
            match self.0.file.write(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() || !self.0.change(Some(left))? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
