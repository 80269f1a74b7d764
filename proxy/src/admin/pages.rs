//! What each path answers.

use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::{Action, Sources, dashboard, guard, html, index, tap};
use crate::telemetry::METRICS_CONTENT_TYPE;

/// A log level, or a level for each of some modules.
const MOST_LOG_LEVEL_BYTES: usize = 1024;
/// How the fields of a form come.
const FORM: &[u8] = b"application/x-www-form-urlencoded";

/// A page of the admin port.
pub(super) struct Page {
    pub path: &'static str,
    /// GET, or POST for what changes state.
    pub method: Method,
    pub what: &'static str,
}

/// All of them, in the order in which a person looks.
pub(super) static PAGES: &[Page] = &[
    page("/upstreams", "Upstreams, their endpoints, and why those are in or out"),
    page("/failures", "What failed last, and why"),
    page("/why", "What becomes of a request, and why: /why?url=http://HOST:PORT/PATH"),
    page("/tap", "Live requests: /tap?status=5xx&upstream=NAME"),
    page("/routes", "The route table"),
    page("/connections", "Connections that are open"),
    page("/certificates", "The workload's certificate and the trusted roots"),
    page("/traffic", "Who calls whom: requests a second and their success over the last minute"),
    page(
        "/history",
        "Requests, errors and latency of the last ten minutes; since=NUMBER for what is new, upstream=NAME for one",
    ),
    page("/config", "The config in force"),
    page("/metrics", "Metrics, in Prometheus' text format"),
    page("/version", "The version"),
    page("/log", "The level of the proxy's own log"),
    action(
        "/log",
        "Changes the log level to the one in the body, as: curl -d debug http://localhost:15000/log",
    ),
    action("/drain", "Stops, but finishes the requests that are in flight"),
    action("/quit", "Stops at once"),
];

const fn page(path: &'static str, what: &'static str) -> Page {
    Page { path, method: Method::GET, what }
}

const fn action(path: &'static str, what: &'static str) -> Page {
    Page { path, method: Method::POST, what }
}

/// Answers on the admin port.
pub(super) async fn admin(request: Request<Incoming>, sources: &Sources) -> Answer {
    if let Err(reason) = guard::check(request.method(), request.uri(), request.headers(), sources.reached_by)
    {
        return answer::error(StatusCode::FORBIDDEN, &reason);
    }
    let path = request.uri().path();
    let part = dashboard::part(path);
    let allowed: Vec<&Method> = if path == "/" || part.is_some() {
        vec![&Method::GET]
    } else {
        PAGES.iter().filter(|page| page.path == path).map(|page| &page.method).collect()
    };
    if allowed.is_empty() {
        return answer::error(StatusCode::NOT_FOUND, &format!("no page {path}; / lists all"));
    }
    if !allowed.iter().any(|method| is(request.method(), method)) {
        return answer::method_not_allowed(&allowed);
    }
    if let Some(part) = part {
        return answer::part(part);
    }
    let browses = answer::wants(request.headers(), "text/html");
    let query = request.uri().query().unwrap_or_default();
    match path {
        "/upstreams" => shown(path, browses, &(sources.upstreams)()),
        "/failures" => shown(path, browses, &(sources.failures)()),
        "/routes" => shown(path, browses, &(sources.routes)()),
        "/certificates" => shown(path, browses, &(sources.certificates)()),
        "/connections" => shown(path, browses, &(sources.connections)()),
        "/traffic" => shown(path, browses, &(sources.traffic)()),
        "/history" => match (sources.history)(query) {
            Ok(history) if browses => shown(path, browses, &history),
            Ok(history) => answer::compact(&history),
            Err(reason) => answer::error(StatusCode::BAD_REQUEST, &reason),
        },
        "/config" => shown(path, browses, &(sources.config)()),
        "/metrics" => exposition(sources),
        "/version" => shown(path, browses, &(sources.about)()),
        "/why" => why(query.to_owned(), browses, sources).await,
        "/tap" if browses => answer::html(html::page(path, &json!({}), html::TAP)),
        "/tap" => tap::answer(&request, sources),
        "/log" if request.method() == Method::POST => set_log_level(request, sources).await,
        "/log" => log_level(sources, browses),
        "/drain" => act("draining", sources.drain.as_ref()),
        "/quit" => act("stopping", sources.quit.as_ref()),
        _ if browses => answer::dashboard(dashboard::PAGE),
        _ => answer::json(StatusCode::OK, &index::json(sources)),
    }
}

