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
