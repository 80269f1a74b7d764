//! What is told about services and addresses.

use std::fmt::Write as _;

use crate::support::{Running, Wishes};

const API: &str = "api.shop.svc.cluster.local";
const API_8080: &str = "_8080._tcp.api.shop.svc.cluster.local";
const SERVICE: &str = r#""v=1 service name=api ns=shop vip=10.96.0.7,fd00:96::7 timeout=3s retries=1""#;

fn start() -> Running {
    Running::start(Wishes::default())
}

#[test]
fn a_service_has_its_own_addresses_and_without_any_those_of_its_endpoints() {
    let server = start();
    assert_eq!(server.short(&format!("{API} A")), ["10.96.0.7"]);
    assert_eq!(server.short(&format!("{API} AAAA")), ["fd00:96::7"]);
    assert_eq!(server.short("store.shop.svc.cluster.local A"), ["10.77.0.10", "10.77.0.9"]);
}

#[test]
fn srv_names_targets_that_resolve_and_whose_addresses_come_along() {
    let server = start();
    assert_eq!(
        server.short(&format!("{API_8080} SRV")),
        [
            "0 1 80 10-77-0-4.api.shop.svc.cluster.local.",
            "0 1 80 fd00-77-0-0-0-0-0-5.api.shop.svc.cluster.local.",
            "0 3 80 10-77-0-3.api.shop.svc.cluster.local.",
        ]
    );
    assert_eq!(server.short("10-77-0-4.api.shop.svc.cluster.local A"), ["10.77.0.4"]);
    assert_eq!(server.short("fd00-77-0-0-0-0-0-5.api.shop.svc.cluster.local AAAA"), ["fd00:77::5"]);
    let whole = server.dig(&format!("{API_8080} SRV"));
    assert!(whole.contains("ADDITIONAL: 4"), "{whole}");
    let fields: Vec<&str> = whole.split_whitespace().collect();
    let along = ["10-77-0-3.api.shop.svc.cluster.local.", "5", "IN", "A", "10.77.0.3"];
    assert!(fields.windows(5).any(|window| window == along), "{whole}");
}

#[test]
fn txt_tells_the_service_and_its_endpoints_on_the_port_that_was_asked_for() {
    let server = start();
    let mut expected = vec![
        r#""v=1 addr=10.77.0.3:80 mesh=1 ns=shop sa=api zone=a weight=3 opaque=0""#,
        r#""v=1 addr=10.77.0.4:80 mesh=0 ns=shop sa=old weight=1 opaque=0""#,
        r#""v=1 addr=[fd00:77::5]:80 mesh=1 ns=shop sa=api weight=1 opaque=0""#,
        SERVICE,
    ];
    expected.sort_unstable();
    assert_eq!(server.short(&format!("{API_8080} TXT")), expected);
    let opaque = server.short(&format!("_6000._tcp.{API} TXT"));
    assert_eq!(opaque.iter().filter(|line| line.contains("opaque=1")).count(), 3, "{opaque:?}");
}

#[test]
fn the_reverse_name_of_a_service_address_tells_the_service_on_all_ports() {
    let server = start();
    for reverse in ["-x 10.96.0.7 -t TXT", "-x fd00:96::7 -t TXT"] {
        let told = server.short(reverse);
        assert_eq!(told.len(), 1 + 3 * 2, "{told:?}");
        assert!(told.contains(&SERVICE.to_owned()), "{told:?}");
    }
}

#[test]
fn the_reverse_name_of_a_pod_tells_that_pod_and_its_services() {
    let server = start();
    assert_eq!(
        server.short("-x 10.77.0.3 -t TXT"),
        [
            r#""v=1 addr=10.77.0.3:6000 mesh=1 ns=shop sa=api zone=a weight=1 opaque=1""#,
            r#""v=1 addr=10.77.0.3:80 mesh=1 ns=shop sa=api zone=a weight=1 opaque=0""#,
            r#""v=1 addr=10.77.0.3:9090 mesh=0 ns=shop sa=api zone=a weight=1 opaque=0""#,
            SERVICE,
        ]
    );
    assert_eq!(
        server.short("-x 10.77.0.20 -t TXT"),
        [
            r#""v=1 addr=10.77.0.20:0 mesh=1 ns=shop sa=bare weight=1 opaque=0""#,
            r#""v=1 service name=bare ns=shop vip=10.96.0.9""#,
        ]
    );
}

