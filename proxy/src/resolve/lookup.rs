//! One lookup of one target: who is asked, in which order, and whose word counts for what.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use outrigger_discovery::is_local;
use outrigger_discovery::records::ServiceRecord;
use tokio::time::timeout;

use super::answer::{Answer, LookupError, ResolvedEndpoint, Source, Target};
use super::believe::{Belief, Families};
use super::mesh::{Directory, Told, service_info};
use super::outcome::{DEGRADED, Miss, NEGATIVE_UNSTATED, Outcome, longest};
use super::plain::Plain;
use super::search;
use crate::config::is_not_redirected;

/// A whole lookup, all candidates and sources. Above what a dead DNS server costs (3 s): by then discovery has been asked
/// about the next candidate too. Below what a caller waits (4 s), who may have to learn whose an address is after it.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_millis(3500);
/// Addresses of one pod's name whose owner is asked for.
const MOST_POD_ADDRESSES: usize = 16;

/// Where a name stands in the cluster's DNS.
#[derive(PartialEq, Eq, Debug)]
enum Place<'a> {
    /// `<service>.<namespace>.svc.<cluster domain>`
    Service {
        service: &'a str,
        namespace: &'a str,
    },
    /// `<pod>.<service>.<namespace>.svc.<cluster domain>`
    Pod,
    Elsewhere,
}

/// Everything that can be asked.
pub(super) struct Lookup {
    pub plain: Arc<Plain>,
    pub directory: Option<Directory>,
    pub own_addresses: Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>,
    pub cluster_domain: String,
}

impl Lookup {
    /// Looks a target up once.
    pub(super) async fn run(&self, target: &Target) -> Outcome {
        // Outside of what may be given up half done.
        let mut undenied_names = Vec::new();
        let asking = async {
            match target {
                Target::Name { host, port } => self.name(host, *port, &mut undenied_names).await,
                Target::Srv { name } => self.srv(name).await,
                Target::Address(dialled) => self.address(*dialled).await,
            }
        };
        let mut outcome = timeout(LOOKUP_TIMEOUT, asking).await.unwrap_or_else(|_| {
            Outcome::Failed(failure(target, format!("no answer within {LOOKUP_TIMEOUT:?}")))
        });
        if let Outcome::Failed(LookupError::Failed { undenied, .. })
        | Outcome::Degraded(_, LookupError::Failed { undenied, .. }) = &mut outcome
        {
            *undenied = undenied_names;
        }
        outcome
    }

    /// `undenied` becomes the full names that may exist as far as is known.
    async fn name(&self, host: &Arc<str>, port: u16, undenied: &mut Vec<String>) -> Outcome {
        let target = Target::Name { host: host.clone(), port };
        if let Some(name) = search::name(host)
            && let Some(addresses) = self.plain.hosts.table().get(&name)
        {
            let answer = Found::new(&name, Source::Hosts, longest());
            return Outcome::Found(answer.with_addresses(addresses, port).sift(&self.belief()));
        }
        let mut shortest = NEGATIVE_UNSTATED;
        let mut failed = None;
        let candidates = self.plain.search.candidates(host);
        // What is neither a service's name nor a pod's can't be discovery's.
        undenied.extend(candidates.iter().filter(|name| !self.is_nowhere_in_the_mesh(name)).cloned());
        for candidate in candidates {
            match self.candidate(&target, &candidate, port, undenied).await {
                found @ (Outcome::Found(_) | Outcome::Degraded(..)) => return found,
                Outcome::Absent { valid_for, .. } => {
                    undenied.retain(|name| *name != candidate);
                    shortest = shortest.min(valid_for);
                }
                // What a broken search domain can't say, another may: as the C library does. But a name that may be the
                // mesh's must not turn into a longer or shorter one outside of it because discovery is away.
                outcome @ Outcome::Failed(_)
                    if self.is_meshs_to_say(&candidate) && undenied.contains(&candidate) =>
                {
                    return outcome;
                }
                outcome => failed = Some(outcome),
            }
        }
        failed.unwrap_or_else(|| absent(&target, shortest))
    }

