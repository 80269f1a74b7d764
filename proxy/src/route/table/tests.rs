use http::header::{HeaderName, HeaderValue};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::config::{HeaderMatch, QueryMatch, ValueMatch, whole_match};

/// A request as a test states it.
#[derive(Clone, Debug)]
struct Sent {
    host: String,
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

impl Sent {
    fn get(host: &str, target: &str) -> Self {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        Self { host: host.into(), method: Method::GET, path: path.into(), query, headers: HeaderMap::new() }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(name, HeaderValue::from_static(value));
        self
    }

    fn asked(&self) -> Asked<'_> {
        Asked { method: &self.method, path: &self.path, query: self.query.as_deref(), headers: &self.headers }
    }
}

fn route(name: &str, alternative: RouteMatch) -> Route {
    Route { name: name.into(), matches: vec![alternative], ..Route::default() }
}

fn on(host: &str, path: Option<PathMatch>) -> RouteMatch {
    RouteMatch { host: Some(host.into()), path, ..RouteMatch::default() }
}

fn exact(path: &str) -> Option<PathMatch> {
    Some(PathMatch::Exact(path.into()))
}

fn prefix(path: &str) -> Option<PathMatch> {
    Some(PathMatch::Prefix(path.into()))
}

fn regex(path: &str) -> Option<PathMatch> {
    Some(PathMatch::Regex(path.into()))
}

fn header(name: &str) -> HeaderMatch {
    HeaderMatch { name: name.into(), value: ValueMatch::Present(true) }
}

fn parameter(name: &str) -> QueryMatch {
    QueryMatch { name: name.into(), value: ValueMatch::Present(true) }
}

fn found(table: &RouteTable, sent: &Sent) -> Option<(String, Option<usize>)> {
    table.find(&sent.host, &sent.asked()).map(|found| (found.route.name.to_string(), found.prefix))
}

#[test]
fn the_most_specific_path_wins_whatever_the_order_of_the_file() {
    let mut routes = vec![
        route("all", on("api", None)),
        route("v1", on("api", prefix("/v1"))),
        route("v1/users", on("api", prefix("/v1/users/"))),
        route("exact", on("api", exact("/v1/users/7"))),
        route("exact slash", on("api", exact("/v1/users/8/"))),
        route("regex", on("api", regex("/v1/users/[a-z]+"))),
    ];
    for _ in 0..routes.len() {
        routes.rotate_left(1);
        let table = RouteTable::new(&routes);
        for (path, want, prefix) in [
            ("/v1/users/7", "exact", None),
            ("/v1/users/7/", "v1/users", Some(9)),
            ("/v1/users/8/", "exact slash", None),
            ("/v1/users/8", "v1/users", Some(9)),
            ("/v1/users/him", "regex", None),
            ("/v1/users/him/x", "v1/users", Some(9)),
            ("/v1/users", "v1/users", Some(9)),
            ("/v1/usersx", "v1", Some(3)),
            ("/v1", "v1", Some(3)),
            ("/v1/", "v1", Some(3)),
            ("/v10", "all", Some(0)),
            ("/", "all", Some(0)),
            ("*", "all", Some(0)),
            ("", "all", Some(0)),
        ] {
            assert_eq!(found(&table, &Sent::get("api", path)), Some((want.into(), prefix)), "{path}");
        }
    }
}

#[test]
fn the_most_specific_host_wins_and_leaves_what_it_does_not_match() {
    let table = RouteTable::new(&[
        route("every", RouteMatch { path: prefix("/"), ..RouteMatch::default() }),
        route("shop", on("*.shop", prefix("/"))),
        route("eu", on("*.eu.shop", exact("/only"))),
        route("api", on("API.eu.shop.", prefix("/v1"))),
    ]);
    for (host, path, want) in [
        ("api.eu.shop", "/v1/x", "api"),
        ("Api.EU.shop.", "/v1", "api"),
        ("api.eu.shop", "/only", "eu"),
        ("api.eu.shop", "/v2", "shop"),
        ("a.b.eu.shop", "/only", "eu"),
        ("eu.shop", "/only", "shop"),
        ("shop", "/v1", "every"),
        ("evil", "/v1", "every"),
    ] {
        assert_eq!(found(&table, &Sent::get(host, path)).map(|it| it.0), Some(want.into()), "{host} {path}");
    }
    let none = RouteTable::new(&[route("api", on("api", prefix("/v1")))]);
    assert_eq!(found(&none, &Sent::get("api", "/v2")), None);
    assert_eq!(found(&none, &Sent::get("other", "/v1")), None);
    assert_eq!(found(&RouteTable::default(), &Sent::get("api", "/v1")), None);
}

