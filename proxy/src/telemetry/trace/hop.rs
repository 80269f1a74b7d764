//! A request enters its trace: whose child it is, whether it is recorded, and what it tells the next.

use std::net::SocketAddr;
use std::time::Instant;

use http::header::{HeaderValue, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderMap, Request};
use rand::{Rng, RngExt};

use super::context::{Caller, SpanContext};
use super::environment::Environment;
use super::propagation::Propagation;
use super::sampling::Sampler;
use super::trace_state::{TRACESTATE, TraceState};
use crate::config::{self, READ_TRACE_HEADERS, SAMPLE_RATIO, Sampling, WRITTEN_TRACE_HEADERS};

/// How requests are traced.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    sampler: Sampler,
    propagation: Propagation,
}

/// Whether a caller's word is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It goes on with its caller's trace.
    Continue,
    /// It starts a trace of its own, which is linked to the caller's: an untrusted caller could fill the store of
    /// traces, or read out of ours what it should not (W3C Trace Context, security considerations).
    NewRoot,
}

/// The place of one request in its trace.
#[derive(Debug)]
pub struct Hop {
    /// What the request carries on.
    pub context: SpanContext,
    /// What its span will need; `None` if it is not recorded.
    pub sampled: Option<Box<SampledHop>>,
}

/// What is remembered of a request that is recorded.
#[derive(Debug)]
pub struct SampledHop {
    pub(super) parent: Option<u64>,
    pub(super) link: Option<(u128, u64)>,
    pub(super) trace_state: Option<String>,
    pub(super) is_https: bool,
    pub(super) user_agent: Option<HeaderValue>,
    pub(super) retries: Vec<Retried>,
}

/// A try that was followed by another.
#[derive(Debug)]
pub struct Retried {
    /// When the next one began.
    pub at: Instant,
    /// Where it went.
    pub endpoint: Option<SocketAddr>,
    /// Why it was not the last.
    pub reason: String,
    /// The status of its response, if there was one.
    pub status: Option<u16>,
}

impl Tracing {
    /// How requests are traced by what the config and the environment say; `None` if at all neither does.
    pub fn of(config: Option<&config::Tracing>, environment: &Environment<'_>) -> Option<Self> {
        let silent = config::Tracing::default();
        let config = match config {
            Some(config) => config,
            None if environment.names_an_exporter() => &silent,
            None => return None,
        };
        let stated = (config.sampling.is_some() || config.sample_ratio.is_some()).then(|| Sampler {
            sampling: config.sampling.unwrap_or_default(),
            ratio: config.sample_ratio.unwrap_or(SAMPLE_RATIO),
        });
        let config::Propagation { read, write } = &config.propagation;
        let propagators = match (read, write) {
            (None, None) => environment.propagators(),
            _ => None,
        };
        let of = |stated: &Option<Vec<_>>, default: &[_]| {
            propagators.clone().or_else(|| stated.clone()).unwrap_or_else(|| default.to_vec())
        };
        Some(Self {
            sampler: stated
                .or_else(|| environment.sampler())
                .unwrap_or(Sampler { sampling: Sampling::ParentBased, ratio: SAMPLE_RATIO }),
            propagation: Propagation {
                read: of(read, &READ_TRACE_HEADERS),
                write: of(write, &WRITTEN_TRACE_HEADERS),
            },
        })
    }

    /// Finds a request's place in its trace, and has the request tell it whom it goes to.
    ///
    /// One that is recorded gets a span of its own. One that is not passes its parent's on as it is, which costs
    /// nothing and leaves no gap: who records further in becomes a child of the last that did.
    pub fn enter<B>(
        &self,
        request: &mut Request<B>,
        route: Option<&config::RouteTracing>,
        trust: Trust,
        rng: &mut impl Rng,
    ) -> Hop {
        let (caller, by) = self.propagation.read(request.headers());
        let mut link = None;
        let (caller, by) = match trust {
            Trust::Continue => (caller, by),
            Trust::NewRoot => {
                link = caller.parent().map(|parent| (parent.trace_id, parent.span_id));
                Propagation::remove(request.headers_mut());
                (Caller::Unknown, None)
            }
        };
        let parent = caller.parent();
        // 0 is no id, and as likely as nothing.
        let trace_id = parent.map_or_else(|| rng.random::<u128>().max(1), |parent| parent.trace_id);
        let is_sampled = self.sampler.with(route).is_sampled(trace_id, caller.is_sampled());
        let is_random = parent.is_none_or(|parent| parent.is_random);
        let is_debug = is_sampled && caller.is_debug();
        let headers = request.headers_mut();
        // `sampled` may change only together with the span's id.
        let passed_on = parent.filter(|parent| !is_sampled && parent.is_sampled == Some(false));
        let context = match passed_on {
            Some(parent) => {
                let span_id = parent.span_id;
                let context = SpanContext { trace_id, span_id, is_sampled, is_random, is_debug };
                let stays = by.filter(|_| parent.is_canonical);
                self.propagation.write(headers, &context, None, stays);
                context
            }
            None => {
                let span_id = rng.random::<u64>().max(1);
                let context = SpanContext { trace_id, span_id, is_sampled, is_random, is_debug };
                let parent = parent.map(|parent| parent.span_id);
                self.propagation.write(headers, &context, parent, None);
                context
            }
        };
        let trace_state = self.propagation.trace_state(headers, by);
        let parent = parent.map(|parent| parent.span_id);
        let sampled = is_sampled.then(|| Box::new(SampledHop::of(request, parent, link, trace_state)));
        Hop { context, sampled }
    }
}

impl SampledHop {
    fn of<B>(
        request: &Request<B>,
        parent: Option<u64>,
        link: Option<(u128, u64)>,
        trace_state: TraceState,
    ) -> Self {
        Self {
            parent,
            link,
            trace_state: match trace_state {
                TraceState::Absent | TraceState::Dropped => None,
                TraceState::AsItIs => text_of(request.headers()),
                TraceState::Rewritten(text) => Some(text),
            },
            is_https: request.uri().scheme() == Some(&Scheme::HTTPS),
            user_agent: request.headers().get(USER_AGENT).cloned(),
            retries: Vec::new(),
        }
    }

    /// There is another try.
    pub fn retried(&mut self, retried: Retried) {
        self.retries.push(retried);
    }
}

fn text_of(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(TRACESTATE)?.to_str().ok()?.to_owned())
}

#[cfg(test)]
mod tests;
