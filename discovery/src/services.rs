//! What discovery knows: services, their ports, and the endpoints behind them.
//!
//! Nothing here knows where it came from: a file fills it today, and anything else that fills it is answered from alike.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use outrigger_ca::SpiffeId;

use crate::local::is_local;
use crate::records::{EndpointRecord, LONGEST, ServiceRecord};

/// Retries multiply load at each hop of a chain of calls, so nobody may ask for more.
const MOST_RETRIES: u32 = 3;

/// A name that workloads call, and who answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub namespace: String,
    /// Addresses that stand for the whole service. Without one, its name has the addresses of its endpoints.
    pub vips: Vec<IpAddr>,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
    /// Request timeout that callers' sidecars apply; none: theirs.
    pub timeout: Option<Duration>,
    /// Retries that callers' sidecars make, at most 3; none: theirs.
    pub retries: Option<u32>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// What callers dial.
    pub port: u16,
    /// What the endpoints listen on.
    pub target_port: u16,
    /// Bytes are carried as they are, without looking for HTTP.
    pub opaque: bool,
}

/// A pod, or whatever else answers for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    /// The account in its certificate. Needed where there is a sidecar.
    pub service_account: Option<String>,
    /// Whether it has a sidecar.
    pub mesh: bool,
    /// Ports of its own that its sidecar leaves alone, so that they are reached without mesh TLS.
    pub unmeshed_ports: Vec<u16>,
    pub zone: Option<String>,
    /// Its share of traffic relative to the others', 1 to 65535.
    pub weight: u16,
}

impl Service {
    pub(crate) fn record(&self) -> ServiceRecord {
        ServiceRecord {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            vips: self.vips.clone(),
            timeout: self.timeout,
            retries: self.retries,
        }
    }
}

impl Endpoint {
    /// What is told of one of its ports; port 0 stands for all of them.
    pub(crate) fn record(&self, namespace: &str, port: u16, opaque: bool) -> EndpointRecord {
        EndpointRecord {
            address: (self.address, port).into(),
            mesh: self.mesh && !self.unmeshed_ports.contains(&port),
            namespace: namespace.to_owned(),
            service_account: self.service_account.clone().unwrap_or_default(),
            zone: self.zone.clone(),
            weight: self.weight.into(),
            opaque,
        }
    }

    fn same_workload(&self, other: &Self) -> bool {
        self.service_account == other.service_account
            && self.mesh == other.mesh
            && self.unmeshed_ports == other.unmeshed_ports
    }
}

/// Which part of the services breaks a rule, and how.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct Fault {
    /// Index of the service.
    pub service: usize,
    /// Index of its endpoint, when it is one's fault.
    pub endpoint: Option<usize>,
    pub problem: Problem,
}

/// A rule that is broken.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error(
        "`{0}` can't be part of a DNS name: use 1 to 63 of a-z, 0-9 and `-`, with a letter or digit at both ends"
    )]
    Label(String),
    #[error("service `{0}` is there twice: merge the two")]
    ServiceTwice(String),
    #[error("port 0 of service `{0}` can't be dialled: ports are 1 to 65535")]
    PortZero(String),
    #[error("port {0} is there twice: keep one")]
    PortTwice(u16),
    #[error(
        "{0} is no address that a peer can be reached at: give one that is neither loopback, link-local, multicast nor unspecified"
    )]
    Address(IpAddr),
    #[error("{0} is the address of two services: each needs its own")]
    VipTwice(IpAddr),
    #[error("{0} is the address of a service and of an endpoint: each needs its own")]
    VipIsEndpoint(IpAddr),
    #[error("endpoint {0} is there twice: keep one")]
    EndpointTwice(IpAddr),
    #[error(
        "endpoint {0} has another service account, namespace, `mesh` or `unmeshedPorts` in another service: one address is one workload"
    )]
    TwoWorkloads(IpAddr),
    #[error("endpoint {0} has a sidecar (`mesh`), so `serviceAccount` is needed: callers check it")]
    NoAccount(IpAddr),
    #[error("`{0}` is no service account: use letters, digits, `.`, `-` and `_`")]
    Account(String),
    #[error("`{0}` is no zone: use 1 to 63 printable characters without spaces")]
    Zone(String),
    #[error("a weight of 0 means nothing: give 1 to 65535, or remove the endpoint")]
    Weight,
    #[error("{0} retries are too many: at most {MOST_RETRIES}")]
    Retries(u32),
    #[error("a timeout must be at least a millisecond: leave it out for none")]
    Timeout,
    #[error("what is told of this takes {0} bytes, and {LONGEST} fit: shorten names or give fewer addresses")]
    TooLong(usize),
}