#[test]
fn then_methods_then_header_fields_then_parameters_then_the_file_decide() {
    let all = || on("api", prefix("/a"));
    let table = RouteTable::new(&[
        route("first", all()),
        route("second", all()),
        route("parameter", RouteMatch { query: vec![parameter("p")], ..all() }),
        route("parameters", RouteMatch { query: vec![parameter("p"), parameter("q")], ..all() }),
        route("header", RouteMatch { headers: vec![header("x-a")], ..all() }),
        route("headers", RouteMatch { headers: vec![header("x-a"), header("x-b")], ..all() }),
        route("method", RouteMatch { methods: vec!["POST".into()], ..all() }),
        route("longer", on("api", prefix("/a/b"))),
    ]);
    let post = |sent: Sent| Sent { method: Method::POST, ..sent };
    for (sent, want) in [
        (Sent::get("api", "/a"), "first"),
        (Sent::get("api", "/a?p"), "parameter"),
        (Sent::get("api", "/a?q&p=1"), "parameters"),
        (Sent::get("api", "/a?q&p=1").with("x-a", "1"), "header"),
        (Sent::get("api", "/a").with("x-a", "1").with("x-b", "1"), "headers"),
        (post(Sent::get("api", "/a").with("x-a", "1").with("x-b", "1")), "method"),
        (post(Sent::get("api", "/a/b").with("x-a", "1")), "longer"),
    ] {
        assert_eq!(found(&table, &sent).map(|it| it.0), Some(want.into()), "{sent:?}");
    }
}

#[test]
fn a_regular_expression_does_not_win_by_its_length() {
    let narrow =
        RouteMatch { methods: vec!["PUT".into()], headers: vec![header("x-a")], ..on("api", regex("/.*")) };
    let put = Sent { method: Method::PUT, ..Sent::get("api", "/a/x").with("x-a", "1") };
    for routes in [
        [route("narrow", narrow.clone()), route("long", on("api", regex("/(a|b)/.*")))],
        [route("long", on("api", regex("/(a|b)/.*"))), route("narrow", narrow)],
    ] {
        let table = RouteTable::new(&routes);
        assert_eq!(found(&table, &put), Some(("narrow".into(), None)));
        assert_eq!(found(&table, &Sent::get("api", "/a/x")), Some(("long".into(), None)));
    }
    let table = RouteTable::new(&[
        route("first", on("api", regex("/.*"))),
        route("second", on("api", regex("/(a|b)/.*"))),
    ]);
    assert_eq!(found(&table, &Sent::get("api", "/a/x")), Some(("first".into(), None)));
}

#[test]
fn each_alternative_of_a_route_matches_by_itself() {
    let alternatives = vec![on("a", prefix("/x")), on("b", exact("/y"))];
    let table = RouteTable::new(&[Route { name: "r".into(), matches: alternatives, ..Route::default() }]);
    assert_eq!(found(&table, &Sent::get("a", "/x/1")), Some(("r".into(), Some(2))));
    assert_eq!(found(&table, &Sent::get("b", "/y")), Some(("r".into(), None)));
    assert_eq!(found(&table, &Sent::get("a", "/y")), None);
}

