//! What a match costs, measured: `cargo test --release -p outrigger-proxy match_costs -- --ignored --nocapture`.

use std::hint::black_box;
use std::time::Instant;

use http::{HeaderMap, Method};

use super::{Asked, RouteTable};
use crate::config::{HeaderMatch, PathMatch, Route, RouteMatch, ValueMatch};

/// Requests a measurement.
const REQUESTS: usize = 1_000_000;
/// Measurements, of which the fastest counts: the others were disturbed.
const MEASUREMENTS: usize = 5;

fn route(n: usize, host: String, path: Option<PathMatch>) -> Route {
    let alternative = RouteMatch { host: Some(host), path, ..RouteMatch::default() };
    Route { name: format!("route-{n}"), matches: vec![alternative], ..Route::default() }
}

fn host(n: usize) -> String {
    format!("service-{n}.team-{}.svc.cluster.local", n % 37)
}

fn path(n: usize) -> String {
    format!("/api/v{}/resource-{n}", n % 3)
}

/// The time of one match, in nanoseconds, when requests go to any of the routes in no order.
fn measure(routes: &[Route], requests: &[(String, String)]) -> f64 {
    let table = RouteTable::new(routes);
    let headers = HeaderMap::new();
    // A step that shares no factor with the count visits all of them, far from the last each time.
    let step = (requests.len() * 5 / 8) | 1;
    let mut best = f64::INFINITY;
    for _ in 0..MEASUREMENTS {
        let mut at = 0;
        let started = Instant::now();
        for _ in 0..REQUESTS {
            at = (at + step) % requests.len();
            let (host, path) = &requests[at];
            let asked = Asked { method: &Method::GET, path, query: None, headers: &headers };
            assert!(black_box(table.find(black_box(host), &asked)).is_some());
        }
        best = best.min(started.elapsed().as_nanos() as f64 / REQUESTS as f64);
    }
    best
}

type Make = fn(usize) -> (Route, (String, String));

#[test]
#[ignore = "a measurement, to be read: build with --release"]
fn match_costs() {
    const ONE: &str = "api.shop.svc.cluster.local";
    let cases: [(&str, Make); 7] = [
        ("a host each", |n| (route(n, host(n), None), (host(n), "/api/v1/users/17".into()))),
        ("a host each, all with the same prefix", |n| {
            (route(n, host(n), Some(PathMatch::Prefix("/api".into()))), (host(n), "/api/v1/users/17".into()))
        }),
        ("a wildcard host each", |n| {
            (route(n, format!("*.{}", host(n)), None), (format!("eu.{}", host(n)), "/api/v1/users/17".into()))
        }),
        ("one host, a prefix each", |n| {
            (
                route(n, ONE.into(), Some(PathMatch::Prefix(path(n)))),
                (ONE.into(), format!("{}/17/items", path(n))),
            )
        }),
        ("one host, a path each", |n| {
            (route(n, ONE.into(), Some(PathMatch::Exact(path(n)))), (ONE.into(), path(n)))
        }),
        ("one host, a prefix each with a header", |n| {
            let mut route = route(n, ONE.into(), Some(PathMatch::Prefix(path(n))));
            let header = HeaderMatch { name: "x-canary".into(), value: ValueMatch::Present(false) };
            route.matches[0].headers.push(header);
            (route, (ONE.into(), format!("{}/17/items", path(n))))
        }),
        ("one host, a regular expression each", |n| {
            let pattern = format!("{}/[0-9]+/items", path(n));
            (
                route(n, ONE.into(), Some(PathMatch::Regex(pattern))),
                (ONE.into(), format!("{}/17/items", path(n))),
            )
        }),
    ];
    println!("{:45} {:>10} {:>10} {:>10} {:>8}", "routes", "10", "1000", "10000", "10000/10");
    for (name, make) in cases {
        let [few, more, many] = [10, 1000, 10_000].map(|count| {
            let (routes, requests): (Vec<_>, Vec<_>) = (0..count).map(make).unzip();
            measure(&routes, &requests)
        });
        println!("{name:45} {few:>7.1} ns {more:>7.1} ns {many:>7.1} ns {:>8.2}", many / few);
    }
}
