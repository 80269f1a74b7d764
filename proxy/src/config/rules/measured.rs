//! Timeouts beside what a running proxy has measured.

use std::time::Duration;

use super::report::Report;
use super::{root, routes, upstreams};
use crate::config::measured::{Measured, Percentile99};
use crate::config::model::Config;
use crate::config::problem::Path;
use crate::config::units;

/// A timeout so many times the 99th percentile stops nothing before its caller has given up.
const FAR_ABOVE: u32 = 20;

pub(super) fn check(config: &Config, measured: &Measured, report: &mut Report) {
    if measured.is_empty() {
        report.warn(
            &root(),
            "the metrics hold no outbound request, so that no timeout was compared",
            "ask a proxy that has carried traffic in the last minutes",
        );
    }
    for (at, route) in routes(config) {
        let Some(percentile) = measured.of_route(&route.name) else {
            continue;
        };
        let of_route = format!("the route `{}`", route.name);
        if let Some(timeout) = route.timeout() {
            compare(&at.field("timeout"), timeout, &percentile, &of_route, report);
            continue;
        }
        for to in &route.upstreams {
            let Some(timeout) = config.upstreams.get(&to.name).and_then(|upstream| upstream.timeout()) else {
                continue;
            };
            let at = root().field("upstreams").field(&to.name).field("timeout");
            compare(&at, timeout, &percentile, &of_route, report);
        }
    }
    for (at, name, upstream) in upstreams(config) {
        if let (Some(timeout), Some(percentile)) = (upstream.timeout(), measured.of_upstream(name)) {
            let of_upstream = format!("the upstream `{name}`");
            compare(&at.field("timeout"), timeout, &percentile, &of_upstream, report);
        }
    }
}

fn compare(at: &Path, timeout: Duration, measured: &Percentile99, of_what: &str, report: &mut Report) {
    let Percentile99 { duration, is_least, requests } = *measured;
    // What is less than a millisecond is not worth telling apart.
    let shown: units::Duration = Duration::from_millis(duration.as_millis().max(1) as u64).into();
    if timeout < duration {
        report.warn(
            at,
            format!("of {requests} requests of {of_what}, 1 in 100 took longer than {shown} to the end of its response, and this is less"),
            format!("write more than {shown}, or leave it if only the end of long responses is that late"),
        );
    } else if !is_least && timeout > duration.saturating_mul(FAR_ABOVE) {
        report.warn(
            at,
            format!("of {requests} requests of {of_what}, 99 in 100 took at most {shown}, and this is over {FAR_ABOVE} times as long"),
            format!("write less than {}, so that callers are told in time", times(duration)),
        );
    }
}

fn times(duration: Duration) -> units::Duration {
    let milliseconds = duration.saturating_mul(FAR_ABOVE).as_millis().max(1);
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(u64::MAX)).into()
}
