//! The EndpointSlices of a Kubernetes service: listed, then watched.
//!
//! By plain HTTP, after <https://kubernetes.io/docs/reference/using-api/api-concepts/>: the crate `kube` costs 89 more crates
//! and 5.2 MiB of binary here (measured, fat LTO) for one kind of object, reads a list of any size, and keeps a token for
//! a minute.

mod slice;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::time::Instant;

use self::slice::{EndpointSlice, Metadata, Status};
use super::super::answer::ResolvedEndpoint;
use super::super::outcome::Miss;
use super::http::{Client, HttpError, Lines, Network, escaped, token};
use super::{PATIENCE, Pace, PassedOver, Provider};
use crate::config::{KubernetesDiscovery, ServicePort};

/// What a pod is given to talk to its API server by.
const ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const ACCOUNT_ROOTS: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// Where the environment does not say which it is.
const URL: &str = "https://kubernetes.default.svc";
/// The server ends a watch after this many seconds, and it is begun again from where it was. Servers give bookmarks about
/// once a minute, and need not: so the set is confirmed, and a server that has died is found out.
const WATCH_SECONDS: std::ops::RangeInclusive<u64> = 60..=90;
/// A watch that ends sooner without a word is no watch: whoever answers knows of none, and would confirm anything. The
/// same time as in Kubernetes' own clients.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// A service.
pub(super) struct Kubernetes {
    client: Client,
    /// The collection of slices, and the label by which they belong to the service.
    path: String,
    port: Option<ServicePort>,
    token: Token,
    slices: BTreeMap<String, EndpointSlice>,
    /// Up to where the slices are known.
    version: Option<String>,
    watch: Option<Watch>,
    pace: Pace,
    passed_over: PassedOver,
}

/// Changes as they come.
struct Watch {
    lines: Lines,
    patience: Duration,
    began: Instant,
    has_said: bool,
}

/// What proves who asks.
enum Token {
    /// A file that the config names.
    Stated(PathBuf),
    /// The account's, if there is one.
    Account,
    /// None over plain HTTP.
    No,
}

/// What a watch says.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: EventKind,
    object: serde_json::Value,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum EventKind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// The slices as they were at one moment.
#[derive(Deserialize)]
struct List {
    kind: String,
    metadata: Metadata,
    /// Null when there is none.
    items: Option<Vec<EndpointSlice>>,
}

/// Of a bookmark only the version counts.
#[derive(Deserialize)]
struct Bookmark {
    metadata: Metadata,
}

impl Kubernetes {
    pub(super) fn new(network: Network, settings: &KubernetesDiscovery) -> Result<Self, HttpError> {
        let url = settings.url.clone().unwrap_or_else(|| {
            let of = |name| std::env::var(name).ok();
            cluster_url(of("KUBERNETES_SERVICE_HOST"), of("KUBERNETES_SERVICE_PORT"))
        });
        let roots = settings.ca_file.clone().unwrap_or_else(|| ACCOUNT_ROOTS.into());
        let client = Client::new(network, &url, Some(roots))?;
        let selector = escaped(&format!("kubernetes.io/service-name={}", settings.service));
        let namespace = escaped(&settings.namespace);
        let token = match &settings.token_file {
            Some(file) => Token::Stated(file.clone()),
            None if url.starts_with("https") => Token::Account,
            None => Token::No,
        };
        Ok(Self {
            client,
            path: format!(
                "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector={selector}"
            ),
            port: settings.port.clone(),
            token,
            slices: BTreeMap::new(),
            version: None,
            watch: None,
            pace: Pace::new(),
            passed_over: PassedOver::default(),
        })
    }

    /// Everything as it is now.
    async fn list(&mut self) -> Result<(), HttpError> {
        self.pace.turn().await;
        let (_, body) = self.client.get(&self.path, &self.token.fields()?, PATIENCE).await?;
        let nonsense = |reason: String| self.client.nonsense(&body, reason);
        let list: List = serde_json::from_slice(&body).map_err(|error| nonsense(error.to_string()))?;
        if list.kind != "EndpointSliceList" {
            return Err(nonsense(format!("a list of endpoint slices was asked for, not {}", list.kind)));
        }
        let version = list.metadata.resource_version.filter(|version| !version.is_empty());
        self.version = Some(version.ok_or_else(|| nonsense("it has no resourceVersion".into()))?);
        let items = list.items.into_iter().flatten();
        self.slices = items.map(|slice| (slice.metadata.name.clone(), slice)).collect();
        Ok(())
    }

