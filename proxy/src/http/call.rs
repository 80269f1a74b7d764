//! One request to one upstream, with all its tries: breaker and limits; then, for each try, endpoint, connection, send.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Request, Response, StatusCode};
use rand::rngs::SmallRng;

use super::deadline::{Deadline, Passed, TimeLimit};
use super::forward::{Forward, Wire, head_of};
use super::hop::HopError;
use super::local_response::{LocalResponse, ProxyError};
use super::marks::mark_exhausted;
use super::record::{GRPC_UNAVAILABLE, Recording, grpc_status};
use super::replay::Replay;
use super::tunnel::ClientSide;
use crate::net::{Body, DialError, strip_hop_by_hop, strip_mesh_headers};
use crate::upstream::{
    AfterTry, Attempt, Choice, ConnectError, Endpoint, EndpointId, InFlight, Outcome, Pass, PeerMark, Pools,
    RetryPolicy, Subset, Tried, Upstream, log_change,
};

/// Pause before the first new try to connect to a workload; it doubles up to [`CONNECT_PAUSE_MAX`].
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
const CONNECT_PAUSE_MAX: Duration = Duration::from_millis(100);

/// One request, and all that was decided about it.
pub struct Call<'a> {
    /// The worker's connections.
    pub pools: &'a Pools,
    /// The upstream.
    pub upstream: &'a Arc<Upstream>,
    /// The endpoint that was asked for itself, by its address; else one is chosen for each try.
    pub dialled: Option<&'a Arc<Endpoint>>,
    /// Hash of what the request is balanced by.
    pub key: Option<u64>,
    /// Tags that the endpoint must have.
    pub subset: Option<&'a Subset>,
    /// How it leaves to an endpoint without a sidecar.
    pub wire: Wire,
    /// From the request's end to the response's headers, all tries together.
    pub timeout: Option<Duration>,
    /// What is done after a try that failed.
    pub again: Again<'a>,
    /// Processing it twice does no harm, whatever its method.
    pub idempotent: bool,
    /// Fields of the mesh's own that are in the request were put there by us.
    pub keeps_mesh_headers: bool,
    /// Whether the request may have to go to another upstream in the end.
    pub keeps_request: bool,
    /// The worker's random numbers.
    pub rng: &'a RefCell<SmallRng>,
}

/// What is done after a try that failed.
#[derive(Clone, Copy, Debug)]
pub enum Again<'a> {
    /// Outbound: another try, as the policy says.
    Retry(&'a RetryPolicy),
    /// Inbound: nothing but to connect again, for that long, to a workload that is starting.
    Connect(Duration),
}

/// A request without a response that is good.
pub struct Failed {
    /// What the client gets, unless there is something better.
    pub why: Why,
    /// Nobody has processed the request.
    pub unprocessed: bool,
    /// The request once more, where [`Call::keeps_request`] and sending it once more does no harm.
    pub request: Option<Box<Request<Body>>>,
    /// Follows the exchange.
    pub recording: Box<Recording>,
    exhausted: bool,
    idle_timeout: Option<Duration>,
}

/// Why there is no good response.
pub enum Why {
    /// There is none.
    Local(LocalResponse),
    /// The upstream's own says that it failed.
    Received(Response<Body>),
}

impl Why {
    /// What is left of a response that came.
    fn into_body(self) -> Option<Body> {
        match self {
            Self::Local(_) => None,
            Self::Received(response) => Some(response.into_body()),
        }
    }
}

