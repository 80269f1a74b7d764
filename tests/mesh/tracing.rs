//! What a trace's headers say on the wire: from a workload to its sidecar, over the mesh, and out of the other side.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, mpsc};

use crate::support::outside::{Outside, SHOP, upstream};
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::{Server, ok, respond};
use crate::support::{API, Mesh, Message, wait};

const DB: &str = "db.shop.svc.cluster.local";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
/// What a workload without any tracing of its own has to pass on.
const PASSED_ON: [&str; 8] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-sampled",
    "x-b3-parentspanid",
];

/// `web` calls `api`, which calls `db`; each has a sidecar.
struct Chain {
    web: Pod,
    received_by_api: mpsc::Receiver<Message>,
    received_by_db: mpsc::Receiver<Message>,
    api: Arc<Pod>,
    _sidecars: Vec<Process>,
    _servers: [Server; 2],
    _db: Pod,
    _mesh: Mesh,
}

impl Chain {
    /// All three sidecars have this section.
    fn new(tracing: &str) -> Self {
        let mesh = Mesh::new();
        let (web, api, db) = (mesh.pod("web"), mesh.pod("api"), mesh.pod("db"));
        web.add_hosts(&format!("{} {API}", api.address));
        api.add_hosts(&format!("{} {DB}", db.address));
        let config = format!(
            "outbound: {{meshDomains: [svc.cluster.local], meshNetworks: [10.77.0.0/24]}}\n{tracing}"
        );
        let sidecars = [&web, &api, &db].map(|pod| mesh.sidecar(pod).config(config.as_str()).start()).into();
        let api = Arc::new(api);
        let (tell_api, received_by_api) = mpsc::channel();
        let (tell_db, received_by_db) = mpsc::channel();
        let (caller, db_address) = (api.clone(), db.at(8080));
        let forwards = api.serve_http(8080, move |request| {
            let mut fields = String::new();
            for name in PASSED_ON {
                for value in request.header_values(name) {
                    fields += &format!("{name}: {value}\r\n");
                }
            }
            tell_api.send(request.clone()).expect("the test listens");
            let answer =
                caller.connect(db_address).ask(format!("GET / HTTP/1.1\r\nHost: {DB}\r\n{fields}\r\n"));
            ok(answer.status().to_string())
        });
        let answers = db.serve_http(8080, move |request| {
            tell_db.send(request.clone()).expect("the test listens");
            ok("")
        });
        let servers = [forwards, answers];
        Self {
            web,
            received_by_api,
            received_by_db,
            api,
            _sidecars: sidecars,
            _servers: servers,
            _db: db,
            _mesh: mesh,
        }
    }

    /// What `api` and `db` received when `web` sent these fields, each of which ends in CR LF.
    fn ask(&self, fields: &str) -> [Message; 2] {
        let request = format!("GET /?token=x HTTP/1.1\r\nHost: {API}\r\n{fields}\r\n");
        let answer = self.web.connect(self.api.at(8080)).ask(request);
        assert_eq!((answer.status(), answer.text().as_str()), (200, "200"), "{answer:?}");
        [&self.received_by_api, &self.received_by_db]
            .map(|received| received.recv().expect("a request that was answered was received"))
    }
}

