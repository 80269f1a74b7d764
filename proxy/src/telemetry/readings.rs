//! What upstreams are like at the moment when metrics are asked for: read then, and kept nowhere.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::IntCounter;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::gathered::Family;

/// Most upstreams that are shown by their names; what is more is added up as `other`.
const UPSTREAMS_BOUND: usize = 1_000;
/// Most endpoints that are shown by their addresses, those of all upstreams together; what is more is added up as
/// `other`.
const ENDPOINTS_BOUND: usize = 2_000;
const OTHER: &str = "other";

/// An upstream at this moment. Of two with the same name the numbers are added up, or the worse one is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpstreamReading {
    /// Its name: label `upstream`.
    pub name: Arc<str>,
    /// How long ago its endpoints were last confirmed; `None` where nobody is asked for them.
    pub discovery_age: Option<Duration>,
    /// How many endpoints it has, by label `state`; empty where they are always in.
    pub states: Vec<(&'static str, usize)>,
    /// Its endpoints.
    pub endpoints: Vec<EndpointReading>,
    /// Connections that are open or being opened.
    pub connections: usize,
    /// Requests that wait for a connection.
    pub pending_requests: usize,
    /// Connections that were opened so far.
    pub opened: u64,
    /// Connections that ended so far, by label `reason`.
    pub closed: Vec<(&'static str, u64)>,
    /// What its breaker does: 0 closed, 1 half-open, 2 open.
    pub breaker_state: i64,
    /// How often its breaker opened so far.
    pub breaker_opened: u64,
    /// Retries that its budget still allows.
    pub retries_left: u64,
}

/// An endpoint at this moment.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointReading {
    /// Where it listens: label `endpoint`.
    pub address: SocketAddr,
    /// Label `state`.
    pub state: &'static str,
    /// Requests under way.
    pub in_flight: u32,
    /// Its latency as the balancer sees it; `None` before it has answered.
    pub latency: Option<Duration>,
}

impl UpstreamReading {
    /// Adds one up that is shown under the same name.
    fn merge(&mut self, other: Self) {
        self.discovery_age = self.discovery_age.max(other.discovery_age);
        add(&mut self.states, other.states);
        self.endpoints.extend(other.endpoints);
        self.connections += other.connections;
        self.pending_requests += other.pending_requests;
        self.opened += other.opened;
        add(&mut self.closed, other.closed);
        self.breaker_state = self.breaker_state.max(other.breaker_state);
        self.breaker_opened += other.breaker_opened;
        self.retries_left += other.retries_left;
    }
}

fn add<N: std::ops::AddAssign + Copy>(sums: &mut Vec<(&'static str, N)>, others: Vec<(&'static str, N)>) {
    for (name, number) in others {
        match sums.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += number,
            None => sums.push((name, number)),
        }
    }
}

type Reader = Box<dyn Fn() -> Vec<UpstreamReading> + Send + Sync>;

/// Who is asked for the readings.
#[derive(Clone, Default)]
pub(super) struct Readers(Arc<OnceLock<Reader>>);

impl Readers {
    /// Only the first one counts.
    pub fn set(&self, reader: Reader) {
        self.0.get_or_init(|| reader);
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Readers").field(&self.0.get().is_some()).finish()
    }
}

type UpstreamValue = fn(&UpstreamReading) -> Option<f64>;

pub(super) struct ReadingsCollector {
    readers: Readers,
    by_upstream: Vec<(Family, UpstreamValue)>,
    states: Family,
    closed: Family,
    endpoint_state: Family,
    endpoint_in_flight: Family,
    endpoint_latency: Family,
    upstreams_overflowed: IntCounter,
    endpoints_overflowed: IntCounter,
}

impl ReadingsCollector {
    /// What is too much for its family counts in the counters.
    pub fn new(readers: Readers, upstreams_overflowed: IntCounter, endpoints_overflowed: IntCounter) -> Self {
        let gauge = |name, help, value: UpstreamValue| {
            (Family::new(MetricType::GAUGE, name, help, &["upstream"]), value)
        };
        let counter = |name, help, value: UpstreamValue| {
            (Family::new(MetricType::COUNTER, name, help, &["upstream"]), value)
        };
        let of_endpoints = |name, help, labels: &[&str]| Family::new(MetricType::GAUGE, name, help, labels);
        Self {
            readers,
            by_upstream: vec![
                gauge(
                    "outrigger_discovery_age_seconds",
                    "How long ago the endpoints in use were last confirmed, in seconds.",
                    |upstream| upstream.discovery_age.map(|age| age.as_secs() as f64),
                ),
                gauge(
                    "outrigger_pool_connections",
                    "Connections in the pools, those being opened included.",
                    |upstream| Some(upstream.connections as f64),
                ),
                gauge(
                    "outrigger_pool_pending_requests",
                    "Requests that wait for a connection.",
                    |upstream| Some(upstream.pending_requests as f64),
                ),
                counter(
                    "outrigger_pool_connections_opened_total",
                    "Connections that the pools opened.",
                    |upstream| Some(upstream.opened as f64),
                ),
                gauge(
                    "outrigger_breaker_state",
                    "What the circuit breaker does: 0 closed, 1 half-open, 2 open.",
                    |upstream| Some(upstream.breaker_state as f64),
                ),
                counter(
                    "outrigger_breaker_opened_total",
                    "How often the circuit breaker opened.",
                    |upstream| Some(upstream.breaker_opened as f64),
                ),
                gauge(
                    "outrigger_retry_budget_remaining",
                    "Retries that the budget of the last ten seconds still allows.",
                    |upstream| Some(upstream.retries_left as f64),
                ),
            ],
            states: of_endpoints(
                "outrigger_endpoints",
                "Endpoints by state: healthy, ejected, unhealthy, draining.",
                &["upstream", "state"],
            ),
            closed: Family::new(
                MetricType::COUNTER,
                "outrigger_pool_connections_closed_total",
                "Connections of the pools that ended, by reason.",
                &["upstream", "reason"],
            ),
            endpoint_state: of_endpoints(
                "outrigger_endpoint_state",
                "Always 1; the label says in which state an endpoint is: healthy, ejected, unhealthy.",
                &["upstream", "endpoint", "state"],
            ),
            endpoint_in_flight: of_endpoints(
                "outrigger_endpoint_requests_in_flight",
                "Requests under way at an endpoint.",
                &["upstream", "endpoint"],
            ),
            endpoint_latency: of_endpoints(
                "outrigger_endpoint_latency_seconds",
                "Latency of an endpoint as the balancer sees it: a moving average that peaks raise at once, in seconds.",
                &["upstream", "endpoint"],
            ),
            upstreams_overflowed,
            endpoints_overflowed,
        }
    }

