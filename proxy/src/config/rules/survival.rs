//! Rules about what keeps callers from being let down: health checks, ejection, breakers, retries, fallbacks, limits.

use std::collections::BTreeMap;
use std::time::Duration;

use super::report::Report;
use super::upstreams::refer_for_requests;
use crate::config::defaults::{MAX_MIN_RETRIES_PER_SECOND, MAX_RETRY_ATTEMPTS, MIN_ADAPTIVE_CONCURRENCY};
use crate::config::model::{
    Breaker, CacheFallback, Concurrency, Config, Fallback, HealthCheck, HttpCheck, Outlier, Retry,
};
use crate::config::problem::{Path, nearest};
use crate::config::syntax::{RetryCondition, editable, host_maybe_port, path_and_query, statuses};
use crate::config::{syntax, units};

/// Statuses whose responses have no body (RFC 9110 15).
const WITHOUT_BODY: [u16; 3] = [204, 205, 304];

pub(super) fn health_check(at: &Path, check: &HealthCheck, report: &mut Report) {
    report.exactly_one(
        at,
        &[("http", check.http.is_some()), ("tcp", check.tcp.is_some()), ("grpc", check.grpc.is_some())],
    );
    if let Some(http) = &check.http {
        http_check(&at.field("http"), http, report);
    }
    report.port(&at.field("port"), check.port);
    report.above_zero(&at.field("interval"), check.interval);
    report.percent(&at.field("jitterPercent"), check.jitter_percent.map(f64::from));
    report.above_zero(&at.field("timeout"), check.timeout);
    report.at_least_one(&at.field("unhealthyAfter"), check.unhealthy_after);
    report.at_least_one(&at.field("healthyAfter"), check.healthy_after);
    if check.timeout() > check.interval() && !check.interval().is_zero() {
        report.error(
            &at.field("timeout"),
            format!(
                "a check may take {}, and the next one starts after {}",
                shown(check.timeout()),
                shown(check.interval())
            ),
            "write a timeout of at most `interval`",
        );
    }
}

fn http_check(at: &Path, check: &HttpCheck, report: &mut Report) {
    report.checked(&at.field("path"), path_and_query(&check.path));
    if let Some(host) = &check.host {
        report.checked(&at.field("host"), host_maybe_port(host));
    }
    for (index, text) in check.expected.iter().enumerate() {
        if statuses(text).is_none() {
            report.error(
                &at.field("expected").item(index),
                format!("`{text}` is neither a status nor a range of them"),
                "write one such as \"204\" or \"200-299\", from 100 to 599",
            );
        }
    }
}

pub(super) fn outlier(at: &Path, outlier: &Outlier, report: &mut Report) {
    report.at_least_one(&at.field("consecutiveFailures"), outlier.consecutive_failures);
    report.at_least_one(&at.field("connectFailures"), outlier.connect_failures);
    report.above_zero(&at.field("ejection"), outlier.ejection);
    report.above_zero(&at.field("maxEjection"), outlier.max_ejection);
    at_most(at, ("ejection", outlier.ejection()), ("maxEjection", outlier.max_ejection()), report);
    report.percent(&at.field("maxEjectedPercent"), outlier.max_ejected_percent.map(f64::from));
    report.percent(&at.field("panicBelowPercent"), outlier.panic_below_percent.map(f64::from));
    if outlier.max_ejected_percent == Some(0) {
        report.warn(
            &at.field("maxEjectedPercent"),
            "one endpoint may still be out, whatever the share",
            "write `enabled: false` to eject none",
        );
    }
    if let Some(rate) = &outlier.success_rate {
        let at = at.field("successRate");
        report.above_zero(&at.field("interval"), rate.interval);
        report.at_least_one(&at.field("minimumRequests"), rate.minimum_requests);
        if rate.minimum_endpoints() < 2 {
            report.error(
                &at.field("minimumEndpoints"),
                "one endpoint alone can't be compared with others",
                "write 2 or more",
            );
        }
        report.at_least_one(&at.field("deviationsTenths"), rate.deviations_tenths);
    }
    let others = [
        outlier.consecutive_failures.is_some(),
        outlier.connect_failures.is_some(),
        outlier.success_rate.is_some(),
        outlier.ejection.is_some(),
        outlier.max_ejection.is_some(),
        outlier.max_ejected_percent.is_some(),
    ];
    if !outlier.enabled() && others.contains(&true) {
        switched_off(at, report);
    }
}