    /// A full name: discovery first, then ordinary DNS. One that discovery denies goes from `undenied`.
    async fn candidate(&self, target: &Target, name: &str, port: u16, undenied: &mut Vec<String>) -> Outcome {
        let told = match (&self.directory, self.place(name)) {
            (Some(directory), Place::Service { service, namespace }) => {
                match directory.service(port, service, namespace).await {
                    Ok(told) => Ok(self.told(directory, name, &told)),
                    Err(Miss::Absent { .. }) => self.undeclared(directory, name, port).await,
                    Err(failed) => Err(failed),
                }
            }
            (Some(directory), Place::Pod) => self.pod(directory, name, port).await,
            (None, _) | (_, Place::Elsewhere) => Err(Miss::absent(None)),
        };
        match told {
            Ok(answer) => Outcome::Found(answer),
            Err(Miss::Absent { .. }) => {
                if self.is_meshs_to_say(name) {
                    undenied.retain(|one| one != name);
                }
                match self.ordinary(name, port).await {
                    Ok(answer) => Outcome::Found(answer),
                    Err(miss) => missed(target, miss),
                }
            }
            Err(Miss::Failed(reason)) => degraded(target, reason, self.ordinary(name, port).await),
        }
    }

    async fn srv(&self, name: &Arc<str>) -> Outcome {
        let target = Target::Srv { name: name.clone() };
        let Some(full) = search::name(name) else {
            return absent(&target, NEGATIVE_UNSTATED);
        };
        let told = match &self.directory {
            Some(directory) if self.within_services(&full).is_some() => {
                directory.strings(&full).await.map(|told| self.told(directory, &full, &told))
            }
            _ => Err(Miss::absent(None)),
        };
        match told {
            Ok(answer) => Outcome::Found(answer),
            Err(Miss::Absent { .. }) => match self.ordinary_srv(&full).await {
                Ok(answer) => Outcome::Found(answer),
                Err(miss) => missed(&target, miss),
            },
            Err(Miss::Failed(reason)) => degraded(&target, reason, self.ordinary_srv(&full).await),
        }
    }

    /// Whose address is it? Only discovery knows; what ordinary DNS says of an address proves nothing.
    async fn address(&self, dialled: SocketAddr) -> Outcome {
        let target = Target::Address(dialled);
        let ip = dialled.ip().to_canonical();
        let Some(directory) = &self.directory else {
            return absent(&target, NEGATIVE_UNSTATED);
        };
        if is_local(ip) {
            // Discovery takes none of these for an endpoint.
            return absent(&target, longest());
        }
        let owner = match directory.owner(ip).await {
            Ok(told) => told,
            Err(miss) => return missed(&target, miss),
        };
        let belief = self.belief().with_dialled(ip);
        let Some(service) = owner.services.iter().find(|one| one.vips.contains(&ip)) else {
            let answer = pod_endpoint(directory, &owner, SocketAddr::new(ip, dialled.port()));
            let mut found = Found::new(&ip.to_string(), Source::Mesh, owner.valid_for);
            // Behind several services, none of them is the one that was meant.
            if let [service] = &owner.services[..] {
                found.answer.service = Some(service_info(service));
            }
            found.answer.endpoints.push(answer);
            return Outcome::Found(found.sift(&belief));
        };
        // The reverse name has the strings of every port of the service; those of the dialled one are at its own name.
        let name = format!("{}.{}.svc.{}", service.name, service.namespace, self.cluster_domain);
        let port = directory.service(dialled.port(), &service.name, &service.namespace).await;
        match port {
            Ok(told) => Outcome::Found(self.told(directory, &name, &told)),
            Err(Miss::Absent { valid_for }) => {
                Outcome::Found(no_such_port(&name, service, valid_for).sift(&belief))
            }
            Err(miss) => missed(&target, miss),
        }
    }

    /// A port of a service that discovery does not know. Behind the VIP of a service that it does know there is nothing then,
    /// whatever ordinary DNS says; a service without a VIP stands for its pods, any port of which may be dialled.
    async fn undeclared(&self, directory: &Directory, name: &str, port: u16) -> Result<Answer, Miss> {
        let (addresses, _) = directory.addresses(name, Families { v4: true, v6: true }).await?;
        // They are all VIPs or all pods.
        for ip in addresses.into_iter().take(1) {
            let owner = directory.owner(ip).await?;
            if let Some(service) = owner.services.iter().find(|one| one.vips.contains(&ip)) {
                return Ok(no_such_port(name, service, owner.valid_for).sift(&self.belief()));
            }
        }
        self.pod(directory, name, port).await
    }