/// Services that keep all rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(Vec<Service>);

impl Services {
    /// Checks all rules; the first one broken is the error.
    pub fn new(services: Vec<Service>) -> Result<Self, Fault> {
        check(&services)?;
        Ok(Self(services))
    }

    pub fn as_slice(&self) -> &[Service] {
        &self.0
    }
}

fn check(services: &[Service]) -> Result<(), Fault> {
    let mut seen = Seen::default();
    for (index, service) in services.iter().enumerate() {
        let fault = |endpoint, problem| Fault { service: index, endpoint, problem };
        check_service(service, &mut seen).map_err(|problem| fault(None, problem))?;
        for (number, endpoint) in service.endpoints.iter().enumerate() {
            check_endpoint(service, endpoint, &mut seen).map_err(|problem| fault(Some(number), problem))?;
            if service.endpoints[..number].iter().any(|other| other.address == endpoint.address) {
                return Err(fault(Some(number), Problem::EndpointTwice(endpoint.address)));
            }
        }
    }
    // Only now are all endpoints known.
    for (index, service) in services.iter().enumerate() {
        if let Some(vip) = service.vips.iter().find(|vip| seen.endpoints.contains_key(*vip)) {
            return Err(Fault { service: index, endpoint: None, problem: Problem::VipIsEndpoint(*vip) });
        }
    }
    Ok(())
}

/// What must be unique, or say the same, across services.
#[derive(Default)]
struct Seen<'a> {
    services: HashMap<(&'a str, &'a str), ()>,
    vips: HashMap<IpAddr, ()>,
    endpoints: HashMap<IpAddr, (&'a str, &'a Endpoint)>,
}

fn check_service<'a>(service: &'a Service, seen: &mut Seen<'a>) -> Result<(), Problem> {
    check_label(&service.name)?;
    check_label(&service.namespace)?;
    let key = (service.namespace.as_str(), service.name.as_str());
    if seen.services.insert(key, ()).is_some() {
        return Err(Problem::ServiceTwice(format!("{}.{}", service.name, service.namespace)));
    }
    for vip in &service.vips {
        check_address(*vip)?;
        if seen.vips.insert(*vip, ()).is_some() {
            return Err(Problem::VipTwice(*vip));
        }
    }
    for (index, port) in service.ports.iter().enumerate() {
        if port.port == 0 || port.target_port == 0 {
            return Err(Problem::PortZero(service.name.clone()));
        }
        if service.ports[..index].iter().any(|other| other.port == port.port) {
            return Err(Problem::PortTwice(port.port));
        }
    }
    if service.timeout.is_some_and(|timeout| timeout.as_millis() == 0) {
        return Err(Problem::Timeout);
    }
    if let Some(retries) = service.retries.filter(|retries| *retries > MOST_RETRIES) {
        return Err(Problem::Retries(retries));
    }
    check_length(&service.record().to_string())
}

fn check_endpoint<'a>(
    service: &'a Service,
    endpoint: &'a Endpoint,
    seen: &mut Seen<'a>,
) -> Result<(), Problem> {
    check_address(endpoint.address)?;
    match &endpoint.service_account {
        None if endpoint.mesh => return Err(Problem::NoAccount(endpoint.address)),
        Some(account) if SpiffeId::new("cluster.local", &service.namespace, account).is_err() => {
            return Err(Problem::Account(account.clone()));
        }
        _ => {}
    }
    if let Some(zone) = &endpoint.zone
        && (zone.is_empty() || zone.len() > 63 || !zone.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err(Problem::Zone(zone.clone()));
    }
    if endpoint.weight == 0 {
        return Err(Problem::Weight);
    }
    let told = (service.namespace.as_str(), endpoint);
    let (namespace, first) = *seen.endpoints.entry(endpoint.address).or_insert(told);
    if namespace != service.namespace || !first.same_workload(endpoint) {
        return Err(Problem::TwoWorkloads(endpoint.address));
    }
    check_length(&endpoint.record(&service.namespace, u16::MAX, false).to_string())
}

fn check_label(label: &str) -> Result<(), Problem> {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    let valid = bytes.len() <= 63
        && bytes.iter().all(|byte| alphanumeric(*byte) || *byte == b'-')
        && bytes.first().is_some_and(|byte| alphanumeric(*byte))
        && bytes.last().is_some_and(|byte| alphanumeric(*byte));
    if valid { Ok(()) } else { Err(Problem::Label(label.to_owned())) }
}

