//! DNS by TCP for one network (RFC 7766): a thread for each connection, and few of them.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rackstick_linux::dhcp::random;

use super::{
    Views,
    answer::{Verdict, View},
    upstream::Passed,
};

/// Connections of one network served at once.
const MOST_CONNECTIONS: usize = 32;
/// Connections of one guest served at once.
const MOST_OF_ONE: usize = 8;
/// How long a connection lives.
const LIFE: Duration = Duration::from_secs(60);
/// How long a guest may take for its next query, and to read an answer.
const IDLE: Duration = Duration::from_secs(10);
/// How long one resolver may take.
const TRY_WITHIN: Duration = Duration::from_secs(3);
/// Bytes of a connection's stack: nothing here is deep.
const STACK: usize = 256 << 10;

type Connections = Arc<Mutex<BTreeMap<IpAddr, usize>>>;

/// Answers until the listener fails.
pub fn serve(listener: &TcpListener, views: &Arc<Views>, index: usize) -> io::Result<()> {
    let connections = Connections::default();
    loop {
        let (stream, guest) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        // More than that are closed, which a resolver understands.
        let Some(place) = Place::take(&connections, guest.ip()) else { continue };
        let views = views.clone();
        let served = thread::Builder::new().stack_size(STACK).spawn(move || {
            let _place = place;
            // A guest that breaks off wants nothing any more.
            let _ = connection(&stream, &views, index);
        });
        served?;
    }
}

/// A connection's place among those allowed, given back when dropped.
struct Place(Connections, IpAddr);

impl Place {
    fn take(connections: &Connections, guest: IpAddr) -> Option<Self> {
        let mut counts = connections.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.get(&guest).copied().unwrap_or(0);
        if own >= MOST_OF_ONE || counts.values().sum::<usize>() >= MOST_CONNECTIONS {
            return None;
        }
        counts.insert(guest, own + 1);
        Some(Self(connections.clone(), guest))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = counts.get(&self.1).copied().unwrap_or(0).saturating_sub(1);
        if left == 0 {
            counts.remove(&self.1);
        } else {
            counts.insert(self.1, left);
        }
    }
}

fn connection(stream: &TcpStream, views: &Views, index: usize) -> io::Result<()> {
    let end = Instant::now() + LIFE;
    while Instant::now() < end {
        let query = read(stream, (Instant::now() + IDLE).min(end))?;
        let Some(view) = views.of(index) else { return Ok(()) };
        let verdict = match view.judge(&query) {
            Verdict::PassOn => pass_on(&view, &query).map_or_else(|| view.failure(&query), Verdict::Answer),
            other => other,
        };
        match verdict {
            Verdict::Answer(answer) => write(stream, &answer, Instant::now() + IDLE)?,
            Verdict::PassOn | Verdict::Silence => return Ok(()),
        }
    }
    Ok(())
}

/// Asks one resolver after the other.
fn pass_on(view: &View, query: &[u8]) -> Option<Vec<u8>> {
    view.resolvers.as_ref()?.iter().find_map(|resolver| {
        let deadline = Instant::now() + TRY_WITHIN;
        let passed = Passed::new(query, random() as u16)?;
        let stream = TcpStream::connect_timeout(&SocketAddr::from((*resolver, 53)), TRY_WITHIN).ok()?;
        write(&stream, &passed.bytes, deadline).ok()?;
        passed.answer(&read(&stream, deadline).ok()?)
    })
}

/// Reads a message behind its length (RFC 1035 section 4.2.2), also from somebody who sends it byte by byte.
fn read(mut stream: &TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut fill = |buffer: &mut [u8]| -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            stream.set_read_timeout(Some(left(deadline)?))?;
            match stream.read(&mut buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => filled += length,
            }
        }
        Ok(())
    };
    let mut length = [0; 2];
    fill(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    fill(&mut message)?;
    Ok(message)
}

fn write(mut stream: &TcpStream, message: &[u8], deadline: Instant) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
