//! What discovery tells about the mesh, as strings of DNS TXT records.
//!
//! A string is a list of `key=value` separated by spaces, and starts with its version, `v=1`. Keys that a reader does
//! not know are passed over, so that later versions of discovery may say more; a change that old readers must not
//! miss gets another version number. What these strings say about meshing and accounts counts only when it was told
//! over DNS over TLS by discovery itself.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

/// A string of a TXT record carries its length in one octet (RFC 1035 3.3).
pub const LONGEST: usize = 255;

/// One endpoint of a service, on one port:
/// `v=1 addr=10.1.2.3:8080 mesh=1 ns=shop sa=api zone=a weight=1 opaque=0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointRecord {
    /// Where to connect to. Port 0 says that this holds for every port of the address.
    pub address: SocketAddr,
    /// Whether a sidecar is there, so that it is spoken to over mesh mTLS only. Always said: `mesh=0` or `mesh=1`.
    pub mesh: bool,
    pub namespace: String,
    /// Empty (`sa` is left out) where it is not known.
    pub service_account: String,
    pub zone: Option<String>,
    /// The share of traffic relative to the other endpoints'; at least 1, which is the default.
    pub weight: u32,
    /// Whether its bytes are carried as they are, without looking for HTTP. Default: no.
    pub opaque: bool,
}

/// A service and the policy that its owner set:
/// `v=1 service name=api ns=shop vip=10.96.0.7 timeout=3s retries=1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceRecord {
    pub name: String,
    pub namespace: String,
    /// Addresses that stand for the whole service; separated by commas in the string.
    pub vips: Vec<IpAddr>,
    /// The request timeout, more than nothing; written as whole `s` or `ms`.
    pub timeout: Option<Duration>,
    /// How often a request may be tried again.
    pub retries: Option<u32>,
}

/// One string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    Endpoint(EndpointRecord),
    Service(ServiceRecord),
}

/// Why a string is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a record has at most {LONGEST} bytes, this one has {0}")]
    TooLong(usize),
    #[error("a record starts with `v=1 `; a reader of this version does not understand another")]
    Version,
    #[error("`{0}` is missing")]
    Missing(&'static str),
    #[error("`{0}` is there twice")]
    Twice(&'static str),
    #[error("`{key}={value}` is not valid: {allowed}")]
    Value { key: &'static str, value: String, allowed: &'static str },
}

/// The name at which a port of a service is asked for: `_8080._tcp.api.shop.svc.cluster.local`.
pub fn service_query(port: u16, service: &str, namespace: &str, cluster_domain: &str) -> String {
    format!("_{port}._tcp.{service}.{namespace}.svc.{cluster_domain}")
}

/// The name at which an address is asked for (RFC 1035 3.5, RFC 3596 2.5). An IPv4 address mapped into IPv6 is asked
/// for as what it is.
pub fn reverse_query(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let mut name = String::with_capacity(72);
            for octet in ip.octets().iter().rev() {
                for nibble in [octet & 15, octet >> 4] {
                    name.extend([char::from_digit(u32::from(nibble), 16).unwrap_or('0'), '.']);
                }
            }
            name + "ip6.arpa"
        }
    }
}

impl fmt::Display for EndpointRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, namespace, weight, .. } = self;
        write!(f, "v=1 addr={address} mesh={} ns={namespace}", u8::from(self.mesh))?;
        if !self.service_account.is_empty() {
            write!(f, " sa={}", self.service_account)?;
        }
        if let Some(zone) = &self.zone {
            write!(f, " zone={zone}")?;
        }
        write!(f, " weight={weight} opaque={}", u8::from(self.opaque))
    }
}

impl fmt::Display for ServiceRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v=1 service name={} ns={}", self.name, self.namespace)?;
        for (index, vip) in self.vips.iter().enumerate() {
            let before = if index == 0 { " vip=" } else { "," };
            write!(f, "{before}{vip}")?;
        }
        if let Some(timeout) = self.timeout {
            let milliseconds = timeout.as_millis();
            match milliseconds % 1000 {
                0 => write!(f, " timeout={}s", milliseconds / 1000)?,
                _ => write!(f, " timeout={milliseconds}ms")?,
            }
        }
        match self.retries {
            Some(retries) => write!(f, " retries={retries}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(endpoint) => endpoint.fmt(f),
            Self::Service(service) => service.fmt(f),
        }
    }
}

impl FromStr for Record {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        if text.len() > LONGEST {
            return Err(RecordError::TooLong(text.len()));
        }
        let fields = text.strip_prefix("v=1 ").ok_or(RecordError::Version)?;
        match fields.strip_prefix("service ") {
            Some(fields) => read_service(&Fields(fields)).map(Self::Service),
            None => read_endpoint(&Fields(fields)).map(Self::Endpoint),
        }
    }
}

fn read_endpoint(fields: &Fields<'_>) -> Result<EndpointRecord, RecordError> {
    const FLAG: &str = "write 0 or 1";
    let flag = |text: &str| match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    };
    let weight = |text: &str| text.parse().ok().filter(|weight| *weight > 0);
    Ok(EndpointRecord {
        address: fields.needed("addr", "write ip:port, an IPv6 address in brackets", parse)?,
        mesh: fields.needed("mesh", FLAG, flag)?,
        namespace: fields.needed("ns", NAME, name)?,
        service_account: fields.optional("sa", NAME, name)?.unwrap_or_default(),
        zone: fields.optional("zone", NAME, name)?,
        weight: fields.optional("weight", "write a whole number from 1", weight)?.unwrap_or(1),
        opaque: fields.optional("opaque", FLAG, flag)?.unwrap_or(false),
    })
}