#[test]
fn an_alternative_that_can_not_be_compiled_matches_nothing() {
    let broken = HeaderMatch { name: "x".into(), value: ValueMatch::Regex("(".into()) };
    let table = RouteTable::new(&[
        route("regex", on("api", regex("/("))),
        route("header", RouteMatch { headers: vec![broken], ..on("api", prefix("/a")) }),
        route("all", on("api", None)),
    ]);
    assert_eq!(found(&table, &Sent::get("api", "/a").with("x", "1")), Some(("all".into(), Some(0))));
}

/// The same by the book: all alternatives of all routes in one order, and the first that matches.
fn by_the_book(routes: &[Route], sent: &Sent) -> Option<(String, Option<usize>)> {
    let mut alternatives: Vec<(&RouteMatch, &Route)> = routes
        .iter()
        .flat_map(|route| route.matches.iter().map(move |alternative| (alternative, route)))
        .filter(|(alternative, _)| host_matches(alternative.host.as_deref(), &sent.host))
        .collect();
    // From the least to the most important; each sort keeps the order of what is equal.
    alternatives.sort_by_key(|(alternative, _)| Reverse(alternative.query.len()));
    alternatives.sort_by_key(|(alternative, _)| Reverse(alternative.headers.len()));
    alternatives.sort_by_key(|(alternative, _)| alternative.methods.is_empty());
    alternatives.sort_by_key(|(alternative, _)| match &alternative.path {
        Some(PathMatch::Exact(_)) => (0, Reverse(0)),
        Some(PathMatch::Regex(_)) => (1, Reverse(0)),
        Some(PathMatch::Prefix(path)) => (2, Reverse(path.trim_end_matches('/').len())),
        None => (2, Reverse(0)),
    });
    alternatives.sort_by_key(|(alternative, _)| match &alternative.host {
        None => (2, Reverse(0)),
        Some(host) if host.starts_with("*.") => (1, Reverse(host.len())),
        Some(_) => (0, Reverse(0)),
    });
    alternatives.iter().find_map(|(alternative, route)| {
        let prefix = path_matches(alternative.path.as_ref(), &sent.path)?;
        let holds = (alternative.methods.is_empty()
            || alternative.methods.contains(&sent.method.to_string()))
            && alternative.headers.iter().all(|header| {
                let value = sent.headers.get(&header.name).map(|value| value.to_str().unwrap());
                value_matches(&header.value, value)
            })
            && alternative.query.iter().all(|parameter| {
                let mut pairs = sent.query.as_deref().into_iter().flat_map(|query| query.split('&'));
                let value = pairs.find_map(|pair| pair.strip_prefix(&format!("{}=", parameter.name)));
                value_matches(&parameter.value, value)
            });
        holds.then(|| (route.name.clone(), prefix))
    })
}

fn host_matches(pattern: Option<&str>, host: &str) -> bool {
    match pattern {
        None => true,
        Some(pattern) => match pattern.strip_prefix('*') {
            Some(domain) => host.ends_with(domain) && host.len() > domain.len(),
            None => host == pattern,
        },
    }
}

/// The length of the prefix, if it was one; `None` outside: no match.
fn path_matches(rule: Option<&PathMatch>, path: &str) -> Option<Option<usize>> {
    match rule {
        None => Some(Some(0)),
        Some(PathMatch::Exact(exact)) => (path == exact).then_some(None),
        Some(PathMatch::Regex(pattern)) => {
            whole_match(pattern).unwrap().is_match(path.as_bytes()).then_some(None)
        }
        Some(PathMatch::Prefix(prefix)) => {
            let prefix = prefix.trim_end_matches('/');
            let rest = path.strip_prefix(prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then_some(Some(prefix.len()))
        }
    }
}

fn value_matches(rule: &ValueMatch, value: Option<&str>) -> bool {
    match rule {
        ValueMatch::Present(present) => value.is_some() == *present,
        ValueMatch::Exact(exact) => value == Some(exact),
        ValueMatch::Regex(pattern) => {
            value.is_some_and(|value| whole_match(pattern).unwrap().is_match(value.as_bytes()))
        }
    }
}

// Few words, so that routes overlap and requests meet them.
const HOSTS: [&str; 5] = ["shop", "api.shop", "eu.shop", "api.eu.shop", "other"];
const HOST_PATTERNS: [Option<&str>; 7] = [
    None,
    Some("shop"),
    Some("*.shop"),
    Some("*.eu.shop"),
    Some("api.shop"),
    Some("api.eu.shop"),
    Some("other"),
];
const REGEXES: [&str; 12] = [
    "/a/[ab]",
    "/a/(a|b)",
    "/a/b/.*",
    ".*",
    "/.*b",
    "/a(/b)?",
    "/[ab]+/.*",
    "(?i)/A/.*",
    "/a/b",
    "/b/a/[^/]+",
    "/",
    "/a/.*/b|/b",
];
const NAMES: [&str; 2] = ["x", "y"];
const VALUES: [&str; 3] = ["1", "2", "12"];

/// A path of up to four segments, some of them empty.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(select(&["a", "b", "ab", ""][..]), 1..=4)
        .prop_map(|parts| format!("/{}", parts.join("/")))
}

