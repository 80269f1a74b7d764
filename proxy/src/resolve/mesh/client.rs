//! One kept connection to discovery, and many questions through it at once.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::BytesMut;
use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::message::{take_message, write_question};
use super::server::{Connection, MeshError, Server};

/// From asking to the answer, connecting included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions that wait to be sent.
const QUEUE: usize = 1024;
/// Questions under way on the connection.
const IN_FLIGHT: usize = 512;
/// Pauses between attempts to connect: the first one, and the longest. Short, for callers get errors in it; and only what
/// somebody asks makes an attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));

/// A handle to the connection's task, which ends with it.
pub(super) struct Client {
    queue: mpsc::Sender<Ask>,
}

struct Ask {
    name: Name,
    kind: RecordType,
    reply: oneshot::Sender<Result<Message, MeshError>>,
    /// It was sent already on a connection that ended; asking twice does no harm, asking for ever would.
    sent_before: bool,
}

impl Client {
    pub(super) fn start(server: Server) -> Self {
        let (queue, asks) = mpsc::channel(QUEUE);
        tokio::spawn(run(server, asks));
        Self { queue }
    }

    /// Asks, and waits for the answer at most 2 s.
    pub(super) async fn ask(&self, name: Name, kind: RecordType) -> Result<Message, MeshError> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask { name, kind, reply, sent_before: false };
        self.queue.try_send(ask).map_err(|_| MeshError::Busy)?;
        match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(MeshError::Ended("it was given up".to_owned())),
            Err(_) => Err(MeshError::Timeout(ANSWER_TIMEOUT)),
        }
    }
}

/// Connects when there is something to ask, asks, and begins again when the connection ends.
async fn run(server: Server, mut asks: mpsc::Receiver<Ask>) {
    let mut waiting = VecDeque::new();
    let mut trouble = Trouble::default();
    loop {
        let ask = match waiting.pop_front() {
            Some(ask) => ask,
            None => match asks.recv().await {
                Some(ask) => ask,
                None => return,
            },
        };
        if ask.reply.is_closed() {
            continue;
        }
        if let Some(error) = trouble.pause() {
            let _ = ask.reply.send(Err(error));
            continue;
        }
        match server.connect().await {
            Ok(connection) => {
                waiting.push_front(ask);
                let address = connection.address;
                let ended = Session::new(connection, waiting).serve(&mut asks).await;
                if ended.answered {
                    trouble.over(address);
                } else {
                    trouble.met(MeshError::Connect { address, reason: ended.reason.clone() });
                }
                waiting = ended.left_over(&trouble);
            }
            Err(error) => {
                trouble.met(error.clone());
                let _ = ask.reply.send(Err(error));
            }
        }
    }
}

/// Failures in a row, and the pause that follows them: questions asked in it are refused with the last failure.
#[derive(Default)]
struct Trouble {
    failures: u32,
    last: Option<(MeshError, Instant)>,
}

impl Trouble {
    fn pause(&self) -> Option<MeshError> {
        let (error, until) = self.last.as_ref()?;
        (Instant::now() < *until).then(|| error.clone())
    }

    fn met(&mut self, error: MeshError) {
        if self.failures == 0 {
            tracing::warn!(%error, "the mesh's discovery can't be asked; names keep the answers that they have");
        }
        // Without a certificate there is nothing to spare a server from; it may come at any moment.
        let pause = if error == MeshError::NoCertificate {
            Duration::ZERO
        } else {
            let longest = BACKOFF.0.saturating_mul(1 << self.failures.min(10)).min(BACKOFF.1);
            longest.mul_f64(rand::random_range(0.5..=1.0))
        };
        self.failures = self.failures.saturating_add(1);
        self.last = Some((error, Instant::now() + pause));
    }

    fn over(&mut self, address: std::net::SocketAddr) {
        if self.failures > 0 {
            tracing::info!(%address, "the mesh's discovery answers again");
        }
        *self = Self::default();
    }
}

/// A connection in use.
struct Session {
    connection: Connection,
    received: BytesMut,
    to_send: VecDeque<Ask>,
    in_flight: HashMap<u16, (Ask, Instant)>,
    next_id: u16,
    last_heard: Instant,
    answered: bool,
}

