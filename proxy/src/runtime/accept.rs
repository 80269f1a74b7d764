//! Worker threads and their accept loops.

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_ca::LogPace;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};

use crate::net::ClientAddress;
use crate::telemetry::{AccessLog, Direction, OpenConnection, Recorder};
use crate::worker::{Shared, Worker};
use crate::{inbound, outbound};

/// A worker hands a new connection over when it has this many more open than another, so that equal
/// workers don't pass connections around.
const CLEARLY_MORE: usize = 8;
/// Connections on their way from one worker to another.
const HAND_OVER: usize = 256;
/// Pause after the system had no file descriptor or memory left: open connections must get to end.
const EXHAUSTED: Duration = Duration::from_millis(50);
/// Each pause of each listener of each worker would be a line.
static REFUSALS: LogPace = LogPace::new();

/// How far a stopping proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Accepting.
    Running,
    /// No more connections are accepted on the inbound side; what waits in the queue still is.
    InboundClosed,
    /// Everything ends.
    Ended,
}

/// The listeners of one worker.
pub(super) struct Listeners {
    pub(super) outbound: Vec<TcpListener>,
    pub(super) inbound: Vec<TcpListener>,
}

/// A connection on its way to its worker.
type Accepted = (std::net::TcpStream, ClientAddress, Direction, OpenConnection);

/// What the workers know of each other.
struct Team {
    open: Vec<AtomicUsize>,
    hand_over: Vec<mpsc::Sender<Accepted>>,
}

/// Starts a thread a set of listeners. The channel ends when nothing accepts peers' connections any more.
pub(super) fn start(
    shared: &Arc<Shared>,
    access_log: &AccessLog,
    listeners: Vec<Listeners>,
    phase: &watch::Receiver<Phase>,
) -> std::io::Result<(Vec<JoinHandle<()>>, mpsc::Receiver<()>)> {
    let (accepting, none_accepts) = mpsc::channel(1);
    let mut inboxes = Vec::new();
    let mut team = Team { open: Vec::new(), hand_over: Vec::new() };
    for _ in &listeners {
        let (sender, inbox) = mpsc::channel(HAND_OVER);
        team.open.push(AtomicUsize::new(0));
        team.hand_over.push(sender);
        inboxes.push(inbox);
    }
    let team = Arc::new(team);
    let mut threads = Vec::new();
    for (number, (listeners, inbox)) in listeners.into_iter().zip(inboxes).enumerate() {
        let (shared, access_log) = (shared.clone(), access_log.clone());
        let (team, phase, accepting) = (team.clone(), phase.clone(), accepting.clone());
        let runtime = move || Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let runtime = match runtime() {
                Ok(runtime) => runtime,
                Err(error) => return tracing::error!("worker {number} has no runtime: {error}"),
            };
            let recorder = Recorder::new(shared.metrics.clone(), access_log)
                .seen_by(shared.tap.clone(), shared.failures.clone());
            let worker = Worker::new(shared, recorder);
            runtime.block_on(work(worker, number, team, listeners, inbox, phase, accepting));
        })?);
    }
    Ok((threads, none_accepts))
}

async fn work(
    worker: Rc<Worker>,
    number: usize,
    team: Arc<Team>,
    listeners: Listeners,
    mut inbox: mpsc::Receiver<Accepted>,
    mut phase: watch::Receiver<Phase>,
    accepting: mpsc::Sender<()>,
) {
    tokio::task::spawn_local(worker.clone().keep_swept());
    let all = listeners
        .outbound
        .into_iter()
        .map(|listener| (listener, Direction::Outbound))
        .chain(listeners.inbound.into_iter().map(|listener| (listener, Direction::Inbound)));
    for (listener, direction) in all {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                let acceptor = Acceptor { worker: worker.clone(), number, team: team.clone(), direction };
                let phase = phase.clone();
                let accepting = (direction == Direction::Inbound).then(|| accepting.clone());
                tokio::task::spawn_local(async move {
                    acceptor.accept(listener, phase).await;
                    drop(accepting);
                });
            }
            Err(error) => tracing::error!("can't accept {} connections: {error}", direction.as_str()),
        }
    }
    drop(accepting);
    let acceptor = Acceptor { worker, number, team, direction: Direction::Inbound };
    loop {
        tokio::select! {
            handed = inbox.recv() => {
                let Some((stream, client, direction, open)) = handed else { return };
                if let Ok(stream) = TcpStream::from_std(stream) {
                    Acceptor { direction, ..acceptor.clone() }.carry(stream, client, open);
                }
            }
            _ = phase.wait_for(|phase| *phase == Phase::Ended) => return,
        }
    }
}