#[test]
fn answers_have_authority_and_last_5_seconds() {
    let whole = start().dig(&format!("{API} A"));
    let flags = whole.lines().find(|line| line.contains("flags:")).unwrap();
    assert!(flags.contains("flags: qr aa rd;"), "{whole}");
    let answer: Vec<&str> =
        whole.lines().find(|line| line.starts_with("api.shop")).unwrap().split_whitespace().collect();
    assert_eq!(answer[1], "5", "{whole}");
}

#[test]
fn names_that_do_not_exist_are_told_from_names_without_such_records() {
    let server = start();
    for (question, code, answers) in [
        ("nobody.shop.svc.cluster.local A", "NXDOMAIN", 0),
        ("_9999._tcp.api.shop.svc.cluster.local SRV", "NXDOMAIN", 0),
        ("_8080._udp.api.shop.svc.cluster.local SRV", "NXDOMAIN", 0),
        ("example.com.cluster.local A", "NXDOMAIN", 0),
        ("store.shop.svc.cluster.local AAAA", "NOERROR", 0),
        ("api.shop.svc.cluster.local TXT", "NOERROR", 0),
        ("shop.svc.cluster.local A", "NOERROR", 0),
        ("_tcp.api.shop.svc.cluster.local A", "NOERROR", 0),
        ("svc.cluster.local A", "NOERROR", 0),
        ("cluster.local A", "NOERROR", 0),
        ("cluster.local SOA", "NOERROR", 1),
        // No workload of the mesh has the address, which is not to say that it has no name.
        ("4.3.2.1.in-addr.arpa TXT", "NOERROR", 0),
        ("4.3.2.1.in-addr.arpa PTR", "REFUSED", 0),
        ("3.0.77.10.in-addr.arpa PTR", "REFUSED", 0),
        ("example.com A", "REFUSED", 0),
        ("cluster.local AXFR", "", 0),
    ] {
        if code.is_empty() {
            assert!(server.dig(question).contains("Transfer failed"), "{question}");
            continue;
        }
        let whole = server.dig(question);
        assert!(whole.contains(&format!("status: {code}")), "{question}: {whole}");
        assert!(whole.contains(&format!("ANSWER: {answers}")), "{question}: {whole}");
        let negative = answers == 0 && code != "REFUSED";
        assert_eq!(whole.contains("\tSOA\t"), negative || question.ends_with("SOA"), "{question}: {whole}");
    }
}

#[test]
fn case_plays_no_part_and_the_question_comes_back_as_it_was_written() {
    let whole = start().dig("aPi.sHoP.SVC.Cluster.Local A");
    assert!(whole.contains(";aPi.sHoP.SVC.Cluster.Local."), "{whole}");
    assert!(whole.contains("10.96.0.7"), "{whole}");
}

/// A service with this many endpoints.
fn large(endpoints: u32) -> String {
    let mut services = "services:\n  - name: large\n    namespace: shop\n    vips: [10.96.0.1]\n    ports: [{port: 80}, {port: 81}]\n    endpoints:\n".to_owned();
    for number in 0..endpoints {
        let ip = std::net::Ipv4Addr::from(0x0a4d_0100 + number);
        writeln!(services, "      - {{address: {ip}, serviceAccount: large}}").unwrap();
    }
    services
}

#[test]
fn what_does_not_fit_into_a_datagram_is_asked_for_again_over_tcp() {
    let server = Running::start(Wishes { services: Some(large(100)), ..Wishes::default() });
    let name = "_80._tcp.large.shop.svc.cluster.local";
    let cut = server.dig(&format!("+ignore {name} SRV"));
    assert!(cut.contains(" tc ") && cut.contains("ANSWER: 0"), "{cut}");
    assert_eq!(server.short(&format!("{name} SRV")).len(), 100);
    assert_eq!(server.short(&format!("+noedns {name} TXT")).len(), 101);
    let whole = server.dig(&format!("{name} SRV"));
    assert!(whole.contains("(TCP)"), "{whole}");
}

#[test]
fn of_very_many_endpoints_an_asker_gets_256_and_the_same_ones_again() {
    let server = Running::start(Wishes { services: Some(large(1000)), ..Wishes::default() });
    for (question, expected) in [
        ("_80._tcp.large.shop.svc.cluster.local SRV", 256),
        ("_80._tcp.large.shop.svc.cluster.local TXT", 257),
        ("-x 10.96.0.1 -t TXT", 257),
    ] {
        let first = server.short(question);
        assert_eq!(first.len(), expected, "{question}");
        assert_eq!(server.short(question), first, "{question}");
        let other = server.short(&format!("-b 127.0.0.2 {question}"));
        assert_eq!(other.len(), expected, "{question}");
        assert_ne!(other, first, "{question}");
    }
}

#[test]
fn it_stops_when_it_is_told_to() {
    assert!(start().stop());
}
