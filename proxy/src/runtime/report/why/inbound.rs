//! Whether a peer's request is let in.

use http::Uri;
use serde_json::{Value, json};

use super::Question;
use crate::config::{Mtls, Protocol};
use crate::identity::{Decision, Request};
use crate::worker::Shared;

pub(super) fn explain(shared: &Shared, question: &Question) -> Result<Value, String> {
    let Some(port) = question.port else { return Err("there is no port".into()) };
    let effective = shared.effective.load_full();
    let (config, rules) = (&effective.config, &effective.authorization);
    let path = question.path.as_deref().or(question.url.as_ref().map(Uri::path)).unwrap_or("/");
    let peer = question.peer.as_ref();
    let mtls = config.inbound_mtls(port);
    let is_opaque = config.inbound.is_opaque(port);
    let decision = rules.explain(peer, port, Request { method: &question.method, path });
    let is_own = shared.own_ports.contains(&port);
    let is_plaintext_refused = peer.is_none() && mtls == Mtls::Strict;
    let (is_allowed, why) = match &decision {
        _ if is_own => (
            false,
            vec![format!(
                "port {port} is the proxy's own: what is dialled to it through the mesh is refused"
            )],
        ),
        _ if is_plaintext_refused => (
            false,
            vec![format!(
                "port {port} takes mesh TLS only (mtls: strict), and who comes by it has an identity"
            )],
        ),
        Decision::Allowed(None) => (
            true,
            vec!["there are no rules (inbound.allow): every identity of the trust domain is let in".into()],
        ),
        Decision::Allowed(Some(rule)) => {
            (true, vec![format!("rule {} of inbound.allow lets it in", rule + 1)])
        }
        Decision::Denied(why) if why.is_empty() => {
            (false, vec!["inbound.allow is an empty list: nobody is let in".into()])
        }
        Decision::Denied(why) => (false, why.clone()),
    };
    let rule = match &decision {
        Decision::Allowed(Some(rule)) => config.inbound.allow.as_ref().and_then(|rules| rules.get(*rule)),
        _ => None,
    };
    Ok(json!({
        "direction": "inbound",
        "request": {
            "method": question.method.as_str(),
            "path": path,
            "port": port,
            "peer": peer.map(|peer| peer.as_str()),
        },
        "allowed": is_allowed,
        "why": why,
        "rule": rule,
        "callerGets": if is_allowed { "what the workload answers" } else if is_own { "a reset" } else { "403, http_request_denied" },
        "mtls": mtls,
        "protocol": config.inbound.protocol(port),
        "opaque": {
            "declared": is_opaque,
            "allowed": !is_own && !is_plaintext_refused && takes_opaque(config.inbound.protocol(port)) && rules.allows_opaque(peer, port),
            "demandsHttp": rules.demands_http(port),
        },
        "upstream": format!("workload:{port}"),
    }))
}

fn takes_opaque(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Auto | Protocol::Tcp)
}
