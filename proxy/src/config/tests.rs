//! Whole files, right and wrong. The tables are in `testdata`: cases end with a line `----`, and a case's
//! last lines, from `=> ` on, are what is said of it.

use std::collections::BTreeSet;

use super::model::{
    Discovery, Mtls, Pool, Protocol, RouteAuth, StaticEndpoint, UpstreamTls, UpstreamTlsMode,
};
use super::reference::reference;
use super::tree::{self, Node, Value};
use super::{Config, ConfigError, Measured, Problem, load, parse, parse_beside};

const EXAMPLE: &str = include_str!("testdata/sidecar.yaml");
const EVERYTHING: &str = include_str!("testdata/everything.yaml");

fn lines(problems: &[Problem]) -> Vec<String> {
    let line =
        |problem: &Problem| format!("{}:{}: {problem}", problem.position.line, problem.position.column);
    problems.iter().map(line).collect()
}

fn errors(text: &str) -> Vec<String> {
    match parse(text, "file") {
        Ok(_) => Vec::new(),
        Err(ConfigError::Invalid { problems, .. }) => lines(&problems),
        Err(other) => vec![other.to_string()],
    }
}

fn warnings(text: &str) -> Vec<String> {
    match parse(text, "file") {
        Ok(loaded) => lines(&loaded.warnings),
        Err(error) => vec![error.to_string()],
    }
}

/// Compares what is said of each case with the tables.
fn check(tables: &[&str], said: fn(&str) -> Vec<String>) {
    let mut differences = String::new();
    let cases = tables.iter().flat_map(|table| table.split("----\n"));
    for case in cases.filter(|case| !case.is_empty()) {
        let (expected, text): (Vec<&str>, Vec<&str>) = case.lines().partition(|line| line.starts_with("=> "));
        let text = text.join("\n");
        let said: Vec<String> = said(&text).iter().map(|line| format!("=> {line}")).collect();
        if said != expected || expected.is_empty() {
            differences += &format!("{text}\n{}\n----\n", said.join("\n"));
        }
    }
    assert!(differences.is_empty(), "other than in the table:\n{differences}");
}

#[test]
fn a_wrong_file_is_refused_with_every_line_field_and_remedy() {
    let tables = [
        include_str!("testdata/wrong.txt"),
        include_str!("testdata/wrong_upstreams.txt"),
        include_str!("testdata/wrong_routes.txt"),
    ];
    check(&tables, errors);
}

#[test]
fn an_unwise_file_is_accepted_with_warnings() {
    check(&[include_str!("testdata/unwise.txt")], warnings);
}

