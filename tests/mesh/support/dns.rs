//! A DNS server that answers, lies or keeps silent as the test says.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::pod::Pod;

/// What the server does with a question.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A records with a lifetime of one second.
    Addresses(Vec<Ipv4Addr>),
    /// One SRV record: a port of a host.
    Service(u16, String),
    /// A text record, whatever was asked for.
    Text(String),
    /// The name does not exist.
    NoName,
    /// No answer at all.
    Silence,
}

/// A running DNS server; it ends with the test process.
#[derive(Clone)]
pub struct Dns {
    /// Where it listens.
    pub address: SocketAddr,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<AtomicUsize>,
}

impl Dns {
    /// Serves DNS over UDP on port 53 of `pod`; names it was not told about do not exist.
    pub fn serve(pod: &Pod) -> Self {
        let address = pod.at(53);
        let socket = pod.bind_udp(address);
        let dns = Self { address, replies: Arc::default(), asked: Arc::default() };
        let server = dns.clone();
        std::thread::spawn(move || {
            let mut packet = [0; 1500];
            while let Ok((length, peer)) = socket.recv_from(&mut packet) {
                if let Some(answer) = server.answer(&packet[..length]) {
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        dns
    }

    /// Says what a name's questions get from now on.
    pub fn set(&self, name: &str, reply: Reply) {
        self.replies.lock().expect("not poisoned").insert(name.to_ascii_lowercase(), reply);
    }

    /// How many questions came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        const TYPE_A: u16 = 1;
        const TYPE_TXT: u16 = 16;
        const TYPE_SRV: u16 = 33;
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (mut labels, mut at) = (Vec::new(), 12);
        loop {
            let length = usize::from(*query.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
            at += length;
        }
        let question = query.get(12..at + 4)?;
        let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
        let reply = self.replies.lock().expect("not poisoned").get(&labels.join(".")).cloned();
        let (code, records): (u8, Vec<(u16, Vec<u8>)>) = match reply.unwrap_or(Reply::NoName) {
            Reply::Silence => return None,
            Reply::NoName => (3, Vec::new()),
            Reply::Addresses(addresses) if kind == TYPE_A => {
                (0, addresses.iter().map(|address| (TYPE_A, address.octets().to_vec())).collect())
            }
            Reply::Service(port, host) if kind == TYPE_SRV => {
                // Priority and weight are 0.
                let mut data = vec![0; 4];
                data.extend(port.to_be_bytes());
                for label in host.split('.') {
                    data.push(u8::try_from(label.len()).expect("at most 63 bytes"));
                    data.extend(label.as_bytes());
                }
                data.push(0);
                (0, vec![(TYPE_SRV, data)])
            }
            Reply::Text(text) if kind == TYPE_TXT => {
                let mut data = vec![u8::try_from(text.len()).expect("at most 255 bytes")];
                data.extend(text.as_bytes());
                (0, vec![(TYPE_TXT, data)])
            }
            Reply::Addresses(_) | Reply::Service(..) | Reply::Text(_) => (0, Vec::new()),
        };
        let mut answer = query[..2].to_vec();
        answer.extend([0x85, 0x80 | code, 0, 1]);
        answer.extend(u16::try_from(records.len()).expect("few records").to_be_bytes());
        answer.extend([0; 4]);
        answer.extend(question);
        for (kind, data) in records {
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1, 0, 0, 0, 1]);
            answer.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
            answer.extend(data);
        }
        Some(answer)
    }
}
