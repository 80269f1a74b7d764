use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::server::Limits;
use super::*;

/// The three servers on ephemeral ports of this machine.
struct World {
    admin: SocketAddr,
    metrics: SocketAddr,
    health: SocketAddr,
    ready: Arc<Mutex<Result<(), String>>>,
    done: Arc<Mutex<Vec<String>>>,
    tap: Tap,
}

struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(found, _)| *found == name))
            .map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl World {
    async fn start() -> Self {
        Self::start_with(LIMITS).await
    }

    async fn start_with(limits: Limits) -> Self {
        let ready = Arc::new(Mutex::new(Ok(())));
        let done = Arc::new(Mutex::new(Vec::new()));
        let shown = |name: &'static str| -> Json { Arc::new(move || json!({ "shown": name })) };
        let log = |line: &str| done.lock().unwrap().push(line.to_owned());
        log("started");
        let metrics = Arc::new(Metrics::new());
        let tap = Tap::new(metrics.tap_dropped.clone());
        let sources = Arc::new(Sources {
            metrics,
            version: "1.2.3",
            ready: {
                let ready = ready.clone();
                Arc::new(move || ready.lock().unwrap().clone())
            },
            config: shown("config"),
            certificates: shown("certificates"),
            upstreams: shown("upstreams"),
            connections: shown("connections"),
            failures: shown("failures"),
            about: shown("version"),
            reached_by: ReachedBy::Loopback,
            why: Arc::new(|query| {
                Box::pin(async move {
                    if query == "url=http://api" {
                        Ok(json!({ "asked": query }))
                    } else {
                        Err("ask as <so>".into())
                    }
                })
            }),
            tap: tap.clone(),
            routes: shown("routes"),
            history: Arc::new(|query| {
                if query == "wrong" {
                    Err("no parameter `wrong`".into())
                } else {
                    Ok(json!({ "asked": query }))
                }
            }),
            traffic: shown("traffic"),
            log_level: {
                let (shown, done) = (done.clone(), done.clone());
                LogLevel {
                    show: Arc::new(move || shown.lock().unwrap().last().unwrap().clone()),
                    set: Arc::new(move |level| {
                        if level == "loud" {
                            return Err("no level `loud`".into());
                        }
                        done.lock().unwrap().push(level.into());
                        Ok(())
                    }),
                }
            },
            drain: {
                let done = done.clone();
                Some(Arc::new(move || done.lock().unwrap().push("drained".into())))
            },
            quit: None,
        });
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let [admin, metrics, health] = <[TcpListener; 3]>::try_from(listeners).unwrap();
        let [admin_address, metrics_address, health_address] =
            [&admin, &metrics, &health].map(|listener| listener.local_addr().unwrap());
        tokio::spawn(server::serve(admin, Port::Admin, sources.clone(), limits));
        tokio::spawn(server::serve(metrics, Port::Metrics, sources.clone(), limits));
        tokio::spawn(server::serve(health, Port::Health, sources, limits));
        Self { admin: admin_address, metrics: metrics_address, health: health_address, ready, done, tap }
    }
}

async fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer { head: head.into(), body: body.into() }
}

async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await
}

async fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    let length = body.len();
    ask(
        address,
        &format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}"),
    )
    .await
}

#[tokio::test]
async fn each_page_shows_its_source_as_json() {
    let world = World::start().await;
    for page in ["config", "certificates", "upstreams", "connections", "failures", "routes", "version"] {
        let answer = get(world.admin, &format!("/{page}")).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.json(), json!({ "shown": page }));
    }
}

#[tokio::test]
async fn the_first_page_lists_the_others_to_programs_and_is_the_dashboard_to_a_browser() {
    let world = World::start().await;
    *world.ready.lock().unwrap() = Err("no <certificate>".into());
    let listed = get(world.admin, "/").await.json();
    assert_eq!(listed["notReadyBecause"], "no <certificate>");
    assert_eq!(listed["pages"].as_array().unwrap().len(), pages::PAGES.len());
    let browser = "GET / HTTP/1.1\r\nhost: 127.0.0.1:15000\r\naccept: text/html,*/*;q=0.8\r\n\r\n";
    let answer = ask(world.admin, browser).await;
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(answer.body.contains("<title>Outrigger</title>"));
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
}

