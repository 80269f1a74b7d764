//! A DNS server on loopback that says what a test wants, over UDP, TCP and TLS.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What is said to one question.
#[derive(Clone)]
pub enum Say {
    Records(Vec<Record>),
    /// Answers, and records that come along.
    With(Vec<Record>, Vec<Record>),
    NoData,
    Code(ResponseCode),
    Nothing,
    /// Over a stream: the connection is closed instead.
    HangUp,
}

/// What a server says; a name that is not in it does not exist.
#[derive(Default)]
pub struct Zone {
    said: Mutex<HashMap<(String, RecordType), Say>>,
    asked: Mutex<Vec<(String, RecordType)>>,
    hangs_up_at: Mutex<Option<String>>,
    truncates_udp: Mutex<bool>,
}

impl Zone {
    pub fn say(&self, name: &str, kind: RecordType, say: Say) {
        self.said.lock().unwrap().insert((name.to_owned(), kind), say);
    }

    pub fn records(&self, name: &str, kind: RecordType, records: Vec<Record>) {
        self.say(name, kind, Say::Records(records));
    }

    /// Addresses of a name, and that it has none of the other family.
    pub fn addresses(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let (v4, v6): (Vec<_>, Vec<_>) = addresses
            .iter()
            .map(|text| host(name, ttl, text))
            .partition(|record| record.record_type() == RecordType::A);
        for (kind, records) in [(RecordType::A, v4), (RecordType::AAAA, v6)] {
            let say = if records.is_empty() { Say::NoData } else { Say::Records(records) };
            self.say(name, kind, say);
        }
    }

    pub fn strings(&self, name: &str, ttl: u32, strings: &[&str]) {
        let records = strings
            .iter()
            .map(|text| Record::from_rdata(full(name), ttl, RData::TXT(TXT::new(vec![(*text).to_owned()]))));
        self.records(name, RecordType::TXT, records.collect());
    }

    /// Closes the next connection that asks for this name, once.
    pub fn hang_up_at(&self, name: &str) {
        *self.hangs_up_at.lock().unwrap() = Some(name.to_owned());
    }

    pub fn forget(&self, name: &str, kind: RecordType) {
        self.said.lock().unwrap().remove(&(name.to_owned(), kind));
    }

    pub fn truncate_udp(&self) {
        *self.truncates_udp.lock().unwrap() = true;
    }

    /// How often a question was asked.
    pub fn asked(&self, name: &str, kind: RecordType) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(n, k)| n == name && *k == kind).count()
    }

    pub fn was_asked_for(&self, kind: RecordType) -> bool {
        self.asked.lock().unwrap().iter().any(|(_, k)| *k == kind)
    }

    fn answer(&self, question: &[u8], over_udp: bool) -> Result<Option<Vec<u8>>, ()> {
        let question = Message::from_vec(question).unwrap();
        let query = question.queries[0].clone();
        let name = query.name().to_ascii().to_lowercase();
        let key = (name.trim_end_matches('.').to_owned(), query.query_type());
        self.asked.lock().unwrap().push(key.clone());
        if self.hangs_up_at.lock().unwrap().take_if(|name| *name == key.0).is_some() {
            return Err(());
        }
        let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.authoritative = true;
        answer.metadata.recursion_available = true;
        answer.add_query(query);
        if over_udp && *self.truncates_udp.lock().unwrap() {
            answer.metadata.truncation = true;
            return Ok(Some(answer.to_vec().unwrap()));
        }
        let said = self.said.lock().unwrap();
        let exists = said.keys().any(|(name, _)| *name == key.0);
        let say = said.get(&key).cloned().unwrap_or(if exists {
            Say::NoData
        } else {
            Say::Code(ResponseCode::NXDomain)
        });
        drop(said);
        let soa = SOA::new(full("ns.test"), full("root.test"), 1, 1, 1, 1, 1);
        let soa = Record::from_rdata(full("test"), 1, RData::SOA(soa));
        match say {
            Say::Records(records) => {
                answer.add_answers(records);
            }
            Say::With(records, more) => {
                answer.add_answers(records);
                answer.add_additionals(more);
            }
            Say::NoData => {
                answer.add_authority(soa);
            }
            Say::Code(code) => {
                answer.metadata.response_code = code;
                if code == ResponseCode::NXDomain {
                    answer.add_authority(soa);
                }
            }
            Say::Nothing => return Ok(None),
            Say::HangUp => return Err(()),
        }
        Ok(Some(answer.to_vec().unwrap()))
    }
}

/// A server of a zone; it ends when this is dropped.
pub struct FakeDns {
    pub address: SocketAddr,
    pub zone: Arc<Zone>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for FakeDns {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl FakeDns {
    /// UDP and TCP on one port.
    pub async fn start() -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let zone = Arc::new(Zone::default());
        let udp = {
            let zone = zone.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                loop {
                    let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                    if let Ok(Some(answer)) = zone.answer(&buffer[..length], true) {
                        udp.send_to(&answer, from).await.unwrap();
                    }
                }
            })
        };
        let tcp = {
            let zone = zone.clone();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = tcp.accept().await.unwrap();
                    tokio::spawn(serve_stream(stream, zone.clone()));
                }
            })
        };
        Self { address, zone, tasks: vec![udp, tcp] }
    }

    /// DNS over TLS.
    pub async fn start_tls(config: Arc<rustls::ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve_tls(listener, config, Arc::new(Zone::default()))
    }

    /// The same zone on the same port with another configuration; old connections are closed.
    pub async fn restart_tls(self, config: Arc<rustls::ServerConfig>) -> Self {
        let (address, zone) = (self.address, self.zone.clone());
        drop(self);
        loop {
            // The old listener's task ends at its next turn.
            tokio::task::yield_now().await;
            if let Ok(listener) = TcpListener::bind(address).await {
                return Self::serve_tls(listener, config, zone);
            }
        }
    }

    fn serve_tls(listener: TcpListener, config: Arc<rustls::ServerConfig>, zone: Arc<Zone>) -> Self {
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(config);
        let served = zone.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, zone) = (acceptor.clone(), served.clone());
                connections.spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve_stream(stream, zone).await;
                    }
                });
            }
        });
        Self { address, zone, tasks: vec![task] }
    }
}

async fn serve_stream(mut stream: impl AsyncRead + AsyncWrite + Unpin, zone: Arc<Zone>) {
    while let Ok(length) = stream.read_u16().await {
        let mut question = vec![0; usize::from(length)];
        if stream.read_exact(&mut question).await.is_err() {
            return;
        }
        let answer = match zone.answer(&question, false) {
            Ok(Some(answer)) => answer,
            Ok(None) => continue,
            Err(()) => return,
        };
        let mut framed = u16::try_from(answer.len()).unwrap().to_be_bytes().to_vec();
        framed.extend(answer);
        if stream.write_all(&framed).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

pub fn full(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    name
}

pub fn host(name: &str, ttl: u32, address: &str) -> Record {
    let data = match address.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(full(name), ttl, data)
}

pub fn alias(name: &str, ttl: u32, target: &str) -> Record {
    Record::from_rdata(full(name), ttl, RData::CNAME(CNAME(full(target))))
}

pub fn service(name: &str, priority: u16, weight: u16, port: u16, target: &str) -> Record {
    let srv = SRV::new(priority, weight, port, full(target));
    Record::from_rdata(full(name), 5, RData::SRV(srv))
}
