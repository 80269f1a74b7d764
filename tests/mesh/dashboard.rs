//! The dashboard in a real browser: Debian's Chromium without a window, beside the sidecar in its pod.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::grpc::{peer, python};
use crate::support::mesh::Mesh;
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::{Server, ok, respond};
use crate::support::{Pair, wait};

const URL: &str = "http://localhost:15000/";
/// A browser is slow beside other tests on a small machine.
const BROWSER_PATIENCE: Duration = Duration::from_secs(150);
const SHOP: &str = "shop.test";

/// Starts `check` of dashboard.py in `pod`.
fn start(pod: &Pod, check: &str, arguments: &[&str]) -> Process {
    let (python, script) = (python(), peer("dashboard.py"));
    let mut command = vec![&*python, &script, check, URL];
    command.extend(arguments);
    pod.start(&command)
}

/// Runs `check` to its end.
fn see(pod: &Pod, check: &str, arguments: &[&str]) {
    wait_for(&mut start(pod, check, arguments), "seen");
}

/// Waits until a check says `word`; it gives up itself, and says on what.
fn wait_for(browser: &mut Process, word: &str) {
    wait::within(BROWSER_PATIENCE, &format!("the browser says {word:?}"), || {
        let said = browser.output().lines().any(|line| line == word);
        assert!(said || browser.running(), "{}", browser.output());
        said.then_some(())
    });
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
            "upstreams:\n  shop: {{discovery: {{static: [{}]}}, hosts: [{SHOP}], anyDestination: true, tls: none, \
             healthCheck: {{tcp: {{}}, interval: 1s, timeout: 500ms, unhealthyAfter: 1}}}}\n",
            endpoints.join(", ")
        );
        let server = api.serve_http(8080, |_| ok("well"));
        let sidecar = mesh.sidecar(&web).config(config).start();
        // An upstream is there once it is asked for.
        assert_eq!(web.connect(api.at(8080)).get(SHOP, "/").status(), 200);
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
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let seen =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(&mut browser, "seen")));
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
fn what_is_markup_in_a_path_a_host_or_an_identity_is_shown_as_text() {
    see(&Shop::new(&[8080]).web, "hostile", &[]);
}

#[test]
fn the_tap_shows_requests_by_filter_and_explains_a_wrong_one() {
    Shop::new(&[8080]).see_under_load("tap", &[], "/tapped");
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
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    let _server = api.serve_http(8080, |_| ok("well"));
    let (mut config, mut hosts) = (String::from("upstreams:\n"), String::new());
    for number in 0..500 {
        config += &format!(
            "  service-{number:03}: {{discovery: {{static: [\"{}\"]}}, hosts: [s{number}.test], anyDestination: true, tls: none}}\n",
            api.at(8080)
        );
        hosts += &format!("{} s{number}.test\n", api.address);
    }
    web.add_hosts(&hosts);
    let _sidecar = mesh.sidecar(&web).config(config).start();
    let mut connection = web.connect(api.at(8080));
    for number in 0..500 {
        assert_eq!(connection.get(&format!("s{number}.test"), "/").status(), 200);
    }
    see(&web, "many", &[]);
}

#[test]
fn it_says_that_the_proxy_is_gone_and_recovers() {
    let shop = Shop::new(&[8080]);
    let mut browser = start(&shop.web, "gone", &[]);
    wait_for(&mut browser, "live");
    shop.sidecar.signal(Signal::SIGINT);
    wait_for(&mut browser, "gone");
    let _again = shop.mesh.sidecar(&shop.web).rules_stand().start();
    wait_for(&mut browser, "seen");
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
