//! Who may ask the admin port: whoever is on this machine, but no website that a browser on it shows.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Method, Uri};

/// Checks that the request is for a loopback name and does not come from another website.
///
/// A website can have its own name resolve to 127.0.0.1 (DNS rebinding): then the browser sends that name
/// as Host. And it can post a form to 127.0.0.1 itself: then the browser sends the website as Origin.
///
/// # Errors
/// Why the request is refused.
pub(super) fn check(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), String> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err("the request must have one Host header; it has none, or several".into());
    };
    let host = host.to_str().unwrap_or_default();
    for name in uri.authority().map(|authority| authority.as_str()).into_iter().chain([host]) {
        if !is_loopback(name) {
            return Err(format!(
                "the admin port answers to localhost, 127.0.0.0/8 and [::1] only, not to the host `{name}`: \
                 a website could have its name resolve to this machine"
            ));
        }
    }
    if method.is_safe() {
        return Ok(());
    }
    match headers.get(ORIGIN) {
        Some(origin) if origin.as_bytes().strip_prefix(b"http://") != Some(host.as_bytes()) => {
            Err("what changes state is not taken from another website's page".into())
        }
        _ => Ok(()),
    }
}

/// Whether `host`, with or without a port, is a name of this machine that no resolver is asked for.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let Ok(address) = address.parse::<Ipv6Addr>() else {
                return false;
            };
            return address.to_canonical().is_loopback() && is_port(port);
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let loopback = name.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback());
    (loopback || name.eq_ignore_ascii_case("localhost")) && is_port(port)
}

/// Nothing, or a colon with a port.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_loopback() {
        let cases = [
            ("localhost", true),
            ("LocalHost:15000", true),
            ("127.0.0.1", true),
            ("127.0.0.1:15000", true),
            ("127.9.8.7:1", true),
            ("[::1]", true),
            ("[::1]:15000", true),
            ("[::ffff:127.0.0.1]:15000", true),
            ("", false),
            (":15000", false),
            ("evil.example", false),
            ("evil.example:15000", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost:x", false),
            ("localhost:99999", false),
            ("localhost@evil.example", false),
            ("user@localhost", false),
            ("::1", false),
            ("[::1]x", false),
            ("[::2]:15000", false),
            ("[::1", false),
            ("0.0.0.0", false),
            ("10.0.0.1:15000", false),
            ("2130706433", false),
            ("0x7f.1", false),
        ];
        for (host, loopback) in cases {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }

    fn checked(method: Method, uri: &'static str, headers: &[(&'static str, &'static str)]) -> bool {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        check(&method, &Uri::from_static(uri), &headers).is_ok()
    }

    #[test]
    fn every_name_in_a_request_must_be_loopback() {
        assert!(checked(Method::GET, "/", &[("host", "localhost")]));
        assert!(checked(Method::GET, "http://127.0.0.1/", &[("host", "localhost")]));
        assert!(!checked(Method::GET, "http://evil.example/", &[("host", "localhost")]));
        assert!(!checked(Method::GET, "http://localhost/", &[("host", "evil.example")]));
        assert!(!checked(Method::GET, "/", &[]));
    }

    #[test]
    fn a_website_may_not_change_state_and_a_page_of_this_port_may() {
        let host = ("host", "localhost:15000");
        assert!(checked(Method::POST, "/quit", &[host]));
        assert!(checked(Method::POST, "/quit", &[host, ("origin", "http://localhost:15000")]));
        for origin in ["http://evil.example", "null", "https://localhost:15000", "http://localhost:3000"] {
            assert!(!checked(Method::POST, "/quit", &[host, ("origin", origin)]), "{origin}");
            assert!(checked(Method::GET, "/config", &[host, ("origin", origin)]), "{origin}");
        }
    }
}
