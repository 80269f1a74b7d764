//! Host names, and addresses with ports, as people write them in flags and configs.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The port of a DNS server whose address has none.
const DNS_PORT: u16 = 53;

/// A host, by its name or its IP address, and a port of it: `ca.outrigger.svc:15012`, `[fd00::1]:15012`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// A text that is no [`HostPort`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an address with a port: write host:port, for example ca.outrigger.svc:15012, an IPv6 address in \
     brackets"
)]
pub struct HostPortError(String);

impl HostPort {
    /// The name as it was written, or the IP address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, 1 to 65535.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let wrong = || HostPortError(text.into());
        if let Ok(address) = text.parse::<SocketAddr>() {
            let port = Some(address.port()).filter(|port| *port != 0).ok_or_else(wrong)?;
            return Ok(Self { host: address.ip().to_string(), port });
        }
        let (host, port) = text.split_once(':').ok_or_else(wrong)?;
        match parse_port(port) {
            Some(port) if is_host_name(host) => Ok(Self { host: host.into(), port }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Reads a port; digits only: `+80` is none.
pub fn parse_port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_plain && *port != 0)
}

/// Reads the address of a DNS server: an IP address, on port 53 unless it says otherwise.
pub fn parse_dns_server(text: &str) -> Option<SocketAddr> {
    let with_port = || text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv6() || bare == text);
    ip.map(|ip| SocketAddr::new(ip, DNS_PORT)).or_else(with_port)
}

/// A name without the dot that stands for the root.
pub fn without_root(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// A name as names are compared: without case and without the root's dot.
pub fn normal(name: &str) -> String {
    without_root(name).to_ascii_lowercase()
}

/// Whether it is labels of letters, digits, `-` and `_`, and no IP address.
pub fn is_host_name(name: &str) -> bool {
    let name = without_root(name);
    // A last label of digits makes it an IPv4 address, or something that was meant to be one.
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether it can be one label of a host's name.
pub fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_told_from_what_looks_like_them() {
        for name in ["api", "api.shop.svc.cluster.local", "API.shop.", "a-b.c_d", "1password.com", "x1"] {
            assert!(is_host_name(name), "{name}");
        }
        for name in
            ["", ".", "a..b", ".a", "-a", "a-", "10.0.0.1", "10.0.0", "a b", "a:80", "*.a", "http://a", "ä"]
        {
            assert!(!is_host_name(name), "{name}");
        }
    }

    #[test]
    fn addresses_with_ports_name_hosts_or_ips() {
        for (text, expected) in [
            ("ca.outrigger.svc:15012", Some(("ca.outrigger.svc", 15012))),
            ("10.0.0.1:15012", Some(("10.0.0.1", 15012))),
            ("[fd00::1]:15012", Some(("fd00::1", 15012))),
            ("ca.outrigger.svc", None),
            ("ca:0", None),
            ("ca:x", None),
            ("ca:+80", None),
            ("10.0.0.1:0", None),
            ("[fd00::1]:0", None),
            ("fd00::1", None),
            ("fd00::1:53", None),
            ("[fd00::1", None),
            (":15012", None),
            ("a b:53", None),
            ("https://ca:15012", None),
            ("tcp://10.0.0.1:15012", None),
        ] {
            let parsed = text.parse::<HostPort>().ok();
            assert_eq!(parsed.as_ref().map(|address| (address.host(), address.port())), expected, "{text}");
            assert!(parsed.is_none_or(|address| address.to_string() == text), "{text}");
        }
    }

    #[test]
    fn a_dns_server_has_port_53_unless_it_says_otherwise() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1:53")),
            ("10.0.0.1:5353", Some("10.0.0.1:5353")),
            ("fd00::1", Some("[fd00::1]:53")),
            ("[fd00::1]", Some("[fd00::1]:53")),
            ("[fd00::1]:5353", Some("[fd00::1]:5353")),
            ("[10.0.0.1]", None),
            ("[fd00::1", None),
            ("dns.example", None),
            ("10.0.0.1:0", None),
            ("10.0.0.1:99999", None),
        ] {
            assert_eq!(parse_dns_server(text), expected.map(|text| text.parse().unwrap()), "{text}");
        }
    }
}
