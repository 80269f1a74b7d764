//! Who may do what on the inbound side: the rules of `inbound.allow`.

use http::Method;
use outrigger_ca::{ExpectedIdentity, SpiffeId};

use regex::bytes::Regex;

use crate::config::{AllowRule, PathMatch, whole_match};

/// What of a request the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path as it was sent, without the query.
    pub path: &'a str,
}

/// The rules, compiled. Without rules any identity of the trust domain may do anything, and whoever has none where the
/// port's mTLS mode lets it in.
#[derive(Debug)]
pub struct Authorization {
    trust_domain: ExpectedIdentity,
    rules: Option<Vec<Rule>>,
}

/// What the rules say of a request, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is let in, by the rule at this place; `None` where there are no rules.
    Allowed(Option<usize>),
    /// It is not, for a reason a rule.
    Denied(Vec<String>),
}

/// One rule; an empty list lets all in.
#[derive(Debug)]
struct Rule {
    identities: Vec<String>,
    ports: Vec<u16>,
    methods: Vec<String>,
    paths: Vec<PathRule>,
}

#[derive(Debug)]
enum PathRule {
    Exact(String),
    Prefix(String),
    /// `None` matches nothing: it is no regular expression, and a checked config holds none such.
    Regex(Option<Regex>),
}

impl Authorization {
    /// Compiles `rules` as they stand in the config.
    pub fn new(trust_domain: &str, rules: Option<&[AllowRule]>) -> Self {
        Self {
            trust_domain: ExpectedIdentity::TrustDomain(trust_domain.into()),
            rules: rules.map(|rules| rules.iter().map(Rule::new).collect()),
        }
    }

    /// Whether `peer` may send this request to `port`. `None` stands for a peer without identity, which
    /// only a rule without identities lets in.
    pub fn allows(&self, peer: Option<&SpiffeId>, port: u16, request: Request<'_>) -> bool {
        self.matching(peer, port).any(|rule| match rule {
            None => true,
            Some((_, rule)) => rule.takes_method(request.method) && rule.takes_path(request.path),
        })
    }

    /// Which rule lets a request of `peer` to `port` in, or why each does not.
    pub fn explain(&self, peer: Option<&SpiffeId>, port: u16, request: Request<'_>) -> Decision {
        if let Some(peer) = peer.filter(|peer| !self.trust_domain.accepts(peer)) {
            return Decision::Denied(vec![format!("{peer} is not of {}", self.trust_domain)]);
        }
        if self.allows(peer, port, request) {
            let lets_in = |(_, rule): &(usize, &Rule)| {
                rule.takes_method(request.method) && rule.takes_path(request.path)
            };
            let mut rules = self.matching(peer, port).flatten();
            return Decision::Allowed(rules.find(lets_in).map(|(number, _)| number));
        }
        let spoken_of: Vec<usize> = self.matching(peer, port).flatten().map(|(number, _)| number).collect();
        let rules = self.rules.iter().flatten().enumerate();
        let reasons = rules.map(|(number, rule)| {
            let why = if !rule.takes_port(port) {
                format!("it is for the ports {:?}", rule.ports)
            } else if !spoken_of.contains(&number) {
                format!("it is for {}", rule.identities.join(", "))
            } else if !rule.takes_method(request.method) {
                format!("it is for {}", rule.methods.join(", "))
            } else if is_ambiguous(request.path) {
                "the path can be read in two ways, and so it matches no rule on paths".into()
            } else {
                "it is for other paths".into()
            };
            format!("rule {}: {why}", number + 1)
        });
        Decision::Denied(reasons.collect())
    }

    /// Whether `peer` may send opaque bytes to `port`. A port with a rule on methods or paths takes
    /// none: such a rule can't be checked on them, and another rule must not become its back door.
    pub fn allows_opaque(&self, peer: Option<&SpiffeId>, port: u16) -> bool {
        if self.demands_http(port) {
            return false;
        }
        self.matching(peer, port).next().is_some()
    }

    /// Whether requests to `port` must be read as HTTP.
    pub fn demands_http(&self, port: u16) -> bool {
        self.rules.iter().flatten().any(|rule| {
            (rule.ports.is_empty() || rule.ports.contains(&port))
                && !(rule.methods.is_empty() && rule.paths.is_empty())
        })
    }