    /// A pod's own name: its addresses and their owner, both by discovery. With addresses of ordinary DNS, whoever
    /// controls that could put any other workload, and its account, behind the name.
    async fn pod(&self, directory: &Directory, name: &str, port: u16) -> Result<Answer, Miss> {
        let belief = self.belief();
        let (mut addresses, mut valid_for) = directory.addresses(name, belief.families()).await?;
        addresses.truncate(MOST_POD_ADDRESSES);
        let owners = join_all(addresses.iter().map(|ip| directory.owner(*ip))).await;
        let mut endpoints = Vec::with_capacity(addresses.len());
        for (ip, owner) in addresses.into_iter().zip(owners) {
            let address = SocketAddr::new(ip, port);
            match owner {
                Ok(told) => {
                    valid_for = valid_for.min(told.valid_for);
                    endpoints.push(pod_endpoint(directory, &told, address));
                }
                Err(Miss::Absent { .. }) => endpoints.push(ResolvedEndpoint::at(address)),
                Err(failed) => return Err(failed),
            }
        }
        let mut found = Found::new(name, Source::Mesh, valid_for);
        found.answer.endpoints = endpoints;
        Ok(found.sift(&belief))
    }

    /// SRV, A and AAAA of a full name. Where there is SRV, the name's own addresses are its VIPs.
    async fn ordinary(&self, name: &str, port: u16) -> Result<Answer, Miss> {
        let belief = self.belief();
        let families = belief.families();
        let service = format!("_{port}._tcp.{name}");
        let (srv, addresses) = join(
            async {
                match search::name(&service) {
                    Some(service) => self.plain.dns.services(&service, families).await,
                    None => Err(Miss::absent(None)),
                }
            },
            self.plain.dns.addresses(name, families),
        )
        .await;
        let mut found = Found::new(name, Source::Dns, longest());
        match (srv, addresses) {
            (Ok((offered, srv_ttl)), addresses) => {
                found.answer.valid_for = srv_ttl;
                if let Ok((vips, ttl)) = addresses {
                    found.answer.valid_for = srv_ttl.min(ttl);
                    found.answer.vips = vips;
                }
                Ok(found.with_offered(offered).sift(&belief))
            }
            (Err(_), Ok((addresses, ttl))) => {
                found.answer.valid_for = ttl;
                Ok(found.with_addresses(&addresses, port).sift(&belief))
            }
            (Err(failed @ Miss::Failed(_)), Err(Miss::Absent { .. })) => Err(failed),
            (Err(_), Err(miss)) => Err(miss),
        }
    }

    async fn ordinary_srv(&self, name: &str) -> Result<Answer, Miss> {
        let belief = self.belief();
        let (offered, ttl) = self.plain.dns.services(name, belief.families()).await?;
        let found = Found::new(name, Source::Dns, ttl).with_offered(offered);
        Ok(found.sift(&belief))
    }

    /// Discovery's strings about one port of a service.
    fn told(&self, directory: &Directory, name: &str, told: &Told) -> Answer {
        let mut found = Found::new(name, Source::Mesh, told.valid_for);
        if let Some(service) = told.services.first() {
            found.answer.vips = service.vips.clone();
            found.answer.service = Some(service_info(service));
        }
        let endpoints = told.endpoints.iter();
        found.answer.endpoints = endpoints.map(|record| directory.endpoint(record)).collect();
        let answer = found.clone().sift(&self.belief());
        if answer.endpoints.is_empty() {
            // A workload that calls the service behind which it alone stands enters by its own inbound side. Only
            // authenticated discovery can lead there.
            return found.sift(&self.belief().with_own());
        }
        answer
    }

    fn belief(&self) -> Belief {
        Belief::new((self.own_addresses)())
    }

    fn is_meshs_to_say(&self, name: &str) -> bool {
        self.directory.is_some() && self.place(name) != Place::Elsewhere
    }

    /// Whether it is in discovery's domain and has the form of nothing that is there.
    fn is_nowhere_in_the_mesh(&self, name: &str) -> bool {
        self.directory.is_some()
            && self.within_services(name).is_some()
            && self.place(name) == Place::Elsewhere
    }

    /// What stands before `.svc.<cluster domain>`.
    fn within_services<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_suffix(&*self.cluster_domain)?.strip_suffix(".svc.")
    }

    fn place<'a>(&self, name: &'a str) -> Place<'a> {
        let Some(within) = self.within_services(name) else {
            return Place::Elsewhere;
        };
        let mut labels = within.rsplitn(4, '.');
        let (namespace, service, pod, more) = (labels.next(), labels.next(), labels.next(), labels.next());
        match (namespace, service, pod, more) {
            (Some(namespace), Some(service), None, None) => Place::Service { service, namespace },
            (_, Some(_), Some(_), None) => Place::Pod,
            _ => Place::Elsewhere,
        }
    }
}