fn read_service(fields: &Fields<'_>) -> Result<ServiceRecord, RecordError> {
    let vips = |text: &str| text.split(',').map(|vip| vip.parse().ok()).collect();
    Ok(ServiceRecord {
        name: fields.needed("name", NAME, name)?,
        namespace: fields.needed("ns", NAME, name)?,
        vips: fields.optional("vip", "write IP addresses, separated by commas", vips)?.unwrap_or_default(),
        timeout: fields.optional("timeout", DURATION, parse_timeout)?,
        retries: fields.optional("retries", "write a whole number", parse)?,
    })
}

const NAME: &str = "it must not be empty";
pub(crate) const DURATION: &str = "write a duration of more than nothing, for example 250ms, 15s or 1h30m";

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Reads a duration of more than nothing: a timeout of nothing would let no request through.
pub(crate) fn parse_timeout(text: &str) -> Option<Duration> {
    outrigger_ca::duration::parse(text).filter(|timeout| !timeout.is_zero())
}

struct Fields<'a>(&'a str);

impl Fields<'_> {
    fn optional<T>(
        &self,
        key: &'static str,
        allowed: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, RecordError> {
        let mut values = self.0.split(' ').filter_map(|field| field.strip_prefix(key)?.strip_prefix('='));
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(RecordError::Twice(key));
        }
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(RecordError::Value { key, value: value.to_owned(), allowed }),
        }
    }

    fn needed<T>(
        &self,
        key: &'static str,
        allowed: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<T, RecordError> {
        self.optional(key, allowed, read)?.ok_or(RecordError::Missing(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str = "v=1 addr=10.1.2.3:8080 mesh=1 ns=shop sa=api zone=a weight=3 opaque=0";
    const SERVICE: &str = "v=1 service name=api ns=shop vip=10.96.0.7,fd00::7 timeout=3s retries=1";

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for text in [
            ENDPOINT,
            SERVICE,
            "v=1 addr=[fd00::3]:0 mesh=0 ns=shop weight=1 opaque=1",
            "v=1 service name=api ns=shop",
            "v=1 service name=api ns=shop timeout=1500ms retries=0",
        ] {
            let record: Record = text.parse().unwrap();
            assert_eq!(record.to_string(), text);
        }
        let Ok(Record::Endpoint(endpoint)) = ENDPOINT.parse() else { panic!() };
        assert_eq!(endpoint.address, "10.1.2.3:8080".parse().unwrap());
        assert_eq!((endpoint.mesh, endpoint.weight, endpoint.opaque), (true, 3, false));
        let Ok(Record::Service(service)) = SERVICE.parse() else { panic!() };
        assert_eq!(service.vips.len(), 2);
        assert_eq!(service.timeout, Some(Duration::from_secs(3)));
    }

    #[test]
    fn what_is_left_out_has_a_default_and_what_is_unknown_is_passed_over() {
        let record: Record = "v=1 mesh=0 later=x ns=shop addr=10.1.2.3:1 flag".parse().unwrap();
        let expected = EndpointRecord {
            address: "10.1.2.3:1".parse().unwrap(),
            mesh: false,
            namespace: "shop".into(),
            service_account: String::new(),
            zone: None,
            weight: 1,
            opaque: false,
        };
        assert_eq!(record, Record::Endpoint(expected));
    }

    #[test]
    fn errors_say_which_key() {
        for (text, expected) in [
            ("v=1 mesh=1 ns=shop", "`addr` is missing"),
            ("v=1 addr=10.1.2.3:80 ns=shop", "`mesh` is missing"),
            ("v=1 addr=10.1.2.3:80 mesh=0 mesh=1 ns=a", "`mesh` is there twice"),
            (
                "v=1 addr=10.1.2.3 mesh=1 ns=a",
                "`addr=10.1.2.3` is not valid: write ip:port, an IPv6 address in brackets",
            ),
            ("v=1 addr=10.1.2.3:80 mesh=yes ns=a", "`mesh=yes` is not valid: write 0 or 1"),
            (
                "v=1 addr=10.1.2.3:80 mesh=1 ns=a weight=0",
                "`weight=0` is not valid: write a whole number from 1",
            ),
            ("v=1 service ns=shop", "`name` is missing"),
            (
                "v=1 service name=a ns=b vip=10.1.2.3,",
                "`vip=10.1.2.3,` is not valid: write IP addresses, separated by commas",
            ),
            (
                "v=1 service name=a ns=b timeout=0s",
                "`timeout=0s` is not valid: write a duration of more than nothing, for example 250ms, 15s or 1h30m",
            ),
            (
                "v=2 addr=10.1.2.3:80",
                "a record starts with `v=1 `; a reader of this version does not understand another",
            ),
            ("", "a record starts with `v=1 `; a reader of this version does not understand another"),
            (&"x".repeat(256), "a record has at most 255 bytes, this one has 256"),
        ] {
            assert_eq!(text.parse::<Record>().unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn names_are_asked_for_as_the_design_says() {
        assert_eq!(
            service_query(8080, "api", "shop", "cluster.local"),
            "_8080._tcp.api.shop.svc.cluster.local"
        );
        assert_eq!(reverse_query("10.96.0.7".parse().unwrap()), "7.0.96.10.in-addr.arpa");
        assert_eq!(reverse_query("::ffff:10.96.0.7".parse().unwrap()), "7.0.96.10.in-addr.arpa");
        assert_eq!(
            reverse_query("2001:db8::567:89ab".parse().unwrap()),
            "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
        );
    }
}
