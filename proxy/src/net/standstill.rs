//! Finds streams that stand still.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// A timer that runs while nothing moves.
#[derive(Debug)]
pub struct Standstill {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    is_running: bool,
}

impl Standstill {
    /// Nothing has moved since now.
    pub fn new(limit: Duration) -> Self {
        Self { limit, timer: Box::pin(sleep(limit)), is_running: true }
    }

    /// How long nothing may move.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Something moved.
    pub fn moved(&mut self) {
        // The timer is set anew only when somebody waits again: bytes that flow cost no timer.
        self.is_running = false;
    }

    /// Ready when nothing has moved for too long. Poll it while waiting for something to move.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_running {
            self.is_running = true;
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        self.timer.as_mut().poll(cx)
    }
}
