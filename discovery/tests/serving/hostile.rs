//! Clients that make no sense, or mean no good.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;

use crate::support::{Running, Wishes, connect, framed, question, read_framed};

const API: &str = "api.shop.svc.cluster.local.";

fn answers_still(server: &Running) {
    assert_eq!(server.short("api.shop.svc.cluster.local A"), ["10.96.0.7"]);
    assert_eq!(server.short("+tcp api.shop.svc.cluster.local A"), ["10.96.0.7"]);
}

/// The code of the answer to these bytes.
fn code(server: &Running, bytes: &[u8]) -> ResponseCode {
    let answer = Message::from_vec(&server.ask_raw(bytes).expect("an answer")).unwrap();
    assert_eq!(answer.metadata.id.to_be_bytes(), bytes[..2]);
    answer.metadata.response_code
}

#[test]
fn what_is_no_question_is_answered_with_what_is_wrong() {
    let server = Running::start(Wishes::default());
    let good = question(9, API, RecordType::A);
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let last = good.len();
    for (what, bytes, expected) in [
        ("no question", [&good[..4], &[0; 8]].concat(), ResponseCode::FormErr),
        ("two questions announced", changed(5, 2), ResponseCode::FormErr),
        ("cut off in the name", good[..20].to_vec(), ResponseCode::FormErr),
        ("cut off in the type", good[..last - 3].to_vec(), ResponseCode::FormErr),
        (
            "a name that points to itself",
            [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(),
            ResponseCode::FormErr,
        ),
        (
            "a label of 64",
            [&good[..12], &[64], &[b'a'; 64], &[0, 0, 1, 0, 1]].concat(),
            ResponseCode::FormErr,
        ),
        ("an update", changed(2, u8::from(OpCode::Update) << 3), ResponseCode::NotImp),
        ("a notification", changed(2, u8::from(OpCode::Notify) << 3), ResponseCode::NotImp),
        ("another class", changed(last - 1, 3), ResponseCode::Refused),
        ("a transfer", question(9, "cluster.local.", RecordType::AXFR), ResponseCode::Refused),
    ] {
        assert_eq!(code(&server, &bytes), expected, "{what}");
    }
    answers_still(&server);
}

#[test]
fn an_unknown_version_of_edns_is_told_so() {
    let server = Running::start(Wishes::default());
    let whole = server.dig("+edns=1 +noednsnegotiation api.shop.svc.cluster.local A");
    assert!(whole.contains("BADVERS"), "{whole}");
}

#[test]
fn a_question_about_everything_gets_something_small() {
    let server = Running::start(Wishes::default());
    assert_eq!(server.short("+notcp api.shop.svc.cluster.local ANY").len(), 1);
}

#[test]
fn answers_and_fragments_of_messages_are_met_with_silence() {
    let server = Running::start(Wishes::default());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut response = question(1, API, RecordType::A);
    response[2] |= 0x80;
    for bytes in [&response[..], &[], &[0], &response[..11]] {
        socket.send_to(bytes, server.plain).unwrap();
    }
    // What is answered first is the question that was asked last.
    socket.send_to(&question(2, API, RecordType::A), server.plain).unwrap();
    let mut answer = [0; 512];
    socket.recv(&mut answer).unwrap();
    assert_eq!(answer[..2], [0, 2]);
}

/// Numbers without a pattern, the same ones in each run (xorshift, Marsaglia 2003).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[test]
fn garbage_kills_nothing() {
    let server = Running::start(Wishes::default());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut noise = Noise(0x5eed);
    let good = question(9, API, RecordType::TXT);
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=noise.below(6) {
            let at = noise.below(bytes.len());
            bytes[at] = noise.next() as u8;
        }
        bytes.truncate(noise.below(bytes.len() * 4));
        socket.send_to(&bytes, server.plain).unwrap();
    }
    for _ in 0..200 {
        let length = noise.below(400);
        let bytes: Vec<u8> = (0..length).map(|_| noise.next() as u8).collect();
        let mut stream = connect(server.plain);
        // The server may close the connection before it has read all of this.
        let _ = stream.write_all(&bytes);
    }
    answers_still(&server);
}

#[test]
fn questions_that_arrive_together_or_in_pieces_are_all_answered() {
    let server = Running::start(Wishes::default());
    let mut stream = connect(server.plain);
    let mut all = Vec::new();
    for id in 0..500 {
        all.extend(framed(&question(id, API, RecordType::A)));
    }
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for piece in all.chunks(1000) {
            writer.write_all(piece).unwrap();
        }
        for byte in framed(&question(500, API, RecordType::A)) {
            writer.write_all(&[byte]).unwrap();
        }
    });
    let ids: Vec<u16> = (0..=500).map(|_| read_framed(&mut stream).metadata.id).collect();
    assert_eq!(ids, (0..=500).collect::<Vec<u16>>());
    writing.join().unwrap();
}

#[test]
fn questions_sent_before_the_end_of_a_connection_are_answered() {
    let server = Running::start(Wishes::default());
    let mut stream = connect(server.plain);
    stream.write_all(&framed(&question(1, API, RecordType::A))).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_framed(&mut stream).answers.len(), 1);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn connections_that_say_nothing_leave_datagrams_alone_and_are_closed_for_others() {
    let server = Running::start(Wishes::default());
    let silent: Vec<_> = (0..300).map(|_| connect(server.plain)).collect();
    assert_eq!(server.short("+notcp api.shop.svc.cluster.local A"), ["10.96.0.7"]);
    assert_closed(silent, server.plain);
}

/// The server closes those that it accepted, and so comes to the others.
fn assert_closed(mut silent: Vec<std::net::TcpStream>, server: SocketAddr) {
    let mut late = connect(server);
    late.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    late.write_all(&framed(&question(1, API, RecordType::A))).unwrap();
    assert_eq!(read_framed(&mut late).answers.len(), 1);
    silent[0].set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0);
}