/// Sends `request`, again if need be, and gives its response.
///
/// # Errors
/// There is none that is good.
pub async fn call(
    call: &Call<'_>,
    request: &mut Request<Body>,
    mut recording: Box<Recording>,
) -> Result<Response<Body>, Box<Failed>> {
    let (upstream, now) = (call.upstream, Instant::now());
    let pass = match upstream.breaker.try_pass(now) {
        Ok(pass) => pass,
        Err(open) => {
            return Err(call.not_sent(request, recording, LocalResponse::breaker_open(&upstream.name, open)));
        }
    };
    match upstream.admit(now) {
        Ok(admission) => recording.admitted(admission),
        Err(full) => {
            return Err(call.not_sent(request, recording, LocalResponse::full(&upstream.name, full)));
        }
    }
    let Some(endpoint) = call.choose(now, &[]) else {
        return Err(call.not_sent(request, recording, LocalResponse::no_endpoint(upstream)));
    };
    upstream.retry_budget.note_request(now);
    if !call.keeps_mesh_headers {
        strip_mesh_headers(request.headers_mut());
    }
    let idle_timeout = upstream.policy.stream_idle_timeout;
    recording.ends_when_idle_for(idle_timeout);
    let body = recording.watch_request(std::mem::take(request.body_mut())).ending_when_idle_for(idle_timeout);
    *request.body_mut() = body;
    let client_side = (call.wire == Wire::Own).then(|| ClientSide::prepare(request));
    // Of when it came in: what was waited for since, and another upstream before this one, take of it too.
    let deadline = match recording.is_grpc() {
        true => Deadline::of(request.headers(), recording.started()),
        false => None,
    };
    let limit = TimeLimit { after_request: call.timeout, deadline };
    let mut tries = Tries::begin(call, request, limit, now);
    if limit.is_none() {
        tries.make(request, endpoint, &mut recording).await;
    } else {
        Box::pin(tries.make_within(request, endpoint, &mut recording)).await;
    }
    let (upstream, idle_timeout) = (call.upstream, call.upstream.policy.stream_idle_timeout);
    let now = Instant::now();
    let result = std::mem::replace(&mut tries.result, Err(HopError::NotTried));
    let attempt = attempt_of(&result, &recording);
    let what = tried_of(&result, tries.mark);
    let unprocessed = what.is_unprocessed();
    call.tell_breaker(pass, attempt, &result, &recording, now);
    let failed = match result {
        Ok(response) if attempt != Attempt::Answered => Why::Received(response),
        Ok(mut response) => {
            recording.answered(response.status(), response.headers());
            match client_side {
                Some(side) if side.is_granted(&response) => side.join(&mut response, recording),
                _ => {
                    strip_hop_by_hop(response.headers_mut());
                    response = recording.follow(response).map(|body| body.ending_when_idle_for(idle_timeout));
                }
            }
            return Ok(response);
        }
        // Not the endpoint's fault.
        Err(_) if recording.request_broke() => {
            Why::Local(LocalResponse::new(ProxyError::BAD_REQUEST, "the request's body broke off"))
        }
        Err(error) => Why::Local(error.to_local_response(&upstream.name, recording.endpoint())),
    };
    Err(Box::new(Failed {
        why: failed,
        unprocessed,
        request: if unprocessed || tries.repeatable { tries.last_request(request) } else { None },
        recording,
        exhausted: tries.exhausted,
        idle_timeout,
    }))
}

impl Call<'_> {
    fn choose(&self, now: Instant, tried: &[EndpointId]) -> Option<Arc<Endpoint>> {
        let choice = Choice { now, key: self.key, subset: self.subset, tried };
        self.upstream.pick(self.dialled, &choice, &mut *self.rng.borrow_mut())
    }

    fn retry(&self) -> Option<&RetryPolicy> {
        match &self.again {
            Again::Retry(policy) => Some(policy),
            Again::Connect(_) => None,
        }
    }

    fn not_sent(
        &self,
        request: &mut Request<Body>,
        recording: Box<Recording>,
        why: LocalResponse,
    ) -> Box<Failed> {
        Box::new(Failed {
            why: Why::Local(why),
            unprocessed: true,
            request: self.keeps_request.then(|| Box::new(std::mem::take(request))),
            recording,
            exhausted: false,
            idle_timeout: None,
        })
    }

    fn tell_breaker(
        &self,
        pass: Pass<'_>,
        attempt: Attempt,
        result: &Result<Response<Body>, HopError>,
        recording: &Recording,
        now: Instant,
    ) {
        let breaker = &self.upstream.breaker;
        let outcome = match (attempt, result) {
            (Attempt::Abandoned, _) => return drop(pass),
            // What a workload answers is its own matter.
            (Attempt::Failed, _) if self.retry().is_none() => Outcome::Success,
            (Attempt::Answered, Ok(response))
                if breaker.counts_every_5xx() && response.status().is_server_error() =>
            {
                Outcome::Failure
            }
            (Attempt::Answered, _) => Outcome::Success,
            (Attempt::Failed | Attempt::ConnectFailed, _) => Outcome::Failure,
        };
        let available = match outcome {
            Outcome::Success => 0,
            Outcome::Failure => self.upstream.available(),
        };
        log_change(self.upstream, pass.ended(outcome, recording.tried(), available, now));
    }
}

