//! Every name that discovery answers for, with its records made ahead, so that a query costs one look-up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::SystemTime;

use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV, TXT};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};

use crate::records::{EndpointRecord, reverse_query, service_query};
use crate::select::{Choice, RecordSet};
use crate::services::{Endpoint, Service, Services};

/// How long answers hold, in seconds; the negative ones too. Endpoints come and go, and a drain waits this long.
pub const TTL: u32 = 5;
/// The longest cluster domain with which every name below it fits into the 255 octets of a DNS name.
const LONGEST_CLUSTER_DOMAIN: usize = 80;

/// The domain of the cluster, `cluster.local` for example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDomain(String);

/// A text that is no cluster domain.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no cluster domain: use a DNS name of at most {LONGEST_CLUSTER_DOMAIN} of a-z, 0-9, `-` and `.`, such as cluster.local"
)]
pub struct ClusterDomainError(String);

impl ClusterDomain {
    pub fn new(text: &str) -> Result<Self, ClusterDomainError> {
        let domain = text.trim_end_matches('.').to_ascii_lowercase();
        let label = |label: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            (1..=63).contains(&label.len()) && label.bytes().all(allowed)
        };
        if domain.len() > LONGEST_CLUSTER_DOMAIN || !domain.split('.').all(label) {
            return Err(ClusterDomainError(text.to_owned()));
        }
        Ok(Self(domain))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a name lies.
pub(crate) enum Place<'a> {
    /// In the cluster's domain, or the reverse name of an address that is known here.
    Known(&'a Node),
    /// In the cluster's domain, where it would be known if it existed.
    Absent,
    /// The reverse name of an address that is not the mesh's.
    ForeignAddress,
    Elsewhere,
}

/// The names, and what is at them.
pub(crate) struct Index {
    nodes: HashMap<LowerName, Node>,
    cluster_domain: LowerName,
    reverse_domains: [LowerName; 2],
    pub(crate) start_of_authority: Record,
}

/// What is at one name; nothing where only names below it have something.
#[derive(Default)]
pub(crate) struct Node {
    sets: Vec<(RecordType, RecordSet)>,
    reverse: bool,
}

impl Node {
    pub(crate) fn set(&self, kind: RecordType) -> Option<&RecordSet> {
        self.sets.iter().find(|(one, _)| *one == kind).map(|(_, set)| set)
    }

    /// Any one set, which is enough for a question about all of them (RFC 8482 4.1).
    pub(crate) fn any_set(&self) -> Option<&RecordSet> {
        self.sets.first().map(|(_, set)| set)
    }

    pub(crate) fn is_reverse(&self) -> bool {
        self.reverse
    }
}

impl Index {
    pub(crate) fn new(services: &Services, cluster_domain: &ClusterDomain) -> Self {
        let domain = full_name(cluster_domain.as_str());
        let mut index = Self {
            nodes: HashMap::new(),
            cluster_domain: LowerName::new(&domain),
            reverse_domains: ["in-addr.arpa", "ip6.arpa"].map(|name| LowerName::new(&full_name(name))),
            start_of_authority: start_of_authority(&domain, cluster_domain),
        };
        let apex = RecordSet::fixed(index.start_of_authority.clone());
        index.node(&domain).sets.push((RecordType::SOA, apex));
        let mut addresses = Addresses::new();
        for service in services.as_slice() {
            index.add_service(service, cluster_domain);
            note_addresses(service, &mut addresses);
        }
        for (address, told) in addresses {
            index.add_reverse(address, told);
        }
        index
    }

    pub(crate) fn find(&self, name: &LowerName) -> Place<'_> {
        if let Some(node) = self.nodes.get(name) {
            Place::Known(node)
        } else if self.cluster_domain.zone_of(name) {
            Place::Absent
        } else if self.reverse_domains.iter().any(|domain| domain.zone_of(name)) {
            Place::ForeignAddress
        } else {
            Place::Elsewhere
        }
    }

