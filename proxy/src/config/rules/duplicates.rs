//! Matches that can never be the one that wins, because another one before them matches the same.

use std::collections::HashMap;

use outrigger_ca::host::normal;

use super::report::Report;
use super::routes;
use crate::config::model::{Config, PathMatch, RouteMatch};

/// All that a match looks at, for one method; two that are equal match the same requests.
///
/// Of matches that differ, the more specific wins wherever it stands, so that only equal ones hide each other.
#[derive(PartialEq, Eq, Hash)]
struct Matched {
    host: String,
    path: String,
    method: Option<String>,
    fields: Vec<String>,
    parameters: Vec<String>,
}

pub(super) fn check(config: &Config, report: &mut Report) {
    let mut winners: HashMap<Matched, (usize, usize)> = HashMap::new();
    for (route_index, (at, route)) in routes(config).enumerate() {
        for (index, alternative) in route.matches.iter().enumerate() {
            let mut hidden_by = None;
            let mut is_hidden = true;
            for matched in all_matched(alternative) {
                let winner = *winners.entry(matched).or_insert((route_index, index));
                if winner == (route_index, index) {
                    is_hidden = false;
                } else {
                    hidden_by = Some(winner);
                }
            }
            let Some((winner_route, winner)) = hidden_by.filter(|_| is_hidden) else {
                continue;
            };
            let message = if winner_route == route_index {
                format!("`match[{winner}]` matches all that this does")
            } else {
                let name = &config.routes[winner_route].name;
                format!("the route `{name}` before it matches all that this does, so that it never wins")
            };
            report.warn(&at.field("match").item(index), message, "remove it, or have it match on more");
        }
    }
}

fn all_matched(alternative: &RouteMatch) -> Vec<Matched> {
    let path = match &alternative.path {
        // Both are every path.
        None => "prefix ".to_owned(),
        Some(PathMatch::Prefix(prefix)) => format!("prefix {}", prefix.trim_end_matches('/')),
        Some(PathMatch::Exact(path)) => format!("exact {path}"),
        Some(PathMatch::Regex(pattern)) => format!("regex {pattern}"),
    };
    let mut fields: Vec<String> = alternative
        .headers
        .iter()
        .map(|header| format!("{} {:?}", header.name.to_ascii_lowercase(), header.value))
        .collect();
    fields.sort_unstable();
    let mut parameters: Vec<String> =
        alternative.query.iter().map(|query| format!("{:?} {:?}", query.name, query.value)).collect();
    parameters.sort_unstable();
    let methods = match alternative.methods.as_slice() {
        [] => vec![None],
        methods => methods.iter().cloned().map(Some).collect(),
    };
    methods
        .into_iter()
        .map(|method| Matched {
            host: alternative.host.as_deref().map(normal).unwrap_or_default(),
            path: path.clone(),
            method,
            fields: fields.clone(),
            parameters: parameters.clone(),
        })
        .collect()
}