#[derive(Clone)]
struct Acceptor {
    worker: Rc<Worker>,
    number: usize,
    team: Arc<Team>,
    direction: Direction,
}

impl Acceptor {
    async fn accept(self, listener: tokio::net::TcpListener, mut phase: watch::Receiver<Phase>) {
        let closing = match self.direction {
            Direction::Inbound => Phase::InboundClosed,
            Direction::Outbound => Phase::Ended,
        };
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                _ = phase.wait_for(|phase| *phase >= closing) => return self.take_what_waits(listener),
            };
            match accepted {
                Ok((stream, client)) => self.place(stream, ClientAddress(client)),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if let Some(times) = REFUSALS.count(Instant::now()) {
                        tracing::warn!(
                            times,
                            "can't accept connections for a moment: {error}; raise the limit on open files"
                        );
                    }
                    self.worker
                        .shared
                        .metrics
                        .connections_refused
                        .inc([self.direction.as_str(), "exhausted"]);
                    tokio::time::sleep(EXHAUSTED).await;
                }
            }
        }
    }

    /// Connections that the kernel has accepted already get served too; closing would reset them.
    fn take_what_waits(&self, listener: tokio::net::TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, client)) = listener.accept() {
            let registered = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            match registered {
                Ok(stream) => self.place(stream, ClientAddress(client)),
                Err(error) => tracing::warn!("a waiting connection is lost: {error}"),
            }
        }
    }

    /// Carries a connection here, or on the worker that has clearly fewer.
    fn place(&self, stream: TcpStream, client: ClientAddress) {
        // Counted from now on, also on its way to another worker: a drain waits for it.
        let shared = &self.worker.shared;
        let held = shared.metrics.connections_open.of(self.direction).hold();
        let open = shared.connections.opened(held, self.direction, client.0);
        let Some((other, place)) = self.less_loaded() else { return self.carry(stream, client, open) };
        match stream.into_std() {
            Ok(stream) => place.send((stream, client, self.direction, open)),
            Err(error) => tracing::warn!("connection lost on its way to worker {other}: {error}"),
        }
    }

    /// A worker with clearly fewer connections than this one, and a place in its inbox.
    fn less_loaded(&self) -> Option<(usize, mpsc::Permit<'_, Accepted>)> {
        let mine = self.team.open[self.number].load(Relaxed);
        let (other, open) = self.team.open.iter().enumerate().min_by_key(|(_, open)| open.load(Relaxed))?;
        if mine < open.load(Relaxed) + CLEARLY_MORE {
            return None;
        }
        // A full inbox means that it is behind: the connection stays here.
        self.team.hand_over[other].try_reserve().ok().map(|place| (other, place))
    }

    fn carry(&self, stream: TcpStream, client: ClientAddress, open: OpenConnection) {
        let (worker, direction) = (self.worker.clone(), self.direction);
        let counted = Counted { team: self.team.clone(), number: self.number };
        self.team.open[self.number].fetch_add(1, Relaxed);
        tokio::task::spawn_local(async move {
            let _counted = counted;
            let open = Rc::new(open);
            match direction {
                Direction::Outbound => outbound::serve(worker, stream, client, open).await,
                Direction::Inbound => inbound::serve(worker, stream, client, open).await,
            }
        });
    }
}

struct Counted {
    team: Arc<Team>,
    number: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.team.open[self.number].fetch_sub(1, Relaxed);
    }
}

/// Errors about the one connection that was to be accepted, not about this process.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, WouldBlock,
    };
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | WouldBlock)
}