    /// The node at a name of the cluster's domain, which makes all names above it exist too.
    fn node(&mut self, name: &Name) -> &mut Node {
        let mut above = LowerName::new(name).base_name();
        while self.cluster_domain.zone_of(&above) && !self.nodes.contains_key(&above) {
            self.nodes.insert(above.clone(), Node::default());
            above = above.base_name();
        }
        self.nodes.entry(LowerName::new(name)).or_default()
    }

    fn add_service(&mut self, service: &Service, cluster_domain: &ClusterDomain) {
        let Service { name, namespace, .. } = service;
        let text = format!("{name}.{namespace}.svc.{}", cluster_domain.as_str());
        let own_name = full_name(&text);
        let hosts: Vec<Name> = service
            .endpoints
            .iter()
            .map(|endpoint| full_name(&format!("{}.{text}", host_label(endpoint.address))))
            .collect();
        for (endpoint, host) in service.endpoints.iter().zip(&hosts) {
            self.add_addresses(host, vec![endpoint.address]);
        }
        if service.vips.is_empty() {
            self.add_addresses(&own_name, service.endpoints.iter().map(|one| one.address).collect());
        } else {
            self.add_addresses(&own_name, service.vips.clone());
        }
        for port in &service.ports {
            let query = service_query(port.port, name, namespace, cluster_domain.as_str());
            let at = full_name(&query);
            let targets = service.endpoints.iter().zip(&hosts).map(|(endpoint, host)| Choice {
                seed: seed(endpoint.address),
                record: record(&at, service_target(endpoint, port.target_port, host)),
                along: Some(record(host, address_data(endpoint.address))),
            });
            let strings = service.endpoints.iter().map(|endpoint| Choice {
                seed: seed(endpoint.address),
                record: string(&at, &endpoint.record(namespace, port.target_port, port.opaque).to_string()),
                along: None,
            });
            let about = string(&at, &service.record().to_string());
            let targets = RecordSet::new(None, targets.collect());
            let strings = RecordSet::new(Some(about), strings.collect());
            let node = self.node(&at);
            node.add(RecordType::SRV, targets);
            node.add(RecordType::TXT, strings);
        }
        // A service without ports or addresses exists all the same.
        self.node(&own_name);
    }

    fn add_addresses(&mut self, at: &Name, addresses: Vec<IpAddr>) {
        for (kind, v4) in [(RecordType::A, true), (RecordType::AAAA, false)] {
            let choices = addresses.iter().filter(|ip| ip.is_ipv4() == v4).map(|ip| Choice {
                seed: seed(*ip),
                record: record(at, address_data(*ip)),
                along: None,
            });
            let set = RecordSet::new(None, choices.collect());
            self.node(at).add(kind, set);
        }
    }

    fn add_reverse(&mut self, address: IpAddr, told: Told) {
        let at = full_name(&reverse_query(address));
        let mut services = told.services.into_iter();
        let first = services.next().map(|text| string(&at, &text));
        let others = services.map(|text| (address, text)).chain(told.endpoints);
        let choices =
            others.map(|(ip, text)| Choice { seed: seed(ip), record: string(&at, &text), along: None });
        let node =
            Node { sets: vec![(RecordType::TXT, RecordSet::new(first, choices.collect()))], reverse: true };
        self.nodes.insert(LowerName::new(&at), node);
    }
}

impl Node {
    fn add(&mut self, kind: RecordType, set: RecordSet) {
        if !set.is_empty() {
            self.sets.push((kind, set));
        }
    }
}

/// What is told of each address.
type Addresses = BTreeMap<IpAddr, Told>;

#[derive(Default)]
struct Told {
    services: Vec<String>,
    endpoints: Vec<(IpAddr, String)>,
}

