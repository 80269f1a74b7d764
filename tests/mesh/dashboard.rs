//! The dashboard in a real browser: Debian's Chromium without a window, beside the sidecar in its pod.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::grpc::{peer, python};
use crate::support::mesh::Mesh;
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::{Server, ok, respond};
use crate::support::{Pair, wait};

const URL: &str = "http://localhost:15000/";
const SHOP: &str = "shop.test";
/// What would be an element if it were taken for markup. As a path its characters are legal to nobody but us.
const HOSTILE: &str = "/<img src=x onerror=alert(1)>";

/// Starts `check` of dashboard.py in `pod`.
fn start(pod: &Pod, check: &str, arguments: &[&str]) -> Process {
    let (python, script) = (python(), peer("dashboard.py"));
    let mut command = vec![&*python, &script, check, URL];
    command.extend(arguments);
    pod.start(&command)
}

/// Runs `check` to its end.
fn see(pod: &Pod, check: &str, arguments: &[&str]) {
    start(pod, check, arguments).wait_for_output("seen");
}

/// A pod `web` with a sidecar and a pod `api` without one, which is the upstream `shop`: at port 8080 it answers, and at
/// port 8081 nobody listens.
struct Shop {
    sidecar: Process,
    web: Pod,
    api: Pod,
    _server: Server,
    mesh: Mesh,
}

impl Shop {
    fn new(endpoints: &[u16]) -> Self {
        let mesh = Mesh::new();
        let (web, api) = (mesh.pod("web"), mesh.pod("api"));
        web.add_hosts(&format!("{} {SHOP}", api.address));
        let endpoints: Vec<_> = endpoints.iter().map(|port| format!("\"{}\"", api.at(*port))).collect();
        let config = format!(
            "upstreams:\n  shop: {{discovery: {{static: [{}]}}, hosts: [{SHOP}], anyDestination: true, tls: none}}\n",
            endpoints.join(", ")
        );
        let server = api.serve_http(8080, |request| {
            if request.target().starts_with("/%3Cimg") || request.target().starts_with("/<img") {
                return respond("500 Internal Server Error", "", "failed");
            }
            ok("well")
        });
        let sidecar = mesh.sidecar(&web).config(config).start();
        Self { sidecar, web, api, _server: server, mesh }
    }

    /// Asks again and again, until `check` has seen what it looks for.
    fn see_under_load(&self, check: &str, arguments: &[&str], path: &str) {
        let mut browser = start(&self.web, check, arguments);
        let done = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    self.web.connect(self.api.at(8080)).get(SHOP, path);
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            });
            let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| browser.wait_for_output("seen")));
            done.store(true, Ordering::Relaxed);
            seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }
}

#[test]
fn charts_move_under_load_and_are_read_by_pointer_and_keys() {
    Shop::new(&[8080]).see_under_load("charts", &[], "/");
}

#[test]
fn a_failing_endpoint_is_named_first_with_the_reason_why() {
    let shop = Shop::new(&[8080, 8081]);
    let failing = shop.api.at(8081).to_string();
    shop.see_under_load("failing", &["shop", &failing, "refused"], "/");
}

#[test]
fn a_path_that_is_markup_is_shown_as_text() {
    Shop::new(&[8080]).see_under_load("hostile", &["shop"], HOSTILE);
}

#[test]
fn the_keyboard_reaches_everything_and_is_not_held() {
    see(&Shop::new(&[8080]).web, "keyboard", &[]);
}

#[test]
fn it_fits_a_phone_and_a_desk_in_light_and_dark() {
    Shop::new(&[8080, 8081]).see_under_load("looks", &[], "/");
}

#[test]
fn with_500_upstreams_one_is_found_and_what_stands_still_is_not_drawn_again() {
    let mesh = Mesh::new();
    let web = mesh.pod("web");
    let upstream = |number: usize| {
        let (high, low) = (number / 250, number % 250 + 1);
        format!(
            "  service-{number:03}: {{discovery: {{static: [\"10.1.{high}.{low}:80\", \"10.2.{high}.{low}:80\"]}}, tls: none}}\n"
        )
    };
    let config: String = std::iter::once("upstreams:\n".to_owned()).chain((0..500).map(upstream)).collect();
    let _sidecar = mesh.sidecar(&web).config(config).start();
    see(&web, "many", &[]);
}

#[test]
fn it_says_that_the_proxy_is_gone_and_recovers() {
    let shop = Shop::new(&[8080]);
    let mut browser = start(&shop.web, "gone", &[]);
    browser.wait_for_output("live");
    shop.sidecar.signal(Signal::SIGINT);
    browser.wait_for_output("gone");
    let _again = shop.mesh.sidecar(&shop.web).rules_stand().start();
    browser.wait_for_output("seen");
}

#[test]
fn where_nothing_has_happened_it_says_what_will_appear() {
    let mesh = Mesh::new();
    let web = mesh.pod("web");
    let _sidecar = mesh.sidecar(&web).start();
    see(&web, "empty", &[]);
}

#[test]
fn history_and_traffic_tell_who_called_and_how_often() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| match request.target() {
        "/fail" => respond("500 Internal Server Error", "", ""),
        _ => ok("well"),
    });
    for path in ["/", "/", "/", "/fail"] {
        pair.get(8080, path);
    }
    for (pod, direction) in [(&pair.web, "outbound"), (&pair.api, "inbound")] {
        let sum = |name: &str| {
            let history = pod.admin("/history");
            let values = history[direction][name].as_array().cloned().unwrap_or_default();
            values.iter().filter_map(serde_json::Value::as_u64).sum::<u64>()
        };
        wait::until("the history has all of them", || sum("requests") == 4);
        assert_eq!(sum("errors"), 1);
    }
    let traffic = pair.api.admin("/traffic");
    let caller = &traffic["callers"][0];
    assert_eq!(caller["peer"], crate::support::pki::shop("web"), "{traffic}");
    assert_eq!(caller["successShare"], 0.75, "{traffic}");
}
