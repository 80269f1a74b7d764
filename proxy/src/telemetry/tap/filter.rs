//! Which exchanges a reader of the tap wants to see.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::Method;
use thiserror::Error;

use crate::telemetry::failures::{has_failed, tcp_has_failed};
use crate::telemetry::labels::Direction;
use crate::telemetry::recorder::{RequestRecord, TcpRecord};

/// The names that [`TapFilter::parse`] knows, with how each is written.
const KNOWN: &str = "direction=inbound|outbound, route=NAME, upstream=NAME, status=5xx|404|500-503, path=PREFIX, \
                     method=NAME, host=NAME, slowerThan=100ms, failed=true, limit=N";

/// Which exchanges are shown: those for which everything holds that is stated. Opaque connections have neither route nor
/// status, path, method or host, and are shown only where none of these is stated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TapFilter {
    /// Of this pipeline.
    pub direction: Option<Direction>,
    /// By this route.
    pub route: Option<Box<str>>,
    /// To this upstream.
    pub upstream: Option<Box<str>>,
    /// With a status in one of these; all where there is none.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// With a path that begins so.
    pub path: Option<Box<str>>,
    /// With this method.
    pub method: Option<Method>,
    /// For this host, whatever the port; with one, for it alone.
    pub host: Option<Box<str>>,
    /// That took longer than this.
    pub slower_than: Option<Duration>,
    /// That failed, as `/failures` has it: gRPC calls too, whose status is 200.
    pub failed: bool,
    /// Ends after so many.
    pub limit: Option<u64>,
}

/// A filter that can't be read.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// No such name.
    #[error("`{0}` is no filter; allowed are {KNOWN}")]
    Name(String),
    /// It stands there twice.
    #[error("`{0}` is stated twice; several statuses stand in one: status=404,5xx")]
    Twice(String),
    /// Its value is not one.
    #[error("{name}=`{value}` is wrong: write {expected}")]
    Value {
        /// The filter.
        name: &'static str,
        /// What was written.
        value: String,
        /// How it is written.
        expected: &'static str,
    },
}

impl TapFilter {
    /// Reads a filter from a URL's query. An empty value states nothing, as browsers send the fields of a form that are
    /// left empty.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub fn parse(query: &str) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        let mut seen: Vec<String> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if value.is_empty() && KNOWN.split(", ").any(|known| known.split('=').next() == Some(&name)) {
                continue;
            }
            if seen.iter().any(|one| *one == name) {
                return Err(FilterError::Twice(name.into_owned()));
            }
            filter.take(&name, &value)?;
            seen.push(name.into_owned());
        }
        Ok(filter)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), FilterError> {
        let wrong = |name, expected| FilterError::Value { name, value: value.to_owned(), expected };
        match name {
            "direction" => {
                self.direction = Some(match value {
                    "inbound" => Direction::Inbound,
                    "outbound" => Direction::Outbound,
                    _ => return Err(wrong("direction", "inbound or outbound")),
                });
            }
            "route" => self.route = Some(value.into()),
            "upstream" => self.upstream = Some(value.into()),
            "status" => {
                self.statuses = value.split(',').map(statuses).collect::<Option<_>>().ok_or_else(|| {
                    wrong(
                        "status",
                        "a status, a class or a range, or several: 404 or 5xx or 500-503 or 404,5xx",
                    )
                })?;
            }
            "path" if value.starts_with('/') || value == "*" => self.path = Some(value.into()),
            "path" => return Err(wrong("path", "what paths begin with, as /orders")),
            "method" => {
                let method = Method::from_bytes(value.to_ascii_uppercase().as_bytes());
                self.method = Some(method.map_err(|_| wrong("method", "a method, as GET"))?);
            }
            "host" => self.host = Some(value.into()),
            "slowerThan" => {
                let limit = outrigger_ca::duration::parse(value);
                self.slower_than =
                    Some(limit.ok_or_else(|| wrong("slowerThan", "a time, as 100ms or 1.5s or 2s"))?);
            }
            "failed" => {
                self.failed = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(wrong("failed", "true or false")),
                };
            }
            "limit" => match value.parse() {
                Ok(limit) if limit > 0 => self.limit = Some(limit),
                _ => return Err(wrong("limit", "a whole number from 1 on")),
            },
            _ => return Err(FilterError::Name(name.into())),
        }
        Ok(())
    }

    /// Whether a request is shown.
    pub(super) fn takes_request(&self, record: &RequestRecord<'_>) -> bool {
        let is =
            |stated: &Option<Box<str>>, value: &str| stated.as_deref().is_none_or(|stated| stated == value);
        self.direction.is_none_or(|direction| direction == record.direction)
            && is(&self.route, record.route)
            && is(&self.upstream, record.upstream)
            && (self.statuses.is_empty() || self.statuses.iter().any(|some| some.contains(&record.code)))
            && self.path.as_deref().is_none_or(|path| record.path.starts_with(path))
            && self.method.as_ref().is_none_or(|method| method == record.method)
            && self.host.as_deref().is_none_or(|host| is_of_host(record.authority, host))
            && self.slower_than.is_none_or(|limit| record.duration > limit)
            && (!self.failed || has_failed(record))
    }

    /// Whether an opaque connection is shown.
    pub(super) fn takes_tcp(&self, record: &TcpRecord<'_>) -> bool {
        self.route.is_none()
            && self.statuses.is_empty()
            && self.path.is_none()
            && self.method.is_none()
            && self.host.is_none()
            && self.direction.is_none_or(|direction| direction == record.labels.direction)
            && self.upstream.as_deref().is_none_or(|upstream| upstream == &**record.labels.upstream)
            && self.slower_than.is_none_or(|limit| record.duration > limit)
            && (!self.failed || tcp_has_failed(record))
    }
}

/// `404`, `5xx` or `500-503`.
fn statuses(text: &str) -> Option<RangeInclusive<u16>> {
    let status = |text: &str| {
        let is_three_digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|status| is_three_digits && (100..1000).contains(status))
    };
    let text = text.trim();
    if let [class @ b'1'..=b'9', b'x' | b'X', b'x' | b'X'] = text.as_bytes() {
        let first = u16::from(class - b'0') * 100;
        return Some(first..=first + 99);
    }
    match text.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (status(first)?, status(last)?);
            (first <= last).then_some(first..=last)
        }
        None => status(text).map(|status| status..=status),
    }
}

/// Whether an authority is `host`: its port makes a difference only where `host` states one.
fn is_of_host(authority: &str, host: &str) -> bool {
    if authority.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some((name, port)) = authority.rsplit_once(':') else { return false };
    // Within brackets colons are the address's.
    !port.contains(']') && name.eq_ignore_ascii_case(host)
}
