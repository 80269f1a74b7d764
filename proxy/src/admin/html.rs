//! The pages as people read them: any JSON value as tables and lists of definitions, one look for all.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::{Map, Value};

use super::pages::PAGES;

const STYLE: &str = include_str!("html.css");

/// What stands on the page of the tap, which for programs is a stream.
pub(super) const TAP: &str = "<p>Requests as they end, a JSON object a line:</p>
<pre>curl -N 'http://localhost:15000/tap'
curl -N 'http://localhost:15000/tap?status=5xx&amp;upstream=NAME'
curl -N 'http://localhost:15000/tap?direction=outbound&amp;path=/orders&amp;slowerThan=100ms&amp;limit=10'</pre>
<dl><dt>direction</dt><dd>inbound or outbound</dd>
<dt>route, upstream</dt><dd>its name</dd>
<dt>status</dt><dd>404, 5xx, 500-503, or several: 404,5xx</dd>
<dt>path</dt><dd>what it begins with</dd>
<dt>method, host</dt><dd>as they are; the host with or without its port</dd>
<dt>slowerThan</dt><dd>a time, as 100ms</dd>
<dt>failed</dt><dd>true: what failed only</dd>
<dt>limit</dt><dd>ends after so many</dd></dl>";

/// A page of the admin port: `value`, below what is particular to it, which is HTML already.
pub(super) fn page(path: &str, value: &Value, particular: &str) -> String {
    let what = PAGES.iter().find(|page| page.path == path).map_or("", |page| page.what);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} · Outrigger</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#content\">To the content</a>\n<nav aria-label=\"Pages\"><a href=\"/\">Outrigger</a>",
        title = escaped(path.trim_start_matches('/')),
    );
    for page in PAGES.iter().filter(|page| page.method == Method::GET) {
        let current = if page.path == path { " aria-current=\"page\"" } else { "" };
        push(&mut html, format_args!("<a href=\"{0}\"{current}>{1}</a>", page.path, &page.path[1..]));
    }
    push(
        &mut html,
        format_args!(
            "</nav>\n<main id=\"content\">\n<h1>{}</h1>\n<p class=\"what\">{} \
             <span class=\"hint\">Programs get the same as JSON.</span></p>\n{particular}\n",
            escaped(path),
            escaped(what),
        ),
    );
    match value {
        Value::Object(fields) => top(fields, &mut html),
        other => inner("", other, &mut html),
    }
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

/// Asks what becomes of a request; with what was asked last.
pub(super) fn why_form(query: &str) -> String {
    let asked = |name: &str| {
        let mut all = form_urlencoded::parse(query.as_bytes());
        escaped(&all.find(|(other, _)| other == name).map(|(_, value)| value).unwrap_or_default())
    };
    let selected = |is: bool| if is { " selected" } else { "" };
    let is_inbound = asked("direction") == "inbound";
    let field = |label: &str, name: &str, example: &str| {
        format!(
            "<label>{label} <input name=\"{name}\" placeholder=\"{example}\" value=\"{}\"></label>\n",
            asked(name)
        )
    };
    format!(
        "<form action=\"/why\">\n<label>Direction <select name=\"direction\">\
         <option value=\"outbound\"{}>outbound: from the workload</option>\
         <option value=\"inbound\"{}>inbound: to the workload</option></select></label>\n{}<button>Why?</button>\n</form>",
        selected(!is_inbound),
        selected(is_inbound),
        [
            field("URL", "url", "http://api.shop:8080/orders"),
            field("Method", "method", "GET"),
            field("Header", "header", "name: value"),
            field("Dialled address", "address", "looked up"),
            field("Inbound: port", "port", "8080"),
            field("path", "path", "/orders"),
            field("peer", "peer", "spiffe://cluster.local/ns/shop/sa/web"),
        ]
        .concat(),
    )
}

/// Changes the log level.
pub(super) fn log_form(level: &str) -> String {
    format!(
        "<form action=\"/log\" method=\"post\">\n<label>Level <input name=\"level\" value=\"{}\"></label>\n\
         <button>Change</button>\n</form>\n<p>off, error, warn, info, debug, trace; levels of single modules too, as in \
         <code>warn,outrigger_proxy=debug</code></p>",
        escaped(level)
    )
}