/// A VIP's strings are those of its service: itself, and its endpoints on every port. An endpoint's strings are its own on
/// every port of every service it is behind, or one for port 0 when there is none, and those services. Its weight and
/// zone say nothing there, but it is one string a port.
fn note_addresses(service: &Service, addresses: &mut Addresses) {
    let about = service.record().to_string();
    let on_ports = |endpoint: &Endpoint| -> Vec<EndpointRecord> {
        let ports = service.ports.iter();
        ports.map(|port| endpoint.record(&service.namespace, port.target_port, port.opaque)).collect()
    };
    let all: Vec<(IpAddr, String)> = service
        .endpoints
        .iter()
        .flat_map(|endpoint| on_ports(endpoint).into_iter().map(|told| (endpoint.address, told.to_string())))
        .collect();
    for vip in &service.vips {
        let told = addresses.entry(*vip).or_default();
        told.services.push(about.clone());
        // Two ports of a service may lead to the same one of the endpoints.
        let mut seen = HashSet::new();
        told.endpoints.extend(all.iter().filter(|(_, text)| seen.insert(text)).cloned());
    }
    for endpoint in &service.endpoints {
        let told = addresses.entry(endpoint.address).or_default();
        told.services.push(about.clone());
        let mut own = on_ports(endpoint);
        let unmeshed = endpoint.unmeshed_ports.iter();
        own.extend(unmeshed.map(|port| endpoint.record(&service.namespace, *port, false)));
        if service.ports.is_empty() {
            own.push(endpoint.record(&service.namespace, 0, false));
        }
        for record in own {
            let start = format!("v=1 addr={} ", record.address);
            // A weight is one among the endpoints of one service.
            let text = EndpointRecord { weight: 1, ..record }.to_string();
            if !told.endpoints.iter().any(|(_, other)| other.starts_with(&start)) {
                told.endpoints.push((endpoint.address, text));
            }
        }
    }
}

/// `10-77-0-3`, or all eight groups of an IPv6 address, since a label neither starts nor ends with a dash.
fn host_label(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.octets().map(|part| part.to_string()).join("-"),
        IpAddr::V6(ip) => ip.segments().map(|part| format!("{part:x}")).join("-"),
    }
}

fn service_target(endpoint: &Endpoint, port: u16, host: &Name) -> RData {
    RData::SRV(SRV::new(0, endpoint.weight, port, host.clone()))
}

fn address_data(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn string(at: &Name, text: &str) -> Record {
    record(at, RData::TXT(TXT::new(vec![text.to_owned()])))
}

fn record(at: &Name, data: RData) -> Record {
    Record::from_rdata(at.clone(), TTL, data)
}

fn start_of_authority(domain: &Name, cluster_domain: &ClusterDomain) -> Record {
    let seconds = outrigger_ca::unix_seconds(SystemTime::now());
    let server = full_name(&format!("discovery.outrigger.svc.{}", cluster_domain.as_str()));
    let contact = full_name(&format!("hostmaster.{}", cluster_domain.as_str()));
    // A serial wraps around by design (RFC 1982); nobody transfers this zone.
    let serial = (seconds & u64::from(u32::MAX)) as u32;
    let data = SOA::new(server, contact, serial, 3600, 600, 86_400, TTL);
    record(domain, RData::SOA(data))
}

fn full_name(text: &str) -> Name {
    let mut name = Name::from_ascii(text)
        .expect("checked services and a checked cluster domain make names of valid length");
    name.set_fqdn(true);
    name
}

/// The same for an address on every server and in every run, so that subsets stay as they are. FNV-1a
/// (<http://www.isthe.com/chongo/tech/comp/fnv/>), since the standard library promises no hash that stays the same.
pub(crate) fn seed(ip: IpAddr) -> u64 {
    let fold = |hash: u64, octet: &u8| (hash ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3);
    let start = 0xcbf2_9ce4_8422_2325;
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets().iter().fold(start, fold),
        IpAddr::V6(ip) => ip.octets().iter().fold(start, fold),
    }
}
