//! The series of requests and TCP connections: as many as label values meet, bounded, and gone when idle.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::{IntCounter, IntCounterVec};

use super::labels::Labels;
use super::metric::{Counter, Gauge, Histogram};

/// A series that did not change over that many sweeps goes. One sweep a minute: 10 minutes.
const IDLE_SWEEPS: u32 = 10;

/// Most series of a family of requests or connections; what is more becomes `other`.
const SERIES_BOUND: usize = 10_000;
/// Most label sets of the histogram: each is 19 lines, and so these are about 7 MB of text.
const HISTOGRAMS_BOUND: usize = 2_000;
/// Series that are looked at while a map is locked: some microseconds, which a worker with a new series may wait.
const AT_ONCE: usize = 256;

/// All series of traffic.
#[derive(Debug)]
pub(super) struct Traffic {
    pub requests: SeriesMap<RequestSeries>,
    pub durations: SeriesMap<Histogram>,
    pub tcp: SeriesMap<TcpSeries>,
}

impl Traffic {
    /// No series yet. Those too many will be counted in `overflowed`, by its label `family`.
    pub fn new(overflowed: &IntCounterVec) -> Self {
        let overflowed = |family: &str| overflowed.with_label_values(&[family]);
        Self {
            requests: SeriesMap::new(SERIES_BOUND, overflowed("requests_total")),
            durations: SeriesMap::new(HISTOGRAMS_BOUND, overflowed("request_duration_seconds")),
            tcp: SeriesMap::new(SERIES_BOUND, overflowed("tcp")),
        }
    }

    pub fn sweep(&self) {
        // Requests first: their series hold their histograms.
        self.requests.sweep();
        self.durations.sweep();
        self.tcp.sweep();
    }
}

/// Requests of one set of label values.
#[derive(Debug)]
pub(super) struct RequestSeries {
    pub count: Counter,
    pub retries: Counter,
    pub retries_refused: Counter,
    /// Shared by the series that differ in the code only.
    pub durations: Arc<Histogram>,
    /// What the history has seen of `count` and `retries`.
    pub seen: [Counter; 2],
}

impl RequestSeries {
    /// Requests and retries since this was called last. There is one caller, the history.
    pub fn fresh(&self) -> (u64, u64) {
        let [requests, retries] = &self.seen;
        (requests.catch_up(&self.count), retries.catch_up(&self.retries))
    }
}

/// Opaque TCP connections of one set of label values.
#[derive(Debug, Default)]
pub(super) struct TcpSeries {
    pub opened: Counter,
    pub open: Gauge,
    pub received_bytes: Counter,
    pub sent_bytes: Counter,
    /// By reason.
    pub closed: Mutex<BTreeMap<&'static str, u64>>,
}

/// What shows that a series is in use: a number that changes with every record.
pub(super) trait Activity {
    fn activity(&self) -> u64;
}

impl Activity for RequestSeries {
    fn activity(&self) -> u64 {
        self.count.get()
    }
}

impl Activity for Histogram {
    fn activity(&self) -> u64 {
        self.count()
    }
}

impl Activity for TcpSeries {
    /// Bytes come over open connections only, and whoever has one open holds the series.
    fn activity(&self) -> u64 {
        self.opened.get()
    }
}

/// Series by label values, at most `bound` of them; those beyond share a series named `other`.
#[derive(Debug)]
pub(super) struct SeriesMap<V> {
    bound: usize,
    slots: Mutex<BTreeMap<Arc<Labels>, Slot<V>>>,
    /// How often a series had to be `other`.
    overflowed: IntCounter,
}

#[derive(Debug)]
struct Slot<V> {
    series: Arc<V>,
    activity: u64,
    idle_sweeps: u32,
}

impl<V> Slot<V> {
    fn new(series: V) -> Self {
        Self { series: Arc::new(series), activity: 0, idle_sweeps: 0 }
    }
}

impl<V: Activity> SeriesMap<V> {
    pub fn new(bound: usize, overflowed: IntCounter) -> Self {
        Self { bound, slots: Mutex::default(), overflowed }
    }

    /// The series of `labels`, made if there is none; `make` gets the labels it will really have.
    pub fn get(&self, labels: &Labels, make: impl FnOnce(&Labels) -> V) -> Arc<V> {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get(labels) {
            return Arc::clone(&slot.series);
        }
        let labels = if slots.len() < self.bound {
            labels.clone()
        } else {
            self.overflowed.inc();
            labels.other()
        };
        Arc::clone(&slots.entry(Arc::new(labels)).or_insert_with_key(|labels| Slot::new(make(labels))).series)
    }

    /// All series, in the order of their labels. The lock is held for [`AT_ONCE`] of them at a time, and not while they
    /// are rendered.
    pub fn snapshot(&self) -> Vec<(Arc<Labels>, Arc<V>)> {
        let mut all: Vec<(Arc<Labels>, Arc<V>)> = Vec::new();
        loop {
            let last = all.last().map(|(labels, _)| Arc::clone(labels));
            let after = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let before = all.len();
            let slots = lock(&self.slots);
            let next = slots.range::<Labels, _>((after, Bound::Unbounded)).take(AT_ONCE);
            all.extend(next.map(|(labels, slot)| (Arc::clone(labels), Arc::clone(&slot.series))));
            drop(slots);
            if all.len() - before < AT_ONCE {
                return all;
            }
        }
    }