/// What a pod's strings say of one of its ports. A port that it does not declare is the pod's, so the account holds; a
/// sidecar takes all ports, so if one of them is meshed this one is; but a pod that declares only exempt ones says nothing
/// about the others. The ports that its redirect leaves alone are not part of "all".
fn pod_endpoint(directory: &Directory, told: &Told, address: SocketAddr) -> ResolvedEndpoint {
    let of_pod = || told.endpoints.iter().filter(|record| record.address.ip().to_canonical() == address.ip());
    let at = |port| of_pod().find(move |record| record.address.port() == port);
    if let Some(record) = at(address.port()) {
        return ResolvedEndpoint { address, ..directory.endpoint(record) };
    }
    let endpoint = match at(0) {
        Some(record) => ResolvedEndpoint { address, ..directory.endpoint(record) },
        None => ResolvedEndpoint {
            mesh: of_pod().any(|record| record.mesh).then_some(true),
            identity: of_pod().find_map(|record| directory.identity(record)),
            zone: of_pod().find_map(|record| record.zone.as_deref().map(Arc::from)),
            ..ResolvedEndpoint::at(address)
        },
    };
    let beside_sidecar = endpoint.mesh == Some(true) && is_not_redirected(address.port());
    let mesh = endpoint.mesh.filter(|_| !beside_sidecar);
    ResolvedEndpoint { mesh, beside_sidecar, ..endpoint }
}

/// The service is known and has no such port: nothing may be dialled, which is an answer.
fn no_such_port(name: &str, service: &ServiceRecord, valid_for: Duration) -> Found {
    let mut found = Found::new(name, Source::Mesh, valid_for);
    found.answer.vips = service.vips.clone();
    found.answer.service = Some(service_info(service));
    found
}

/// An answer in the making, whose addresses are not yet believed.
#[derive(Clone)]
struct Found {
    answer: Answer,
}

impl Found {
    fn new(name: &str, source: Source, valid_for: Duration) -> Self {
        Self {
            answer: Answer {
                name: name.into(),
                endpoints: Vec::new(),
                vips: Vec::new(),
                dropped: Vec::new(),
                source,
                service: None,
                valid_for,
            },
        }
    }

    fn with_addresses(mut self, addresses: &[IpAddr], port: u16) -> Self {
        let addresses = addresses.iter().map(|ip| SocketAddr::new(*ip, port));
        self.answer.endpoints = addresses.map(ResolvedEndpoint::at).collect();
        self
    }

    fn with_offered(mut self, offered: Vec<super::dns::Offered>) -> Self {
        let endpoints = offered.into_iter().map(|offered| ResolvedEndpoint {
            weight: u32::from(offered.weight).max(1),
            priority: offered.priority.into(),
            ..ResolvedEndpoint::at(offered.address)
        });
        self.answer.endpoints = endpoints.collect();
        self
    }

    fn sift(mut self, belief: &Belief) -> Answer {
        let (endpoints, dropped) = belief.sift(std::mem::take(&mut self.answer.endpoints));
        self.answer.endpoints = endpoints;
        self.answer.dropped = dropped;
        let vips = std::mem::take(&mut self.answer.vips);
        let vips = vips.into_iter().map(|ip| ip.to_canonical());
        let (mut believed, not): (Vec<_>, Vec<_>) = vips.partition(|ip| belief.accepts(*ip));
        believed.sort();
        believed.dedup();
        self.answer.vips = believed;
        self.answer.dropped.extend(not);
        self.answer.dropped.sort();
        self.answer.dropped.dedup();
        self.answer
    }
}

/// What ordinary DNS says in discovery's place: addresses and nothing else, and never that there is nothing.
fn degraded(target: &Target, reason: String, ordinary: Result<Answer, Miss>) -> Outcome {
    let error = failure(target, reason);
    match ordinary {
        Ok(mut answer) => {
            answer.valid_for = answer.valid_for.min(DEGRADED);
            Outcome::Degraded(answer, error)
        }
        Err(_) => Outcome::Failed(error),
    }
}

fn missed(target: &Target, miss: Miss) -> Outcome {
    match miss {
        Miss::Absent { valid_for } => absent(target, valid_for),
        Miss::Failed(reason) => Outcome::Failed(failure(target, reason)),
    }
}

fn absent(target: &Target, valid_for: Duration) -> Outcome {
    Outcome::Absent { error: LookupError::NotFound(target.to_string().into()), valid_for }
}

fn failure(target: &Target, reason: String) -> LookupError {
    LookupError::Failed { target: target.to_string().into(), reason, undenied: Vec::new() }
}
