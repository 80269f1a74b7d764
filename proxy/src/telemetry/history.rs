//! The last ten minutes of traffic: what the dashboard draws and `outrigger top` shows.
//!
//! Every two seconds the control thread asks each series what was counted since. Nothing of it is on a request's
//! way. Memory is bounded: the proxy as a whole, the busiest [`MOST_UPSTREAMS`] upstreams, and [`MOST_CALLERS`]
//! callers; with all of them busy it is about 6 MB.

mod tick;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use outrigger_ca::{SpiffeId, since_1970};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::labels::{Direction, Tls};
use super::metrics::Metrics;
use super::traffic::lock;
use tick::{Course, Tick};

/// Between two looks.
const STEP: Duration = Duration::from_secs(2);
/// Looks that are kept: ten minutes.
const SAMPLES: u64 = 300;
/// Looks in what is called the last minute.
const LAST_MINUTE: u64 = 30;
/// Upstreams whose course is kept; of more, the busiest.
const MOST_UPSTREAMS: usize = 500;
/// Callers that are kept; of more, the first.
const MOST_CALLERS: usize = 500;
/// Parts of an upstream's outline of ten minutes: 30 seconds each.
const OUTLINE: usize = 20;

/// What the control thread saw of the traffic of the last ten minutes.
#[derive(Debug)]
pub struct History {
    metrics: Arc<Metrics>,
    started: SystemTime,
    // Both the writer and who reads it are on the control thread; nobody waits.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Number of the newest look, from 1.
    now: u64,
    inbound: Course,
    outbound: Course,
    upstreams: HashMap<(Direction, Arc<str>), Course>,
    callers: HashMap<Caller, Course>,
    /// Upstreams that had traffic in the newest look and no place.
    left_out: usize,
}

/// Who calls the workload, as far as it is known.
type Caller = (Tls, Option<SpiffeId>);

/// What a request for `/history` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryQuery {
    /// Only looks after this number.
    pub since: u64,
    /// Of this upstream alone, not of the whole proxy.
    pub upstream: Option<String>,
}

impl HistoryQuery {
    /// Out of a URL's query: `since=NUMBER` and `upstream=NAME`.
    ///
    /// # Errors
    /// What is not understood, and what would be.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "since" => {
                    parsed.since = value
                        .parse()
                        .map_err(|_| format!("since={value}: a number is wanted, that of the last look"))?;
                }
                "upstream" => parsed.upstream = Some(value.into_owned()),
                _ => return Err(format!("no parameter `{name}`; there are since=NUMBER and upstream=NAME")),
            }
        }
        Ok(parsed)
    }
}

impl History {
    /// Nothing seen yet. What was counted before the first look is part of it.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, started: SystemTime::now(), seen: Mutex::default() }
    }

    /// Looks every two seconds, for as long as it runs. Run it on the control thread.
    pub async fn keep(&self) {
        let start = Instant::now();
        let mut looks = interval_at(start + STEP, STEP);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let at = looks.tick().await;
            // Looks that were missed, as while the machine slept, are gaps; not one long tick.
            let number = (at - start).as_millis() / STEP.as_millis();
            self.look(u64::try_from(number).unwrap_or_default());
        }
    }

    fn look(&self, number: u64) {
        let traffic = &self.metrics.traffic;
        let mut upstreams: HashMap<(Direction, Arc<str>), Tick> = HashMap::new();
        let mut callers: HashMap<Caller, Tick> = HashMap::new();
        for (labels, series) in traffic.requests.snapshot() {
            let (requests, retries) = series.fresh();
            if requests == 0 {
                continue;
            }
            let failed = is_error(labels.code, labels.grpc_status);
            let errors = if failed { requests } else { 0 };
            let tick = Tick { requests, errors, retries, ..Tick::default() };
            if labels.direction == Direction::Inbound {
                callers.entry((labels.tls, labels.peer.clone())).or_default().add(&tick);
            }
            upstreams.entry((labels.direction, labels.upstream.clone())).or_default().add(&tick);
        }
        for (labels, histogram) in traffic.durations.snapshot() {
            let tick = Tick { durations: histogram.fresh(), ..Tick::default() };
            if tick.is_empty() {
                continue;
            }
            if labels.direction == Direction::Inbound {
                callers.entry((labels.tls, labels.peer.clone())).or_default().add(&tick);
            }
            upstreams.entry((labels.direction, labels.upstream.clone())).or_default().add(&tick);
        }
        lock(&self.seen).take(number, upstreams, callers);
    }

    /// `/history`: the course of each direction, and of each upstream the last minute and an outline; or the
    /// course of one upstream.
    pub fn describe(&self, query: &HistoryQuery) -> Value {
        let seen = lock(&self.seen);
        let now = seen.now;
        let since = query.since.max(now.saturating_sub(SAMPLES));
        let mut value = json!({
            // Two answers with different ones are of two processes.
            "started": since_1970(self.started).as_millis() as u64,
            "stepSeconds": STEP.as_secs(),
            "samples": SAMPLES,
            "since": since,
            "now": now,
        });
        if let Some(name) = &query.upstream {
            let of = |direction| seen.upstreams.get(&(direction, Arc::from(&**name)));
            for (key, course) in [("inbound", of(Direction::Inbound)), ("outbound", of(Direction::Outbound))]
            {
                value[key] = course.map_or(Value::Null, |course| seen.course(course, since));
            }
            return value;
        }
        value["inbound"] = seen.course(&seen.inbound, since);
        value["outbound"] = seen.course(&seen.outbound, since);
        let mut upstreams: Vec<_> = seen.upstreams.iter().collect();
        upstreams.sort_by(|a, b| b.1.requests.cmp(&a.1.requests).then_with(|| a.0.cmp(b.0)));
        let one = |((direction, name), course): (&(Direction, Arc<str>), &Course)| {
            json!({
                "name": **name,
                "direction": direction.as_str(),
                "lastMinute": course.last_minute().describe(seen.minute()),
                "outline": course.outline(OUTLINE, now),
            })
        };
        value["upstreams"] = upstreams.into_iter().map(one).collect();
        value["upstreamsLeftOut"] = seen.left_out.into();
        value
    }

    /// `/traffic`: who called this workload, and whom it called, in the last minute. Callers and upstreams stay for
    /// ten minutes after their last request. Opaque TCP is counted in connections.
    pub fn traffic(&self) -> Value {
        let (mut callers, mut upstreams) = self.open_connections();
        let seen = lock(&self.seen);
        for caller in seen.callers.keys() {
            callers.entry(caller.clone()).or_default();
        }
        for (direction, name) in seen.upstreams.keys() {
            if *direction == Direction::Outbound {
                upstreams.entry(name.clone()).or_default();
            }
        }
        let seconds = seen.minute();
        let last_minute =
            |course: Option<&Course>| course.map(Course::last_minute).unwrap_or_default().describe(seconds);
        let mut callers: Vec<_> = callers.into_iter().collect();
        callers.sort();
        let caller = |(caller, open): (Caller, i64)| {
            let mut value = last_minute(seen.callers.get(&caller));
            value["peer"] = caller.1.as_ref().map(SpiffeId::as_str).into();
            value["tls"] = caller.0.as_str().into();
            value["openTcpConnections"] = open.into();
            value
        };
        let mut upstreams: Vec<_> = upstreams.into_iter().collect();
        upstreams.sort();
        let upstream = |(name, open): (Arc<str>, i64)| {
            let mut value = last_minute(seen.upstreams.get(&(Direction::Outbound, name.clone())));
            value["upstream"] = (*name).into();
            value["openTcpConnections"] = open.into();
            value
        };
        json!({
            "seconds": seconds,
            "callers": callers.into_iter().map(caller).collect::<Vec<_>>(),
            "upstreams": upstreams.into_iter().map(upstream).collect::<Vec<_>>(),
        })
    }

    /// Opaque TCP connections that are open now, by caller and by upstream.
    fn open_connections(&self) -> (HashMap<Caller, i64>, HashMap<Arc<str>, i64>) {
        let (mut callers, mut upstreams) = (HashMap::new(), HashMap::new());
        for (labels, series) in self.metrics.traffic.tcp.snapshot() {
            let open = series.open.get();
            match labels.direction {
                Direction::Inbound if callers.len() < MOST_CALLERS => {
                    *callers.entry((labels.tls, labels.peer.clone())).or_default() += open;
                }
                Direction::Outbound if upstreams.len() < MOST_UPSTREAMS => {
                    *upstreams.entry(labels.upstream.clone()).or_default() += open;
                }
                _ => {}
            }
        }
        (callers, upstreams)
    }
}