    /// Begins to watch from `version` on.
    async fn watch(&mut self, version: &str) -> Result<(), HttpError> {
        self.pace.turn().await;
        let seconds = rand::random_range(WATCH_SECONDS);
        let path = format!(
            "{}&watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            self.path,
            escaped(version)
        );
        let answer = self.client.open(&path, &self.token.fields()?, PATIENCE).await?;
        let patience = Duration::from_secs(seconds) + PATIENCE;
        let lines = Lines::new(self.client.clone(), answer);
        self.watch = Some(Watch { lines, patience, began: Instant::now(), has_said: false });
        Ok(())
    }

    /// Takes in what the watch says next; whether it says that something is confirmed.
    async fn event(&mut self) -> Result<bool, HttpError> {
        let Some(Watch { lines, patience, began, has_said }) = &mut self.watch else { return Ok(false) };
        let Some(line) = lines.next(*patience).await? else {
            if !*has_said && began.elapsed() < SHORTEST_WATCH {
                return Err(self.client.lost("the watch ended as soon as it began"));
            }
            // In order: it is begun again from here, which confirms what is known up to here.
            self.watch = None;
            return Ok(true);
        };
        *has_said = true;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(false);
        }
        let nonsense = |error: serde_json::Error| self.client.nonsense(&line, error);
        let Event { kind, object } = serde_json::from_slice(&line).map_err(nonsense)?;
        let metadata = match kind {
            EventKind::Added | EventKind::Modified => {
                let slice: EndpointSlice = serde_json::from_value(object).map_err(nonsense)?;
                let metadata = slice.metadata.clone();
                self.slices.insert(metadata.name.clone(), slice);
                metadata
            }
            EventKind::Deleted => {
                let slice: EndpointSlice = serde_json::from_value(object).map_err(nonsense)?;
                self.slices.remove(&slice.metadata.name);
                slice.metadata
            }
            EventKind::Bookmark => serde_json::from_value::<Bookmark>(object).map_err(nonsense)?.metadata,
            EventKind::Error => {
                let status: Status = serde_json::from_value(object).map_err(nonsense)?;
                if status.code == StatusCode::GONE.as_u16() {
                    self.begin_anew();
                    return Ok(false);
                }
                let Status { code, message } = status;
                return Err(self.client.lost(&format!("{code}: {message}")));
            }
        };
        if metadata.resource_version.is_some() {
            self.version = metadata.resource_version;
        }
        Ok(true)
    }

    fn begin_anew(&mut self) {
        self.version = None;
        self.watch = None;
    }

    /// Goes on until something is heard.
    async fn hear(&mut self) -> Result<(), HttpError> {
        loop {
            match &self.version {
                None => return self.list().await,
                Some(version) if self.watch.is_none() => {
                    let version = version.clone();
                    match self.watch(&version).await {
                        // Too long ago for the server to know what came since.
                        Err(error) if error.status() == Some(StatusCode::GONE) => self.begin_anew(),
                        begun => begun?,
                    }
                }
                Some(_) => {
                    if self.event().await? {
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl Provider for Kubernetes {
    async fn next(&mut self) -> Result<Vec<ResolvedEndpoint>, Miss> {
        if let Err(error) = self.hear().await {
            // What came between is not known.
            self.begin_anew();
            return Err(error.into());
        }
        let (endpoints, passed_over) =
            slice::endpoints(self.slices.values(), self.port.as_ref()).map_err(Miss::Failed)?;
        self.passed_over.tell("Kubernetes", passed_over);
        Ok(endpoints)
    }
}

impl Token {
    fn fields(&self) -> Result<Vec<(HeaderName, HeaderValue)>, HttpError> {
        let file = match self {
            Self::Stated(file) => file,
            Self::Account if Path::new(ACCOUNT_TOKEN).exists() => Path::new(ACCOUNT_TOKEN),
            Self::Account | Self::No => return Ok(Vec::new()),
        };
        Ok(vec![(AUTHORIZATION, token(file, "Bearer ")?)])
    }
}

/// The API server of the cluster that a pod runs in.
fn cluster_url(host: Option<String>, port: Option<String>) -> String {
    let port = port.as_deref().unwrap_or("443");
    match host {
        Some(host) if host.contains(':') => format!("https://[{host}]:{port}"),
        Some(host) => format!("https://{host}:{port}"),
        None => URL.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_is_the_one_that_the_environment_names() {
        let url = |host: &str, port: Option<&str>| cluster_url(Some(host.into()), port.map(Into::into));
        assert_eq!(url("10.96.0.1", Some("6443")), "https://10.96.0.1:6443");
        assert_eq!(url("fd00::1", None), "https://[fd00::1]:443");
        assert_eq!(cluster_url(None, None), URL);
    }
}
