//! Stopping: let peers go elsewhere, finish what is in flight, lose nothing that waits to be accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::accept::Phase;
use crate::telemetry::{AccessLog, Direction};
use crate::worker::Shared;

/// Peers go on calling until the name's TTL (5 s from the mesh's discovery) is over and a little more.
const ACCEPT_FOR: Duration = Duration::from_secs(7);
/// How often it is looked whether anything is still open.
const LOOK: Duration = Duration::from_millis(20);

/// How the proxy came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything in flight finished.
    Drained,
    /// The time was over; this many connections were cut.
    CutOff {
        /// Of peers.
        inbound: i64,
        /// Of the workload.
        outbound: i64,
    },
    /// Told to stop at once.
    Interrupted,
}

/// How the admin port asks for an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// As SIGTERM.
    Drain,
    /// As SIGINT.
    Now,
}

pub(super) fn requests() -> (mpsc::Sender<Stop>, mpsc::Receiver<Stop>) {
    mpsc::channel(4)
}

pub(super) struct Drain<'a> {
    pub(super) shared: &'a Shared,
    pub(super) drain_inbound: watch::Sender<bool>,
    pub(super) drain_outbound: watch::Sender<bool>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) draining: Arc<AtomicBool>,
    pub(super) stopping: mpsc::Receiver<Stop>,
    /// Ends when nothing accepts peers' connections any more.
    pub(super) accepting: mpsc::Receiver<()>,
}

impl Drain<'_> {
    /// Waits for a reason to stop, and stops. SIGHUP opens the access log anew.
    pub(super) async fn until_ended(
        mut self,
        limit: Duration,
        access_log: &AccessLog,
    ) -> std::io::Result<Ended> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => return Ok(self.end(Ended::Interrupted)),
                _ = hang_up.recv() => access_log.reopen(),
                Some(stop) = self.stopping.recv() => match stop {
                    Stop::Drain => break,
                    Stop::Now => return Ok(self.end(Ended::Interrupted)),
                },
            }
        }
        tracing::info!("stopping: not ready any more, finishing what is in flight within {limit:?}");
        self.draining.store(true, Relaxed);
        let ended = tokio::select! {
            ended = self.drain(limit) => ended,
            _ = interrupt.recv() => Ended::Interrupted,
            _ = terminate.recv() => Ended::Interrupted,
        };
        Ok(self.end(ended))
    }

    async fn drain(&mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        sleep(ACCEPT_FOR.min(limit / 3)).await;
        // What waits in the accept queue is still taken: the acceptors look at it first.
        self.phase.send_replace(Phase::InboundClosed);
        // Its other ends are dropped with the acceptors; nothing is ever sent.
        let _ = self.accepting.recv().await;
        self.drain_inbound.send_replace(true);
        self.none_open(Direction::Inbound, deadline).await;
        self.drain_outbound.send_replace(true);
        self.none_open(Direction::Outbound, deadline).await;
        match (self.open(Direction::Inbound), self.open(Direction::Outbound)) {
            (0, 0) => Ended::Drained,
            (inbound, outbound) => Ended::CutOff { inbound, outbound },
        }
    }

    async fn none_open(&self, direction: Direction, deadline: Instant) {
        while self.open(direction) > 0 && Instant::now() < deadline {
            sleep_until(deadline.min(Instant::now() + LOOK)).await;
        }
    }

    fn open(&self, direction: Direction) -> i64 {
        self.shared.metrics.connections_open.of(direction).get()
    }

    fn end(&self, ended: Ended) -> Ended {
        self.phase.send_replace(Phase::Ended);
        ended
    }
}
