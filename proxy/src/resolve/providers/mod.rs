//! Where endpoints come from when not by a name: one small file a provider, behind one interface.
//!
//! A [`Provider`] says what its source says; `keep` is everybody's driver and does the rest: it keeps the last good set
//! while a source is away or talks nonsense, waits longer from one failure to the next, and publishes. DNS stands one
//! folder up: it is asked by name and port rather than by settings.

mod consul;
mod eureka;
mod file;
mod fixed;
mod http;
mod keep;
mod kubernetes;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::answer::{ResolvedEndpoint, Snapshot, Source};
use super::follow::Followed;
use super::outcome::Miss;
use crate::config::{ConsulDiscovery, EurekaDiscovery, FileDiscovery, KubernetesDiscovery, StaticEndpoint};
use consul::Consul;
use eureka::{Eureka, Registries};
use file::File;
use fixed::Fixed;
use http::HttpError;
pub(super) use http::Network;
pub(super) use keep::OwnersAsked;
use keep::{About, Trust, keep};
use kubernetes::Kubernetes;

/// From the question to the head of its answer, where the server does not wait for news.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is said in the config about a provider other than DNS.
#[derive(Clone, Debug, PartialEq)]
pub enum ProviderSettings {
    /// Fixed addresses.
    Static(Vec<StaticEndpoint>),
    /// A watched file.
    File(FileDiscovery),
    /// Consul.
    Consul(ConsulDiscovery),
    /// Netflix Eureka.
    Eureka(EurekaDiscovery),
    /// EndpointSlices of a Kubernetes service.
    Kubernetes(KubernetesDiscovery),
}

/// A source of endpoint sets.
trait Provider: Send + 'static {
    /// Waits until the source says something, new or the same again, and gives the whole set. Called again right after a
    /// set, and after [`pause`](Self::pause) when it was a miss.
    fn next(&mut self) -> impl Future<Output = Result<Vec<ResolvedEndpoint>, Miss>> + Send;

    /// Lets this time pass after a miss, or less if there may be news.
    fn pause(&mut self, suggested: Duration) -> impl Future<Output = ()> + Send {
        sleep(suggested)
    }
}

/// What all providers are given.
pub(super) struct Providers {
    pub network: Network,
    pub own_addresses: Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>,
    pub cluster_domain: String,
    registries: Registries,
}

impl Providers {
    pub(super) fn new(
        network: Network,
        own_addresses: Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>,
        cluster_domain: String,
    ) -> Self {
        Self { network, own_addresses, cluster_domain, registries: Registries::default() }
    }

    /// Starts to follow what a provider says, on the current runtime, until nobody looks at it any longer; with the owners
    /// of its addresses if they are to be asked for.
    pub(super) fn follow(&self, settings: &ProviderSettings, owners: Option<OwnersAsked>) -> Followed {
        let network = self.network.clone();
        match settings {
            ProviderSettings::Static(endpoints) => {
                let about = self.about("the config", "static", Source::Static, Trust::Operator);
                let endpoints = fixed::endpoints(endpoints);
                if owners.is_none() {
                    return Followed::fixed(keep::good(&about, endpoints));
                }
                self.start(about, owners, Ok::<_, HttpError>(Fixed::new(endpoints)))
            }
            ProviderSettings::File(file) => {
                let path = file.path.display().to_string();
                let about = self.about(&format!("the file {path}"), &path, Source::File, Trust::Operator);
                self.start(about, owners, Ok::<_, HttpError>(File::new(file.path.clone())))
            }
            ProviderSettings::Consul(settings) => {
                let consul = Consul::new(network, settings);
                let loopback = consul.as_ref().is_ok_and(Consul::is_loopback);
                let what = format!("the service {} in Consul", settings.service);
                let trust = Trust::Catalog { loopback };
                self.start(self.about(&what, &settings.service, Source::Consul, trust), owners, consul)
            }
            ProviderSettings::Eureka(settings) => {
                let eureka = Eureka::new(network, settings, &self.registries);
                let loopback = eureka.as_ref().is_ok_and(Eureka::is_loopback);
                let what = format!("the application {} in Eureka", settings.application);
                let trust = Trust::Catalog { loopback };
                self.start(self.about(&what, &settings.application, Source::Eureka, trust), owners, eureka)
            }
            ProviderSettings::Kubernetes(settings) => {
                let KubernetesDiscovery { service, namespace, .. } = settings;
                let what = format!("the service {service} in the namespace {namespace} of Kubernetes");
                let name = format!("{service}.{namespace}.svc.{}", self.cluster_domain);
                let about = self.about(&what, &name, Source::Kubernetes, Trust::Cluster);
                self.start(about, owners, Kubernetes::new(network, settings))
            }
        }
    }

    fn about(&self, what: &str, name: &str, source: Source, trust: Trust) -> About {
        let own_addresses = self.own_addresses.clone();
        About { what: what.into(), name: name.to_ascii_lowercase().into(), source, trust, own_addresses }
    }

    fn start<P: Provider, E: std::fmt::Display>(
        &self,
        about: About,
        owners: Option<OwnersAsked>,
        provider: Result<P, E>,
    ) -> Followed {
        let now = Instant::now().into_std();
        match provider {
            Ok(provider) => Followed::kept(Snapshot::unknown(now), |sender| {
                tokio::spawn(keep(provider, about, owners, sender));
            }),
            Err(error) => {
                let error = about.failed(error.to_string());
                tracing::error!("{error}");
                Followed::fixed(Snapshot { error: Some(Arc::new(error)), ..Snapshot::unknown(now) })
            }
        }
    }
}

/// Bounds how often a source is asked that always has news: a few times at once, then once a second. Consul's
/// documentation asks for it of everybody who uses its blocking queries.
struct Pace {
    allowance: f64,
    since: Instant,
}

impl Pace {
    /// Questions that may follow each other at once.
    const AT_ONCE: f64 = 3.0;

    fn new() -> Self {
        Self { allowance: Self::AT_ONCE, since: Instant::now() }
    }

    /// Waits for the turn of the next question.
    async fn turn(&mut self) {
        let now = Instant::now();
        self.allowance = (self.allowance + (now - self.since).as_secs_f64()).min(Self::AT_ONCE);
        self.since = now;
        if self.allowance < 1.0 {
            sleep(Duration::from_secs_f64(1.0 - self.allowance)).await;
            self.since = Instant::now();
            self.allowance = 1.0;
        }
        self.allowance -= 1.0;
    }
}

/// Spread by a tenth, so that those who began together do not ask together for ever.
fn spread(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.9..=1.1))
}

/// What a source named and can't be used, told once each time that it changes.
#[derive(Default)]
struct PassedOver(Vec<String>);

impl PassedOver {
    fn tell(&mut self, what: &str, passed_over: Vec<String>) {
        if self.0 != passed_over {
            if !passed_over.is_empty() {
                tracing::warn!("{what}: passed over {}", passed_over.join("; "));
            }
            self.0 = passed_over;
        }
    }
}
