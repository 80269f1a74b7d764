//! OpenTelemetry's environment variables, as far as they are about what happens before export. They hold where the
//! config says nothing.

use crate::config::{SAMPLE_RATIO, Sampling, TraceHeaders};

use super::sampling::Sampler;

/// Variables by name; those that are empty count as not set, as OpenTelemetry says.
pub struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl<'a> Environment<'a> {
    /// The process's own.
    pub fn of_process() -> Self {
        Self(&|name| std::env::var(name).ok())
    }

    /// What `variables` gives.
    #[cfg(test)]
    pub(super) fn of(variables: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self(variables)
    }

    fn get(&self, name: &str) -> Option<String> {
        let value = (self.0)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Whether somebody wants spans.
    pub(super) fn names_an_exporter(&self) -> bool {
        let is_disabled =
            self.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let is_exporter = |name: &str| matches!(name.trim(), "otlp" | "zipkin");
        let named = match self.get("OTEL_TRACES_EXPORTER") {
            Some(names) => names.split(',').any(is_exporter),
            None => [
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "OTEL_EXPORTER_ZIPKIN_ENDPOINT",
            ]
            .iter()
            .any(|name| self.get(name).is_some()),
        };
        named && !is_disabled
    }

    /// The headers of `OTEL_PROPAGATORS` that we know, read and written alike; `None` if it says nothing. `baggage` is
    /// not touched by us, and passes so.
    pub(super) fn propagators(&self) -> Option<Vec<TraceHeaders>> {
        let text = self.get("OTEL_PROPAGATORS")?;
        let mut all = Vec::new();
        for name in text.split(',').map(str::trim) {
            let one = match name {
                "tracecontext" => TraceHeaders::W3c,
                "b3" => TraceHeaders::B3,
                "b3multi" => TraceHeaders::B3multi,
                "baggage" | "none" => continue,
                other => {
                    tracing::warn!("OTEL_PROPAGATORS: `{other}` is not known here, and left out");
                    continue;
                }
            };
            if !all.contains(&one) {
                all.push(one);
            }
        }
        Some(all)
    }

    /// What `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` say; `None` if it is nothing.
    pub(super) fn sampler(&self) -> Option<Sampler> {
        let name = self.get("OTEL_TRACES_SAMPLER")?;
        let (sampling, ratio) = match name.as_str() {
            "always_on" => (Sampling::Always, SAMPLE_RATIO),
            "always_off" => (Sampling::Never, SAMPLE_RATIO),
            "traceidratio" => (Sampling::Ratio, self.ratio()),
            "parentbased_always_on" => (Sampling::ParentBased, 1.0),
            "parentbased_always_off" => (Sampling::ParentBased, 0.0),
            "parentbased_traceidratio" => (Sampling::ParentBased, self.ratio()),
            other => {
                tracing::warn!("OTEL_TRACES_SAMPLER: `{other}` is not known here, and left out");
                return None;
            }
        };
        Some(Sampler { sampling, ratio })
    }

    fn ratio(&self) -> f64 {
        // OpenTelemetry's default.
        let Some(text) = self.get("OTEL_TRACES_SAMPLER_ARG") else { return 1.0 };
        text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or_else(|| {
            tracing::warn!("OTEL_TRACES_SAMPLER_ARG: `{text}` is no share between 0 and 1; 1 is taken");
            1.0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(variables: &[(&str, &str)], of: impl Fn(&Environment<'_>) -> T) -> T {
        let get =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        of(&Environment::of(&get))
    }

    #[test]
    fn an_exporter_or_an_endpoint_says_that_somebody_wants_spans() {
        for (variables, wanted) in [
            (&[][..], false),
            (&[("OTEL_TRACES_EXPORTER", "otlp")], true),
            (&[("OTEL_TRACES_EXPORTER", "console, zipkin")], true),
            (&[("OTEL_TRACES_EXPORTER", "none")], false),
            (&[("OTEL_TRACES_EXPORTER", "")], false),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")], true),
            (&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4317")], true),
            (&[("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "http://zipkin:9411/api/v2/spans")], true),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")], false),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "x"), ("OTEL_TRACES_EXPORTER", "none")], false),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "x"), ("OTEL_SDK_DISABLED", "true")], false),
        ] {
            assert_eq!(with(variables, |all| all.names_an_exporter()), wanted, "{variables:?}");
        }
    }

    #[test]
    fn propagators_and_samplers_are_known_by_their_names() {
        use TraceHeaders::{B3, B3multi, W3c};
        let propagators = |value| with(&[("OTEL_PROPAGATORS", value)], |all| all.propagators());
        assert_eq!(propagators("tracecontext,baggage"), Some(vec![W3c]));
        assert_eq!(propagators("b3, b3multi ,b3,jaeger"), Some(vec![B3, B3multi]));
        assert_eq!(propagators("none"), Some(vec![]));
        assert_eq!(propagators(""), None);
        use Sampling::{Always, Never, ParentBased, Ratio};
        for (name, argument, sampler) in [
            ("always_on", "", Some((Always, 0.0))),
            ("always_off", "", Some((Never, 0.0))),
            ("traceidratio", "0.25", Some((Ratio, 0.25))),
            ("traceidratio", "", Some((Ratio, 1.0))),
            ("parentbased_always_on", "0.5", Some((ParentBased, 1.0))),
            ("parentbased_always_off", "", Some((ParentBased, 0.0))),
            ("parentbased_traceidratio", "0.5", Some((ParentBased, 0.5))),
            ("parentbased_traceidratio", "5", Some((ParentBased, 1.0))),
            ("parentbased_traceidratio", "NaN", Some((ParentBased, 1.0))),
            ("jaeger_remote", "", None),
            ("", "0.5", None),
        ] {
            let variables = [("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)];
            let found = with(&variables, |all| all.sampler());
            assert_eq!(found.map(|found| (found.sampling, found.ratio)), sampler, "{name} {argument}");
        }
    }
}
