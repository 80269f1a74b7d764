//! The tap: requests and opaque connections as they end, for whoever looks on at the admin port.
//!
//! Its cost is bounded. While nobody looks on, a request costs one relaxed load. Who looks on gets what its filter takes
//! through a queue of its own; where that is full, because the reader is slow or reads nothing, nothing is written down
//! any more: it is dropped and counted, and the reader is told how much it has missed.

mod filter;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use bytes::Bytes;
use prometheus::IntCounter;
use thiserror::Error;
use tokio::sync::mpsc;

pub use filter::{FilterError, TapFilter};

use super::access_log::line;
use super::recorder::{RequestRecord, TcpRecord};

/// How many may look on at once. A person has one or two open, and each costs every request a look at its filter.
pub const MOST_LOOKING_ON: usize = 8;
/// What waits for one reader. A line has some 500 bytes; at its longest, 4 KiB.
const QUEUE: usize = 256;

/// The tap; cheap to clone, all clones are one.
#[derive(Clone, Debug)]
pub struct Tap(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How many look on: all that a request looks at while nobody does.
    count: AtomicUsize,
    subscribers: ArcSwap<Vec<Arc<Subscriber>>>,
    dropped: IntCounter,
}

#[derive(Debug)]
struct Subscriber {
    filter: TapFilter,
    queue: mpsc::Sender<Queued>,
    /// Dropped since the reader was last told.
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Queued {
    /// What was dropped before it.
    dropped: u64,
    line: Bytes,
}

/// As many look on as may.
#[derive(Debug, Error)]
#[error("{MOST_LOOKING_ON} look on already, and no more may: end one of them")]
pub struct TooMany;

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Tapped {
    /// An exchange: the same JSON as in the access log, with its newline.
    Exchange(Bytes),
    /// So many that the filter takes are missing here: the reader was too slow.
    Dropped(u64),
}

/// One who looks on; it ends when this is dropped.
#[derive(Debug)]
pub struct LookingOn {
    tap: Tap,
    subscriber: Arc<Subscriber>,
    events: mpsc::Receiver<Queued>,
    /// Taken out of the queue, and told after what was dropped before it.
    next: Option<Bytes>,
}

impl Tap {
    /// Nobody looks on yet. What is dropped counts in `dropped`.
    pub fn new(dropped: IntCounter) -> Self {
        Self(Arc::new(Shared { count: AtomicUsize::new(0), subscribers: ArcSwap::default(), dropped }))
    }

    /// Begins to look on.
    ///
    /// # Errors
    /// As many as may look on already.
    pub fn look_on(&self, filter: TapFilter) -> Result<LookingOn, TooMany> {
        let (queue, events) = mpsc::channel(QUEUE);
        let subscriber = Arc::new(Subscriber { filter, queue, dropped: AtomicU64::new(0) });
        let mut is_full = false;
        self.0.subscribers.rcu(|subscribers| {
            is_full = subscribers.len() >= MOST_LOOKING_ON;
            let mut subscribers = Vec::clone(subscribers);
            if !is_full {
                subscribers.push(subscriber.clone());
            }
            subscribers
        });
        if is_full {
            return Err(TooMany);
        }
        self.0.count.fetch_add(1, Relaxed);
        Ok(LookingOn { tap: self.clone(), subscriber, events, next: None })
    }

    pub(super) fn request(&self, record: &RequestRecord<'_>) {
        if self.0.count.load(Relaxed) != 0 {
            self.show(|filter| filter.takes_request(record), || line::request(SystemTime::now(), record));
        }
    }

    pub(super) fn tcp(&self, record: &TcpRecord<'_>) {
        if self.0.count.load(Relaxed) != 0 {
            self.show(|filter| filter.takes_tcp(record), || line::tcp(SystemTime::now(), record));
        }
    }

    #[cold]
    fn show(&self, takes: impl Fn(&TapFilter) -> bool, write: impl Fn() -> String) {
        let mut line: Option<Bytes> = None;
        for subscriber in self.0.subscribers.load().iter().filter(|one| takes(&one.filter)) {
            // A place first: for who has none nothing is written down.
            match subscriber.queue.try_reserve() {
                Ok(place) => {
                    let line = line.get_or_insert_with(|| write().into()).clone();
                    place.send(Queued { dropped: subscriber.dropped.swap(0, Relaxed), line });
                }
                Err(_) => {
                    subscriber.dropped.fetch_add(1, Relaxed);
                    self.0.dropped.inc();
                }
            }
        }
    }
}

impl LookingOn {
    /// The next one that the filter takes.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Tapped> {
        if let Some(line) = self.next.take() {
            return Poll::Ready(Tapped::Exchange(line));
        }
        match self.events.poll_recv(cx) {
            Poll::Ready(Some(Queued { dropped: 0, line })) => Poll::Ready(Tapped::Exchange(line)),
            Poll::Ready(Some(Queued { dropped, line })) => {
                self.next = Some(line);
                Poll::Ready(Tapped::Dropped(dropped))
            }
            // Not empty: it is this task's turn to let others run.
            Poll::Pending if !self.events.is_empty() => Poll::Pending,
            // Told also where nothing follows; whatever is dropped from now on comes after something to read.
            Poll::Pending => match self.subscriber.dropped.swap(0, Relaxed) {
                0 => Poll::Pending,
                dropped => Poll::Ready(Tapped::Dropped(dropped)),
            },
            // It holds a sender itself.
            Poll::Ready(None) => Poll::Pending,
        }
    }

    /// The same, to be awaited.
    pub async fn next(&mut self) -> Tapped {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

impl Drop for LookingOn {
    fn drop(&mut self) {
        let shared = &self.tap.0;
        shared.subscribers.rcu(|subscribers| {
            let others = subscribers.iter().filter(|one| !Arc::ptr_eq(one, &self.subscriber));
            others.cloned().collect::<Vec<_>>()
        });
        shared.count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