pub(super) fn breaker(at: &Path, breaker: &Breaker, report: &mut Report) {
    report.at_least_one(&at.field("consecutiveFailures"), breaker.consecutive_failures);
    if breaker.enabled() && breaker.consecutive_failures == Some(1) {
        report.warn(
            &at.field("consecutiveFailures"),
            "a single failure opens the breaker for everybody",
            "write 5, unless each request is precious",
        );
    }
    report.above_zero(&at.field("window"), breaker.window);
    if let Some(rate) = &breaker.failure_rate {
        let at = at.field("failureRate");
        if !(1..=100).contains(&rate.percent) {
            report.error(
                &at.field("percent"),
                format!("{} percent can't be the share of failures that opens a breaker", rate.percent),
                "write 1 to 100",
            );
        }
        report.at_least_one(&at.field("minimumRequests"), rate.minimum_requests);
        if breaker.enabled() && rate.minimum_requests == Some(1) {
            report.warn(
                &at.field("minimumRequests"),
                "a single failure opens the breaker for everybody",
                "write 20, unless each request is precious",
            );
        }
    }
    report.above_zero(&at.field("openFor"), breaker.open_for);
    report.above_zero(&at.field("maxOpenFor"), breaker.max_open_for);
    at_most(at, ("openFor", breaker.open_for()), ("maxOpenFor", breaker.max_open_for()), report);
    report.at_least_one(&at.field("probes"), breaker.probes);
    if !breaker.enabled() && *breaker != (Breaker { enabled: breaker.enabled, ..Breaker::default() }) {
        switched_off(at, report);
    }
}

fn switched_off(at: &Path, report: &mut Report) {
    report.warn(
        &at.field("enabled"),
        "what else is stated here does nothing",
        "remove it, or write `enabled: true`",
    );
}

pub(super) fn concurrency(at: &Path, concurrency: &Concurrency, report: &mut Report) {
    report.exactly_one(
        at,
        &[("limit", concurrency.limit.is_some()), ("adaptive", concurrency.adaptive.is_some())],
    );
    if concurrency.limit == Some(0) {
        report.error(&at.field("limit"), "a limit of 0 would fail everything", "write 1 or more");
    }
    if concurrency.adaptive.is_some_and(|most| most < MIN_ADAPTIVE_CONCURRENCY) {
        report.error(
            &at.field("adaptive"),
            format!("an adaptive limit does not go below {MIN_ADAPTIVE_CONCURRENCY}"),
            format!("write {MIN_ADAPTIVE_CONCURRENCY} or more, or state `limit`"),
        );
    }
}

/// `all_tries` is the timeout that holds for them together, and whose it is.
pub(super) fn retry(at: &Path, retry: &Retry, all_tries: Option<(Duration, &str)>, report: &mut Report) {
    if let Some(attempts) = retry.attempts
        && attempts > MAX_RETRY_ATTEMPTS
    {
        report.error(
            &at.field("attempts"),
            format!("{attempts} retries would multiply an outage"),
            format!("write 0 to {MAX_RETRY_ATTEMPTS}"),
        );
    }
    for (index, text) in retry.on.iter().flatten().enumerate() {
        let at = at.field("on").item(index);
        match RetryCondition::parse(text) {
            None => report.error(&at, format!("`{text}` can't be retried on"), allowed_condition(text)),
            Some(RetryCondition::Timeout) if retry.per_try_timeout.is_none() => {
                report.warn(&at, "no try ends by a timeout of its own", "state `perTryTimeout`, or remove it")
            }
            Some(_) => {}
        }
    }
    let at_try = at.field("perTryTimeout");
    report.above_zero(&at_try, retry.per_try_timeout);
    if let (Some(one), Some((all, whose))) = (retry.per_try_timeout(), all_tries)
        && one > all
    {
        report.error(
            &at_try,
            format!("one try may take {}, and all of them together {}", shown(one), shown(all)),
            format!("write at most the {whose}'s `timeout`"),
        );
    }
    let at_backoff = at.field("backoff");
    for (name, limit) in [("base", retry.backoff.base()), ("max", retry.backoff.max())] {
        if limit.is_zero() {
            report.warn(
                &at_backoff.field(name),
                "without a pause a retry meets the trouble that the first try met",
                "leave the field out",
            );
        }
    }
    at_most(&at_backoff, ("base", retry.backoff.base()), ("max", retry.backoff.max()), report);
    report.percent(&at.field("budgetPercent"), retry.budget_percent.map(f64::from));
    if retry.min_retries_per_second() > MAX_MIN_RETRIES_PER_SECOND {
        report.error(
            &at.field("minRetriesPerSecond"),
            "a budget that always allows this many retries is none",
            format!("write 0 to {MAX_MIN_RETRIES_PER_SECOND}"),
        );
    }
}

