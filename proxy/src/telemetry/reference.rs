//! The README's table of all metrics, made of what is registered.

use prometheus::core::Desc;

/// A family of metrics, as the README describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricReference {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels, in the order of the alphabet.
    pub labels: Vec<String>,
    /// Its meaning.
    pub help: String,
}

impl MetricReference {
    /// The type follows from the name, as Prometheus' conventions have it.
    pub(super) fn of(desc: &Desc) -> Self {
        let name = desc.fq_name.clone();
        let kind = if name.ends_with("_total") {
            "counter"
        } else if name.ends_with("_duration_seconds") {
            "histogram"
        } else {
            "gauge"
        };
        let fixed = desc.const_label_pairs.iter().map(|pair| pair.name().to_owned());
        let mut labels: Vec<String> = desc.variable_labels.iter().cloned().chain(fixed).collect();
        labels.sort_unstable();
        Self { name, kind, labels, help: desc.help.clone() }
    }
}

/// A Markdown table with a row for each family.
pub fn metrics_table(families: &[MetricReference]) -> String {
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for MetricReference { name, kind, labels, help } in families {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        table += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn the_readme_has_the_table() {
        let readme = include_str!("../../../README.md");
        let markers = ("<!-- metrics reference: begin -->", "<!-- metrics reference: end -->");
        let table = metrics_table(Metrics::new().reference());
        let start = readme.find(markers.0).expect("it has a place for the table") + markers.0.len();
        let end = readme.find(markers.1).expect("which ends");
        let inside = readme[start..end].trim();
        assert!(
            inside == table.trim(),
            "the README's table of metrics is out of date; put this between its markers:\n{table}"
        );
    }
}
