//! A port forward as text: `NETWORK:PORT/PROTOCOL`, and ` -> PORT` if the guest's port is another.

use std::ops::Range;

use super::names::shown;
use crate::manifest::{Forward, Protocol};

pub(super) const FORWARD_HINT: &str = "a forward is `NETWORK:PORT/PROTOCOL` or `NETWORK:PORT/PROTOCOL -> PORT OF THE GUEST`, for example `lan:53/udp` or `lan:8080/tcp -> 80`";

/// What is wrong with a forward.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ForwardError {
    /// The part of the text, as byte offsets.
    pub part: Range<usize>,
    /// What it is.
    pub message: String,
}

/// Reads a forward.
pub(super) fn parse(text: &str) -> Result<Forward, ForwardError> {
    let (outside, inside) = match text.split_once("->") {
        Some((outside, inside)) => (outside, Some(inside)),
        None => (text, None),
    };
    let whole = || ForwardError { part: 0..text.len(), message: format!("`{}` is not a forward", shown(text)) };
    let (network, outside) = outside.split_once(':').ok_or_else(whole)?;
    let (outside, protocol) = outside.split_once('/').ok_or_else(whole)?;
    let part = |part: &str| {
        // `part` is a piece of `text`, so its address tells where it stands.
        let start = part.as_ptr().addr() - text.as_ptr().addr();
        let trimmed = part.trim();
        let start = start + (part.len() - part.trim_start().len());
        start..start + trimmed.len()
    };
    let protocol = match protocol.trim() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => {
            let message = format!("`{}` is not a protocol: `tcp` or `udp`", shown(other));
            return Err(ForwardError { part: part(protocol), message });
        }
    };
    let number = |digits: &str| {
        port(digits.trim()).ok_or_else(|| ForwardError {
            part: part(digits),
            message: format!("`{}` is not a port: 1 to 65535", shown(digits.trim())),
        })
    };
    let port = number(outside)?;
    let guest_port = inside.map_or(Ok(port), number)?;
    Ok(Forward { network: network.trim().to_owned(), port, guest_port, protocol })
}

/// A port number, 1 to 65535, in digits only.
pub(super) fn port(digits: &str) -> Option<u16> {
    let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&port| only_digits && port != 0)
}

/// The port on the rack, `53/udp`.
pub(super) fn shown_port(forward: &Forward) -> String {
    let protocol = match forward.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{}/{protocol}", forward.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(port: u16, guest_port: u16, protocol: Protocol) -> Result<Forward, ForwardError> {
        Ok(Forward { network: "lan".to_owned(), port, guest_port, protocol })
    }

    #[test]
    fn the_guests_port_is_the_racks_unless_another_is_named() {
        assert_eq!(parse("lan:53/udp"), forward(53, 53, Protocol::Udp));
        assert_eq!(parse("lan:8080/tcp -> 80"), forward(8080, 80, Protocol::Tcp));
        assert_eq!(parse(" lan:8080/tcp->80 "), forward(8080, 80, Protocol::Tcp));
    }

    #[test]
    fn what_is_wrong_is_marked_alone() {
        let part = |text: &'static str| &text[parse(text).unwrap_err().part];
        assert_eq!(part("lan:53/sctp"), "sctp");
        assert_eq!(part("lan:0/tcp"), "0");
        assert_eq!(part("lan:65536/tcp -> 80"), "65536");
        assert_eq!(part("lan:80/tcp ->  +80"), "+80");
        assert_eq!(part("lan:/tcp"), "");
        assert_eq!(part("lan:80/tcp -> "), "");
        assert_eq!(part("80/tcp"), "80/tcp");
        assert_eq!(part("lan:80"), "lan:80");
        assert_eq!(part("->:/é"), "->:/é");
    }
}