    /// Removes what has been idle for [`IDLE_SWEEPS`] sweeps. No count is lost: recorders keep weak
    /// references, and count only while they hold a strong one, which keeps the series here.
    pub fn sweep(&self) {
        let mut slots = lock(&self.slots);
        let mut idle = Vec::new();
        for (labels, slot) in &mut *slots {
            let activity = slot.series.activity();
            if activity == slot.activity {
                slot.idle_sweeps += 1;
                if slot.idle_sweeps >= IDLE_SWEEPS {
                    idle.push(Arc::clone(labels));
                }
            } else {
                slot.activity = activity;
                slot.idle_sweeps = 0;
            }
        }
        for labels in idle {
            let Some(slot) = slots.remove(&labels) else {
                continue;
            };
            match Arc::try_unwrap(slot.series) {
                // Counted once more since it was looked at above: it stays, though its weak references end.
                Ok(series) if series.activity() != slot.activity => {
                    slots.insert(labels, Slot::new(series));
                }
                Ok(_) => {}
                Err(series) => {
                    slots.insert(labels, Slot { series, activity: slot.activity, idle_sweeps: 0 });
                }
            }
        }
    }
}

/// The maps hold nothing that a panic could leave half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::telemetry::labels::{Direction, Tls};

    fn labels(route: &str) -> Labels {
        Labels {
            direction: Direction::Outbound,
            tls: Tls::Mesh,
            route: route.into(),
            upstream: "api".into(),
            code: Some(200),
            grpc_status: None,
            peer: None,
        }
    }

    fn map<V: Activity>(bound: usize) -> SeriesMap<V> {
        SeriesMap::new(bound, IntCounter::new("n_total", "Number.").unwrap())
    }

    fn names(map: &SeriesMap<TcpSeries>) -> Vec<String> {
        map.snapshot().into_iter().map(|(labels, _)| labels.route.to_string()).collect()
    }

    #[test]
    fn beyond_the_bound_series_share_one_named_other_and_are_counted() {
        let map = map::<TcpSeries>(2);
        for route in ["a", "b", "c", "d", "a"] {
            map.get(&labels(route), |_| TcpSeries::default()).opened.inc();
        }
        assert_eq!(names(&map), ["a", "b", "other"]);
        assert_eq!(map.overflowed.get(), 2);
        let opened: u64 = map.snapshot().iter().map(|(_, series)| series.opened.get()).sum();
        assert_eq!(opened, 5);
    }

    #[test]
    fn a_snapshot_has_every_series_once_and_in_order_however_many_there_are() {
        for count in [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE] {
            let map = map::<TcpSeries>(usize::MAX);
            let expected: Vec<String> = (0..count).map(|number| format!("{number:05}")).collect();
            for route in expected.iter().rev() {
                map.get(&labels(route), |_| TcpSeries::default());
            }
            assert_eq!(names(&map), expected);
        }
    }

    #[test]
    fn a_series_goes_after_ten_idle_sweeps_and_any_record_starts_them_over() {
        let map = map::<TcpSeries>(10);
        map.get(&labels("a"), |_| TcpSeries::default()).opened.inc();
        map.get(&labels("b"), |_| TcpSeries::default()).opened.inc();
        for _ in 0..IDLE_SWEEPS {
            map.sweep();
        }
        map.get(&labels("b"), |_| TcpSeries::default()).opened.inc();
        map.sweep();
        assert_eq!(names(&map), ["b"]);
    }

    #[test]
    fn a_series_that_somebody_holds_stays() {
        let map = map::<TcpSeries>(10);
        let held = map.get(&labels("a"), |_| TcpSeries::default());
        for _ in 0..3 * IDLE_SWEEPS {
            map.sweep();
        }
        held.opened.inc();
        assert_eq!(map.snapshot()[0].1.opened.get(), 1);
        drop(held);
        for _ in 0..3 * IDLE_SWEEPS {
            map.sweep();
        }
        assert!(names(&map).is_empty());
    }

    /// A worker counts through weak references while another thread sweeps as fast as it can and counts
    /// what goes: every record must be in a series that went or in one that is there.
    #[test]
    fn no_record_is_lost_to_a_sweep_beside_it() {
        struct Tallied<'a>(Counter, &'a Counter);
        impl Activity for Tallied<'_> {
            // Always idle: each sweep past the tenth tries to remove it.
            fn activity(&self) -> u64 {
                0
            }
        }
        impl Drop for Tallied<'_> {
            fn drop(&mut self) {
                self.1.add(self.0.get());
            }
        }
        const RECORDS: u64 = 20_000;
        let (gone, done) = (Counter::default(), AtomicBool::new(false));
        let map = map::<Tallied<'_>>(10);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    map.sweep();
                }
            });
            let labels = labels("a");
            let mut cached = std::sync::Weak::new();
            for _ in 0..RECORDS {
                let series = cached.upgrade().unwrap_or_else(|| {
                    let made = map.get(&labels, |_| Tallied(Counter::default(), &gone));
                    cached = Arc::downgrade(&made);
                    made
                });
                series.0.inc();
            }
            done.store(true, Ordering::Release);
        });
        drop(map);
        assert_eq!(gone.get(), RECORDS);
    }
}