/// How a connection ended.
struct Ended {
    reason: String,
    answered: bool,
    unsent: VecDeque<Ask>,
    unanswered: Vec<Ask>,
}

impl Ended {
    /// What the next connection is to ask. A question without an answer goes there once if this connection had worked:
    /// a server that closes an idle connection crosses with the question that would have kept it.
    fn left_over(self, trouble: &Trouble) -> VecDeque<Ask> {
        let mut again = VecDeque::new();
        for mut ask in self.unanswered {
            if self.answered && !ask.sent_before {
                ask.sent_before = true;
                again.push_back(ask);
            } else {
                let error = trouble.pause().unwrap_or_else(|| MeshError::Ended(self.reason.clone()));
                let _ = ask.reply.send(Err(error));
            }
        }
        again.extend(self.unsent);
        again
    }
}

impl Session {
    fn new(connection: Connection, to_send: VecDeque<Ask>) -> Self {
        Self {
            connection,
            received: BytesMut::with_capacity(4096),
            to_send,
            in_flight: HashMap::new(),
            next_id: 0,
            last_heard: Instant::now(),
            answered: false,
        }
    }

    /// Asks until the connection ends or must not be used any longer.
    async fn serve(mut self, asks: &mut mpsc::Receiver<Ask>) -> Ended {
        let reason = loop {
            if let Some(ask) = self.to_send.pop_front() {
                match self.send(ask).await {
                    Ok(()) => continue,
                    Err(reason) => break reason,
                }
            }
            let silence_ends = self.silence_ends();
            let has_room = self.in_flight.len() < IN_FLIGHT;
            tokio::select! {
                read = self.connection.stream.read_buf(&mut self.received) => match read {
                    Ok(0) => break "the server closed it".to_owned(),
                    Ok(_) => if let Err(reason) = self.hear() { break reason },
                    Err(error) => break error.to_string(),
                },
                ask = asks.recv(), if has_room => match ask {
                    Some(ask) => self.to_send.push_back(ask),
                    None => break "the proxy stops".to_owned(),
                },
                () = sleep_until(silence_ends.unwrap_or(self.connection.ends)), if silence_ends.is_some() => {
                    break format!("no answer within {ANSWER_TIMEOUT:?}")
                }
                () = sleep_until(self.connection.ends) => break "it was used as long as its certificates allow".to_owned(),
            }
        };
        Ended {
            reason,
            answered: self.answered,
            unsent: self.to_send,
            unanswered: self.in_flight.into_values().map(|(ask, _)| ask).collect(),
        }
    }

    /// When the oldest question has waited too long without a word from the server.
    fn silence_ends(&self) -> Option<Instant> {
        let oldest = self.in_flight.values().map(|(_, sent)| *sent).min()?;
        Some(oldest.max(self.last_heard) + ANSWER_TIMEOUT)
    }

    async fn send(&mut self, ask: Ask) -> Result<(), String> {
        if ask.reply.is_closed() {
            return Ok(());
        }
        while self.in_flight.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let question = match write_question(id, ask.name.clone(), ask.kind) {
            Ok(question) => question,
            Err(reason) => {
                let _ = ask.reply.send(Err(MeshError::Ended(reason)));
                return Ok(());
            }
        };
        self.in_flight.insert(id, (ask, Instant::now()));
        let write = async {
            self.connection.stream.write_all(&question).await?;
            self.connection.stream.flush().await
        };
        match timeout(ANSWER_TIMEOUT, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("nothing could be sent for {ANSWER_TIMEOUT:?}")),
        }
    }

    /// Hands whole messages to those who asked.
    fn hear(&mut self) -> Result<(), String> {
        self.last_heard = Instant::now();
        while let Some(message) = take_message(&mut self.received)? {
            if let Some((ask, _)) = self.in_flight.remove(&message.metadata.id) {
                self.answered = true;
                let _ = ask.reply.send(Ok(message));
            }
        }
        // The server is alive, so a question that nobody waits for any longer is no sign of the contrary.
        self.in_flight.retain(|_, (ask, _)| !ask.reply.is_closed());
        Ok(())
    }
}