impl Failed {
    /// Whether no proxy further out shall try again.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// The exchange, for the request that goes to `upstream` instead: of what was tried nothing is left.
    pub fn sent_elsewhere(self, upstream: &Arc<str>) -> Box<Recording> {
        let Self { why, mut recording, .. } = self;
        recording.goes_elsewhere(upstream, why.into_body());
        recording
    }

    /// Answers with what a fallback gives; `proxy_status` says what it stands in for.
    pub fn answer_instead(self, response: Response<Body>, proxy_status: String) -> Response<Body> {
        let Self { why, recording, .. } = self;
        recording.answer_instead(response, proxy_status, why.into_body())
    }

    /// What the client gets where nothing better is configured.
    pub fn into_response(self) -> Response<Body> {
        let Self { why, recording, exhausted, idle_timeout, .. } = self;
        match why {
            Why::Local(local) => {
                let mut response = recording.answer_locally(&local);
                if exhausted {
                    mark_exhausted(response.headers_mut(), None);
                }
                response
            }
            Why::Received(mut response) => {
                let mut recording = recording;
                recording.answered(response.status(), response.headers());
                strip_hop_by_hop(response.headers_mut());
                if exhausted {
                    let status = response.status();
                    mark_exhausted(response.headers_mut(), Some(status));
                }
                recording.follow(response).map(|body| body.ending_when_idle_for(idle_timeout))
            }
        }
    }
}

/// The tries of one request.
struct Tries<'a> {
    call: &'a Call<'a>,
    /// Processing the request twice does no harm.
    repeatable: bool,
    /// The head for another try; `None` where there can be none but after a connection that failed.
    spare: Option<Box<Request<Body>>>,
    replay: Option<Replay>,
    limit: TimeLimit,
    /// From then on the configured time runs, unless the request ended later.
    begun: Instant,
    /// What became of the last one. Kept here and not handed from future to future: each would be as much larger.
    result: Result<Response<Body>, HopError>,
    /// Of the last one's response.
    mark: PeerMark,
    /// No proxy further out shall try again.
    exhausted: bool,
}

impl<'a> Tries<'a> {
    fn begin(call: &'a Call<'a>, request: &mut Request<Body>, limit: TimeLimit, begun: Instant) -> Self {
        let is_repeatable = call.keeps_request || call.retry().is_some_and(|policy| policy.attempts() > 0);
        let mut replay = None;
        let spare = is_repeatable.then(|| head_of(request));
        if is_repeatable && !request.body().is_end() {
            let whole = Replay::new(std::mem::take(request.body_mut()));
            *request.body_mut() = whole.next_try().unwrap_or_default();
            replay = Some(whole);
        }
        Self {
            call,
            repeatable: call.idempotent || request.method().is_idempotent(),
            spare,
            replay,
            limit,
            begun,
            result: Err(HopError::NotTried),
            mark: PeerMark::None,
            exhausted: false,
        }
    }

    async fn make(
        &mut self,
        request: &mut Request<Body>,
        endpoint: Arc<Endpoint>,
        recording: &mut Recording,
    ) {
        self.attempt(request, &endpoint, recording).await;
        if is_settled(&self.result) {
            return;
        }
        // Boxed: the future of every request would be as large as this one.
        match self.call.again {
            Again::Retry(policy) => Box::pin(self.retry(policy, request, endpoint, recording)).await,
            Again::Connect(limit) => Box::pin(self.connect(limit, request, endpoint, recording)).await,
        }
    }

    async fn make_within(
        &mut self,
        request: &mut Request<Body>,
        endpoint: Arc<Endpoint>,
        recording: &mut Recording,
    ) {
        let (limit, request_ended) = (self.limit, recording.request_ended());
        let passed = tokio::select! {
            biased;
            () = self.make(request, endpoint, recording) => return,
            passed = limit.passed(request_ended) => passed,
        };
        let now = Instant::now();
        self.result = Err(match passed {
            Passed::Timeout(limit) => {
                recording.timed_out(now);
                HopError::Timeout(limit)
            }
            Passed::Deadline => {
                recording.given_up(now);
                HopError::DeadlinePassed
            }
        });
        if let Some(endpoint) = recording.trying_at() {
            endpoint.note_error(|| words_for(&self.result), now);
        }
    }

