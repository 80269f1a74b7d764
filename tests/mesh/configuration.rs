//! The configuration file: reloaded when it changes, kept when the new one is wrong.

use crate::support::pki::shop;
use crate::support::pod::Pod;
use crate::support::{API, Mesh, Pair, wait};

/// Inbound rules that let one service account in.
fn only(account: &str) -> String {
    format!("inbound: {{allow: [{{identities: [\"{}\"]}}]}}\n", shop(account))
}

fn replace(pod: &Pod, text: &str) {
    let fresh = pod.write("sidecar.yaml.new", text);
    std::fs::rename(fresh, pod.directory.join("sidecar.yaml")).expect("replace a configuration");
}

#[test]
fn a_changed_file_takes_effect_and_a_wrong_one_does_not() {
    let pair = Pair::with(&crate::support::mesh::web_config(), &only("web"));
    let _server = pair.api.serve_echo(8080);
    assert_eq!(pair.get(8080, "/").status(), 200);
    replace(&pair.api, &only("somebody-else"));
    wait::until("the new rules hold", || pair.get(8080, "/").status() == 403);
    replace(&pair.api, &format!("{}inbond: {{}}\n", only("web")));
    pair.api.wait_for_metric("outrigger_config_reloads_total", &[("result", "failure")], 1.0);
    assert_eq!(pair.get(8080, "/").status(), 403, "the rules in force stay");
    wait::until("the log names the file and the field", || {
        let said = pair.api_sidecar.output();
        said.contains("sidecar.yaml:2") && said.contains("inbond")
    });
    replace(&pair.api, &only("web"));
    wait::until("a right file takes effect again", || pair.get(8080, "/").status() == 200);
}

#[test]
fn a_change_of_rules_holds_for_connections_that_are_open_already() {
    let pair = Pair::with(&crate::support::mesh::web_config(), &only("web"));
    let _server = pair.api.serve_echo(8080);
    let mut connection = pair.connect(8080);
    assert_eq!(connection.get(API, "/").status(), 200);
    replace(&pair.api, &only("somebody-else"));
    wait::until("the new rules hold", || connection.get(API, "/").status() == 403);
}

#[test]
fn a_swapped_symlink_is_seen_as_a_config_map_changes() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    let volume = api.directory.join("volume");
    for (version, account) in [("v1", "web"), ("v2", "somebody-else")] {
        std::fs::create_dir_all(volume.join(version)).expect("make a directory");
        std::fs::write(volume.join(version).join("sidecar.yaml"), only(account))
            .expect("write a configuration");
    }
    // As the kubelet lays a ConfigMap out: file -> ..data/file, ..data -> a dated directory.
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, volume.join(name)).expect("make a symlink")
    };
    link("v1", "..data");
    link("..data/sidecar.yaml", "sidecar.yaml");
    let path = volume.join("sidecar.yaml").display().to_string();
    let _api_sidecar = mesh.sidecar(&api).arguments(["--config", &path]).start();
    let _web_sidecar = mesh.sidecar(&web).config(crate::support::mesh::web_config()).start();
    let _server = api.serve_echo(8080);
    assert_eq!(web.connect(api.at(8080)).get(API, "/").status(), 200);
    link("v2", "..fresh");
    std::fs::rename(volume.join("..fresh"), volume.join("..data")).expect("swap a symlink");
    wait::until("the new rules hold", || web.connect(api.at(8080)).get(API, "/").status() == 403);
}

#[test]
fn a_sidecar_does_not_start_with_a_wrong_file_and_says_what_is_wrong_with_it() {
    let mesh = Mesh::new();
    let pod = mesh.pod("api");
    let mut sidecar =
        mesh.sidecar(&pod).config("mtls: strict\ninbound:\n  opaquePort: [6000]\n").without_waiting().start();
    assert_eq!(sidecar.ended().code(), Some(1));
    let said = sidecar.output();
    for part in ["sidecar.yaml:3", "opaquePort", "opaquePorts"] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
}