/// The same for programs and for people.
fn shown(path: &str, browses: bool, value: &Value) -> Answer {
    if browses { answer::html(html::page(path, value, "")) } else { answer::json(StatusCode::OK, value) }
}

async fn why(query: String, browses: bool, sources: &Sources) -> Answer {
    let form = html::why_form(&query);
    if browses && query.is_empty() {
        return answer::html(html::page("/why", &json!({}), &form));
    }
    match (sources.why)(query).await {
        Ok(told) if browses => answer::html(html::page("/why", &told, &form)),
        Ok(told) => answer::json(StatusCode::OK, &told),
        Err(wrong) if browses => answer::html(html::page("/why", &json!({ "error": wrong }), &form)),
        Err(wrong) => answer::error(StatusCode::BAD_REQUEST, &wrong),
    }
}

/// Answers on the metrics port.
pub(super) fn metrics(request: &Request<Incoming>, sources: &Sources) -> Answer {
    open_page(request, &["/metrics"]).unwrap_or_else(|| exposition(sources))
}

/// Answers on the health port.
pub(super) fn health(request: &Request<Incoming>, sources: &Sources) -> Answer {
    open_page(request, &["/readyz", "/livez"]).unwrap_or_else(|| match request.uri().path() {
        "/readyz" => match (sources.ready)() {
            // Still ready, and in trouble: the certificate is not renewed and ends some day.
            Ok(()) => match (sources.certificates)().get("lastError").and_then(|error| error.as_str()) {
                Some(error) => {
                    answer::plain(StatusCode::OK, format!("ready; the certificate is not renewed: {error}"))
                }
                None => answer::plain(StatusCode::OK, "ready"),
            },
            Err(reason) => answer::plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}")),
        },
        // That this thread answers is what is asked.
        _ => answer::plain(StatusCode::OK, "alive"),
    })
}

/// What is wrong with a request for one of `paths`, which anybody may read.
fn open_page(request: &Request<Incoming>, paths: &[&str]) -> Option<Answer> {
    if !paths.contains(&request.uri().path()) {
        let known = paths.join(" and ");
        return Some(answer::error(StatusCode::NOT_FOUND, &format!("this port has {known} only")));
    }
    let safe = is(request.method(), &Method::GET);
    (!safe).then(|| answer::method_not_allowed(&[&Method::GET]))
}

fn is(method: &Method, allowed: &Method) -> bool {
    method == allowed || (method == Method::HEAD && *allowed == Method::GET)
}

fn exposition(sources: &Sources) -> Answer {
    answer::content(StatusCode::OK, METRICS_CONTENT_TYPE, sources.metrics.render())
}

fn log_level(sources: &Sources, browses: bool) -> Answer {
    let level = (sources.log_level.show)();
    let value = json!({ "level": level });
    if browses {
        answer::html(html::page("/log", &value, &html::log_form(&level)))
    } else {
        answer::json(StatusCode::OK, &value)
    }
}

async fn set_log_level(request: Request<Incoming>, sources: &Sources) -> Answer {
    let browses = answer::wants(request.headers(), "text/html");
    let is_form = request.headers().get(CONTENT_TYPE).is_some_and(|is| is.as_bytes().starts_with(FORM));
    let body = match Limited::new(request.into_body(), MOST_LOG_LEVEL_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return answer::error(StatusCode::BAD_REQUEST, &format!("no log level: {error}"));
        }
    };
    // What curl sends with -d is called a form too, and is one only if a browser made it.
    let of_form =
        form_urlencoded::parse(&body).find(|(name, _)| name == "level").map(|(_, level)| level.into_owned());
    let level = of_form.filter(|_| is_form).unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    let level = level.trim();
    let result = if level.is_empty() {
        Err("the body is empty; send a level in it, as `debug`".into())
    } else {
        (sources.log_level.set)(level)
    };
    match result {
        Ok(()) => {
            tracing::info!("the log level is {level} now");
            if browses { answer::see("/log") } else { log_level(sources, false) }
        }
        Err(reason) => answer::error(StatusCode::BAD_REQUEST, &reason),
    }
}

fn act(doing: &str, action: Option<&Action>) -> Answer {
    match action {
        Some(action) => {
            action();
            answer::json(StatusCode::ACCEPTED, &json!({ "status": doing }))
        }
        None => answer::error(StatusCode::NOT_IMPLEMENTED, "this process can't be asked for that here"),
    }
}
