use serde_json::json;

use super::*;

#[test]
fn text_from_the_network_is_never_markup() {
    let hostile = "<img src=x onerror=alert(1)>\"'&";
    let value = json!({
        hostile: hostile,
        "object": { hostile: { "a": hostile }, "b": { "a": hostile } },
        "rows": [{ hostile: hostile, "state": hostile }],
        "list": [hostile, 1],
    });
    let pages = [page("/upstreams", &value, ""), page(hostile, &value, &log_form(hostile)), {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("url", hostile).finish();
        why_form(&query)
    }];
    for html in pages {
        assert!(!html.contains("<img"), "{html}");
        assert!(!html.contains("\"'&"), "{html}");
        assert!(html.contains("&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;"), "{html}");
    }
}

#[test]
fn everything_that_programs_get_is_on_the_page() {
    let value = json!({
        "number": 17,
        "nothing": null,
        "flag": true,
        "nested": { "deep": { "deeper": "treasure" } },
        "rows": [{ "a": 1, "b": [1, 2] }, { "c": { "d": "e" } }],
        "named": { "api": { "x": 1 }, "web": { "x": 2 } },
    });
    let html = page("/config", &value, "");
    for shown in [
        "<dt>number</dt><dd>17</dd>",
        "<dt>nothing</dt><dd><span class=\"none\">none</span></dd>",
        "<dt>flag</dt><dd>yes</dd>",
        "treasure",
        "<th scope=\"col\">a</th><th scope=\"col\">b</th><th scope=\"col\">c</th>",
        "<li>1</li><li>2</li>",
        "<th scope=\"row\">api</th><td>1</td>",
        "<a href=\"/config\" aria-current=\"page\">config</a>",
    ] {
        assert!(html.contains(shown), "{shown} in {html}");
    }
}

#[test]
fn states_are_told_by_a_sign_and_a_word_and_times_with_their_unit() {
    let rows = json!({ "endpoints": [
        { "address": "10.0.0.1:80", "latencyMs": 12.5, "sinceSeconds": 7300, "state": "ejected", "share": 0.25 },
    ] });
    let html = page("/upstreams", &rows, "");
    for shown in [
        "<span class=\"bad\">■ ejected</span>",
        "12.5 ms",
        "2.0 h",
        "25.0 %",
        "<th scope=\"col\">latency</th>",
    ] {
        assert!(html.contains(shown), "{shown} in {html}");
    }
    assert!(moment(0.0).starts_with("Thu, 01 Jan 1970 00:00:00 GMT ("));
}