    async fn attempt(
        &mut self,
        request: &mut Request<Body>,
        endpoint: &Arc<Endpoint>,
        recording: &mut Recording,
    ) {
        let Call { pools, upstream, wire, .. } = *self.call;
        let now = Instant::now();
        // Before it counts as sent: the endpoint sees nothing of it.
        if let Some(deadline) = self.limit.deadline
            && deadline.pass_on(request.headers_mut(), now).is_err()
        {
            self.result = Err(HopError::DeadlinePassed);
            return;
        }
        recording.sent_to(upstream, InFlight::begin(endpoint, now));
        let forward = Forward { pools, upstream, endpoint, wire, spare: self.spare.as_deref() };
        self.result = match self.call.retry().and_then(RetryPolicy::per_try_timeout) {
            None => forward.send(request, recording).await,
            Some(limit) => {
                let request_ended = recording.request_ended();
                let sent = async {
                    tokio::select! {
                        biased;
                        result = forward.send(request, recording) => result,
                        _ = TimeLimit::from(limit).passed(request_ended) => Err(HopError::Timeout(limit)),
                    }
                };
                Box::pin(sent).await
            }
        };
        if let Ok(response) = &mut self.result {
            self.mark = match is_good_response(response) {
                true => PeerMark::None,
                false => PeerMark::of(response.headers(), recording.is_from_peer()),
            };
            strip_mesh_headers(response.headers_mut());
        }
        let ended = attempt_of(&self.result, recording);
        let now = Instant::now();
        if matches!(ended, Attempt::Failed | Attempt::ConnectFailed) {
            endpoint.note_error(|| words_for(&self.result), now);
        }
        recording.attempt_ended(ended, now);
    }

    /// Tries again, as long as the policy says so and the budget lets it.
    async fn retry(
        &mut self,
        policy: &RetryPolicy,
        request: &mut Request<Body>,
        mut endpoint: Arc<Endpoint>,
        recording: &mut Recording,
    ) {
        let upstream = self.call.upstream;
        let mut tried = Vec::new();
        for retries in 0.. {
            let mut what = tried_of(&self.result, self.mark);
            let mut next = None;
            // The patience that a sidecar asks for is for its own workload, and that is not the only one.
            if what.is_turned_away_by_peer() && retries < policy.attempts() {
                next = self.choose_next(&mut tried, &endpoint);
                if next.as_ref().is_some_and(|next| !tried.contains(&next.id)) {
                    what = Tried::Unprocessed;
                }
            }
            let after = {
                let rng = &mut *self.call.rng.borrow_mut();
                policy.verdict(self.repeatable, what, retries, SystemTime::now(), rng)
            };
            let backoff = match after {
                AfterTry::Done => return,
                AfterTry::Exhausted => return self.exhausted = true,
                AfterTry::Retry { backoff } => backoff,
            };
            if recording.request_broke() || !self.can_be_sent() {
                return;
            }
            // What is there already is more than the caller would hear at the end of its patience.
            if self.ends(recording).is_some_and(|end| Instant::now() + backoff >= end) {
                return;
            }
            // Chosen once: a balancer that gives turns counts each choice.
            let Some(next) = next.or_else(|| self.choose_next(&mut tried, &endpoint)) else { return };
            if !upstream.retry_budget.try_retry(Instant::now()) {
                recording.retry_refused();
                return self.exhausted = true;
            }
            // Before the pause, in which what the client still sends could become more than is kept.
            let Some(mut again) = self.next_request(request) else { return };
            recording.retried(|| why_again(&self.result));
            let last = std::mem::replace(&mut self.result, Err(HopError::NotTried));
            recording.try_over(last.ok().map(Response::into_body));
            tokio::time::sleep(backoff).await;
            endpoint = next;
            self.attempt(&mut again, &endpoint, recording).await;
            // After a connection that failed it is needed once more.
            *request = again;
            if is_settled(&self.result) {
                return;
            }
        }
    }

    /// The endpoint after `last`, which joins those that were tried.
    fn choose_next(&self, tried: &mut Vec<EndpointId>, last: &Endpoint) -> Option<Arc<Endpoint>> {
        tried.push(last.id);
        self.call.choose(Instant::now(), tried)
    }

