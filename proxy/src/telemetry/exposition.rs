//! Prometheus' text format, version 0.0.4.

use std::fmt::Write as _;

use super::metric::{BUCKETS, HistogramValues};

/// The media type of what [`Exposition`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text being written, family by family.
#[derive(Default)]
pub(super) struct Exposition {
    text: String,
}

/// A label's name and value.
pub(super) type Label<'a> = (&'a str, &'a str);

impl Exposition {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        write(
            &mut self.text,
            format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
        );
    }

    /// A sample of a counter or a gauge.
    pub fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl std::fmt::Display) {
        self.text.push_str(name);
        self.labels(labels, None);
        write(&mut self.text, format_args!(" {value}\n"));
    }

    /// All samples of a histogram.
    pub fn histogram(&mut self, name: &str, labels: &[Label<'_>], values: &HistogramValues) {
        let infinite = std::iter::once(("+Inf", values.count));
        let finite = BUCKETS.iter().map(|(_, bound)| *bound).zip(values.buckets);
        for (bound, count) in finite.chain(infinite) {
            write(&mut self.text, format_args!("{name}_bucket"));
            self.labels(labels, Some(("le", bound)));
            write(&mut self.text, format_args!(" {count}\n"));
        }
        write(&mut self.text, format_args!("{name}_sum"));
        self.labels(labels, None);
        write(
            &mut self.text,
            format_args!(" {}\n{name}_count", values.sum.as_secs_f64()),
        );
        self.labels(labels, None);
        write(&mut self.text, format_args!(" {}\n", values.count));
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }

    fn labels(&mut self, labels: &[Label<'_>], last: Option<Label<'_>>) {
        let mut separator = '{';
        for (name, value) in labels.iter().copied().chain(last) {
            self.text.push(separator);
            self.text.push_str(name);
            self.text.push_str("=\"");
            self.escaped(value);
            self.text.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
    }

    fn escaped(&mut self, value: &str) {
        if !value.contains(['\\', '"', '\n']) {
            self.text.push_str(value);
            return;
        }
        for character in value.chars() {
            match character {
                '\\' => self.text.push_str("\\\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str("\\n"),
                other => self.text.push(other),
            }
        }
    }
}

fn write(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments)
        .expect("writing into a String does not fail");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metric::Histogram;

    #[test]
    fn label_values_are_escaped_so_that_none_can_forge_a_sample() {
        let mut text = Exposition::default();
        text.sample("m", &[("a", "x\"} 1\nforged{b=\"\\")], 2);
        assert_eq!(text.finish(), "m{a=\"x\\\"} 1\\nforged{b=\\\"\\\\\"} 2\n");
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(1500));
        histogram.observe(Duration::from_millis(40));
        histogram.observe(Duration::from_secs(90));
        let mut text = Exposition::default();
        text.family("d_seconds", "histogram", "Durations.");
        text.histogram("d_seconds", &[("a", "b")], &histogram.values());
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
        assert_eq!(text.finish(), expected);
    }
}