#[tokio::test]
async fn whatever_the_dashboard_loads_is_here_and_it_loads_nothing_from_elsewhere() {
    let world = World::start().await;
    let page = "GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/html\r\n\r\n";
    let mut texts = vec![ask(world.admin, page).await.body];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(text) = texts.pop() {
        // Names of XML vocabularies are not asked for.
        let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
        assert!(
            !elsewhere.contains("http:") && !elsewhere.contains("https:") && !text.contains("url("),
            "{text}"
        );
        let named = text.split(['"', '\'']).filter_map(|word| match word.strip_prefix("./") {
            Some(script) => Some(format!("/dashboard/{script}")),
            None => word.starts_with("/dashboard/").then(|| word.to_owned()),
        });
        for path in named {
            if seen.insert(path.clone()) {
                let part = get(world.admin, &path).await;
                assert_eq!(
                    (part.status(), part.header("x-content-type-options")),
                    (200, Some("nosniff")),
                    "{path}"
                );
                assert!(!part.body.is_empty(), "{path}");
                texts.push(part.body);
            }
        }
    }
    assert_eq!(seen.len(), dashboard::PARTS.len(), "each part is loaded: {seen:?}");
    let foreign = "GET /dashboard/app.js HTTP/1.1\r\nhost: evil.example\r\n\r\n";
    assert_eq!(ask(world.admin, foreign).await.status(), 403);
}

#[tokio::test]
async fn the_history_is_asked_by_a_query_and_a_wrong_one_is_explained() {
    let world = World::start().await;
    assert_eq!(get(world.admin, "/history?since=7").await.json(), json!({ "asked": "since=7" }));
    let answer = get(world.admin, "/history?wrong").await;
    assert_eq!((answer.status(), answer.json()), (400, json!({ "error": "no parameter `wrong`" })));
}

#[tokio::test]
async fn a_foreign_host_or_page_is_refused_with_the_reason() {
    let world = World::start().await;
    let answer = ask(world.admin, "GET /config HTTP/1.1\r\nhost: evil.example\r\n\r\n").await;
    assert_eq!(answer.status(), 403);
    assert!(answer.json()["error"].as_str().unwrap().contains("`evil.example`"));
    let forged =
        "POST /drain HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(ask(world.admin, forged).await.status(), 403);
    assert_eq!(*world.done.lock().unwrap(), ["started"]);
}

