//! Passes questions about other names on to other DNS servers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::answer::{Carrier, HEADER, failure};

/// Clients give up after 5 s at most (the C library's default); within that two servers are tried.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Each holds a socket; more questions than this at once are answered with a failure.
const MOST_AT_ONCE: usize = 512;
const LARGEST_DATAGRAM: usize = 4096;

/// Asks other servers, in the order given, until one answers.
pub(crate) struct Forwarder {
    servers: Vec<SocketAddr>,
    mark: Option<u32>,
    permits: Arc<Semaphore>,
}

impl Forwarder {
    pub(crate) fn new(servers: Vec<SocketAddr>, mark: Option<u32>) -> Self {
        Self { servers, mark, permits: Arc::new(Semaphore::new(MOST_AT_ONCE)) }
    }

    pub(crate) fn has_servers(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Leave to forward one question; none while too many are under way.
    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// The answer to a question that was found to be well formed; a failure when no server gives one.
    pub(crate) async fn ask(&self, question: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        for server in &self.servers {
            let asked = async {
                match carrier {
                    Carrier::Udp => self.ask_by_datagram(*server, question).await,
                    Carrier::Stream => self.ask_by_stream(*server, question).await,
                }
            };
            match timeout(TIMEOUT, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a server can't be asked"),
                Err(_) => tracing::debug!(%server, "a server did not answer within {TIMEOUT:?}"),
            }
        }
        failure(question)
    }

    /// A socket of its own for each question, so that whoever wants to answer in the server's place must guess its port
    /// as well as the id (RFC 5452).
    async fn ask_by_datagram(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.socket(server, Type::DGRAM, Protocol::UDP)?;
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        socket.bind(&SocketAddr::new(any, 0).into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.connect(server).await?;
        let question = Question::new(question);
        socket.send(&question.bytes).await?;
        let mut answer = vec![0; LARGEST_DATAGRAM];
        loop {
            let length = socket.recv(&mut answer).await?;
            if let Some(answer) = question.match_answer(&answer[..length]) {
                return Ok(answer);
            }
        }
    }

    async fn ask_by_stream(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.socket(server, Type::STREAM, Protocol::TCP)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        let mut stream = socket.connect(server).await?;
        let question = Question::new(question);
        stream.write_all(&crate::server::framed(&question.bytes)).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        question
            .match_answer(&answer)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
    }

    fn socket(&self, server: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let kind = kind.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(server), kind, Some(protocol))?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }
}

/// A question under an id of our own: the client's is known to whoever may want to spoof.
struct Question {
    bytes: Vec<u8>,
    client_id: [u8; 2],
}

impl Question {
    fn new(question: &[u8]) -> Self {
        let mut bytes = question.to_vec();
        let client_id = [bytes[0], bytes[1]];
        bytes[..2].copy_from_slice(&rand::random::<u16>().to_be_bytes());
        Self { bytes, client_id }
    }

    /// The answer as the client gets it, if it is one to this question.
    fn match_answer(&self, answer: &[u8]) -> Option<Vec<u8>> {
        const RESPONSE: u8 = 0x80;
        const AUTHORITATIVE: u8 = 0x04;
        const RECURSION_AVAILABLE: u8 = 0x80;
        const AUTHENTIC: u8 = 0x20;
        const ONE: [u8; 2] = [0, 1];
        let asked = &self.bytes[HEADER..question_end(&self.bytes)?];
        let answered = answer.get(HEADER..HEADER + asked.len())?;
        let ours = answer[..2] == self.bytes[..2]
            && answer[2] & RESPONSE != 0
            && answer[4..6] == ONE
            && answered.eq_ignore_ascii_case(asked);
        if !ours {
            return None;
        }
        let mut answer = answer.to_vec();
        answer[..2].copy_from_slice(&self.client_id);
        // Proxies believe what discovery has authority for, which hearsay never is.
        answer[2] &= !AUTHORITATIVE;
        // That somebody else checked signatures came over a way that anybody may change.
        answer[3] = (answer[3] & !AUTHENTIC) | RECURSION_AVAILABLE;
        Some(answer)
    }
}

/// Where the one question of a message ends; a compressed name has nothing before it to point to.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    let end = at + 1 + 4;
    (end <= message.len()).then_some(end)
}
