//! Ordinary DNS: A, AAAA and SRV, over UDP and TCP. Nothing that it says is proof of anything; it finds addresses only.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;
use std::{io, str::FromStr};

use futures_util::future::join_all;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::Resolver as Client;
use hickory_resolver::config::{
    NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime};
use hickory_resolver::net::{DnsError, NetError};
use socket2::SockRef;
use tokio::net::{TcpStream, UdpSocket};

use super::believe::Families;
use super::outcome::{Miss, positive_ttl};
use super::settings::ResolveError;
use crate::net::Dialler;

/// One attempt; with [`ATTEMPTS`] a lost packet costs this long and a dead server less than a whole lookup may take.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Attempts after the first.
const ATTEMPTS: usize = 1;
/// The C library reads no more servers either.
const MOST_SERVERS: usize = 3;
/// Names behind one SRV name that are asked for their addresses where the answer did not bring them along.
const MOST_SRV_TARGETS: usize = 64;

/// An endpoint that an SRV record names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Offered {
    pub address: SocketAddr,
    /// Lower ones are used first.
    pub priority: u16,
    /// As the record states it; 0 means "almost nothing" (RFC 2782).
    pub weight: u16,
}

/// A client of ordinary DNS servers.
pub(super) struct Dns {
    client: Client<MarkedRuntime>,
}

impl Dns {
    pub(super) fn new(servers: &[SocketAddr], mark: Option<u32>) -> Result<Self, ResolveError> {
        let servers = servers
            .iter()
            .take(MOST_SERVERS)
            .map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                for connection in &mut config.connections {
                    connection.port = server.port();
                }
                config
            })
            .collect();
        let mut options = ResolverOpts::default();
        options.timeout = TIMEOUT;
        options.attempts = ATTEMPTS;
        options.use_hosts_file = ResolveHosts::Never;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        options.max_active_requests = 512;
        // Whoever follows a name keeps its answer; a second cache would make it older than its TTL.
        options.cache_size = 0;
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let runtime = MarkedRuntime { tokio: TokioRuntimeProvider::default(), mark };
        let client = Client::builder_with_config(config, runtime)
            .with_options(options)
            .build()
            .map_err(|error| ResolveError::Client(error.to_string()))?;
        Ok(Self { client })
    }

    /// A and AAAA of a full name. One family that fails does not take the other's answer away, but only both together
    /// can say that there is nothing.
    pub(super) async fn addresses(
        &self,
        name: &str,
        families: Families,
    ) -> Result<(Vec<IpAddr>, Duration), Miss> {
        let asked = [(families.v4, RecordType::A), (families.v6, RecordType::AAAA)];
        let answers = join_all(
            asked.into_iter().filter(|(wanted, _)| *wanted).map(|(_, kind)| self.records(name, kind)),
        )
        .await;
        let mut addresses = Vec::new();
        let mut valid_for = None;
        let mut miss = None;
        for answer in answers {
            match answer {
                Ok((lookup, ttl)) => {
                    let answers = lookup.answers().iter();
                    addresses.extend(answers.filter_map(|record| record.data.ip_addr()));
                    valid_for = Some(valid_for.map_or(ttl, |other: Duration| other.min(ttl)));
                }
                Err(failed @ Miss::Failed(_)) => miss = Some(failed),
                Err(absent) => miss = miss.or(Some(absent)),
            }
        }
        match (addresses.is_empty(), valid_for, miss) {
            (false, Some(valid_for), _) => Ok((addresses, valid_for)),
            (_, _, Some(miss)) => Err(miss),
            _ => Err(Miss::absent(None)),
        }
    }

    /// SRV of a full name, with the addresses of its targets.
    pub(super) async fn services(
        &self,
        name: &str,
        families: Families,
    ) -> Result<(Vec<Offered>, Duration), Miss> {
        let (lookup, mut valid_for) = self.records(name, RecordType::SRV).await?;
        let mut offers: Vec<(&Name, u16, u16, u16)> = lookup
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some((&srv.target, srv.port, srv.priority, srv.weight)),
                _ => None,
            })
            // The root as target: "decidedly not available" (RFC 2782).
            .filter(|(target, ..)| !target.is_root())
            .collect();
        // Those that are used first are asked for first, should there be too many.
        offers.sort_by_key(|(_, _, priority, _)| *priority);
        let mut addresses: BTreeMap<&Name, Vec<IpAddr>> = BTreeMap::new();
        for record in lookup.additionals() {
            if let Some(ip) = record.data.ip_addr() {
                addresses.entry(&record.name).or_default().push(ip);
            }
        }
        let mut unknown: Vec<&Name> = offers
            .iter()
            .map(|(target, ..)| *target)
            .filter(|target| !addresses.contains_key(target))
            .collect();
        let mut seen = BTreeSet::new();
        unknown.retain(|target| seen.insert(*target));
        unknown.truncate(MOST_SRV_TARGETS);
        let found = join_all(unknown.into_iter().map(|target| async move {
            let found = self.addresses(&target.to_ascii(), families).await;
            (target, found)
        }))
        .await;
        let mut failed = None;
        for (target, found) in found {
            match found {
                Ok((ips, ttl)) => {
                    valid_for = valid_for.min(ttl);
                    addresses.insert(target, ips);
                }
                Err(miss @ Miss::Failed(_)) => failed = Some(miss),
                Err(Miss::Absent { .. }) => {}
            }
        }
        let endpoints: Vec<Offered> = offers
            .iter()
            .flat_map(|(target, port, priority, weight)| {
                let ips = addresses.get(target).map_or(&[][..], Vec::as_slice);
                ips.iter().map(|ip| Offered {
                    address: SocketAddr::new(*ip, *port),
                    priority: *priority,
                    weight: *weight,
                })
            })
            .collect();
        match failed {
            Some(miss) if endpoints.is_empty() => Err(miss),
            _ => Ok((endpoints, valid_for)),
        }
    }

    /// One question.
    async fn records(&self, name: &str, kind: RecordType) -> Result<(Lookup, Duration), Miss> {
        let full = full_name(name)?;
        match self.client.lookup(full, kind).await {
            Ok(lookup) => {
                let ttl = lookup.answers().iter().map(|record| record.ttl).min();
                Ok((lookup, positive_ttl(ttl.unwrap_or_default())))
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Err(Miss::absent(none.negative_ttl)),
            Err(error) => Err(Miss::Failed(format!("{kind} of {name}: {error}"))),
        }
    }
}

/// A name as the wire wants it.
pub(super) fn full_name(name: &str) -> Result<Name, Miss> {
    let mut full = Name::from_ascii(name)
        .or_else(|_| Name::from_str(name))
        .map_err(|error| Miss::Failed(format!("{name} is not a DNS name: {error}")))?;
    full.set_fqdn(true);
    Ok(full)
}

/// Sockets with the packet mark that the redirect rules exempt.
#[derive(Clone)]
struct MarkedRuntime {
    tokio: TokioRuntimeProvider,
    mark: Option<u32>,
}

impl RuntimeProvider for MarkedRuntime {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let dialler = Dialler::to_peers(self.mark);
        Box::pin(async move {
            let stream = dialler.dial(server, timeout.unwrap_or(TIMEOUT)).await;
            stream.map(AsyncIoTokioAsStd).map_err(io::Error::other)
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            if let Some(mark) = mark {
                SockRef::from(&socket).set_mark(mark)?;
            }
            Ok(socket)
        })
    }
}
