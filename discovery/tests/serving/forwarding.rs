//! Questions about names that are not the mesh's.

use std::net::{SocketAddr, UdpSocket};
use std::thread;

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{RData, Record};

use crate::support::{Running, Wishes};

/// A server that claims authority over everything and says `text`, after a lie under a wrong id.
fn claims_authority(text: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let question = Message::from_vec(&bytes[..length]).unwrap();
            let mut answer = question.clone();
            answer.metadata.message_type = MessageType::Response;
            answer.metadata.authoritative = true;
            let say = |text: &str| {
                let mut answer = answer.clone();
                let data = RData::TXT(TXT::new(vec![text.to_owned()]));
                answer.add_answer(Record::from_rdata(question.queries[0].name().clone(), 60, data));
                answer
            };
            let mut lie = say("lie");
            lie.metadata.id = lie.metadata.id.wrapping_add(1);
            for message in [lie, say(text)] {
                socket.send_to(&message.to_vec().unwrap(), from).unwrap();
            }
        }
    });
    address
}

/// An address where nobody answers, and a question is refused at once.
fn nobody() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn other_names_are_asked_for_elsewhere_and_what_is_heard_there_is_without_authority() {
    let forward = vec![nobody(), claims_authority("truth")];
    let server = Running::start(Wishes { forward, ..Wishes::default() });
    let whole = server.dig("example.com TXT");
    assert!(whole.contains("\"truth\"") && !whole.contains("lie"), "{whole}");
    assert!(whole.contains("flags: qr rd ra;"), "no authority: {whole}");
}

#[test]
fn the_meshs_own_names_are_never_asked_for_elsewhere() {
    let forward = vec![claims_authority("foreign")];
    let server = Running::start(Wishes { forward, ..Wishes::default() });
    for question in [
        "nobody.shop.svc.cluster.local TXT",
        "_8080._tcp.nobody.shop.svc.cluster.local TXT",
        "cluster.local TXT",
        "4.3.2.1.in-addr.arpa TXT",
        "3.0.77.10.in-addr.arpa TXT",
    ] {
        let whole = server.dig(question);
        assert!(!whole.contains("foreign"), "{question}: {whole}");
        assert!(whole.contains("flags: qr aa rd ra;"), "{question}: {whole}");
    }
    // The ordinary name of an address is not the mesh's matter.
    assert!(server.dig("4.3.2.1.in-addr.arpa PTR").contains("foreign"));
}

#[test]
fn without_any_answer_from_elsewhere_the_question_fails() {
    let server = Running::start(Wishes { forward: vec![nobody()], ..Wishes::default() });
    assert!(server.dig("example.com A").contains("SERVFAIL"));
    assert!(server.dig("+tcp example.com A").contains("SERVFAIL"));
    assert_eq!(server.short("api.shop.svc.cluster.local A"), ["10.96.0.7"]);
}

#[test]
fn over_tcp_it_is_asked_over_tcp() {
    // Another discovery server is as good as any DNS server.
    let elsewhere = Running::start(Wishes::default());
    let server = Running::start(Wishes {
        services: Some("services: []".into()),
        forward: vec![elsewhere.plain],
        ..Wishes::default()
    });
    for carrier in ["+tcp", "+notcp"] {
        assert!(server.dig(&format!("{carrier} example.com A")).contains("REFUSED"));
    }
}