    /// The rules that speak of this peer and port, with their places; one `None` when there are no rules at all.
    fn matching(&self, peer: Option<&SpiffeId>, port: u16) -> impl Iterator<Item = Option<(usize, &Rule)>> {
        let in_domain = peer.is_none_or(|peer| self.trust_domain.accepts(peer));
        let unruled = self.rules.is_none().then_some(None);
        let ruled = self.rules.iter().flatten().enumerate().filter(move |(_, rule)| {
            rule.takes_port(port)
                && match peer {
                    Some(peer) => {
                        rule.identities.is_empty()
                            || rule.identities.iter().any(|pattern| identity_matches(pattern, peer))
                    }
                    None => rule.identities.is_empty(),
                }
        });
        unruled.into_iter().chain(ruled.map(Some)).filter(move |_| in_domain)
    }
}

fn identity_matches(pattern: &str, peer: &SpiffeId) -> bool {
    match pattern.strip_suffix("/*") {
        Some(prefix) => {
            peer.as_str().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
        }
        None => pattern == peer.as_str(),
    }
}

impl Rule {
    fn takes_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    fn takes_method(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|known| known == method.as_str())
    }

    fn takes_path(&self, path: &str) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|known| known.matches(path))
    }

    fn new(rule: &AllowRule) -> Self {
        Self {
            identities: rule.identities.clone(),
            ports: rule.ports.clone(),
            methods: rule.methods.clone(),
            paths: rule.paths.iter().map(PathRule::new).collect(),
        }
    }
}

impl PathRule {
    fn new(path: &PathMatch) -> Self {
        match path {
            PathMatch::Exact(exact) => Self::Exact(exact.clone()),
            PathMatch::Prefix(prefix) => Self::Prefix(prefix.strip_suffix('/').unwrap_or(prefix).to_owned()),
            PathMatch::Regex(pattern) => {
                let compiled = whole_match(pattern);
                if let Err(error) = &compiled {
                    tracing::error!("inbound.allow: {error}: it lets nobody in");
                }
                Self::Regex(compiled.ok())
            }
        }
    }

    /// A path that could be read in two ways matches nothing: what the rule sees and what the workload
    /// makes of it would differ.
    fn matches(&self, path: &str) -> bool {
        if is_ambiguous(path) {
            return false;
        }
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.as_ref().is_some_and(|regex| regex.is_match(path.as_bytes())),
        }
    }
}

