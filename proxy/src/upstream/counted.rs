//! A connection's place in its upstream's count, and why it ended.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Upstream;

/// Why a connection of a pool ended: label `reason` of `outrigger_pool_connections_closed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer ended it, or it broke, or what was on it was broken off.
    Ended,
    /// It carried opaque bytes or an upgrade, which came to their end.
    Done,
    /// It was unused for `pool.idleTimeout`.
    Idle,
    /// It reached `pool.maxConnectionAge`, `pool.maxRequestsPerConnection`, or nearly the end of a certificate.
    Age,
    /// The peer did not answer a PING.
    Ping,
    /// A certificate ended with requests still on it.
    Certificate,
    /// Its endpoint is gone.
    EndpointGone,
    /// It was unused, and another connection needed its place.
    Displaced,
}

impl CloseReason {
    /// All of them, each at its own number.
    pub const ALL: [Self; 8] = [
        Self::Ended,
        Self::Done,
        Self::Idle,
        Self::Age,
        Self::Ping,
        Self::Certificate,
        Self::EndpointGone,
        Self::Displaced,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Done => "done",
            Self::Idle => "idle",
            Self::Age => "age",
            Self::Ping => "ping",
            Self::Certificate => "certificate",
            Self::EndpointGone => "endpoint_gone",
            Self::Displaced => "displaced",
        }
    }
}

/// How many connections were opened, and ended by reason.
#[derive(Debug, Default)]
pub(super) struct Turnover {
    opened: AtomicU64,
    closed: [AtomicU64; CloseReason::ALL.len()],
}

impl Turnover {
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    pub(super) fn closed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CloseReason::ALL
            .iter()
            .zip(&self.closed)
            .map(|(reason, count)| (reason.as_str(), count.load(Relaxed)))
    }
}

/// Where whoever ends a connection says why. What nobody says is [`CloseReason::Ended`].
#[derive(Clone, Debug)]
pub(super) struct Ending(Rc<Cell<CloseReason>>);

impl Ending {
    pub(super) fn is(&self, reason: CloseReason) {
        self.0.set(reason);
    }
}

/// One connection, being opened or open, in its upstream's count.
#[derive(Debug)]
pub(super) struct Counted {
    upstream: Arc<Upstream>,
    /// There once it is open.
    ending: Option<Ending>,
}

impl Counted {
    /// Takes a place, if the limit leaves one.
    pub(super) fn take(upstream: &Arc<Upstream>) -> Option<Self> {
        let limit = upstream.policy.max_connections;
        upstream
            .connections
            .fetch_update(Relaxed, Relaxed, |open| (open < limit).then_some(open + 1))
            .ok()
            .map(|_| Self { upstream: upstream.clone(), ending: None })
    }

    /// The connection is open.
    pub(super) fn opened(&mut self) {
        self.upstream.turnover.opened.fetch_add(1, Relaxed);
        self.ending = Some(Ending(Rc::new(Cell::new(CloseReason::Ended))));
    }

    /// Where its end is said; of one that is not open yet nobody hears.
    pub(super) fn ending(&self) -> Ending {
        self.ending.clone().unwrap_or_else(|| Ending(Rc::new(Cell::new(CloseReason::Ended))))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(ending) = &self.ending {
            self.upstream.turnover.closed[ending.0.get() as usize].fetch_add(1, Relaxed);
        }
        self.upstream.connections.fetch_sub(1, Relaxed);
        self.upstream.queue.connection_closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_stands_at_its_own_number() {
        for (number, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number, "{reason:?}");
        }
    }
}
