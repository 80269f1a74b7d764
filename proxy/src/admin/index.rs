//! The first page, as programs see it: what there is to see.

use serde_json::{Value, json};

use super::Sources;
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
