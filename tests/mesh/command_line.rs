//! The binary's own words: help, usage errors, `validate`, environment variables.

use std::process::{Command, Output};

use crate::support::{API, Mesh, wait};

fn outrigger(arguments: &[&str]) -> Output {
    Command::new(crate::support::mesh::binary()).args(arguments).output().expect("run outrigger")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_subcommand_has_a_help_that_names_its_flags_and_variables() {
    for (subcommand, flag) in [
        ("sidecar", "--trust-bundle"),
        ("ca", "--directory"),
        ("discovery", "--file"),
        ("iptables", "apply"),
        ("demo", "--load"),
        ("validate", "--schema"),
    ] {
        let output = outrigger(&[subcommand, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{subcommand}");
        let help = text(&output.stdout);
        assert!(help.contains(flag), "{subcommand} --help names {flag}: {help}");
        if let Some(flag) = flag.strip_prefix("--") {
            let variable = format!("OUTRIGGER_{}", flag.to_uppercase().replace('-', "_"));
            assert!(help.contains(&variable), "{subcommand} --help names {variable}: {help}");
        }
    }
}

#[test]
fn wrong_usage_ends_with_two_and_says_what_is_allowed() {
    for arguments in
        [&["sidecar", "--no-such-flag"][..], &["no-such-command"], &["sidecar", "--mtls", "sometimes"]]
    {
        let output = outrigger(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    assert!(text(&outrigger(&["sidecar", "--mtls", "sometimes"]).stderr).contains("permissive"));
}

#[test]
fn version_is_the_package_s() {
    assert!(text(&outrigger(&["version"]).stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn validate_accepts_a_right_file_and_points_at_each_mistake_of_a_wrong_one() {
    let directory = tempfile::tempdir().expect("make a directory");
    let file = directory.path().join("sidecar.yaml");
    let path = file.display().to_string();
    std::fs::write(&file, crate::support::mesh::web_config()).expect("write a file");
    let output = outrigger(&["validate", &path]);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    std::fs::write(&file, "routes:\n  - name: a\n    upstreams: [{name: nobody}]\n").expect("write a file");
    let output = outrigger(&["validate", &path]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(said.contains("sidecar.yaml:3") && said.contains("nobody"), "{said}");
    let schema: serde_json::Value =
        serde_json::from_slice(&outrigger(&["validate", "--schema"]).stdout).expect("a JSON schema");
    assert!(schema["properties"]["outbound"].is_object(), "{schema}");
}

#[test]
fn validate_tells_a_pipeline_by_its_exit_code_whether_a_file_is_wrong_or_unwise() {
    let directory = tempfile::tempdir().expect("make a directory");
    let file = directory.path().join("sidecar.yaml");
    let path = file.display().to_string();
    for (config, usual, strict) in [
        ("mtls: strict\n", 0, 0),
        ("upstreams: {api: {hosts: [api.shop], breaker: {consecutiveFailures: 1}}}\n", 0, 2),
        ("upstreams: {api: {hosts: [api.shop], retry: {attempts: 4}}}\n", 1, 1),
    ] {
        std::fs::write(&file, config).expect("write a file");
        for (arguments, code) in
            [(&["validate", &path][..], usual), (&["validate", "--strict", &path], strict)]
        {
            assert_eq!(outrigger(arguments).status.code(), Some(code), "{arguments:?} {config}");
        }
    }
    let output = outrigger(&["validate", "--strict", "/nowhere/sidecar.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
}

/// Checks a file with this text: the exit code of `--strict`, and what was said.
fn validate_strictly(config: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("make a directory");
    let file = directory.path().join("sidecar.yaml");
    std::fs::write(&file, config).expect("write a file");
    let output = outrigger(&["validate", "--strict", &file.display().to_string()]);
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn validate_refuses_what_breaks_a_rule_and_warns_of_what_is_unwise_at_its_line() {
    let upstream = "upstreams:\n  api: {hosts: [api.shop]}\n";
    let route =
        |more: &str| format!("{upstream}routes:\n  - name: a\n    match: [{{host: api.shop}}]\n    {more}\n");
    let timeouts = |timeouts: [&str; 3]| {
        timeouts.iter().enumerate().fold(format!("{upstream}routes:\n"), |config, (number, timeout)| {
            config
                + &format!(
                    "  - {{name: r{number}, match: [{{host: api.shop, path: {{exact: /{number}}}}}], upstreams: [{{name: api}}], timeout: {timeout}}}\n"
                )
        })
    };
    let (wrong, unwise, fine) = (Some(1), Some(2), Some(0));
    for (config, code, said) in [
        (route("upstreams: [{name: api}]"), fine, ""),
        ("upstreams:\n  api: {hosts: [api.shop], retry: {attempts: 4}}\n".into(), wrong, "sidecar.yaml:2"),
        ("upstreams:\n  api: {hosts: [api.shop], retry: {attempts: 3}}\n".into(), fine, ""),
        (route("timeout: 3s"), wrong, "names no upstream, and neither redirects nor responds"),
        (route("upstreams: [{name: api}]\n    respond: {status: 204}"), wrong, "sidecar.yaml:"),
        (route("upstreams: [{name: apo}]"), wrong, "sidecar.yaml:6"),
        (route("upstreams: [{name: api, weight: 0}]"), wrong, "all weights are 0"),
        (route("respond: {status: 204}"), fine, ""),
        (timeouts(["15s", "15s", "15s"]), unwise, "all routes have the same timeout"),
        (timeouts(["15s", "15s", "5s"]), fine, ""),
        (
            "upstreams:\n  api: {hosts: [api.shop], breaker: {consecutiveFailures: 1}}\n".into(),
            unwise,
            "a single failure opens the breaker",
        ),
        ("upstreams:\n  db: {discovery: {static: ['10.0.0.7:6379']}}\n".into(), unwise, "sidecar.yaml:2"),
        ("mtls: sometimes\n".into(), wrong, "sidecar.yaml:1"),
        ("upstreams: {api: {hosts: [api.shop]}, api: {hosts: [api.shop]}}\n".into(), wrong, "api"),
    ] {
        let (got, words) = validate_strictly(&config);
        assert_eq!(got, code, "{config}{words}");
        assert!(words.contains(said), "{said:?} is missing for {config}: {words}");
    }
}

#[test]
fn validate_compares_timeouts_with_what_a_running_proxy_has_measured() {
    let config = |timeout: &str| {
        crate::support::outside::upstream("shop", &[8080], "hosts: [shop.example]").replacen(
            "  shop",
            "upstreams:\n  shop",
            1,
        ) + &format!(
            "routes:\n  - {{name: shop, match: [{{host: shop.example}}], upstreams: [{{name: shop}}], timeout: {timeout}}}\n"
        )
    };
    let bed = crate::support::outside::Outside::new(&config("20s"));
    let _server = bed.far.serve_http(8080, |_| {
        std::thread::sleep(std::time::Duration::from_millis(30));
        crate::support::serve::ok("")
    });
    let mut connection = bed.connect();
    for _ in 0..120 {
        assert_eq!(connection.get("shop.example", "/").status(), 200);
    }
    let validate = |timeout: &str| {
        let file = bed.web.write("checked.yaml", config(timeout)).display().to_string();
        let url = "http://127.0.0.1:15020/metrics";
        let output =
            bed.web.try_run(&[&bed.web.binary(), "validate", "--output", "json", "--metrics", url, &file]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let of_timeouts = found["warnings"].as_array().expect("a list").iter().map(ToString::to_string);
        of_timeouts.filter(|warning| warning.contains("routes[0].timeout")).collect::<Vec<_>>().join("\n")
    };
    assert!(validate("20s").contains("of the route `shop`"), "{}", validate("20s"));
    assert!(validate("5ms").contains("took longer than"), "{}", validate("5ms"));
    assert_eq!(validate("450ms"), "");
}

#[test]
fn a_switch_takes_1_for_true_and_0_for_false_from_its_variable() {
    let with = |value: &str| {
        let mut command = Command::new(crate::support::mesh::binary());
        command.arg("validate").env("OUTRIGGER_SCHEMA", value).output().expect("run outrigger")
    };
    for value in ["1", "true", "yes", "on"] {
        assert!(text(&with(value).stdout).contains("\"$defs\""), "{value}");
    }
    let output = with("0");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no file to check"), "{}", text(&output.stderr));
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let directory = tempfile::tempdir().expect("make a directory");
    let config = directory.path().join("sidecar.yaml").display().to_string();
    std::fs::write(&config, "mtls: audit\n").expect("write a file");
    for arguments in [
        &["iptables", "render"][..],
        &["iptables", "render", "--skip-outbound-ports", "53,123"],
        &["validate", &config],
        // These end where they find that something is missing.
        &["validate"],
        &["sidecar"],
        &["discovery"],
        &["ca", "--directory", "/dev/null/ca"],
        &["ca", "show", "--directory", "/dev/null/ca"],
        &["ca", "rotate", "--directory", "/dev/null/ca"],
        &["ca", "hash-token"],
        &["demo", "service", "web"],
    ] {
        let subcommand: Vec<&str> =
            arguments.iter().copied().take_while(|word| !word.starts_with('-') && *word != config).collect();
        let help = text(&outrigger(&[&subcommand[..], &["--help"]].concat()).stdout);
        let variables = help.split(['[', ' ', '=', ']']).filter(|word| word.starts_with("OUTRIGGER_"));
        let variables: Vec<(&str, &str)> = variables.map(|variable| (variable, "")).collect();
        assert!(!variables.is_empty(), "{subcommand:?}: {help}");
        let run = |variables: &[(&str, &str)]| {
            let mut command = Command::new(crate::support::mesh::binary());
            command.args(arguments).envs(variables.iter().copied()).stdin(std::process::Stdio::null());
            let output = command.output().expect("run outrigger");
            // A line of the log begins with its time.
            let words = |bytes: &[u8]| {
                text(bytes)
                    .lines()
                    .map(|line| line.split_once("Z ").map_or(line, |(_, said)| said).to_owned())
                    .collect::<Vec<_>>()
            };
            (output.status.code(), words(&output.stdout), words(&output.stderr))
        };
        assert_eq!(run(&variables), run(&[]), "{arguments:?} with {variables:?}");
    }
}

#[test]
fn a_skipped_port_of_zero_is_refused() {
    for flag in ["--skip-inbound-ports", "--skip-outbound-ports"] {
        let output = outrigger(&["iptables", "render", flag, "22,0"]);
        assert_eq!(output.status.code(), Some(1), "{flag}");
        assert!(text(&output.stderr).contains("port is 0: give a port from 1 to 65535"), "{output:?}");
    }
}

#[test]
fn every_flag_can_come_from_the_environment() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    mesh.pki.identity(&crate::support::pki::shop("api")).write(&api.directory);
    let by_user = crate::support::mesh::users_can_be_taken_on();
    let mut command = if by_user { api.proxy_command(&api.binary()) } else { api.command(&api.binary()) };
    let file = |name: &str| api.directory.join(name).display().to_string();
    command
        .arg("sidecar")
        .env("OUTRIGGER_CERTIFICATE", file("tls.crt"))
        .env("OUTRIGGER_KEY", file("tls.key"))
        .env("OUTRIGGER_TRUST_BUNDLE", mesh.bundle())
        .env("OUTRIGGER_MTLS", "permissive")
        .env("OUTRIGGER_HEALTH_PORT", "15031")
        // As Kubernetes sets them where services are called so.
        .env("OUTRIGGER_METRICS_PORT", "tcp://10.96.0.7:15020")
        .env("OUTRIGGER_ADMIN_PORT", "tcp://10.96.0.8:80");
    if !by_user {
        command.env("OUTRIGGER_MARK", "1337");
    }
    let mut sidecar = api.keep("outrigger-sidecar", command);
    wait::until("the health port of the variable answers", || {
        assert!(sidecar.running(), "{}", sidecar.output());
        api.try_connect(([127, 0, 0, 1], 15031)).is_ok() && api.ask_own(15031, "/readyz").status() == 200
    });
    assert_eq!(api.admin("/config")["config"]["mtls"], "permissive", "{}", api.admin("/config"));
    assert_eq!(api.ask_own(15020, "/metrics").status(), 200);
    assert!(
        sidecar.output().contains("OUTRIGGER_METRICS_PORT=tcp://10.96.0.7:15020"),
        "{}",
        sidecar.output()
    );
}
