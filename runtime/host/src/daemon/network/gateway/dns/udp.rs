//! DNS by UDP for one network: one thread, which waits for guests and resolvers at once.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rackstick_linux::{dhcp::random, wait};

use super::{
    Views,
    answer::{Verdict, View},
    upstream::Passed,
};

/// Queries of one network that may be on their way at once.
const MOST_PASSED: usize = 256;
/// Queries of one guest that may be on their way at once: it can't use up its neighbours' part.
const MOST_OF_ONE: usize = 64;
/// How long a resolver may take before the next one is asked.
const TRY_WITHIN: Duration = Duration::from_secs(2);
/// How often a resolver is asked, one after the other; a guest's own patience is mostly five seconds.
const TRIES: usize = 3;
/// Queries read before answers get their turn.
const MOST_AT_ONCE: usize = 64;
/// Longest datagram.
const LARGEST: usize = 65_535;

/// A query on its way.
struct Pending {
    guest: SocketAddr,
    query: Vec<u8>,
    passed: Passed,
    /// A port of its own for every try, which others can't guess.
    socket: UdpSocket,
    tries: usize,
    deadline: Instant,
}

/// Answers until the socket fails.
pub fn serve(socket: &UdpSocket, views: &Arc<Views>, index: usize) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let mut pending: Vec<Pending> = Vec::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        let next = pending.iter().map(|query| query.deadline).min();
        let mut awaited: Vec<BorrowedFd<'_>> = vec![socket.as_fd()];
        awaited.extend(pending.iter().map(|query| query.socket.as_fd()));
        wait::any_readable(&awaited, next)?;
        let Some(view) = views.of(index) else { return Ok(()) };
        pending.retain_mut(|query| !query.proceed(socket, &view, &mut buffer));
        for _ in 0..MOST_AT_ONCE {
            let (length, guest) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Guests' ICMP errors end up here too.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            };
            let query = buffer.get(..length).unwrap_or_default();
            let answer = match view.judge(query) {
                Verdict::PassOn => match pass_on(&view, &pending, guest, query) {
                    Some(query) => {
                        pending.push(query);
                        continue;
                    }
                    None => view.failure(query),
                },
                other => other,
            };
            say(socket, guest, answer);
        }
    }
}

fn say(socket: &UdpSocket, guest: SocketAddr, verdict: Verdict) {
    if let Verdict::Answer(answer) = verdict {
        // A guest that gets no answer asks again.
        let _ = socket.send_to(&answer, guest);
    }
}

fn pass_on(view: &View, pending: &[Pending], guest: SocketAddr, query: &[u8]) -> Option<Pending> {
    let of_guest = pending.iter().filter(|other| other.guest.ip() == guest.ip()).count();
    if pending.len() >= MOST_PASSED || of_guest >= MOST_OF_ONE {
        return None;
    }
    let (passed, socket) = ask(view, query, 0)?;
    let (query, tries, deadline) = (query.to_vec(), 1, Instant::now() + TRY_WITHIN);
    Some(Pending { guest, query, passed, socket, tries, deadline })
}

/// Sends the query to a resolver, another one at each try.
fn ask(view: &View, query: &[u8], tries: usize) -> Option<(Passed, UdpSocket)> {
    let resolvers = view.resolvers.as_ref().filter(|resolvers| !resolvers.is_empty())?;
    let resolver = resolvers.get(tries % resolvers.len())?;
    let passed = Passed::new(query, random() as u16)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.set_nonblocking(true).ok()?;
    // Connected, it hears that resolver only.
    socket.connect((*resolver, 53)).ok()?;
    socket.send(&passed.bytes).ok()?;
    Some((passed, socket))
}

impl Pending {
    /// Takes the resolver's answer, or asks the next one if there is none in time. Says whether the guest has its
    /// answer.
    fn proceed(&mut self, socket: &UdpSocket, view: &View, buffer: &mut [u8]) -> bool {
        let heard = match self.socket.recv(buffer) {
            Ok(length) => self.passed.answer(buffer.get(..length).unwrap_or_default()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
            // It is not there: no need to wait.
            Err(_) => {
                self.deadline = Instant::now();
                None
            }
        };
        if let Some(answer) = heard {
            say(socket, self.guest, Verdict::Answer(answer));
            return true;
        }
        if Instant::now() < self.deadline {
            return false;
        }
        if self.tries < TRIES
            && let Some((passed, socket)) = ask(view, &self.query, self.tries)
        {
            (self.passed, self.socket) = (passed, socket);
            self.tries += 1;
            self.deadline = Instant::now() + TRY_WITHIN;
            return false;
        }
        say(socket, self.guest, view.failure(&self.query));
        true
    }
}