/// Sidecars drop such addresses from answers, so that nothing leads to what listens on loopback only, or to a cloud's
/// metadata service; said here, the reason is seen where it can be mended.
fn check_address(address: IpAddr) -> Result<(), Problem> {
    // A mapped address would be asked for, and compared, as another one.
    if is_local(address) || address.to_canonical() != address {
        return Err(Problem::Address(address));
    }
    Ok(())
}

fn check_length(record: &str) -> Result<(), Problem> {
    if record.len() > LONGEST {
        return Err(Problem::TooLong(record.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{endpoint, service};

    fn refused(change: impl FnOnce(&mut Vec<Service>)) -> String {
        let mut services = vec![service("api", "10.96.0.7"), service("web", "10.96.0.8")];
        services[0].endpoints = vec![endpoint("10.77.0.3")];
        services[1].endpoints = vec![endpoint("10.77.0.3"), endpoint("10.77.0.4")];
        check(&services).unwrap();
        change(&mut services);
        check(&services).unwrap_err().to_string()
    }

    #[test]
    fn each_rule_is_kept() {
        let ip = |text: &str| text.parse().unwrap();
        type Change = Box<dyn FnOnce(&mut Vec<Service>)>;
        let cases: Vec<(Change, &str)> = vec![
            (Box::new(|s| s[0].name = "Api".into()), "`Api` can't be part of a DNS name"),
            (Box::new(|s| s[0].namespace = "-a".into()), "`-a` can't be part of a DNS name"),
            (Box::new(|s| s[0].name = "x".repeat(64)), "can't be part of a DNS name"),
            (Box::new(|s| s[0].name = "web".into()), "`web.shop` is there twice"),
            (Box::new(|s| s[0].ports[0].port = 0), "port 0 of service `api`"),
            (Box::new(|s| s[0].ports[0].target_port = 0), "port 0 of service `api`"),
            (
                Box::new(|s| {
                    let port = s[0].ports[0].clone();
                    s[0].ports.push(port)
                }),
                "port 8080 is there twice",
            ),
            (Box::new(move |s| s[0].vips = vec![ip("127.0.0.1")]), "127.0.0.1 is no address"),
            (
                Box::new(move |s| s[0].vips = vec![ip("10.96.0.8")]),
                "10.96.0.8 is the address of two services",
            ),
            (
                Box::new(move |s| s[0].vips = vec![ip("10.77.0.4")]),
                "10.77.0.4 is the address of a service and of an endpoint",
            ),
            (
                Box::new(move |s| s[0].endpoints[0].address = ip("169.254.169.254")),
                "169.254.169.254 is no address",
            ),
            (Box::new(move |s| s[0].vips = vec![ip("fd00:ec2::254")]), "fd00:ec2::254 is no address"),
            (Box::new(move |s| s[0].endpoints[0].address = ip("::ffff:10.77.0.9")), "is no address"),
            (Box::new(|s| s[1].endpoints[1] = endpoint("10.77.0.3")), "endpoint 10.77.0.3 is there twice"),
            (
                Box::new(|s| s[1].endpoints[0].service_account = Some("other".into())),
                "one address is one workload",
            ),
            (Box::new(|s| s[1].endpoints[0].mesh = false), "one address is one workload"),
            (Box::new(|s| s[1].namespace = "other".into()), "one address is one workload"),
            (Box::new(|s| s[0].endpoints[0].service_account = None), "`serviceAccount` is needed"),
            (
                Box::new(|s| s[0].endpoints[0].service_account = Some("a b".into())),
                "`a b` is no service account",
            ),
            (Box::new(|s| s[0].endpoints[0].zone = Some("a b".into())), "`a b` is no zone"),
            (Box::new(|s| s[0].endpoints[0].weight = 0), "a weight of 0"),
            (Box::new(|s| s[0].retries = Some(4)), "4 retries are too many"),
            (Box::new(|s| s[0].timeout = Some(Duration::ZERO)), "a timeout must be at least a millisecond"),
            (
                Box::new(|s| s[0].vips = (10..40).map(|last| IpAddr::from([10, 96, 100, last])).collect()),
                "255 fit",
            ),
        ];
        for (change, expected) in cases {
            let text = refused(change);
            assert!(text.contains(expected), "{text} should say {expected}");
        }
    }

    #[test]
    fn a_fault_says_where_it_is() {
        let mut services = vec![service("api", "10.96.0.7"), service("web", "10.96.0.8")];
        services[1].endpoints = vec![endpoint("10.77.0.3"), endpoint("10.77.0.4")];
        services[1].endpoints[1].weight = 0;
        let fault = check(&services).unwrap_err();
        assert_eq!((fault.service, fault.endpoint), (1, Some(1)));
    }
}
