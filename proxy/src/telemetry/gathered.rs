//! Families whose samples are made when the registry asks for them.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

/// A family's name, help, type and labels.
#[derive(Debug)]
pub(super) struct Family {
    desc: Desc,
    kind: MetricType,
}

impl Family {
    pub fn new(kind: MetricType, name: &str, help: &str, labels: &[&str]) -> Self {
        let labels = labels.iter().map(ToString::to_string).collect();
        let desc = Desc::new(name.into(), help.into(), labels, HashMap::new())
            .expect("names and help are written in this module, and valid");
        Self { desc, kind }
    }

    pub fn desc(&self) -> &Desc {
        &self.desc
    }

    /// The family with its samples.
    pub fn with(&self, samples: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(self.kind);
        family.set_metric(samples);
        family
    }

    /// A sample of a counter or a gauge, by the values of its labels.
    pub fn sample(&self, values: &[&str], value: f64) -> Metric {
        let mut sample = self.labelled(values);
        if self.kind == MetricType::COUNTER {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            sample.set_counter(counter);
        } else {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            sample.set_gauge(gauge);
        }
        sample
    }

    /// A sample of a histogram, by the values of its labels.
    pub fn histogram(&self, values: &[&str], histogram: proto::Histogram) -> Metric {
        let mut sample = self.labelled(values);
        sample.set_histogram(histogram);
        sample
    }

    fn labelled(&self, values: &[&str]) -> Metric {
        debug_assert_eq!(self.desc.variable_labels.len(), values.len());
        let pairs = self.desc.variable_labels.iter().zip(values);
        let pair = |(name, value): (&String, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value((*value).to_owned());
            pair
        };
        Metric::from_label(pairs.map(pair).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::TextEncoder;

    use super::*;
    use crate::telemetry::metric::Histogram;

    fn text(family: MetricFamily) -> String {
        TextEncoder::new().encode_to_string(&[family]).unwrap()
    }

    #[test]
    fn label_values_are_escaped_so_that_none_can_forge_a_sample() {
        let family = Family::new(MetricType::COUNTER, "m_total", "Many.", &["a"]);
        let sample = family.sample(&["x\"} 1\nforged{b=\"\\"], 2.0);
        let expected = "\
# HELP m_total Many.
# TYPE m_total counter
m_total{a=\"x\\\"} 1\\nforged{b=\\\"\\\\\"} 2
";
        assert_eq!(text(family.with(vec![sample])), expected);
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(1500));
        histogram.observe(Duration::from_millis(40));
        histogram.observe(Duration::from_secs(90));
        let family = Family::new(MetricType::HISTOGRAM, "d_seconds", "Durations.", &["a"]);
        let sample = family.histogram(&["b"], histogram.gathered());
        let expected = "\
# HELP d_seconds Durations.
# TYPE d_seconds histogram
d_seconds_bucket{a=\"b\",le=\"0.0005\"} 0
d_seconds_bucket{a=\"b\",le=\"0.001\"} 0
d_seconds_bucket{a=\"b\",le=\"0.0025\"} 1
d_seconds_bucket{a=\"b\",le=\"0.005\"} 1
d_seconds_bucket{a=\"b\",le=\"0.01\"} 1
d_seconds_bucket{a=\"b\",le=\"0.025\"} 1
d_seconds_bucket{a=\"b\",le=\"0.05\"} 2
d_seconds_bucket{a=\"b\",le=\"0.1\"} 2
d_seconds_bucket{a=\"b\",le=\"0.25\"} 2
d_seconds_bucket{a=\"b\",le=\"0.5\"} 2
d_seconds_bucket{a=\"b\",le=\"1\"} 2
d_seconds_bucket{a=\"b\",le=\"2.5\"} 2
d_seconds_bucket{a=\"b\",le=\"5\"} 2
d_seconds_bucket{a=\"b\",le=\"10\"} 2
d_seconds_bucket{a=\"b\",le=\"30\"} 2
d_seconds_bucket{a=\"b\",le=\"60\"} 2
d_seconds_bucket{a=\"b\",le=\"+Inf\"} 3
d_seconds_sum{a=\"b\"} 90.0415
d_seconds_count{a=\"b\"} 3
";
        assert_eq!(text(family.with(vec![sample])), expected);
    }
}
