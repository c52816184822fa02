//! Reads a guest's `health`: exactly one check.

use super::{
    forward::port,
    names::{self, shown},
    reader::{Report, Table, Text},
    shapes,
};
use crate::manifest::Health;

/// Longest path of an HTTP check: the request is one short line.
const PATH_MAX: usize = 1024;
const HTTP_HINT: &str = "the guest itself is asked, so the host is left out: `http://:80/` or `http://:8080/status`";

/// The check, if there is one and it is right.
pub(super) fn read(report: &mut Report, guest: &Table<'_>) -> Option<Health> {
    let at = guest.key_span("health")?;
    let table = Table::open(report, &shapes::HEALTH, "a health check", at.clone(), guest.get("health")?)?;
    let given: Vec<&str> =
        shapes::HEALTH.keys.iter().map(|key| key.name).filter(|key| table.get(key).is_some()).collect();
    match given[..] {
        ["dns"] => table.text(report, "dns").and_then(|name| dns(report, &name)),
        ["http"] => table.text(report, "http").and_then(|url| http(report, &url)),
        ["tcp"] => table.number(report, "tcp", (1, u16::MAX)).map(Health::Tcp),
        _ => {
            let hint = "for example `health = { tcp = 25 }`; a check is `dns`, `http` or `tcp`";
            report.wrong(at, format!("`health` has {} checks, but needs exactly one", given.len()), hint);
            None
        }
    }
}

fn dns(report: &mut Report, name: &Text<'_>) -> Option<Health> {
    if !names::is_domain(name.value) {
        let message = format!("`{}` is not a domain name", shown(name.value));
        report.wrong(
            name.span.clone(),
            message,
            "lower-case labels with dots between them, for example `www.lab.internal`",
        );
        return None;
    }
    Some(Health::Dns(name.value.to_owned()))
}

fn http(report: &mut Report, url: &Text<'_>) -> Option<Health> {
    let check = parse_http(url.value);
    if check.is_none() {
        report.wrong(url.span.clone(), format!("`{}` is not an HTTP check", shown(url.value)), HTTP_HINT);
    }
    check
}

/// `http://`, a port with its colon unless it is 80, and a path unless it is `/`.
fn parse_http(url: &str) -> Option<Health> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    let port = match authority {
        "" => 80,
        _ => port(authority.strip_prefix(':')?)?,
    };
    // Only what may stand in a request line as it is (RFC 9112, section 3.2.1): no blanks, no fragment.
    let right = path.len() <= PATH_MAX && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    right.then(|| Health::Http { port, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_check_is_a_url_without_a_host() {
        let http = |port, path: &str| Some(Health::Http { port, path: path.to_owned() });
        assert_eq!(parse_http("http://:80/"), http(80, "/"));
        assert_eq!(parse_http("http://"), http(80, "/"));
        assert_eq!(parse_http("http:///a"), http(80, "/a"));
        assert_eq!(parse_http("http://:8080/status?x=1"), http(8080, "/status?x=1"));
        for bad in [
            "",
            "https://:443/",
            "http://web/",
            "http://web:80/",
            "http://:0/",
            "http://:80/a b",
            "http://:80/\r\nX: y",
            "http://:/",
        ] {
            assert_eq!(parse_http(bad), None, "{bad}");
        }
    }
}