    /// By name, and no more than the bound but one.
    fn read(&self) -> BTreeMap<Arc<str>, UpstreamReading> {
        let Some(reader) = self.readers.0.get() else { return BTreeMap::new() };
        let mut all: BTreeMap<Arc<str>, UpstreamReading> = BTreeMap::new();
        for reading in reader() {
            match all.entry(Arc::clone(&reading.name)) {
                Entry::Occupied(mut known) => known.get_mut().merge(reading),
                Entry::Vacant(place) => _ = place.insert(reading),
            }
        }
        let Some(first) = all.keys().nth(UPSTREAMS_BOUND).cloned() else { return all };
        let too_many = all.split_off(&first);
        self.upstreams_overflowed.inc_by(too_many.len() as u64);
        let other = all.entry(OTHER.into()).or_default();
        too_many.into_values().for_each(|reading| other.merge(reading));
        all
    }

    fn endpoints(&self, upstreams: &BTreeMap<Arc<str>, UpstreamReading>) -> [MetricFamily; 3] {
        let mut states: BTreeMap<(&str, String, &str), f64> = BTreeMap::new();
        // Requests, and latency.
        let mut loads: BTreeMap<(&str, String), (f64, Option<Duration>)> = BTreeMap::new();
        for (name, endpoint) in upstreams
            .iter()
            .flat_map(|(name, upstream)| upstream.endpoints.iter().map(move |endpoint| (name, endpoint)))
        {
            let own = (&**name, endpoint.address.to_string());
            let (name, address) = if loads.len() < ENDPOINTS_BOUND || loads.contains_key(&own) {
                own
            } else {
                self.endpoints_overflowed.inc();
                (OTHER, OTHER.to_owned())
            };
            *states.entry((name, address.clone(), endpoint.state)).or_default() += 1.0;
            let (in_flight, latency) = loads.entry((name, address)).or_default();
            *in_flight += f64::from(endpoint.in_flight);
            *latency = endpoint.latency.max(*latency);
        }
        let states = states.into_iter().map(|((name, address, state), count)| {
            self.endpoint_state.sample(&[name, &address, state], count)
        });
        let states = self.endpoint_state.with(states.collect());
        let (mut in_flight, mut latencies) = (Vec::new(), Vec::new());
        for ((name, address), (requests, latency)) in &loads {
            in_flight.push(self.endpoint_in_flight.sample(&[name, address], *requests));
            if let Some(latency) = latency {
                latencies.push(self.endpoint_latency.sample(&[name, address], latency.as_secs_f64()));
            }
        }
        [states, self.endpoint_in_flight.with(in_flight), self.endpoint_latency.with(latencies)]
    }
}

impl Collector for ReadingsCollector {
    fn desc(&self) -> Vec<&Desc> {
        let others = [
            &self.states,
            &self.closed,
            &self.endpoint_state,
            &self.endpoint_in_flight,
            &self.endpoint_latency,
        ];
        self.by_upstream.iter().map(|(family, _)| family).chain(others).map(Family::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let upstreams = self.read();
        let mut families: Vec<MetricFamily> = self
            .by_upstream
            .iter()
            .map(|(family, value)| {
                let samples = upstreams
                    .iter()
                    .filter_map(|(name, upstream)| Some(family.sample(&[name], value(upstream)?)));
                family.with(samples.collect())
            })
            .collect();
        let (mut states, mut closed): (Vec<Metric>, Vec<Metric>) = Default::default();
        for (name, upstream) in &upstreams {
            for (state, count) in &upstream.states {
                states.push(self.states.sample(&[name, state], *count as f64));
            }
            // Most reasons never come up.
            for (reason, count) in upstream.closed.iter().filter(|(_, count)| *count > 0) {
                closed.push(self.closed.sample(&[name, reason], *count as f64));
            }
        }
        families.push(self.states.with(states));
        families.push(self.closed.with(closed));
        families.extend(self.endpoints(&upstreams));
        families
    }
}

#[cfg(test)]
mod tests;
