//! Families of counters and gauges with a few labels, for what does not happen on every request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::exposition::{Exposition, Label};
use super::metric::{Counter, Gauge};

/// Counters told apart by `N` labels whose values are fixed in the code, so that they are few.
#[derive(Debug)]
pub struct CounterFamily<const N: usize> {
    names: [&'static str; N],
    counters: Mutex<BTreeMap<[&'static str; N], Arc<Counter>>>,
}

impl<const N: usize> CounterFamily<N> {
    pub(super) fn new(names: [&'static str; N]) -> Self {
        Self {
            names,
            counters: Mutex::default(),
        }
    }

    /// The counter of these label values, made (and shown from then on) if there is none.
    pub fn with(&self, values: [&'static str; N]) -> Arc<Counter> {
        Arc::clone(lock(&self.counters).entry(values).or_default())
    }

    /// Adds one to the counter of these label values.
    pub fn inc(&self, values: [&'static str; N]) {
        self.with(values).inc();
    }

    pub(super) fn render(&self, name: &str, help: &str, text: &mut Exposition) {
        text.family(name, "counter", help);
        for (values, counter) in &*lock(&self.counters) {
            text.sample(name, &pairs(self.names, values), counter.get());
        }
    }
}

/// A gauge that nobody holds and nobody asked for during this time describes what is gone.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// Gauges told apart by `N` labels of any value. A gauge is shown as long as its handle is held, or was asked
/// for less than 30 seconds ago, so that nothing is shown for long of an upstream that is gone.
#[derive(Debug)]
pub struct GaugeFamily<const N: usize> {
    names: [&'static str; N],
    gauges: Mutex<BTreeMap<[Arc<str>; N], Asked>>,
}

#[derive(Debug)]
struct Asked {
    gauge: Arc<Gauge>,
    last: Instant,
}

impl<const N: usize> GaugeFamily<N> {
    pub(super) fn new(names: [&'static str; N]) -> Self {
        Self {
            names,
            gauges: Mutex::default(),
        }
    }

    /// The gauge of these label values; all who ask share it. Either keep it as long as what it describes
    /// exists, or ask for it and set it at least every 30 seconds.
    pub fn with(&self, values: [&str; N]) -> Arc<Gauge> {
        let now = Instant::now();
        let mut gauges = lock(&self.gauges);
        let asked = gauges
            .entry(values.map(Arc::from))
            .or_insert_with(|| Asked {
                gauge: Arc::default(),
                last: now,
            });
        asked.last = now;
        Arc::clone(&asked.gauge)
    }

    pub(super) fn render(&self, name: &str, help: &str, text: &mut Exposition) {
        self.forget(Instant::now());
        text.family(name, "gauge", help);
        for (values, asked) in &*lock(&self.gauges) {
            let values = values.each_ref().map(|value| &**value);
            text.sample(name, &pairs(self.names, &values), asked.gauge.get());
        }
    }

    pub(super) fn forget(&self, now: Instant) {
        // Handles are made under this lock only: a gauge that only the map holds stays so.
        lock(&self.gauges).retain(|_, asked| {
            Arc::strong_count(&asked.gauge) > 1
                || now.saturating_duration_since(asked.last) < FORGOTTEN_AFTER
        });
    }
}

fn pairs<'a, const N: usize>(names: [&'static str; N], values: &[&'a str; N]) -> [Label<'a>; N] {
    std::array::from_fn(|index| (names[index], values[index]))
}

/// The maps hold nothing that a panic could leave half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_shows_a_sample_for_each_set_of_label_values() {
        let family = CounterFamily::new(["result", "reason"]);
        family.inc(["ok", ""]);
        family.inc(["ok", ""]);
        family.inc(["failure", "alert"]);
        let mut text = Exposition::default();
        family.render("h_total", "Handshakes.", &mut text);
        let expected = "\
# HELP h_total Handshakes.
# TYPE h_total counter
h_total{result=\"failure\",reason=\"alert\"} 1
h_total{result=\"ok\",reason=\"\"} 2
";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn a_gauge_is_shared_and_goes_some_time_after_its_last_holder() {
        let family = GaugeFamily::new(["upstream"]);
        let samples_after = |passed: Duration| {
            family.forget(Instant::now() + passed);
            let mut text = Exposition::default();
            family.render("pool", "Connections.", &mut text);
            text.finish()
                .lines()
                .skip(2)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let first = family.with(["api"]);
        let second = family.with(["api"]);
        first.inc();
        second.inc();
        drop(first);
        assert_eq!(
            samples_after(10 * FORGOTTEN_AFTER),
            ["pool{upstream=\"api\"} 2"]
        );
        drop(second);
        assert_eq!(samples_after(Duration::ZERO), ["pool{upstream=\"api\"} 2"]);
        assert!(samples_after(FORGOTTEN_AFTER).is_empty());
    }
}
