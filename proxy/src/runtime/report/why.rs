//! `/why`: what would become of a request, and why.
//!
//! It is asked of what carries requests: the directory, the route table, the pickers, the rules. What is said here is
//! what they decide, in words.

mod inbound;
mod outbound;

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use outrigger_ca::SpiffeId;
use serde_json::Value;

use crate::worker::Shared;

/// How it is asked.
const USAGE: &str = "ask as /why?url=http://HOST:PORT/PATH, with method=GET, header=NAME:VALUE (repeatable), \
                     address=IP[:PORT] (the address that is dialled; else the URL's host is looked up) and client=IP where \
                     they matter; or as /why?direction=inbound&port=8080&path=/PATH, with method, header and \
                     peer=spiffe://… (none: a peer without identity)";

/// A request that somebody asks about.
#[derive(Debug)]
struct Question {
    is_inbound: bool,
    url: Option<Uri>,
    method: Method,
    headers: HeaderMap,
    address: Option<(IpAddr, Option<u16>)>,
    client: IpAddr,
    port: Option<u16>,
    path: Option<String>,
    peer: Option<SpiffeId>,
}

/// Answers the question in a URL's query.
///
/// # Errors
/// It can't be read; what is wrong, and how it is asked.
pub(super) async fn answer(shared: &Shared, query: &str) -> Result<Value, String> {
    let question = Question::parse(query).map_err(|wrong| format!("{wrong}; {USAGE}"))?;
    if question.is_inbound {
        inbound::explain(shared, &question).map_err(|wrong| format!("{wrong}; {USAGE}"))
    } else {
        outbound::explain(shared, &question).await.map_err(|wrong| format!("{wrong}; {USAGE}"))
    }
}

impl Question {
    fn parse(query: &str) -> Result<Self, String> {
        let mut question = Self {
            is_inbound: false,
            url: None,
            method: Method::GET,
            headers: HeaderMap::new(),
            address: None,
            client: IpAddr::from([127, 0, 0, 1]),
            port: None,
            path: None,
            peer: None,
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            // The fields of a form that are left empty.
            if value.is_empty() {
                continue;
            }
            question.take(&name, value.trim())?;
        }
        match (question.is_inbound, &question.url, question.port) {
            (false, None, _) => Err("there is no url".into()),
            (true, _, None) => Err("there is no port".into()),
            _ => Ok(question),
        }
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let wrong = |expected: &str| format!("{name}=`{value}` is wrong: write {expected}");
        match name {
            "direction" => {
                self.is_inbound = match value {
                    "inbound" => true,
                    "outbound" => false,
                    _ => return Err(wrong("inbound or outbound")),
                };
            }
            "url" => self.url = Some(url(value).ok_or_else(|| wrong("as http://api.shop:8080/orders"))?),
            "method" => {
                let method = Method::from_bytes(value.to_ascii_uppercase().as_bytes());
                self.method = method.map_err(|_| wrong("a method, as GET"))?;
            }
            "header" => {
                let (name, value) = header(value).ok_or_else(|| wrong("a header field, as x-canary:yes"))?;
                self.headers.append(name, value);
            }
            "address" => self.address = Some(address(value).ok_or_else(|| wrong("IP or IP:PORT"))?),
            "client" => self.client = value.parse().map_err(|_| wrong("an IP address"))?,
            "port" => self.port = Some(value.parse().map_err(|_| wrong("a port, as 8080"))?),
            "path" if value.starts_with('/') => self.path = Some(value.into()),
            "path" => return Err(wrong("a path, as /orders")),
            "peer" => {
                self.peer = Some(value.parse().map_err(|_| wrong("spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT"))?)
            }
            _ => return Err(format!("`{name}` is unknown")),
        }
        Ok(())
    }
}

/// A whole URL; `http://` may be left out.
fn url(text: &str) -> Option<Uri> {
    let text = match text.split_once("://") {
        Some(("http", _)) => text.to_owned(),
        Some(_) => return None,
        None => format!("http://{text}"),
    };
    let url: Uri = text.parse().ok()?;
    url.host().is_some_and(|host| !host.is_empty()).then_some(url)
}

fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}

fn address(text: &str) -> Option<(IpAddr, Option<u16>)> {
    let with_port = text.parse().map(|address: SocketAddr| (address.ip(), Some(address.port())));
    with_port.or_else(|_| text.parse().map(|ip: IpAddr| (ip, None))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_can_not_be_read_says_what_is_wrong() {
        for (query, said) in [
            ("", "no url"),
            ("url=", "no url"),
            ("url=https://api", "http://api.shop"),
            ("url=http:///x", "http://api.shop"),
            ("url=api&method=G E T", "GET"),
            ("url=api&header=x", "x-canary:yes"),
            ("url=api&address=api", "IP:PORT"),
            ("url=api&direction=up", "inbound or outbound"),
            ("url=api&uri=x", "`uri` is unknown"),
            ("direction=inbound", "no port"),
            ("direction=inbound&port=http", "8080"),
            ("direction=inbound&port=80&peer=web", "spiffe://"),
            ("direction=inbound&port=80&path=x", "/orders"),
        ] {
            let error = Question::parse(query).unwrap_err();
            assert!(error.contains(said), "{query}: {error}");
        }
    }

    #[test]
    fn a_question_is_read_as_it_is_written() {
        let query = "url=api.shop:8080/a%3Fb=c&method=post&header=X-A:1&header=x-a:%202&address=[::1]:80&client=10.0.0.1";
        let question = Question::parse(query).unwrap();
        assert_eq!(question.url.unwrap().to_string(), "http://api.shop:8080/a?b=c");
        assert_eq!(question.method, Method::POST);
        assert_eq!(question.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(question.address, Some(("::1".parse().unwrap(), Some(80))));
    }
}
