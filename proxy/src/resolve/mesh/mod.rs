//! The mesh's discovery: who stands behind a service or an address, told by a server that has proven its identity.
//!
//! `server` opens connections and checks whom they lead to, `client` keeps one of them and asks through it, `message` is
//! the wire. Nothing here speaks without TLS, so nothing spoofed can get in.

mod client;
mod message;
mod server;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use hickory_proto::rr::{RData, RecordType};
use outrigger_ca::{ExpectedIdentity, SpiffeId};
use outrigger_discovery::records::{self, EndpointRecord, Record, ServiceRecord};

use self::client::Client;
use super::answer::{ResolvedEndpoint, ServiceInfo};
use super::believe::Families;
use super::dns::full_name;
use super::outcome::{Miss, positive_ttl};

pub(super) use self::server::Server;

/// What discovery told about one name.
#[derive(Debug)]
pub(super) struct Told {
    pub endpoints: Vec<EndpointRecord>,
    pub services: Vec<ServiceRecord>,
    pub valid_for: Duration,
}

/// The mesh's discovery.
pub(super) struct Directory {
    client: Client,
    trust_domain: Arc<str>,
    cluster_domain: String,
}

impl Directory {
    /// Starts the client on the current runtime; it connects when it is first asked.
    pub(super) fn new(server: Server, cluster_domain: String) -> Self {
        let trust_domain = match server.expected() {
            ExpectedIdentity::Exact(id) => id.trust_domain().into(),
            ExpectedIdentity::Namespace { trust_domain, .. }
            | ExpectedIdentity::TrustDomain(trust_domain) => trust_domain.clone(),
        };
        Self { client: Client::start(server), trust_domain, cluster_domain }
    }

    /// The endpoints behind a port of a service.
    pub(super) async fn service(&self, port: u16, service: &str, namespace: &str) -> Result<Told, Miss> {
        let name = records::service_query(port, service, namespace, &self.cluster_domain);
        self.strings(&name).await
    }

    /// Whose address this is.
    pub(super) async fn owner(&self, ip: IpAddr) -> Result<Told, Miss> {
        self.strings(&records::reverse_query(ip)).await
    }

    /// The TXT strings at a name.
    pub(super) async fn strings(&self, name: &str) -> Result<Told, Miss> {
        let (answers, valid_for) = self.records(name, RecordType::TXT).await?;
        let mut told = Told { endpoints: Vec::new(), services: Vec::new(), valid_for };
        let strings = answers.iter().filter_map(|data| match data {
            RData::TXT(txt) => Some(txt.txt_data.iter()),
            _ => None,
        });
        for string in strings.flatten() {
            let Ok(text) = std::str::from_utf8(string) else {
                continue;
            };
            match text.parse() {
                Ok(Record::Endpoint(endpoint)) => told.endpoints.push(endpoint),
                Ok(Record::Service(service)) => told.services.push(service),
                // A newer discovery may say more than this proxy understands.
                Err(error) => tracing::debug!(name, text, %error, "passed over a record"),
            }
        }
        if told.endpoints.is_empty() && told.services.is_empty() {
            return Err(Miss::Failed(format!(
                "the mesh's discovery told nothing about {name} that is understood here"
            )));
        }
        Ok(told)
    }

    /// A and AAAA, as discovery knows them. Both must be answered: half an answer from this source is a failure.
    pub(super) async fn addresses(
        &self,
        name: &str,
        families: Families,
    ) -> Result<(Vec<IpAddr>, Duration), Miss> {
        let ask = async |wanted: bool, kind| {
            if !wanted {
                return Ok((Vec::new(), None));
            }
            match self.records(name, kind).await {
                Ok((data, ttl)) => Ok((data, Some(ttl))),
                Err(Miss::Absent { .. }) => Ok((Vec::new(), None)),
                Err(failed) => Err(failed),
            }
        };
        let (v4, v6) = join(ask(families.v4, RecordType::A), ask(families.v6, RecordType::AAAA)).await;
        let ((v4, v4_ttl), (v6, v6_ttl)) = (v4?, v6?);
        let ttl = v4_ttl.into_iter().chain(v6_ttl).min();
        let addresses: Vec<IpAddr> = v4.iter().chain(&v6).filter_map(RData::ip_addr).collect();
        match ttl {
            Some(ttl) if !addresses.is_empty() => Ok((addresses, ttl)),
            _ => Err(Miss::absent(None)),
        }
    }

    /// What the rest of the proxy needs to know of an endpoint.
    pub(super) fn endpoint(&self, record: &EndpointRecord) -> ResolvedEndpoint {
        ResolvedEndpoint {
            weight: record.weight.max(1),
            zone: record.zone.as_deref().map(Arc::from),
            mesh: Some(record.mesh),
            beside_sidecar: false,
            identity: self.identity(record),
            opaque: record.opaque,
            ..ResolvedEndpoint::at(record.address)
        }
    }

    /// The account that a record names.
    pub(super) fn identity(&self, record: &EndpointRecord) -> Option<SpiffeId> {
        SpiffeId::new(&self.trust_domain, &record.namespace, &record.service_account).ok()
    }

    async fn records(&self, name: &str, kind: RecordType) -> Result<(Vec<RData>, Duration), Miss> {
        let asked = full_name(name)?;
        let answer =
            self.client.ask(asked.clone(), kind).await.map_err(|error| Miss::Failed(error.to_string()))?;
        let answer = message::read_answer(answer, &asked, kind)?;
        Ok((answer.data, positive_ttl(answer.ttl_seconds)))
    }
}

/// What the rest of the proxy needs to know of a service.
pub(super) fn service_info(record: &ServiceRecord) -> ServiceInfo {
    ServiceInfo {
        name: record.name.as_str().into(),
        namespace: record.namespace.as_str().into(),
        timeout: record.timeout,
        retries: record.retries,
    }
}
