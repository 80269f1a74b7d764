//! The first page: what there is to see.

use std::fmt::Write as _;

use http::Method;
use serde_json::{Value, json};

use super::Sources;
use super::html::escaped;
use super::pages::PAGES;

pub(super) fn json(sources: &Sources) -> Value {
    let pages: Vec<Value> = PAGES
        .iter()
        .map(|page| json!({ "path": page.path, "method": page.method.as_str(), "what": page.what }))
        .collect();
    let ready = (sources.ready)();
    json!({
        "version": sources.version,
        "ready": ready.is_ok(),
        "notReadyBecause": ready.err(),
        "pages": pages,
    })
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>Outrigger</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; }
  h1 { margin: 0; font-size: 1.6rem; }
  p { margin: .25rem 0 2rem; opacity: .8; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .6rem 1.5rem; margin: 0; }
  dt { font-family: ui-monospace, monospace; }
  dd { margin: 0; }
  small { opacity: .6; }
</style>
";

pub(super) fn page(sources: &Sources) -> String {
    let state = match (sources.ready)() {
        Ok(()) => "ready".into(),
        Err(reason) => format!("not ready: {}", escaped(&reason)),
    };
    let mut page =
        format!("{HEAD}<h1>Outrigger</h1>\n<p>{} &middot; {state}</p>\n<dl>\n", escaped(sources.version));
    for entry in PAGES {
        let (path, what) = (entry.path, escaped(entry.what));
        let name = if entry.method == Method::GET {
            format!("<a href=\"{path}\">{path}</a>")
        } else {
            format!("{path} <small>{}</small>", entry.method)
        };
        writeln!(page, "  <dt>{name}</dt><dd>{what}</dd>").expect("writing into a String does not fail");
    }
    page.push_str("</dl>\n</html>\n");
    page
}