/// Text within HTML, attributes too.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

fn push(html: &mut String, arguments: std::fmt::Arguments<'_>) {
    html.write_fmt(arguments).expect("writing into a String does not fail");
}

/// The fields of a page: what is short first, then each of the others under a heading.
fn top(fields: &Map<String, Value>, html: &mut String) {
    let is_short = |value: &Value| !matches!(value, Value::Array(_) | Value::Object(_)) || is_empty(value);
    let short = fields.iter().filter(|(_, value)| is_short(value));
    definitions(short, html);
    for (name, value) in fields.iter().filter(|(_, value)| !is_short(value)) {
        push(html, format_args!("<section><h2>{}</h2>\n", escaped(name)));
        inner(name, value, html);
        html.push_str("</section>\n");
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// Any value, as it stands in a section, a definition or a cell.
fn inner(name: &str, value: &Value, html: &mut String) {
    match value {
        value if is_empty(value) => html.push_str("<span class=\"none\">none</span>"),
        Value::Array(all) if is_table(value) => {
            table(None, all.iter().filter_map(Value::as_object).map(|row| ("", row)), html);
        }
        Value::Array(all) => {
            html.push_str("<ul>");
            for one in all {
                html.push_str("<li>");
                inner(name, one, html);
                html.push_str("</li>");
            }
            html.push_str("</ul>");
        }
        Value::Object(fields) if is_table(value) => {
            let rows = fields.iter().filter_map(|(name, row)| Some((&**name, row.as_object()?)));
            table(Some("name"), rows, html);
        }
        Value::Object(fields) => definitions(fields.iter(), html),
        short => scalar(name, short, html),
    }
}

/// Whether they are rows of one table: they have the same fields.
fn alike(fields: &Map<String, Value>) -> bool {
    let names = |value: &Value| -> Vec<String> {
        value.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
    };
    let mut all = fields.values().map(names);
    let first = all.next().unwrap_or_default();
    first.len() <= 8 && all.all(|names| names == first)
}

/// What a person looks at first, then tables, then the rest.
fn definitions<'a>(fields: impl Iterator<Item = (&'a String, &'a Value)>, html: &mut String) {
    let mut fields: Vec<_> = fields.collect();
    if fields.is_empty() {
        return;
    }
    fields.sort_by_key(|(name, value)| (leading(name), !is_table(value)));
    html.push_str("<dl>");
    for (name, value) in fields {
        let class = if is_table(value) { " class=\"whole\"" } else { "" };
        push(html, format_args!("<dt{class}>{}</dt><dd{class}>", escaped(&label(name))));
        inner(name, value, html);
        html.push_str("</dd>\n");
    }
    html.push_str("</dl>\n");
}

/// Whether it is shown as a table, which needs the whole width.
fn is_table(value: &Value) -> bool {
    match value {
        Value::Array(all) => !all.is_empty() && all.iter().all(Value::is_object),
        Value::Object(fields) => fields.len() > 1 && fields.values().all(Value::is_object) && alike(fields),
        _ => false,
    }
}

fn leading(name: &str) -> usize {
    LEADING.iter().position(|leading| *leading == name).unwrap_or(LEADING.len())
}

/// A column for each name that any of the rows has, in the order of their coming.
fn table<'a>(
    first: Option<&str>,
    rows: impl Iterator<Item = (&'a str, &'a Map<String, Value>)>,
    html: &mut String,
) {
    let rows: Vec<_> = rows.collect();
    let mut columns: Vec<&String> = Vec::new();
    for (_, row) in &rows {
        for name in row.keys() {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
    }
    // A column in which nobody has anything tells nothing.
    columns.retain(|name| rows.iter().any(|(_, row)| row.get(*name).is_some_and(|value| !is_empty(value))));
    columns.sort_by_key(|name| leading(name));
    html.push_str(
        "<div class=\"wide\" tabindex=\"0\" role=\"group\" aria-label=\"Table\"><table><thead><tr>",
    );
    let heads = first.into_iter().map(escaped).chain(columns.iter().map(|name| escaped(&label(name))));
    for head in heads {
        push(html, format_args!("<th scope=\"col\">{head}</th>"));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for (name, row) in rows {
        html.push_str("<tr>");
        if first.is_some() {
            push(html, format_args!("<th scope=\"row\">{}</th>", escaped(name)));
        }
        for column in &columns {
            let is_long = row.get(*column).and_then(Value::as_str).is_some_and(|text| text.len() > LONG_TEXT);
            html.push_str(if is_long { "<td class=\"long\">" } else { "<td>" });
            match row.get(*column) {
                Some(value) if !is_empty(value) => inner(column, value, html),
                _ => {}
            }
            html.push_str("</td>");
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
}

/// Text of more bytes than this gets room in a cell, and is broken there.
const LONG_TEXT: usize = 24;

/// What a person looks at first in a row, if it is there.
const LEADING: [&str; 14] = [
    "time",
    "route",
    "address",
    "name",
    "direction",
    "method",
    "path",
    "code",
    "state",
    "why",
    "share",
    "lastError",
    "sinceSeconds",
    "upstream",
];

/// `ageSeconds` is called `age`, and `latencyMs` `latency`: the unit stands with the value.
fn label(name: &str) -> String {
    let name = unit(name).map_or(name, |(name, _)| name);
    let mut label = String::with_capacity(name.len() + 4);
    for character in name.chars() {
        match character {
            '_' => label.push(' '),
            upper if upper.is_ascii_uppercase() => {
                label.push(' ');
                label.push(upper.to_ascii_lowercase());
            }
            other => label.push(other),
        }
    }
    label
}

/// The name without its unit, and what one is in seconds.
fn unit(name: &str) -> Option<(&str, f64)> {
    let units = [("Seconds", 1.0), ("Ms", 1e-3), ("_ms", 1e-3)];
    units.into_iter().find_map(|(unit, seconds)| {
        name.strip_suffix(unit).filter(|rest| !rest.is_empty()).map(|rest| (rest, seconds))
    })
}

fn scalar(name: &str, value: &Value, html: &mut String) {
    match value {
        Value::Bool(is) => html.push_str(if *is { "yes" } else { "no" }),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            match (unit(name), name) {
                (Some((_, seconds)), _) => html.push_str(&duration(number * seconds)),
                (_, "notBefore" | "notAfter" | "nextRenewal" | "startedAt") => html.push_str(&moment(number)),
                (_, "share") => push(html, format_args!("{:.1} %", number * 100.0)),
                _ => push(html, format_args!("{value}")),
            }
        }
        Value::String(text) => match (name, mark(text)) {
            ("state" | "status" | "code", Some((class, sign))) => {
                push(html, format_args!("<span class=\"{class}\">{sign} {}</span>", escaped(text)));
            }
            _ => html.push_str(&escaped(text)),
        },
        other => html.push_str(&escaped(&other.to_string())),
    }
}

/// States are told apart by sign and word as well as by colour.
fn mark(state: &str) -> Option<(&'static str, &'static str)> {
    Some(match state {
        "healthy" | "closed" | "ready" => ("good", "●"),
        "ejected" | "unhealthy" | "open" | "panic" => ("bad", "■"),
        "half-open" | "slow start" | "draining" => ("fair", "▲"),
        _ => return None,
    })
}

/// As people say it, to two or three figures.
fn duration(seconds: f64) -> String {
    match seconds {
        0.0 => "0".into(),
        short if short < 1.0 => format!("{:.1} ms", short * 1e3),
        some if some < 120.0 => format!("{some:.1} s"),
        some if some < 7200.0 => format!("{:.0} min", some / 60.0),
        some if some < 172_800.0 => format!("{:.1} h", some / 3600.0),
        long => format!("{:.1} days", long / 86_400.0),
    }
}

/// A time in seconds since 1970, and how far it is.
fn moment(seconds: f64) -> String {
    let Some(at) = Duration::try_from_secs_f64(seconds).ok().and_then(|since| UNIX_EPOCH.checked_add(since))
    else {
        return seconds.to_string();
    };
    let date = httpdate::fmt_http_date(at);
    match at.duration_since(SystemTime::now()) {
        Ok(left) => format!("{date} (in {})", duration(left.as_secs_f64())),
        Err(past) => format!("{date} ({} ago)", duration(past.duration().as_secs_f64())),
    }
}

#[cfg(test)]
mod tests;
