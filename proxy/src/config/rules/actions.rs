//! Rules about what a route does with requests: redirects, fixed responses, rewrites, edits, mirrors, faults.

use super::report::Report;
use super::survival::{body, response_fields};
use super::upstreams::refer_for_requests;
use crate::config::model::{
    Config, Fault, HeaderEdits, Mirror, PathMatch, PathRewrite, Redirect, Respond, Rewrite, Route,
};
use crate::config::problem::Path;
use crate::config::syntax::{editable, field_value};

/// Statuses of a redirect that clients follow with `Location` (RFC 9110 15.4).
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

pub(super) fn check(config: &Config, at: &Path, route: &Route, report: &mut Report) {
    if let Some(settings) = &route.redirect {
        redirect(&at.field("redirect"), settings, route, report);
    }
    if let Some(response) = &route.respond {
        respond(&at.field("respond"), response, report);
    }
    if let Some(settings) = &route.rewrite {
        rewrite(&at.field("rewrite"), settings, route, report);
    }
    edits(&at.field("requestHeaders"), &route.request_headers, report);
    edits(&at.field("responseHeaders"), &route.response_headers, report);
    if let Some(settings) = &route.mirror {
        mirror(config, &at.field("mirror"), settings, report);
    }
    if let Some(settings) = &route.fault {
        fault(&at.field("fault"), settings, report);
    }
}

fn redirect(at: &Path, redirect: &Redirect, route: &Route, report: &mut Report) {
    let Redirect { scheme, host, port, path, status } = redirect;
    if scheme.is_none() && host.is_none() && port.is_none() && path.is_none() {
        report.error(
            at,
            "this leads back to where the request came from",
            "state `scheme`, `host`, `port` or `path`",
        );
    }
    if let Some(scheme) = scheme
        && !matches!(scheme.as_str(), "http" | "https")
    {
        report.error(
            &at.field("scheme"),
            format!("`{scheme}` is not a scheme of requests"),
            "write http or https",
        );
    }
    if let Some(host) = host {
        report.host(&at.field("host"), host);
    }
    report.port(&at.field("port"), *port);
    if let Some(status) = status
        && !REDIRECTS.contains(status)
    {
        report.error(
            &at.field("status"),
            format!("{status} is not the status of a redirect"),
            "write 301, 302, 303, 307 or 308",
        );
    }
    path_rewrite(&at.field("path"), path.as_ref(), route, report);
}

fn respond(at: &Path, respond: &Respond, report: &mut Report) {
    report.status(&at.field("status"), respond.status, 200..=599);
    body(&at.field("body"), respond.status, Some(&respond.body), report);
    response_fields(&at.field("headers"), &respond.headers, report);
}

fn rewrite(at: &Path, rewrite: &Rewrite, route: &Route, report: &mut Report) {
    if rewrite.host.is_none() && rewrite.path.is_none() {
        report.warn(at, "this changes nothing", "state `host` or `path`, or remove it");
    }
    if let Some(host) = &rewrite.host {
        report.host(&at.field("host"), host);
    }
    path_rewrite(&at.field("path"), rewrite.path.as_ref(), route, report);
}

fn path_rewrite(at: &Path, path: Option<&PathRewrite>, route: &Route, report: &mut Report) {
    match path {
        None => {}
        Some(PathRewrite::Full(path)) => report.path(&at.field("full"), path),
        Some(PathRewrite::Prefix(prefix)) => {
            let at = at.field("prefix");
            // The Gateway API's table has rows for nothing at all: the prefix is taken away.
            if !prefix.is_empty() {
                report.path(&at, prefix);
            }
            let without = route
                .matches
                .iter()
                .position(|alternative| !matches!(alternative.path, Some(PathMatch::Prefix(_))));
            if let Some(index) = without {
                report.error(
                    &at,
                    format!("`match[{index}]` has no prefix that this could take the place of"),
                    "match on `path: {prefix: …}` in every alternative, or write `full`",
                );
            }
        }
    }
}

fn edits(at: &Path, edits: &HeaderEdits, report: &mut Report) {
    for (index, name) in edits.remove.iter().enumerate() {
        report.checked(&at.field("remove").item(index), editable(name));
    }
    for (list, fields) in [("set", &edits.set), ("add", &edits.add)] {
        let at = at.field(list);
        for (index, field) in fields.iter().enumerate() {
            let at = at.item(index);
            report.checked(&at.field("name"), editable(&field.name));
            report.checked(&at.field("value"), field_value(&field.value));
            let is_repeated =
                || fields[..index].iter().any(|other| other.name.eq_ignore_ascii_case(&field.name));
            if list == "set" && is_repeated() {
                report.error(
                    &at.field("name"),
                    format!("`{}` is set twice, and the second would replace the first", field.name),
                    "keep one of them, or write the second under `add`",
                );
            }
        }
    }
}

fn mirror(config: &Config, at: &Path, mirror: &Mirror, report: &mut Report) {
    refer_for_requests(config, &at.field("upstream"), &mirror.upstream, report);
    report.percent(&at.field("percent"), mirror.percent);
}

fn fault(at: &Path, fault: &Fault, report: &mut Report) {
    if fault.delay.is_none() && fault.abort.is_none() {
        report.warn(at, "this does nothing", "state `delay` or `abort`, or remove it");
    }
    if let Some(delay) = &fault.delay {
        let at = at.field("delay");
        report.not_zero(&at.field("duration"), Some(delay.duration));
        report.percent(&at.field("percent"), delay.percent);
    }
    if let Some(abort) = &fault.abort {
        let at = at.field("abort");
        report.status(&at.field("status"), abort.status, 400..=599);
        report.percent(&at.field("percent"), abort.percent);
    }
}
