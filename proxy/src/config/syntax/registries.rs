//! How the addresses and names of registries are written: Consul, Eureka, Kubernetes.

use super::{Wrong, is_host_name, wrong};

/// What a URL is spoken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Scheme {
    Http,
    Https,
}

/// The URL of an HTTP API: scheme, host, port, and a path it lies under. `example` is one for the error text.
pub(in crate::config) fn url(url: &str, example: &str) -> Result<Scheme, Wrong> {
    let parsed = || -> Option<(Scheme, http::Uri)> {
        let uri: http::Uri = url.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let host = uri.host()?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_port = match uri.authority()?.as_str().rsplit_once(host)?.1 {
            "" => true,
            rest => rest.starts_with(':') && uri.port_u16().is_some_and(|port| port != 0),
        };
        let is_host = is_host_name(host) || bare.parse::<std::net::IpAddr>().is_ok();
        (is_host && is_port).then_some((scheme, uri))
    };
    let Some((scheme, uri)) = parsed() else {
        return Err(wrong(
            format!("`{url}` is not an http or https URL"),
            format!("write one such as {example}"),
        ));
    };
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        // Every place that shows a config would show it.
        return Err(wrong("a URL with a password would be shown wherever the config is", "leave it out"));
    }
    if uri.query().is_some() || url.contains('#') {
        return Err(wrong(
            format!("`{url}` is more than the place of an API"),
            "leave out what follows `?` or `#`",
        ));
    }
    Ok(scheme)
}

/// A name that becomes a segment of a URL's path: a service, an application, a datacenter, a tag.
pub(in crate::config) fn registered_name(name: &str) -> Result<(), Wrong> {
    let is_unclear = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '?' | '#' | '%');
    if name.is_empty() || name == "." || name == ".." || name.contains(is_unclear) {
        return Err(wrong(
            format!("{name:?} can't be a name there"),
            "write it without blanks, `/`, `?`, `#` and `%`",
        ));
    }
    Ok(())
}

/// A name of Kubernetes: a DNS label in lower case (RFC 1123).
pub(in crate::config) fn kubernetes_name(name: &str) -> Result<(), Wrong> {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = (1..=63).contains(&name.len()) && name.bytes().all(is_allowed);
    if is_label && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(());
    }
    Err(wrong(format!("`{name}` is not a name in Kubernetes"), "write up to 63 of a-z, 0-9 and `-`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_where_an_api_is_and_nothing_more() {
        for (text, want) in [
            ("http://127.0.0.1:8500", Some(Scheme::Http)),
            ("https://consul.example", Some(Scheme::Https)),
            ("http://[::1]:8500/", Some(Scheme::Http)),
            ("http://eureka:8761/eureka", Some(Scheme::Http)),
            ("consul:8500", None),
            ("ftp://consul", None),
            ("http://", None),
            ("http:///x", None),
            ("http://consul:0", None),
            ("http://consul:99999", None),
            ("http://user:secret@consul", None),
            ("http://consul?token=x", None),
            ("http://consul/#x", None),
            ("http://a b", None),
            ("", None),
        ] {
            assert_eq!(url(text, "").ok(), want, "{text}");
        }
    }

    #[test]
    fn names_in_kubernetes_are_labels_in_lower_case() {
        for (name, good) in [
            ("api", true),
            ("api-2", true),
            ("Api", false),
            ("-a", false),
            ("a-", false),
            ("a.b", false),
            ("", false),
        ] {
            assert_eq!(kubernetes_name(name).is_ok(), good, "{name}");
        }
    }
}
