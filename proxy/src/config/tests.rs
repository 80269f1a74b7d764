//! Whole files, right and wrong.

use super::model::{PathMatch, Protocol, UpstreamTls, UpstreamTlsMode};
use super::{ConfigError, Mtls, parse};

/// Every problem as `line:column: field: message; remedy`.
fn errors(text: &str) -> Vec<String> {
    match parse(text, "file") {
        Ok(_) => Vec::new(),
        Err(ConfigError::Invalid { problems, .. }) => problems
            .iter()
            .map(|problem| format!("{}:{}: {problem}", problem.position.line, problem.position.column))
            .collect(),
        Err(other) => vec![other.to_string()],
    }
}

#[test]
fn dump() {
    for text in CASES {
        println!("----\n{text}");
        for error in errors(text) {
            println!("  => {error}");
        }
    }
    let loaded = parse(include_str!("testdata/sidecar.yaml"), "sidecar.yaml").unwrap();
    for w in &loaded.warnings { println!("{}:{} {w}", w.position.line, w.position.column); }
    let _ = (Mtls::Audit, Protocol::Auto, PathMatch::Exact("".into()), UpstreamTls::Mode(UpstreamTlsMode::Mesh));
    println!("{}", super::reference());
    println!("{}", serde_json::to_string_pretty(&super::schema()).unwrap());
}

const CASES: &[&str] = &[
    "", "# nothing\n", "---\n", "42", "[]", "mtls:", "inbound:\n",
    "mtls: strict\nmtls: audit\n",
    "a: 1\n---\nb: 2\n",
    "mtls: [strict\n",
    "inbound:\n\tports: {}\n",
    "trustDomian: x\nupstreams:\n  api: {host: [a.b], colour: blue}\n",
    "mtls: strikt\n",
    "mtls: {strict: 1}\n",
    "drainTimeout: 15\nworkers: many\naccessLog: stdout\n",
    "trustDomain: true\n",
    "upstreams:\n  api:\n    hosts: api.shop\n    connectTimeout: 1 second\n    anyDestination: yes\n",
    "upstreams:\n  api:\n    hosts: [1.5]\n    tls: mash\n",
    "upstreams:\n  api:\n    hosts: [a.b]\n    tls: {serverName: a.b}\n",
    "upstreams:\n  api:\n    hosts: [a.b]\n    tls: {serverName: a.b, caFile: /x, name: 1}\n",
    "upstreams:\n  api:\n    discovery: {static: [10.0.0.7, \"10.0.0.8:99999\"]}\n",
    "upstreams:\n  api:\n    discovery: {static: [], dns: {name: a}}\n",
    "upstreams:\n  api:\n    discovery: {file: x}\n",
    "upstreams:\n  api:\n    discovery: dns\n",
    "identity: {ca: {address: \"ca:15012\"}}\n",
    "identity: {ca: {address: 1, tokenFile: 2}}\n",
    "inbound: {ports: {99999: {}, http: {}, 80: {protocol: http3}}}\n",
    "inbound: {opaquePorts: [0, 70000, -1, 1.5]}\n",
    "inbound: {allow: [{paths: [{regex: x}]}]}\n",
    "inbound: {allow: [{paths: [/x]}]}\n",
    "outbound: {meshNetworks: [10.0.0.1/8, x]}\n",
    "routes:\n  - match: [{host: a.b}]\n    upstreams: [{name: api, weight: -1}]\n",
    "routes: {name: x}\n",
    "upstreams: &a\n  x: *a\n",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
    // rules
    "trustDomain: Cluster.Local\nidentity:\n  ca: {address: ca, tokenFile: /t}\n  files: {certificate: /c, key: /k}\ndns: {servers: [ns.x, 10.0.0.10], meshServer: x, search: [\"a b\"], ndots: 99}\naccessLog: {output: stderr}\nworkers: 0\ndrainTimeout: 2h\n",
    "outbound:\n  meshDomains: [\"*.svc.cluster.local\", 10.0.0.0/8]\n  unmeshed: [\"a:b\", \"10.0.0.1:80\"]\n  opaquePorts: [0]\n",
    "inbound:\n  opaquePorts: [6000]\n  ports: {6000: {protocol: http1}, 0: {}}\n  allow:\n    - identities: [web, \"spiffe://cluster.local/ns/shop/*\", \"spiffe://cluster.local/*/x\"]\n      methods: [get, \"B AD\"]\n      paths: [{prefix: orders}, {exact: /a?b}, {exact: /a/../b}]\n    - {identities: [], ports: [6000, 3306, 0], methods: [GET]}\n",
    "inbound:\n  allow:\n    # - ports: [1]\n",
    "upstreams:\n  a: {}\n  b: {hosts: [x.y, X.Y.]}\n  c: {hosts: [x.y, 10.0.0.1, \"*.x\", \"a.b:80\", \"a b\"]}\n  \"d e\": {hosts: [q.r]}\n",
    "upstreams:\n  a: {discovery: {static: []}}\n  b: {discovery: {static: [\"0.0.0.0:1\", \"10.0.0.1:0\", \"10.0.0.2:1\", \"10.0.0.2:1\"]}}\n  c: {discovery: {dns: {name: _x.y}}}\n  d: {discovery: {dns: {name: _80._tcp.y, port: 8}}}\n  e: {discovery: {dns: {name: 10.0.0.1, port: 0}}}\n",
    "upstreams:\n  a: {hosts: [a], identity: web}\n  b: {hosts: [b], identity: \"spiffe://cluster.local/ns/shop/*\"}\n  c: {hosts: [c], tls: none, identity: any}\n  d: {hosts: [d], tls: {serverName: \"a b\", caFile: /x}}\n  e: {tls: mesh, discovery: {static: [\"10.0.0.2:1\"]}}\n",
    "upstreams:\n  a:\n    hosts: [a]\n    connectTimeout: 0s\n    pool: {maxConnections: 0, idleTimeout: 0s}\n    healthCheck: {http: {path: x}, interval: 1s, timeout: 2s, unhealthyAfter: 0, healthyAfter: 0}\n    outlier: {consecutiveFailures: 0, ejection: 0s, maxEjectedPercent: 101}\n    breaker: {consecutiveFailures: 0, window: 0s, openFor: 0s}\n    fallback: {status: 99}\n",
    "upstreams:\n  api: {hosts: [a]}\n  db: {hosts: [b], protocol: tcp}\nroutes:\n  - name: r\n    upstreams: []\n  - name: r\n    match: [{host: a, path: {prefix: x}}, {methods: [post]}]\n    upstreams: [{name: apii, weight: 0}, {name: db, weight: 0}, {name: db, weight: 0}]\n    timeout: 1s\n    retry: {attempts: 99, on: [\"503\", \"404\", 5xx], perTryTimeout: 2s}\n  - name: \"\"\n    match: [{host: a}]\n    upstreams: [{name: zzz, weight: 4000000000}]\n    timeout: 0s\n",
    "tracing: {otlp: {endpoint: collector}, sampleRatio: 2}\n",
];