fn allowed_condition(text: &str) -> String {
    let all = "`connectFailure`, `refusedStream`, `reset`, `timeout`, \"429\", \"500\" to \"599\", or a gRPC \
               status such as `UNAVAILABLE`";
    match nearest(text, RetryCondition::names()) {
        Some(meant) => format!("did you mean `{meant}`? Allowed: {all}"),
        None => format!("allowed: {all}"),
    }
}

/// `failing` are the upstreams whose failure it is for.
pub(super) fn fallback(
    config: &Config,
    at: &Path,
    fallback: &Fallback,
    failing: &[&str],
    report: &mut Report,
) {
    report.exactly_one(
        at,
        &[
            ("status", fallback.status.is_some()),
            ("upstream", fallback.upstream.is_some()),
            ("cache", fallback.cache.is_some()),
        ],
    );
    if let Some(status) = fallback.status {
        report.status(&at.field("status"), status, 200..=599);
        body(&at.field("body"), status, fallback.body.as_deref(), report);
        response_fields(&at.field("headers"), &fallback.headers, report);
    } else {
        for (name, is_stated) in
            [("body", fallback.body.is_some()), ("headers", !fallback.headers.is_empty())]
        {
            if is_stated {
                report.error(
                    &at.field(name),
                    "this goes with a `status` only",
                    "state `status`, or remove it",
                );
            }
        }
    }
    if let Some(name) = &fallback.upstream {
        instead(config, &at.field("upstream"), name, failing, report);
    }
    if let Some(cache) = &fallback.cache {
        cached(&at.field("cache"), cache, report);
    }
}

/// The upstream that takes the place of those that fail.
fn instead(config: &Config, at: &Path, name: &str, failing: &[&str], report: &mut Report) {
    refer_for_requests(config, at, name, report);
    if !failing.is_empty() && failing.iter().all(|failing| *failing == name) {
        report.error(at, format!("`{name}` is the upstream that has failed"), "name another one");
    } else if config.upstreams.get(name).is_some_and(|upstream| upstream.fallback.is_some()) {
        report.warn(
            at,
            format!("`{name}` has a fallback of its own, which does not apply to what comes this way"),
            "see that one fallback is enough",
        );
    }
}

fn cached(at: &Path, cache: &CacheFallback, report: &mut Report) {
    report.not_zero(&at.field("maxAge"), cache.max_age);
    if cache.max_bytes() == 0 {
        report.error(
            &at.field("maxBytes"),
            "nothing fits into 0 bytes",
            "write 16MiB, or leave the field out",
        );
    }
}

/// A body that goes with a fixed status.
pub(super) fn body(at: &Path, status: u16, body: Option<&str>, report: &mut Report) {
    if WITHOUT_BODY.contains(&status) && body.is_some_and(|body| !body.is_empty()) {
        report.error(at, format!("a response of status {status} has no body"), "remove it");
    }
}

/// Header fields of a response that the proxy makes.
pub(super) fn response_fields(at: &Path, fields: &BTreeMap<String, String>, report: &mut Report) {
    for (name, value) in fields {
        let at = at.field(name);
        report.checked(&at, editable(name));
        report.checked(&at, syntax::field_value(value));
    }
}

/// Two durations of which the second is the other's limit; one of them may be a default.
fn at_most(
    at: &Path,
    (name, duration): (&str, Duration),
    (limit_name, limit): (&str, Duration),
    report: &mut Report,
) {
    let (at_name, at_limit) = (at.field(name), at.field(limit_name));
    // A limit of 0 was reported, or is 0 on both sides.
    if duration <= limit || limit.is_zero() {
        return;
    }
    let at = if report.states(&at_name) { at_name } else { at_limit };
    report.error(
        &at,
        format!("`{name}` is {}, and its limit `{limit_name}` is {}", shown(duration), shown(limit)),
        format!("write a `{limit_name}` of at least `{name}`"),
    );
}

/// As the file would write it.
fn shown(duration: Duration) -> units::Duration {
    duration.into()
}
