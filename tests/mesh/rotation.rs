//! Certificates of one minute, and two roots replaced, while traffic flows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::authority::Authority;
use crate::support::mesh::wait_until_ready;
use crate::support::pod::Pod;
use crate::support::{API, wait};

/// A rotation takes the time to spread, then the longest lifetime, then the CA's own look.
const ROTATION: Duration = Duration::from_secs(150);

fn fingerprints(bundle: &str) -> Vec<String> {
    bundle
        .split("-----END CERTIFICATE-----")
        .map(|root| root.trim().to_owned())
        .filter(|root| !root.is_empty())
        .collect()
}

#[test]
fn certificates_and_twice_the_root_are_replaced_under_load_without_a_failed_handshake() {
    let bed = Authority::new(&["--certificate-lifetime", "60s"]);
    let mut api_sidecar = bed.sidecar(&bed.api, 15012, None, &["--bundle-poll", "2s"]);
    let mut web_sidecar = bed.sidecar(&bed.web, 15012, None, &["--bundle-poll", "2s"]);
    wait_until_ready(&bed.api, &mut api_sidecar);
    wait_until_ready(&bed.web, &mut web_sidecar);
    let _http = bed.api.serve_echo(8080);
    let _opaque = bed.api.serve(7000, |mut connection| {
        let got = connection.take(3);
        connection.send(got);
    });
    let (stop, requests, handshakes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let stop = &stop;
        let end = scope.spawn(|| {
            // Also when a rotation fails, the load must end, or the test would wait for ever.
            let _ends = Ends(stop);
            for number in 0..2 {
                let old = fingerprints(&bed.bundle());
                assert_eq!(old.len(), 1, "one root before rotation {number}");
                bed.ca.run(&[
                    &bed.ca.binary(),
                    "ca",
                    "rotate",
                    "--directory",
                    &bed.keys(),
                    "--spread",
                    "10s",
                ]);
                let both = fingerprints(&bed.bundle());
                assert!(
                    both.len() == 2 && both.contains(&old[0]),
                    "the old root and the new one are trusted"
                );
                wait::within(ROTATION, "the old root is dropped", || {
                    (fingerprints(&bed.bundle()).len() == 1).then_some(())
                });
                assert!(!fingerprints(&bed.bundle()).contains(&old[0]));
            }
        });
        // Requests of one connection: the workload never has to connect again.
        let load = scope.spawn(|| {
            let mut connection = bed.web.connect(bed.api.at(8080));
            while !stop.load(Ordering::SeqCst) {
                let answer = connection.get(API, "/");
                assert_eq!(answer.status(), 200, "{answer:?} {}", answer.text());
                requests.fetch_add(1, Ordering::SeqCst);
            }
        });
        // Each opaque connection is a mesh connection of its own, and so a handshake.
        let fresh = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let mut connection = bed.web.connect(bed.api.at(7000));
                connection.send("\0\x01\x02");
                assert_eq!(connection.take(3), b"\0\x01\x02");
                handshakes.fetch_add(1, Ordering::SeqCst);
            }
        });
        for thread in [end, load, fresh] {
            if let Err(panic) = thread.join() {
                stop.store(true, Ordering::SeqCst);
                std::panic::resume_unwind(panic);
            }
        }
    });
    assert!(requests.load(Ordering::SeqCst) > 1000 && handshakes.load(Ordering::SeqCst) > 200);
    for pod in [&bed.web, &bed.api] {
        assert_eq!(failed_handshakes(pod), 0.0, "failed handshakes of {}", pod.name);
        assert!(
            pod.metric("outrigger_certificate_renewals_total", &[]) >= 3.0,
            "certificates of {} were renewed",
            pod.name
        );
    }
}

fn failed_handshakes(pod: &Pod) -> f64 {
    pod.metric("outrigger_tls_handshakes_total", &[("result", "failure")])
}

/// Sets its flag when dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_root_replaced_in_files_under_load_loses_no_request() {
    let pair = crate::support::Pair::new();
    let _http = pair.api.serve_echo(8080);
    let next = crate::support::pki::Pki::new();
    let stop = Arc::new(AtomicBool::new(false));
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut connection = pair.connect(8080);
            while !stop.load(Ordering::SeqCst) {
                let answer = connection.get(API, "/");
                assert_eq!(answer.status(), 200, "{answer:?} {}", answer.text());
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
        let ends = Ends(&stop);
        let roots = |pod: &Pod| pod.admin("/certificates")["roots"].as_array().map_or(0, Vec::len);
        // Both roots are trusted everywhere before anybody shows a certificate of the new one.
        replace(&pair.mesh.bundle(), &format!("{}{}", pair.mesh.pki.bundle, next.bundle));
        wait::until("both roots are trusted", || roots(&pair.web) == 2 && roots(&pair.api) == 2);
        for pod in [&pair.web, &pair.api] {
            let before = pod.admin("/certificates")["workload"]["serial"].clone();
            next.identity(&crate::support::pki::shop(&pod.name)).write(&pod.directory);
            wait::until("the new certificate is used", || {
                pod.admin("/certificates")["workload"]["serial"] != before
            });
        }
        replace(&pair.mesh.bundle(), &next.bundle);
        wait::until("the old root is dropped", || roots(&pair.web) == 1 && roots(&pair.api) == 1);
        let so_far = answered.load(Ordering::SeqCst);
        wait::until("requests go on", || answered.load(Ordering::SeqCst) > so_far + 10 || load.is_finished());
        drop(ends);
        load.join().expect("no request failed");
    });
    for pod in [&pair.web, &pair.api] {
        assert_eq!(failed_handshakes(pod), 0.0, "failed handshakes of {}", pod.name);
    }
    assert_eq!(pair.get(8080, "/").status(), 200);
}

fn replace(path: &std::path::Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).expect("write a trust bundle");
    std::fs::rename(&fresh, path).expect("replace a trust bundle");
}