/// Dot segments, empty segments, backslashes, and percent-encoded dots, slashes, backslashes and NULs:
/// servers disagree on them.
fn is_ambiguous(path: &str) -> bool {
    let bytes = path.as_bytes();
    if bytes.contains(&b'\\') || path.contains("//") {
        return true;
    }
    if path.split('/').any(|segment| {
        segment == "." || segment == ".." || segment.starts_with(".;") || segment.starts_with("..;")
    }) {
        return true;
    }
    bytes
        .windows(3)
        .any(|w| w[0] == b'%' && matches!((w[1], w[2] | 0x20), (b'2', b'e' | b'f') | (b'5', b'c')))
        || path.contains("%00")
        || path.contains("%25")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Method = Method::GET;

    fn id(name: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", name).unwrap()
    }

    fn rules() -> Vec<AllowRule> {
        vec![
            AllowRule {
                identities: vec![id("web").as_str().into()],
                ports: vec![8080],
                methods: vec!["GET".into()],
                paths: vec![PathMatch::Prefix("/orders".into())],
            },
            AllowRule {
                identities: vec!["spiffe://cluster.local/ns/shop/*".into()],
                ports: vec![9000],
                ..Default::default()
            },
        ]
    }

    #[test]
    fn without_rules_the_trust_domain_may_do_anything() {
        let all = Authorization::new("cluster.local", None);
        let request = Request { method: &GET, path: "/x" };
        assert!(all.allows(Some(&id("web")), 80, request));
        assert!(all.allows_opaque(Some(&id("web")), 80));
        let foreign = SpiffeId::new("evil.local", "shop", "web").unwrap();
        assert!(!all.allows(Some(&foreign), 80, request));
        assert!(!all.allows_opaque(Some(&foreign), 80));
    }

    #[test]
    fn every_stated_field_of_a_rule_must_hold() {
        let rules = Authorization::new("cluster.local", Some(&rules()));
        let cases = [
            ("web", 8080, "GET", "/orders", true),
            ("web", 8080, "GET", "/orders/7", true),
            ("web", 8080, "GET", "/ordersx", false),
            ("web", 8080, "POST", "/orders", false),
            ("web", 8081, "GET", "/orders", false),
            ("other", 8080, "GET", "/orders", false),
            ("other", 9000, "DELETE", "/any", true),
        ];
        for (who, port, method, path, want) in cases {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let request = Request { method: &method, path };
            assert_eq!(rules.allows(Some(&id(who)), port, request), want, "{who} {port} {method} {path}");
        }
    }

    #[test]
    fn it_says_which_rule_lets_a_request_in_or_why_each_does_not() {
        let rules = Authorization::new("cluster.local", Some(&rules()));
        let told = |who: &SpiffeId, port, method: &Method, path| {
            rules.explain(Some(who), port, Request { method, path })
        };
        let denied = |reasons: &[&str]| Decision::Denied(reasons.iter().map(|one| (*one).into()).collect());
        const OTHER: &str = "rule 2: it is for the ports [9000]";
        let web = id("web");
        assert_eq!(told(&web, 8080, &GET, "/orders/7"), Decision::Allowed(Some(0)));
        assert_eq!(told(&web, 9000, &GET, "/any"), Decision::Allowed(Some(1)));
        for (who, method, path, why) in [
            (id("other"), GET, "/orders", "rule 1: it is for spiffe://cluster.local/ns/shop/sa/web"),
            (id("web"), Method::PUT, "/orders", "rule 1: it is for GET"),
            (id("web"), GET, "/admin", "rule 1: it is for other paths"),
            (
                id("web"),
                GET,
                "/orders/../x",
                "rule 1: the path can be read in two ways, and so it matches no rule on paths",
            ),
        ] {
            assert_eq!(told(&who, 8080, &method, path), denied(&[why, OTHER]), "{who} {method} {path}");
        }
        let foreign = SpiffeId::new("evil.local", "shop", "web").unwrap();
        assert!(matches!(told(&foreign, 8080, &GET, "/orders"), Decision::Denied(why) if why.len() == 1));
        let none = Authorization::new("cluster.local", None);
        let request = Request { method: &GET, path: "/x" };
        assert_eq!(none.explain(Some(&id("web")), 80, request), Decision::Allowed(None));
    }

    #[test]
    fn a_path_that_can_be_read_in_two_ways_matches_no_rule() {
        let rules = Authorization::new("cluster.local", Some(&rules()));
        for path in [
            "/orders/../admin",
            "/orders/./x",
            "/orders//x",
            "/orders/%2e%2e/admin",
            "/orders%2Fx",
            "/orders/%5cadmin",
            "/orders\\admin",
            "/orders/%00",
            "/orders/%252e",
            "/orders/..;/admin",
        ] {
            assert!(!rules.allows(Some(&id("web")), 8080, Request { method: &GET, path }), "{path}");
        }
    }

    #[test]
    fn a_regular_expression_must_match_the_whole_of_an_unambiguous_path() {
        let by = |pattern: &str| AllowRule {
            paths: vec![PathMatch::Regex(pattern.into())],
            ..AllowRule::default()
        };
        for (pattern, path, want) in [
            ("/orders/[0-9]+", "/orders/17", true),
            ("/orders/[0-9]+", "/orders/17/items", false),
            ("/orders/[0-9]+", "/v1/orders/17", false),
            ("/orders|/", "/orders", true),
            ("/orders|/", "/orders/17", false),
            ("/orders/.*", "/orders/../admin", false),
            ("/orders/.*", "/orders/%2e%2e/admin", false),
            ("/orders/(", "/orders/(", false),
        ] {
            let rules = Authorization::new("cluster.local", Some(&[by(pattern)]));
            let allowed = rules.allows(Some(&id("web")), 80, Request { method: &GET, path });
            assert_eq!(allowed, want, "{pattern} {path}");
            assert!(!rules.allows_opaque(Some(&id("web")), 80), "{pattern}");
        }
    }

    #[test]
    fn a_port_with_a_rule_on_paths_takes_no_opaque_bytes() {
        let mut with_back_door = rules();
        with_back_door.push(AllowRule::default());
        let rules = Authorization::new("cluster.local", Some(&with_back_door));
        assert!(!rules.allows_opaque(Some(&id("web")), 8080));
        assert!(rules.allows_opaque(Some(&id("web")), 9000));
    }

    #[test]
    fn an_empty_list_lets_nobody_in() {
        let none = Authorization::new("cluster.local", Some(&[]));
        assert!(!none.allows_opaque(Some(&id("web")), 80));
    }
}
