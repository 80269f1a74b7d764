//! Whole files, right and wrong. The tables are in `testdata`: cases end with a line `----`, and a case's
//! last lines, from `=> ` on, are what is said of it.

use super::model::{Discovery, Mtls, Pool, Protocol, StaticEndpoint, UpstreamTls, UpstreamTlsMode};
use super::{Config, ConfigError, Problem, load, parse};

const EXAMPLE: &str = include_str!("testdata/sidecar.yaml");

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

/// Compares what is said of each case with the table.
fn check(table: &str, said: fn(&str) -> Vec<String>) {
    let mut differences = String::new();
    for case in table.split("----\n").filter(|case| !case.is_empty()) {
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
    check(include_str!("testdata/wrong.txt"), errors);
}

#[test]
fn an_unwise_file_is_accepted_with_warnings() {
    check(include_str!("testdata/unwise.txt"), warnings);
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
    let config = parse(EXAMPLE, "sidecar.yaml").unwrap().config;
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(parse(&json, "json").unwrap().config.upstreams, config.upstreams);
}

#[test]
fn a_file_cut_off_anywhere_is_answered_and_never_a_panic() {
    for end in (0..EXAMPLE.len()).filter(|end| EXAMPLE.is_char_boundary(*end)) {
        errors(&EXAMPLE[..end]);
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