/// A trace's id, a span's id and the flags, of the one `traceparent` there is.
fn traceparent(message: &Message) -> (String, String, String) {
    let value = message.header("traceparent").unwrap_or_else(|| panic!("no traceparent: {message:?}"));
    let parts: Vec<_> = value.split('-').collect();
    let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
    assert!(lengths == [2, 32, 16, 2] && parts[0] == "00", "{value}");
    assert!(value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')), "{value}");
    (parts[1].to_owned(), parts[2].to_owned(), parts[3].to_owned())
}

fn parent(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{SPAN}-{flags}\r\n")
}

#[test]
fn a_recorded_trace_has_a_span_of_its_own_at_every_hop_and_all_else_goes_through() {
    let chain = Chain::new("tracing: {}\n");
    let others = "tracestate: congo=t61rcWkgMzE, rojo=1\r\nbaggage: user=7;x=y\r\n";
    let received = chain.ask(&format!("{}{others}", parent("01")));
    let mut spans = BTreeSet::from([SPAN.to_owned()]);
    for message in &received {
        let (trace, span, flags) = traceparent(message);
        assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
        assert!(spans.insert(span), "a span's id came twice: {received:?}");
        assert_eq!(message.header("tracestate"), Some("congo=t61rcWkgMzE, rojo=1"));
        assert_eq!(message.header("baggage"), Some("user=7;x=y"));
    }
}

#[test]
fn a_trace_that_nobody_records_goes_through_every_hop_as_it_came() {
    let chain = Chain::new("tracing: {sampleRatio: 1}\n");
    let others = "tracestate: congo=t61rcWkgMzE, rojo=1\r\nbaggage: user=7;x=y\r\n";
    for flags in ["00", "02"] {
        for message in chain.ask(&format!("{}{others}", parent(flags))) {
            assert_eq!(traceparent(&message), (TRACE.to_owned(), SPAN.to_owned(), flags.to_owned()));
            assert_eq!(message.header("tracestate"), Some("congo=t61rcWkgMzE, rojo=1"));
            assert_eq!(message.header("baggage"), Some("user=7;x=y"));
        }
    }
}

#[test]
fn a_trace_is_started_where_there_is_none_and_all_hops_are_in_it() {
    for (ratio, flags) in [("0", "02"), ("1", "03")] {
        let chain = Chain::new(&format!("tracing: {{sampleRatio: {ratio}}}\n"));
        let mut traces = BTreeSet::new();
        for _ in 0..3 {
            let [first, second] = chain.ask("").map(|message| traceparent(&message));
            assert_eq!((&first.0, &first.2, &second.2.as_str()), (&second.0, &second.2, &flags));
            assert_eq!(first.1 == second.1, ratio == "0", "only who records has a span");
            assert!(traces.insert(first.0), "another request, another trace");
        }
    }
}

#[test]
fn a_ratio_decides_by_the_trace_and_so_alike_at_every_hop() {
    let chain = Chain::new("tracing: {sampling: ratio, sampleRatio: 0.5}\n");
    for (trace, came, goes) in
        [("ffffffffffffffff7fffffffffffffff", "00", "01"), ("0000000000000001ffffffffffffffff", "01", "00")]
    {
        for message in chain.ask(&format!("traceparent: 00-{trace}-{SPAN}-{came}\r\n")) {
            let (goes_on, span, flags) = traceparent(&message);
            assert_eq!((goes_on.as_str(), flags.as_str()), (trace, goes));
            assert_ne!(span, SPAN, "another decision comes with another span");
        }
    }
}

#[test]
fn without_a_section_of_tracing_nothing_is_added_changed_or_removed() {
    let chain = Chain::new("");
    let broken =
        "traceparent: 00-x\r\ntraceparent: 00-y\r\ntracestate: FOO=1\r\nb3: nonsense\r\nX-B3-Sampled: d\r\n";
    for message in chain.ask(broken) {
        assert_eq!(message.header_values("traceparent"), ["00-x", "00-y"]);
        assert_eq!(message.header("tracestate"), Some("FOO=1"));
        assert_eq!((message.header("b3"), message.header("x-b3-sampled")), (Some("nonsense"), Some("d")));
    }
    for message in chain.ask(&parent("01")) {
        assert_eq!(message.header("traceparent"), Some(format!("00-{TRACE}-{SPAN}-01").as_str()));
    }
    for message in chain.ask("") {
        assert_eq!(PASSED_ON.map(|name| message.header_values(name).len()), [0; PASSED_ON.len()]);
    }
}

/// A sidecar with these sections, which sends to a server that tells what it received.
struct Hop {
    bed: Outside,
    received: mpsc::Receiver<Message>,
    _server: Server,
}

fn config(sections: &str) -> String {
    format!("{sections}upstreams:\n{}", upstream("shop", &[8080], &format!("hosts: [{SHOP}]")))
}

impl Hop {
    fn new(sections: &str) -> Self {
        Self::through(&["env"], sections)
    }

    fn through(program: &[&str], sections: &str) -> Self {
        let mesh = Mesh::new();
        let (web, far) = (mesh.pod("web"), mesh.pod("far"));
        let sidecar = mesh.sidecar(&web).through(program).config(config(sections)).start();
        let bed = Outside { sidecar, web, far, mesh };
        let (tell, received) = mpsc::channel();
        let server = bed.far.serve_http(8080, move |request| {
            tell.send(request.clone()).expect("the test listens");
            ok("")
        });
        Self { bed, received, _server: server }
    }

    fn ask(&self, path: &str, fields: &str) -> Message {
        let answer = self.bed.ask("GET", path, fields);
        assert_eq!(answer.status(), 200, "{answer:?}");
        self.received.recv().expect("a request that was answered was received")
    }
}

#[test]
fn every_rule_of_the_w3c_holds_on_the_wire() {
    let hop = Hop::new("tracing: {}\n");
    let state = "tracestate: foo=1\r\n";
    for goes_on in [
        format!("00-{TRACE}-{SPAN}-01"),
        format!("  00-{TRACE}-{SPAN}-01 \t"),
        format!("00-{TRACE}-{SPAN}-ff"),
        format!("cc-{TRACE}-{SPAN}-01"),
        format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"),
    ] {
        let received = hop.ask("/", &format!("TraceParent: {goes_on}\r\n{state}"));
        let (trace, span, flags) = traceparent(&received);
        let expected = if goes_on.ends_with("ff") { "03" } else { "01" };
        assert_eq!((trace.as_str(), flags.as_str()), (TRACE, expected), "{goes_on}");
        assert_ne!(span, SPAN);
        assert_eq!(received.header("tracestate"), Some("foo=1"), "{goes_on}");
    }
    for starts_again in [
        String::new(),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("cc-{TRACE}-{SPAN}-01.more"),
        format!("0-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}-1"),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{}-{SPAN}-01", &TRACE[1..]),
        format!("00-{TRACE}-{}-01", &SPAN[1..]),
        format!("00-{}-{SPAN}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{TRACE}-{SPAN}-01\r\ntraceparent: 00-{TRACE}-{SPAN}-01"),
    ] {
        let received = hop.ask("/", &format!("traceparent: {starts_again}\r\n{state}"));
        let (trace, _, flags) = traceparent(&received);
        assert!(trace != TRACE && trace != "0".repeat(32), "{starts_again}");
        assert_eq!(flags, "02", "{starts_again}");
        assert_eq!(received.header("tracestate"), None, "{starts_again}");
    }
    let received = hop.ask("/", state);
    assert_eq!(received.header("tracestate"), None, "it belongs to no traceparent");
    let many = (0..33).map(|number| format!("k{number}=1")).collect::<Vec<_>>().join(",");
    let long = format!("long={},foo=1,bar={}", "v".repeat(250), "v".repeat(250));
    for (states, goes) in [
        (vec!["foo=1,bar=2", "", " baz=3"], Some("foo=1,bar=2,baz=3")),
        (vec!["foo=1 \t,\tbar=2"], Some("foo=1 \t,\tbar=2")),
        (vec!["foo=1,foo=2"], Some("foo=1")),
        (vec![""], None),
        (vec!["FOO=1"], None),
        (vec!["foo=1,bar"], None),
        (vec!["foo=bar=baz"], None),
        (vec![many.as_str()], None),
        (vec![long.as_str()], Some(&long[..long.rfind(',').expect("a comma")])),
    ] {
        let fields: String = states.iter().map(|value| format!("tracestate: {value}\r\n")).collect();
        for flags in ["00", "01"] {
            let received = hop.ask("/", &format!("{}{fields}", parent(flags)));
            assert_eq!(traceparent(&received).0, TRACE, "it takes nothing else with it: {states:?}");
            assert_eq!(received.header("tracestate"), goes, "{flags} {states:?}");
        }
    }
}

#[test]
fn b3_is_read_by_default_and_written_where_the_config_says_so() {
    let single = format!("b3: {TRACE}-{SPAN}-1\r\n");
    let multi = format!("X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: {SPAN}\r\nX-B3-Sampled: 1\r\n");
    let hop = Hop::new("tracing: {}\n");
    for fields in [&single, &multi] {
        let received = hop.ask("/", fields);
        let (trace, span, flags) = traceparent(&received);
        assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"), "{fields}");
        assert_ne!(span, SPAN);
    }
    let received = hop.ask("/", "b3: 0\r\n");
    assert_eq!(traceparent(&received).2, "02");

    let hop = Hop::new("tracing: {propagation: {read: [b3], write: [b3, b3multi]}}\n");
    let received = hop.ask("/", &single);
    let span = received.header("x-b3-spanid").expect("the fields of b3multi").to_owned();
    assert_ne!(span, SPAN);
    assert_eq!(received.header("b3"), Some(format!("{TRACE}-{span}-1-{SPAN}").as_str()));
    assert_eq!(received.header("x-b3-parentspanid"), Some(SPAN));
    let received = hop.ask("/", &format!("{}b3: 64fe8b2a57d3eff7-{SPAN}-0\r\n", parent("01")));
    assert_eq!(received.header("b3"), Some(format!("64fe8b2a57d3eff7-{SPAN}-0").as_str()));
    assert_eq!(traceparent(&received).1, SPAN, "what is neither read nor written stays as it came");
}

#[test]
fn a_route_says_which_of_its_requests_are_recorded_and_a_reload_changes_it() {
    let routes = |all: &str| {
        format!(
            "tracing: {{sampleRatio: 0}}\nroutes:
- {{name: never, match: [{{host: {SHOP}, path: {{prefix: /never}}}}], upstreams: [{{name: shop}}], tracing: {{sampling: never}}}}
- {{name: all, match: [{{host: {SHOP}, path: {{prefix: /all}}}}], upstreams: [{{name: shop}}], tracing: {{sampleRatio: {all}}}}}\n"
        )
    };
    let hop = Hop::new(&routes("1"));
    for (path, fields, flags) in [
        ("/", String::new(), "02"),
        ("/", parent("01"), "01"),
        ("/never", parent("01"), "00"),
        ("/all", String::new(), "03"),
        ("/all", parent("00"), "00"),
    ] {
        assert_eq!(traceparent(&hop.ask(path, &fields)).2, flags, "{path} {fields}");
    }
    hop.bed.reconfigure(&config(&routes("0")));
    wait::until("the route's new ratio holds", || traceparent(&hop.ask("/all", "")).2 == "02");
    hop.bed.reconfigure(&config(""));
    wait::until("nothing is traced any more", || hop.ask("/", "").header("traceparent").is_none());
}

#[test]
fn the_environment_speaks_where_the_config_is_silent() {
    let exporter = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317";
    let environment = ["env", exporter, "OTEL_TRACES_SAMPLER=always_on", "OTEL_PROPAGATORS=tracecontext,b3"];
    let hop = Hop::through(&environment, "");
    let received = hop.ask("/", &parent("00"));
    let (trace, span, flags) = traceparent(&received);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    assert_eq!(received.header("b3"), Some(format!("{TRACE}-{span}-1-{SPAN}").as_str()));
    let hop = Hop::through(&environment, "tracing: {sampling: never, propagation: {write: [w3c]}}\n");
    let received = hop.ask("/", &parent("01"));
    assert_eq!((traceparent(&received).2.as_str(), received.header("b3")), ("00", None));
}

#[test]
fn all_tries_of_a_request_are_one_span() {
    let endpoints = upstream("shop", &[8081, 8082], &format!("hosts: [{SHOP}], balance: roundRobin"));
    let bed = Outside::new(&format!("tracing: {{sampleRatio: 1}}\nupstreams:\n{endpoints}"));
    let came = Arc::<Mutex<Vec<_>>>::default();
    let _servers = [8081, 8082].map(|port| {
        let came = came.clone();
        bed.far.serve_http(port, move |request| {
            came.lock().expect("no test panicked").push(traceparent(request));
            respond("503 Service Unavailable", "", "no")
        })
    });
    assert_eq!(bed.ask("GET", "/", &parent("01")).status(), 503);
    let came = came.lock().expect("no test panicked").clone();
    assert!(came.len() > 1, "it was tried again");
    assert!(came.iter().all(|try_| *try_ == came[0] && try_.0 == TRACE && try_.1 != SPAN), "{came:?}");
}

#[test]
fn the_copy_for_a_mirror_is_a_hop_of_its_own_in_the_same_trace() {
    let upstreams = [("shop", 8080), ("mirror", 8081)]
        .map(|(name, port)| upstream(name, &[port], &format!("hosts: [{name}.example]")))
        .concat();
    let bed = Outside::new(&format!(
        "tracing: {{}}\nupstreams:\n{upstreams}routes: [{{name: a, match: [{{host: {SHOP}}}], upstreams: [{{name: shop}}], mirror: {{upstream: mirror}}}}]\n"
    ));
    let (tell, received) = mpsc::channel();
    let _servers = [8080, 8081].map(|port| {
        let tell = tell.clone();
        bed.far.serve_http(port, move |request| {
            tell.send(traceparent(request)).expect("the test listens");
            ok("")
        })
    });
    assert_eq!(bed.ask("GET", "/", &parent("01")).status(), 200);
    let both = [(); 2].map(|()| received.recv().expect("both are asked"));
    assert!(both.iter().all(|(trace, _, flags)| trace == TRACE && flags == "01"), "{both:?}");
    assert_ne!(both[0].1, both[1].1);
}