    /// Connects again to a workload that is starting.
    async fn connect(
        &mut self,
        limit: Duration,
        request: &mut Request<Body>,
        endpoint: Arc<Endpoint>,
        recording: &mut Recording,
    ) {
        let begun = Instant::now();
        let mut pause = CONNECT_PAUSE;
        while let Err(HopError::Connect(ConnectError::Dial(DialError::Refused(_)))) = &self.result
            && begun.elapsed() + pause < limit
        {
            recording.try_over(None);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(CONNECT_PAUSE_MAX);
            self.attempt(request, &endpoint, recording).await;
        }
    }

    /// When the request's time is over, as far as that is known.
    fn ends(&self, recording: &Recording) -> Option<Instant> {
        self.limit.end(recording.request_ended_at(self.begun))
    }

    /// Whether there is something to send in another try.
    fn can_be_sent(&self) -> bool {
        match &self.spare {
            Some(_) => self.replay.as_ref().is_none_or(Replay::can_be_sent),
            None => matches!(self.result, Err(HopError::Connect(_))),
        }
    }

    /// The request for another try.
    fn next_request(&self, last: &mut Request<Body>) -> Option<Request<Body>> {
        let Some(spare) = &self.spare else { return Some(std::mem::take(last)) };
        let mut next = *head_of(spare);
        if let Some(replay) = &self.replay {
            *next.body_mut() = replay.next_try()?;
        }
        Some(next)
    }

    /// The request for another upstream.
    fn last_request(&self, last: &mut Request<Body>) -> Option<Box<Request<Body>>> {
        if self.call.keeps_request { self.next_request(last).map(Box::new) } else { None }
    }
}

/// Why a try is followed by another, in words, and the status of its response.
fn why_again(result: &Result<Response<Body>, HopError>) -> (String, Option<StatusCode>) {
    match result {
        Ok(response) => {
            let status = response.status();
            let reason = match grpc_status(response.headers()) {
                Some(grpc) => format!("grpc-status {grpc}"),
                None => format!("status {}", status.as_u16()),
            };
            (reason, Some(status))
        }
        Err(error) => (error.to_string(), None),
    }
}

/// Whether a try needs no second look: it went well, or nobody waits for another.
fn is_settled(result: &Result<Response<Body>, HopError>) -> bool {
    match result {
        Ok(response) => is_good_response(response),
        Err(error) => matches!(error, HopError::DeadlinePassed),
    }
}

fn is_good_response(response: &Response<Body>) -> bool {
    response.status().as_u16() < 400 && !response.headers().contains_key("grpc-status")
}

fn tried_of(result: &Result<Response<Body>, HopError>, mark: PeerMark) -> Tried<'_> {
    match result {
        Ok(response) => Tried::Answered { status: response.status(), headers: response.headers(), mark },
        Err(error) => Tried::failed(error),
    }
}

/// What failed at an endpoint, for people.
#[cold]
fn words_for(result: &Result<Response<Body>, HopError>) -> String {
    match result {
        Ok(response) => match grpc_status(response.headers()) {
            Some(status) => format!("it answered with grpc-status {status}"),
            None => format!("it answered with {}", response.status().as_u16()),
        },
        Err(error) => error.to_string(),
    }
}

/// What a try says about the endpoint (the design's row "failure").
fn attempt_of(result: &Result<Response<Body>, HopError>, recording: &Recording) -> Attempt {
    match result {
        Ok(response) => match response.status().as_u16() {
            502..=504 => Attempt::Failed,
            _ if recording.is_grpc() && grpc_status(response.headers()) == Some(GRPC_UNAVAILABLE) => {
                Attempt::Failed
            }
            _ => Attempt::Answered,
        },
        Err(_) if recording.request_broke() => Attempt::Abandoned,
        // However well it is, a caller can wait too little for it.
        Err(HopError::DeadlinePassed) => Attempt::Abandoned,
        Err(HopError::Connect(error)) if error.is_ours() => Attempt::Abandoned,
        Err(HopError::Connect(_)) => Attempt::ConnectFailed,
        Err(error) if matches!(Tried::failed(error), Tried::Unprocessed) => Attempt::Abandoned,
        Err(_) => Attempt::Failed,
    }
}

#[cfg(test)]
mod tests;
