//! The health check of a guest: one question to its service, as a client asks it. The agent asks in the guest; of a
//! guest without an agent the daemon asks, from outside: what answers is taken for hostile, and is only ever compared.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use rackstick_api::guest::Health;

/// How long the whole check may take.
const WITHIN: Duration = Duration::from_secs(5);
/// Longest head of an HTTP answer in bytes, and most headers: a service gone wild can't fill the memory of who asks.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// Longest DNS answer by UDP in bytes without EDNS (RFC 1035, 4.2.1); some servers send more all the same.
const MAX_ANSWER: usize = 4096;

/// Why the guest is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// Nobody listens there.
    #[error("no connection to {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// No DNS answer.
    #[error("{address} does not answer the query for {name}: {source}")]
    DnsSilent {
        /// The server.
        address: SocketAddr,
        /// The name.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// A DNS answer that is an error or empty.
    #[error("{address} answers the query for {name} with {code} and {records} records")]
    DnsAnswer {
        /// The server.
        address: SocketAddr,
        /// The name.
        name: String,
        /// What it said.
        code: ResponseCode,
        /// How many records it gave.
        records: usize,
    },
    /// No name that DNS knows.
    #[error("`{name}` can't be asked for: {detail}")]
    DnsName {
        /// The name.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No HTTP answer.
    #[error("{address} does not answer GET {path}: {source}")]
    HttpSilent {
        /// The server.
        address: SocketAddr,
        /// The path.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Something else than HTTP.
    #[error("{address} answers GET {path} with what is no HTTP: {detail}")]
    HttpGarbage {
        /// The server.
        address: SocketAddr,
        /// The path.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// An HTTP error.
    #[error("{address} answers GET {path} with status {status}")]
    HttpStatus {
        /// The server.
        address: SocketAddr,
        /// The path.
        path: String,
        /// Its status.
        status: u16,
    },
}

/// Runs the check once.
///
/// # Errors
/// What the service does not do.
pub fn check(health: &Health) -> Result<(), Unhealthy> {
    check_within(health, WITHIN)
}

fn check_within(health: &Health, time: Duration) -> Result<(), Unhealthy> {
    let deadline = Instant::now() + time;
    match health {
        Health::Dns { name, address, port } => dns(name, *address, *port, deadline),
        Health::Http { address, port, path } => http(*address, *port, path, deadline),
        Health::Tcp { address, port } => connect(*address, *port, deadline).map(drop),
    }
}

/// What is left until `deadline`, never zero, which would mean for ever.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn connect(address: Ipv4Addr, port: u16, deadline: Instant) -> Result<TcpStream, Unhealthy> {
    let address = SocketAddr::V4(SocketAddrV4::new(address, port));
    TcpStream::connect_timeout(&address, left(deadline)).map_err(|source| Unhealthy::Connect { address, source })
}

fn dns(name: &str, server: Ipv4Addr, port: u16, deadline: Instant) -> Result<(), Unhealthy> {
    let address = SocketAddr::V4(SocketAddrV4::new(server, port));
    let bad_name = |detail: String| Unhealthy::DnsName { name: name.to_owned(), detail };
    let mut parsed = Name::from_ascii(name).map_err(|error| bad_name(error.to_string()))?;
    parsed.set_fqdn(true);
    // The socket is connected, so only the server itself can answer: a number that can be guessed does no harm.
    let number = 1;
    let mut query = Message::new(number, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(parsed, RecordType::A));
    let bytes = query.to_vec().map_err(|error| bad_name(error.to_string()))?;

    let silent = |source: io::Error| Unhealthy::DnsSilent { address, name: name.to_owned(), source };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(silent)?;
    socket.connect(address).map_err(silent)?;
    socket.send(&bytes).map_err(silent)?;
    let mut buffer = [0; MAX_ANSWER];
    loop {
        // Also while garbage keeps coming.
        if Instant::now() >= deadline {
            return Err(silent(io::ErrorKind::TimedOut.into()));
        }
        socket.set_read_timeout(Some(left(deadline))).map_err(silent)?;
        let length = socket.recv(&mut buffer).map_err(silent)?;
        // Damaged answers and those to other questions are not ours; the deadline ends the wait for the right one.
        let Ok(answer) = Message::from_vec(&buffer[..length]) else { continue };
        if answer.metadata.id != number || answer.metadata.message_type != MessageType::Response {
            continue;
        }
        let (code, records) = (answer.metadata.response_code, answer.answers.len());
        if code == ResponseCode::NoError && records > 0 {
            return Ok(());
        }
        return Err(Unhealthy::DnsAnswer { address, name: name.to_owned(), code, records });
    }
}

fn http(server: Ipv4Addr, port: u16, path: &str, deadline: Instant) -> Result<(), Unhealthy> {
    let mut stream = connect(server, port, deadline)?;
    let address = SocketAddr::V4(SocketAddrV4::new(server, port));
    let silent = |source: io::Error| Unhealthy::HttpSilent { address, path: path.to_owned(), source };
    let garbage = |detail: String| Unhealthy::HttpGarbage { address, path: path.to_owned(), detail };
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {server}:{port}\r\nUser-Agent: rackstick\r\nConnection: close\r\n\r\n");
    stream.set_write_timeout(Some(left(deadline))).map_err(silent)?;
    stream.write_all(request.as_bytes()).map_err(silent)?;

    let mut head = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        // Who sends a byte now and then would be waited for as long as it likes.
        if Instant::now() >= deadline {
            return Err(silent(io::ErrorKind::TimedOut.into()));
        }
        stream.set_read_timeout(Some(left(deadline))).map_err(silent)?;
        let length = stream.read(&mut buffer).map_err(silent)?;
        head.extend_from_slice(&buffer[..length]);
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let status = response.parse(&head).map_err(|error| garbage(error.to_string()))?;
        match (status, response.code) {
            (httparse::Status::Complete(_), Some(200..=399)) => return Ok(()),
            (httparse::Status::Complete(_), Some(status)) => {
                return Err(Unhealthy::HttpStatus { address, path: path.to_owned(), status });
            }
            _ if length == 0 => return Err(garbage(format!("it ends after {} bytes", head.len()))),
            _ if head.len() > MAX_HEAD => return Err(garbage(format!("its head is longer than {MAX_HEAD} bytes"))),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use hickory_proto::rr::{RData, Record, rdata::A};

    use super::*;

    const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

    /// A web server that gives each client `answer` and closes.
    fn web(answer: Vec<u8>) -> Health {
        let listener = TcpListener::bind((LOCAL, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap();
                assert!(request[..length].starts_with(b"GET /x HTTP/1.1\r\n"));
                // The client may have seen enough and closed.
                let _ = stream.write_all(&answer);
            }
        });
        Health::Http { address: LOCAL, port, path: "/x".into() }
    }

    #[test]
    fn a_page_is_healthy_and_an_error_is_not() {
        check(&web(b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\nhello".to_vec())).unwrap();
        check(&web(b"HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n".to_vec())).unwrap();
        let error = check(&web(b"HTTP/1.1 503 Service Unavailable\r\n\r\n".to_vec())).unwrap_err();
        assert!(error.to_string().contains("status 503"), "{error}");
    }

    #[test]
    fn what_is_no_http_ends_the_check() {
        for bad in [b"SSH-2.0-OpenSSH\r\n".to_vec(), b"HTTP/1.1 200 OK\r\nA: b".to_vec(), Vec::new()] {
            assert!(matches!(check(&web(bad)), Err(Unhealthy::HttpGarbage { .. })));
        }
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; 64 << 10]].concat();
        assert!(matches!(check(&web(endless)), Err(Unhealthy::HttpGarbage { .. })));
    }

    #[test]
    fn nobody_listening_is_said_with_the_address() {
        let port = TcpListener::bind((LOCAL, 0)).unwrap().local_addr().unwrap().port();
        let error = check(&Health::Tcp { address: LOCAL, port }).unwrap_err();
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
        let listener = TcpListener::bind((LOCAL, 0)).unwrap();
        check(&Health::Tcp { address: LOCAL, port: listener.local_addr().unwrap().port() }).unwrap();
    }

    /// A name server that gives the first client `answer` made from its query.
    fn name_server(answer: impl FnOnce(Message) -> Vec<Vec<u8>> + Send + 'static) -> Health {
        let socket = UdpSocket::bind((LOCAL, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, client) = socket.recv_from(&mut buffer).unwrap();
            for bytes in answer(Message::from_vec(&buffer[..length]).unwrap()) {
                socket.send_to(&bytes, client).unwrap();
            }
        });
        Health::Dns { name: "www.lab.internal".into(), address: LOCAL, port }
    }

    fn reply(query: &Message, code: ResponseCode, records: usize) -> Vec<u8> {
        let mut reply = Message::response(query.metadata.id, OpCode::Query);
        reply.metadata.response_code = code;
        reply.add_queries(query.queries.clone());
        let name = query.queries[0].name().clone();
        assert_eq!(name.to_ascii(), "www.lab.internal.");
        for _ in 0..records {
            reply.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A(LOCAL))));
        }
        reply.to_vec().unwrap()
    }

    #[test]
    fn a_name_that_is_answered_is_healthy_whatever_arrives_before() {
        check(&name_server(|query| {
            let mut other = query.clone();
            other.metadata.id = query.metadata.id.wrapping_add(1);
            vec![b"garbage".to_vec(), reply(&other, ResponseCode::ServFail, 0), reply(&query, ResponseCode::NoError, 1)]
        }))
        .unwrap();
    }

    #[test]
    fn a_name_that_is_not_known_or_has_no_record_is_not_healthy() {
        let unknown = check(&name_server(|query| vec![reply(&query, ResponseCode::NXDomain, 0)])).unwrap_err();
        assert!(matches!(unknown, Unhealthy::DnsAnswer { code: ResponseCode::NXDomain, .. }), "{unknown}");
        let empty = check(&name_server(|query| vec![reply(&query, ResponseCode::NoError, 0)])).unwrap_err();
        assert!(matches!(empty, Unhealthy::DnsAnswer { records: 0, .. }), "{empty}");
    }

    #[test]
    fn a_server_that_is_silent_is_waited_for_no_longer_than_allowed() {
        let socket = UdpSocket::bind((LOCAL, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let begun = Instant::now();
        let health = Health::Dns { name: "www.lab.internal".into(), address: LOCAL, port };
        let allowed = Duration::from_millis(200);
        assert!(matches!(check_within(&health, allowed), Err(Unhealthy::DnsSilent { .. })));
        assert!((allowed..WITHIN).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}