fn path_match() -> impl Strategy<Value = Option<PathMatch>> {
    let prefix = path().prop_map(|path| format!("{}/", path.trim_end_matches('/')));
    prop_oneof![
        1 => Just(None),
        3 => path().prop_map(|path| Some(PathMatch::Exact(path))),
        3 => path().prop_map(|path| Some(PathMatch::Prefix(path.trim_end_matches('/').to_owned()))),
        2 => prefix.prop_map(|path| Some(PathMatch::Prefix(path))),
        4 => select(&REGEXES[..]).prop_map(|pattern| Some(PathMatch::Regex(pattern.into()))),
    ]
}

fn value_match() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        select(&VALUES[..]).prop_map(|value| ValueMatch::Exact(value.into())),
        select(&["1.*", ".*2", "."][..]).prop_map(|value| ValueMatch::Regex(value.into())),
        any::<bool>().prop_map(ValueMatch::Present),
    ]
}

fn alternative() -> impl Strategy<Value = RouteMatch> {
    let named = || (select(&NAMES[..]), value_match());
    let methods = prop_oneof![3 => Just(vec![]), 1 => Just(vec!["GET"]), 1 => Just(vec!["POST", "PUT"])];
    let few = || prop::collection::vec(named(), 0..=2);
    (select(&HOST_PATTERNS[..]), path_match(), methods, few(), few()).prop_map(
        |(host, path, methods, headers, query)| RouteMatch {
            host: host.map(Into::into),
            path,
            methods: methods.into_iter().map(Into::into).collect(),
            headers: headers
                .into_iter()
                .map(|(name, value)| HeaderMatch { name: name.into(), value })
                .collect(),
            query: query.into_iter().map(|(name, value)| QueryMatch { name: name.into(), value }).collect(),
        },
    )
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    prop::collection::vec(prop::collection::vec(alternative(), 1..=3), 0..=24).prop_map(|routes| {
        let named = |(n, matches): (usize, _)| Route { name: n.to_string(), matches, ..Route::default() };
        routes.into_iter().enumerate().map(named).collect()
    })
}

fn sent() -> impl Strategy<Value = Sent> {
    let pairs = || {
        prop::collection::vec(prop::option::of(select(&VALUES[..])), NAMES.len())
            .prop_map(|values| NAMES.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?))))
    };
    let method = select(&[Method::GET, Method::POST, Method::PUT][..]);
    (select(&HOSTS[..]), method, path(), pairs(), pairs()).prop_map(|(host, method, path, headers, query)| {
        let query: Vec<String> = query.map(|(name, value)| format!("{name}={value}")).collect();
        Sent {
            host: host.into(),
            method,
            path,
            query: (!query.is_empty()).then(|| query.join("&")),
            headers: headers
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect(),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_table_finds_what_a_scan_in_order_finds(
        routes in routes(),
        requests in prop::collection::vec(sent(), 1..=40),
    ) {
        let table = RouteTable::new(&routes);
        for sent in &requests {
            prop_assert_eq!(found(&table, sent), by_the_book(&routes, sent), "{:?}", sent);
        }
    }
}
