//! `resolv.conf`, and the full names that a short one may stand for.

use std::net::{IpAddr, SocketAddr};

use super::settings::ResolveError;

/// More search domains than any orchestrator writes (Kubernetes allows 32).
const MOST_DOMAINS: usize = 32;

/// What `resolv.conf` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ResolvConf {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<String>,
    pub ndots: usize,
}

impl ResolvConf {
    /// Reads the text by resolv.conf(5): the last of `search` and `domain` wins, `#` and `;` start a comment, and what is
    /// not understood is passed over.
    pub(super) fn parse(text: &str) -> Self {
        let mut conf = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    if let Some(ip) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) {
                        conf.servers.push(SocketAddr::new(ip, 53));
                    }
                }
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("domain") => conf.search = words.next().map(str::to_owned).into_iter().collect(),
                Some("options") => {
                    let ndots = words
                        .filter_map(|word| word.strip_prefix("ndots:"))
                        .filter_map(|number| number.parse::<usize>().ok())
                        .next_back();
                    // The C library caps it at 15.
                    conf.ndots = ndots.map_or(conf.ndots, |ndots| ndots.min(15));
                }
                _ => {}
            }
        }
        conf
    }
}

/// How short names are made full.
#[derive(Clone, Debug)]
pub(super) struct Search {
    domains: Vec<String>,
    ndots: usize,
    /// `.cluster.local`
    cluster_suffix: String,
}

impl Search {
    pub(super) fn new(domains: &[String], ndots: usize, cluster_domain: &str) -> Result<Self, ResolveError> {
        let domains = domains
            .iter()
            .filter(|domain| domain.as_str() != ".")
            .map(|domain| name(domain).ok_or_else(|| ResolveError::Domain(domain.clone())))
            .take(MOST_DOMAINS)
            .collect::<Result<_, _>>()?;
        let cluster_domain =
            name(cluster_domain).ok_or_else(|| ResolveError::Domain(cluster_domain.to_owned()))?;
        Ok(Self { domains, ndots, cluster_suffix: format!(".{cluster_domain}") })
    }

    /// The full names that a host may stand for, in the order in which the C library would ask for them. None for an
    /// address or for what is not a host name. A name under the cluster domain stands for itself alone: no cluster has
    /// one below another service's name, and `ndots:5` would cost it four questions.
    pub(super) fn candidates(&self, host: &str) -> Vec<String> {
        let Some(full) = name(host) else {
            return Vec::new();
        };
        if full.parse::<IpAddr>().is_ok() {
            return Vec::new();
        }
        if host.ends_with('.') || full.ends_with(&self.cluster_suffix) {
            return vec![full];
        }
        let dots = full.bytes().filter(|byte| *byte == b'.').count();
        let searched = self.domains.iter().filter_map(|domain| {
            let candidate = format!("{full}.{domain}");
            name(&candidate)
        });
        let mut candidates: Vec<String> = Vec::with_capacity(self.domains.len() + 1);
        if dots >= self.ndots {
            candidates.push(full.clone());
            candidates.extend(searched);
        } else {
            candidates.extend(searched);
            candidates.push(full);
        }
        candidates
    }
}

/// A host name in lower case without its final dot; `None` for what DNS can't hold (RFC 1035 2.3.4) or what holds other
/// than letters, digits, hyphens and underscores.
pub(super) fn name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    (text.len() <= 253 && text.split('.').all(label_is_good)).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_its_manual_says() {
        for (text, servers, search, ndots) in [
            ("", vec![], vec![], 1),
            (
                "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
                vec!["10.96.0.10:53"],
                vec!["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                5,
            ),
            (
                "; old\ndomain a.example # why\nsearch b.example c.example\nnameserver ::1\nnameserver bad\nnameserver 10.0.0.1 ; x",
                vec!["[::1]:53", "10.0.0.1:53"],
                vec!["b.example", "c.example"],
                1,
            ),
            (
                "search b.example\ndomain a.example\noptions timeout:1 ndots:99 rotate",
                vec![],
                vec!["a.example"],
                15,
            ),
        ] {
            let conf = ResolvConf::parse(text);
            let read: Vec<_> = conf.servers.iter().map(ToString::to_string).collect();
            assert_eq!(read, servers, "{text}");
            assert_eq!(conf.search, search, "{text}");
            assert_eq!(conf.ndots, ndots, "{text}");
        }
    }

    #[test]
    fn a_short_name_stands_for_what_the_search_domains_make_of_it() {
        let domains = ["shop.svc.cluster.local", "svc.cluster.local", "lan."].map(str::to_owned);
        let search = |ndots| Search::new(&domains, ndots, "cluster.local").unwrap();
        let table: [(&str, usize, &[&str]); 12] = [
            ("api", 5, &["api.shop.svc.cluster.local", "api.svc.cluster.local", "api.lan", "api"]),
            (
                "API.Other",
                5,
                &[
                    "api.other.shop.svc.cluster.local",
                    "api.other.svc.cluster.local",
                    "api.other.lan",
                    "api.other",
                ],
            ),
            (
                "api.other",
                1,
                &[
                    "api.other",
                    "api.other.shop.svc.cluster.local",
                    "api.other.svc.cluster.local",
                    "api.other.lan",
                ],
            ),
            ("api.", 5, &["api"]),
            ("example.com.", 5, &["example.com"]),
            ("api.shop.svc.cluster.local", 5, &["api.shop.svc.cluster.local"]),
            ("10.1.2.3", 5, &[]),
            ("::1", 5, &[]),
            ("[::1]", 5, &[]),
            ("", 5, &[]),
            ("a..b", 5, &[]),
            ("a b", 5, &[]),
        ];
        for (host, ndots, expected) in table {
            assert_eq!(search(ndots).candidates(host), expected, "{host} {ndots}");
        }
    }

    #[test]
    fn a_candidate_longer_than_dns_allows_is_left_out() {
        let search = Search::new(&["lan".to_owned()], 1, "cluster.local").unwrap();
        let host = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(60)].join(".");
        assert_eq!(search.candidates(&host), std::slice::from_ref(&host));
        assert!(search.candidates(&"a".repeat(64)).is_empty());
    }

    #[test]
    fn a_search_domain_that_is_no_name_is_refused() {
        let refused = Search::new(&["a b".to_owned()], 1, "cluster.local");
        assert!(matches!(refused, Err(ResolveError::Domain(domain)) if domain == "a b"));
    }
}