impl Seen {
    fn take(
        &mut self,
        number: u64,
        upstreams: HashMap<(Direction, Arc<str>), Tick>,
        callers: HashMap<Caller, Tick>,
    ) {
        self.now = number;
        self.inbound.forget(number);
        self.outbound.forget(number);
        let stays = |course: &mut Course| {
            course.forget(number);
            !course.is_empty()
        };
        self.upstreams.retain(|_, course| stays(course));
        self.callers.retain(|_, course| stays(course));
        let mut whole = [Tick::default(); 2];
        self.left_out = 0;
        for (key, tick) in upstreams {
            whole[usize::from(key.0 == Direction::Outbound)].add(&tick);
            self.take_upstream(number, key, &tick);
        }
        let [inbound, outbound] = whole;
        for (course, tick) in [(&mut self.inbound, inbound), (&mut self.outbound, outbound)] {
            if !tick.is_empty() {
                course.push(number, &tick);
            }
        }
        for (caller, tick) in callers {
            if self.callers.len() < MOST_CALLERS || self.callers.contains_key(&caller) {
                self.callers.entry(caller).or_default().push(number, &tick);
            }
        }
    }

    /// A new one takes the place of the least busy one, if it alone is busier.
    fn take_upstream(&mut self, number: u64, key: (Direction, Arc<str>), tick: &Tick) {
        if self.upstreams.len() >= MOST_UPSTREAMS && !self.upstreams.contains_key(&key) {
            let least = self.upstreams.iter().min_by_key(|(_, course)| course.requests);
            let Some(least) = least.filter(|(_, course)| course.requests < tick.requests) else {
                self.left_out += 1;
                return;
            };
            let least = least.0.clone();
            self.upstreams.remove(&least);
        }
        self.upstreams.entry(key).or_default().push(number, tick);
    }

    fn course(&self, course: &Course, since: u64) -> Value {
        let mut value = course.describe(since, self.now);
        value["lastMinute"] = course.last_minute().describe(self.minute());
        value
    }

    /// Seconds of the last minute that there were.
    fn minute(&self) -> f64 {
        (self.now.clamp(1, LAST_MINUTE) * STEP.as_secs()) as f64
    }
}

/// Whether a request failed by its server's fault or on the way: 5xx, or of gRPC's codes UNKNOWN, DEADLINE_EXCEEDED,
/// INTERNAL, UNAVAILABLE and DATA_LOSS. Clients make the others themselves.
fn is_error(code: Option<u16>, grpc_status: Option<u16>) -> bool {
    code.is_some_and(|code| code >= 500) || matches!(grpc_status, Some(2 | 4 | 13 | 14 | 15))
}

fn per_second(count: u64, seconds: f64) -> f64 {
    (count as f64 / seconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests;