#[tokio::test]
async fn what_changes_state_takes_post_only_and_what_shows_takes_get_only() {
    let world = World::start().await;
    for page in ["/drain", "/quit"] {
        let answer = get(world.admin, page).await;
        assert_eq!((answer.status(), answer.header("allow")), (405, Some("POST")), "{page}");
    }
    let answer = ask(world.admin, "PUT /log HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!((answer.status(), answer.header("allow")), (405, Some("GET, HEAD, POST")));
    for (address, page) in [(world.admin, "/config"), (world.metrics, "/metrics"), (world.health, "/readyz")]
    {
        let answer = post(address, page, "").await;
        assert_eq!((answer.status(), answer.header("allow")), (405, Some("GET, HEAD")), "{page}");
    }
    assert_eq!(*world.done.lock().unwrap(), ["started"]);
    assert_eq!(post(world.admin, "/drain", "").await.status(), 202);
    assert_eq!(post(world.admin, "/quit", "").await.status(), 501);
    assert_eq!(*world.done.lock().unwrap(), ["started", "drained"]);
}

#[tokio::test]
async fn the_log_level_is_what_the_body_says_if_it_is_one() {
    let world = World::start().await;
    let answer = post(world.admin, "/log", "debug\n").await;
    assert_eq!((answer.status(), answer.json()), (200, json!({ "level": "debug" })));
    let answer = post(world.admin, "/log", "loud").await;
    assert_eq!((answer.status(), answer.json()), (400, json!({ "error": "no level `loud`" })));
    assert_eq!(get(world.admin, "/log").await.json(), json!({ "level": "debug" }));
    assert_eq!(post(world.admin, "/log", "").await.status(), 400);
    assert_eq!(post(world.admin, "/log", &"x".repeat(2000)).await.status(), 400);
    assert_eq!(*world.done.lock().unwrap(), ["started", "debug"]);
}

#[tokio::test]
async fn metrics_are_prometheus_text_on_both_ports_and_under_any_host() {
    let world = World::start().await;
    let foreign = "GET /metrics HTTP/1.1\r\nhost: 10.0.0.7:15020\r\n\r\n";
    for answer in [ask(world.metrics, foreign).await, get(world.admin, "/metrics").await] {
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        assert!(answer.body.contains("\noutrigger_panics_total 0\n"));
    }
}

#[tokio::test]
async fn readiness_gives_its_reason_and_liveness_does_not_depend_on_it() {
    let world = World::start().await;
    let answer = get(world.health, "/readyz").await;
    assert_eq!((answer.status(), &*answer.body), (200, "ready\n"));
    *world.ready.lock().unwrap() = Err("waiting for a certificate".into());
    let answer = get(world.health, "/readyz").await;
    assert_eq!((answer.status(), &*answer.body), (503, "not ready: waiting for a certificate\n"));
    let answer = get(world.health, "/livez").await;
    assert_eq!((answer.status(), &*answer.body), (200, "alive\n"));
}

#[tokio::test]
async fn unknown_pages_are_not_found_and_head_has_no_body() {
    let world = World::start().await;
    for (address, page) in [(world.admin, "/nowhere"), (world.metrics, "/config"), (world.health, "/")] {
        assert_eq!(get(address, page).await.status(), 404, "{page}");
    }
    let head = ask(world.admin, "HEAD /config HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!((head.status(), &*head.body), (200, ""));
}

#[tokio::test]
async fn idle_connections_do_not_lock_a_prober_out() {
    let world = World::start().await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(world.health).await.unwrap());
    }
    assert_eq!(get(world.health, "/readyz").await.status(), 200);
    // The oldest had to make room.
    assert_eq!(idle[0].read(&mut [0; 1]).await.unwrap_or_default(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_come_to_an_end_is_cut_off() {
    let (short, long) = (Duration::from_millis(1), Duration::from_secs(600));
    let cases = [
        (Limits { head: short, connection: long }, "GET /config HTTP/1.1\r\nhost: lo"),
        (Limits { head: long, connection: short }, "GET /config HTTP/1.1\r\nhost: lo"),
        (Limits { head: long, connection: short }, ""),
        (
            Limits { head: long, connection: short },
            "POST /log HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nde",
        ),
    ];
    for (limits, request) in cases {
        let world = World::start_with(limits).await;
        let mut slow = TcpStream::connect(world.admin).await.unwrap();
        slow.write_all(request.as_bytes()).await.ok();
        let mut answer = Vec::new();
        // It returns at all: that is what is shown here.
        slow.read_to_end(&mut answer).await.ok();
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
        assert_eq!(*world.done.lock().unwrap(), ["started"]);
    }
}

async fn browse(address: SocketAddr, path: &str) -> Answer {
    let accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n")).await
}

#[tokio::test]
async fn a_browser_gets_each_page_as_html_with_links_to_the_others_and_nothing_from_elsewhere() {
    let world = World::start().await;
    for page in [
        "config",
        "certificates",
        "upstreams",
        "connections",
        "failures",
        "routes",
        "version",
        "log",
        "tap",
        "why",
    ] {
        let answer = browse(world.admin, &format!("/{page}")).await;
        assert_eq!(
            (answer.status(), answer.header("content-type")),
            (200, Some("text/html; charset=utf-8")),
            "{page}"
        );
        assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
        for link in ["<a href=\"/\">", "<a href=\"/upstreams\"", "<a href=\"/log\""] {
            assert!(answer.body.contains(link), "{link} on {page}");
        }
        if !["log", "tap", "why"].contains(&page) {
            assert!(answer.body.contains(&format!("<dt>shown</dt><dd>{page}</dd>")), "{}", answer.body);
        }
        for elsewhere in ["src=", "href=\"http", "href=\"//", "url(", "@import"] {
            assert!(!answer.body.contains(elsewhere), "{elsewhere} on {page}");
        }
    }
}

#[tokio::test]
async fn who_takes_everything_or_json_rather_gets_json() {
    let world = World::start().await;
    for (accept, is_html) in [
        ("*/*", false),
        ("application/json", false),
        ("application/json, text/html;q=0.5", false),
        ("text/html;q=0", false),
        ("text/html", true),
        ("text/html, application/json", true),
        ("text/html;q=0.9, application/json;q=0.1", true),
    ] {
        let request = format!("GET /config HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n");
        let answer = ask(world.admin, &request).await;
        assert_eq!(answer.header("content-type") == Some("text/html; charset=utf-8"), is_html, "{accept}");
    }
}

#[tokio::test]
async fn a_question_is_answered_or_told_how_it_is_asked() {
    let world = World::start().await;
    let answer = get(world.admin, "/why?url=http://api").await;
    assert_eq!((answer.status(), answer.json()), (200, json!({ "asked": "url=http://api" })));
    let answer = get(world.admin, "/why").await;
    assert_eq!((answer.status(), answer.json()), (400, json!({ "error": "ask as <so>" })));
    let page = browse(world.admin, "/why?url=x").await.body;
    assert!(page.contains("ask as &lt;so&gt;") && page.contains("name=\"url\""), "{page}");
}

#[tokio::test]
async fn a_form_of_a_browser_changes_the_log_level_and_leads_back() {
    let world = World::start().await;
    let body = "level=warn%2Coutrigger_proxy%3Ddebug";
    let head = "POST /log HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\naccept: text/html\r\n\
                content-type: application/x-www-form-urlencoded";
    let answer = ask(world.admin, &format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
    assert_eq!((answer.status(), answer.header("location")), (303, Some("/log")));
    assert_eq!(get(world.admin, "/log").await.json(), json!({ "level": "warn,outrigger_proxy=debug" }));
}

#[tokio::test]
async fn a_wrong_filter_of_the_tap_is_told_what_is_allowed_and_a_ninth_reader_that_there_are_eight() {
    let world = World::start().await;
    let answer = get(world.admin, "/tap?statuz=5xx").await;
    assert_eq!(answer.status(), 400);
    assert!(answer.json()["error"].as_str().unwrap().contains("status=5xx|404|500-503"));
    let readers: Vec<_> = (0..8).map(|_| world.tap.look_on(Default::default()).unwrap()).collect();
    assert_eq!(get(world.admin, "/tap").await.status(), 503);
    drop(readers);
    let head = ask(world.admin, "HEAD /tap HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(head.header("content-type"), Some("application/x-ndjson"), "a place is free again");
}

#[tokio::test]
async fn the_tap_outlives_the_time_of_other_answers_and_ends_with_its_reader() {
    let short = Duration::from_millis(1);
    let world = World::start_with(Limits { head: Duration::from_secs(600), connection: short }).await;
    let mut stream = TcpStream::connect(world.admin).await.unwrap();
    stream
        .write_all(b"GET /tap HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200", "the head comes before the first request");
    let others = || (0..7).map(|_| world.tap.look_on(Default::default()).unwrap()).collect::<Vec<_>>();
    tokio::time::sleep(10 * short).await;
    let seven = others();
    assert!(world.tap.look_on(Default::default()).is_err(), "it still has its place");
    drop(stream);
    while world.tap.look_on(Default::default()).is_err() {
        tokio::task::yield_now().await;
    }
    drop(seven);
}