/// Requests of some routes and upstreams, spread over buckets up to 1, 5 and 60 seconds and more.
fn beside_measurements(text: &str) -> Vec<String> {
    let mut metrics = String::new();
    for (labels, counts) in [
        (r#"route="quick",upstream="api""#, [1000, 1000, 1000, 1000]),
        (r#"route="slow",upstream="api""#, [0, 1000, 1000, 1000]),
        (r#"route="good",upstream="api""#, [970, 1000, 1000, 1000]),
        (r#"route="endless",upstream="api""#, [0, 0, 900, 1000]),
        (r#"route="rare",upstream="api""#, [0, 0, 99, 99]),
        (r#"route="inherited",upstream="api""#, [0, 500, 500, 500]),
        (r#"route="unlimited",upstream="api""#, [0, 0, 0, 200]),
        (r#"route="",upstream="spare""#, [200, 200, 200, 200]),
    ] {
        for (bound, count) in ["1", "5", "60", "+Inf"].iter().zip(counts) {
            metrics += &format!(
                "outrigger_request_duration_seconds_bucket{{direction=\"outbound\",{labels},le=\"{bound}\"}} {count}\n"
            );
        }
    }
    // Nothing was measured for a file without routes.
    let metrics = if text.contains("upstreams") { metrics } else { "outrigger_build_info 1\n".into() };
    let measured = Measured::read(&metrics).unwrap();
    lines(&parse_beside(text, "file", Some(&measured)).unwrap().warnings)
}

#[test]
fn timeouts_far_from_what_was_measured_are_named() {
    check(&[include_str!("testdata/measured.txt")], beside_measurements);
}

#[test]
fn the_upstreams_and_routes_of_an_edge_are_accepted() {
    let loaded = parse(include_str!("testdata/edge_routes.yaml"), "edge.yaml").unwrap();
    let [api, closed] = loaded.config.routes.as_slice() else { panic!("two routes") };
    assert_eq!((api.filters.len(), api.upstreams[1].weight, closed.auth), (2, 5, Some(RouteAuth::None)));
    assert_eq!(closed.respond.as_ref().map(|respond| respond.status), Some(503));
    let cache = loaded.config.upstreams["api"].fallback.as_ref().and_then(|fallback| fallback.cache.clone());
    assert_eq!(cache.map(|cache| cache.max_bytes()), Some(16 << 20));
    let fields: Vec<&str> = loaded.warnings.iter().map(|warning| warning.field.as_str()).collect();
    assert_eq!(fields, ["routes[0].listeners", "routes[0].filters", "routes[1].auth"]);
}

/// Every field stated below a node, as the reference names it.
fn stated(node: &Node, name: &str, names: &mut BTreeSet<String>) {
    if !name.is_empty() {
        names.insert(name.to_owned());
    }
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| stated(item, &format!("{name}[]"), names)),
        Value::Map(entries) => {
            for (key, value) in entries {
                let key = match name {
                    "upstreams" => "<name>",
                    "inbound.ports" => "<port>",
                    _ => key,
                };
                let separator = if name.is_empty() { "" } else { "." };
                stated(value, &format!("{name}{separator}{key}"), names);
            }
        }
        _ => {}
    }
}

#[test]
fn every_field_of_the_reference_can_be_stated() {
    let loaded = parse(EVERYTHING, "everything.yaml").unwrap_or_else(|error| panic!("{error}"));
    assert!(loaded.config != Config::default());
    let mut names = BTreeSet::new();
    stated(&tree::parse(EVERYTHING).unwrap(), "", &mut names);
    let reference = reference();
    // Where one of two is stated, and the file has room for one only.
    let is_other = |field: &str| field.starts_with("identity.ca") || field == "inbound.concurrency.adaptive";
    let missing: Vec<&str> = reference
        .lines()
        .filter_map(|row| row.strip_prefix("| `")?.split('`').next())
        .filter(|field| !names.contains(*field) && !is_other(field))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn the_example_is_accepted() {
    let config = parse(EXAMPLE, "sidecar.yaml").unwrap().config;
    assert_eq!(config.mtls, Mtls::Strict);
    assert_eq!(config.identity.ca.as_ref().unwrap().address, "ca.outrigger.svc:15012");
    assert_eq!(config.inbound_mtls(9090), Mtls::Permissive);
    assert!(config.inbound.is_opaque(6000));
    assert_eq!(config.inbound.allow.as_ref().unwrap()[0].methods, ["GET", "POST"]);
    let api = &config.upstreams["api"];
    assert_eq!(api.tls, Some(UpstreamTls::Mode(UpstreamTlsMode::Mesh)));
    assert_eq!(api.pool.idle_timeout(), Pool::default().idle_timeout());
    let store = &config.upstreams["store"];
    assert_eq!(store.protocol, Protocol::Tcp);
    assert_eq!(
        store.discovery,
        Some(Discovery::Static(vec![StaticEndpoint::at("10.0.0.7:6379".parse().unwrap())]))
    );
    assert_eq!(config.routes[0].upstreams[0].weight, 100);
}

#[test]
fn what_is_not_stated_has_its_default() {
    for text in ["", "\n", "# only a comment\n", "---\n", "inbound:\noutbound:\n  # nothing\nroutes:\n", "{}"]
    {
        let loaded = parse(text, "file").unwrap();
        assert_eq!(loaded.config, Config::default(), "{text}");
        assert_eq!(loaded.warnings, [], "{text}");
    }
}

#[test]
fn anchors_and_merge_keys_save_repeating() {
    let text = "upstreams:\n  a: &a {hosts: [a.shop], connectTimeout: 2s}\n  b: {<<: *a, hosts: [b.shop]}\n";
    let config = parse(text, "file").unwrap().config;
    assert_eq!(config.upstreams["b"].hosts, ["b.shop"]);
    assert_eq!(config.upstreams["b"].connect_timeout().as_secs(), 2);
}

#[test]
fn a_config_written_out_is_read_back_as_it_was() {
    for text in [EXAMPLE, EVERYTHING] {
        let config = parse(text, "file").unwrap().config;
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(parse(&json, "json").unwrap().config, config);
    }
}

#[test]
fn a_file_cut_off_anywhere_is_answered_and_never_a_panic() {
    // The longer one at some places only: each takes milliseconds.
    for (text, step) in [(EXAMPLE, 1), (EVERYTHING, 17)] {
        for end in (0..text.len()).step_by(step).filter(|end| text.is_char_boundary(*end)) {
            errors(&text[..end]);
        }
    }
}

#[test]
fn a_file_that_can_not_be_read_is_named_in_the_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sidecar.yaml");
    let error = load(&file).unwrap_err().to_string();
    assert!(error.contains("sidecar.yaml") && error.contains("No such file"), "{error}");
    std::fs::write(&file, [0xff, 0xfe, 0x00]).unwrap();
    let error = load(&file).unwrap_err().to_string();
    assert!(error.contains("UTF-8"), "{error}");
    std::fs::write(&file, " ".repeat(9 * 1024 * 1024)).unwrap();
    assert!(matches!(load(&file), Err(ConfigError::TooLarge(_))));
    std::fs::write(&file, "mtls: off\n").unwrap();
    let error = load(&file).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "sidecar.yaml:1:7: mtls: `off` is not known here; allowed: `strict`, `permissive`, `audit`"
        ),
        "{error}"
    );
}
