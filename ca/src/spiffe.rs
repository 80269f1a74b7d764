//! SPIFFE IDs, and which of them a caller expects from its peer.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A workload's name: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// IDs of other shapes are accepted too, so that peers of a foreign trust domain can be named; they
/// have neither a namespace nor a service account. Cloning costs a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

/// Why a text is no SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error(
        "`{0}` is no SPIFFE ID: it must start with spiffe:// (example: spiffe://cluster.local/ns/shop/sa/web)"
    )]
    Scheme(String),
    #[error("`{0}` is no SPIFFE ID: it is {1} bytes long, and at most 2048 are allowed")]
    TooLong(String, usize),
    #[error(
        "`{0}` is no SPIFFE ID: the trust domain must be 1 to 255 of the characters a-z, 0-9, `.`, `-`, `_`"
    )]
    TrustDomain(String),
    #[error(
        "`{0}` is no SPIFFE ID: each part of the path must be made of letters, digits, `.`, `-`, `_`, and be neither empty nor `.` nor `..`"
    )]
    Path(String),
    #[error("`{0}` is no SPIFFE ID of a workload: the path after the trust domain must not be empty")]
    NoPath(String),
}

const SCHEME: &str = "spiffe://";
/// The SPIFFE ID standard, section 2.3, asks implementations for exactly this limit.
const MAXIMUM_BYTES: usize = 2048;

impl SpiffeId {
    /// The ID of a service account, with every part checked.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        let text = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        // A slash inside a part would shift the others: `shop/sa/root` must not become an account.
        if !valid_segment(namespace) || !valid_segment(service_account) {
            return Err(SpiffeError::Path(text));
        }
        text.parse()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn trust_domain(&self) -> &str {
        self.split().0
    }

    /// The namespace, if the ID has the shape `/ns/<namespace>/sa/<service account>`.
    pub fn namespace(&self) -> Option<&str> {
        self.account().map(|(namespace, _)| namespace)
    }

    /// The service account, if the ID has the shape `/ns/<namespace>/sa/<service account>`.
    pub fn service_account(&self) -> Option<&str> {
        self.account().map(|(_, account)| account)
    }

    fn account(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.split().1.strip_prefix("ns/")?.split_once("/sa/")?;
        let plain = !namespace.contains('/') && !account.contains('/');
        plain.then_some((namespace, account))
    }

    fn split(&self) -> (&str, &str) {
        let rest = &self.0[SCHEME.len()..];
        rest.split_once('/').unwrap_or((rest, ""))
    }
}

/// Checks a trust domain by the SPIFFE standard's rules (section 2.1).
pub(crate) fn valid_trust_domain(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

fn valid_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAXIMUM_BYTES {
            let shown = text.chars().take(64).collect::<String>() + "…";
            return Err(SpiffeError::TooLong(shown, text.len()));
        }
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return Err(SpiffeError::Scheme(text.into()));
        };
        let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !valid_trust_domain(trust_domain) {
            return Err(SpiffeError::TrustDomain(text.into()));
        }
        if path.is_empty() {
            return Err(SpiffeError::NoPath(text.into()));
        }
        if !path.split('/').all(valid_segment) {
            return Err(SpiffeError::Path(text.into()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Whom a client requires at the other end of a connection, from the strictest to the laxest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ExpectedIdentity {
    Exact(SpiffeId),
    Namespace { trust_domain: Arc<str>, namespace: Arc<str> },
    TrustDomain(Arc<str>),
}

impl ExpectedIdentity {
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(expected) => expected == id,
            Self::Namespace { trust_domain, namespace } => {
                id.trust_domain() == &**trust_domain && id.namespace() == Some(namespace)
            }
            Self::TrustDomain(trust_domain) => id.trust_domain() == &**trust_domain,
        }
    }
}

impl fmt::Display for ExpectedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => id.fmt(f),
            Self::Namespace { trust_domain, namespace } => {
                write!(f, "{SCHEME}{trust_domain}/ns/{namespace}/sa/*")
            }
            Self::TrustDomain(trust_domain) => write!(f, "{SCHEME}{trust_domain}/*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_gives_its_parts_back() {
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), Some("shop"));
        assert_eq!(id.service_account(), Some("web"));
        assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
    }

    #[test]
    fn an_id_of_another_shape_has_no_account() {
        for text in [
            "spiffe://example.org/web",
            "spiffe://example.org/ns/shop",
            "spiffe://example.org/ns/shop/sa/web/extra",
            "spiffe://example.org/ns/a/b/sa/web",
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!(id.namespace(), None, "{text}");
            assert_eq!(id.service_account(), None, "{text}");
            assert_eq!(id.trust_domain(), "example.org", "{text}");
        }
    }

    #[test]
    fn what_breaks_the_standard_is_refused() {
        let long = format!("spiffe://a/{}", "x".repeat(2048));
        for text in [
            "",
            "https://cluster.local/ns/shop/sa/web",
            "SPIFFE://cluster.local/ns/shop/sa/web",
            "spiffe:///ns/shop/sa/web",
            "spiffe://cluster.local",
            "spiffe://cluster.local/",
            "spiffe://Cluster.local/ns/shop/sa/web",
            "spiffe://user@cluster.local/web",
            "spiffe://cluster.local:8080/web",
            "spiffe://cluster.local/ns//sa/web",
            "spiffe://cluster.local/ns/../sa/web",
            "spiffe://cluster.local/ns/shop/sa/web/",
            "spiffe://cluster.local/web?a=b",
            "spiffe://cluster.local/web#a",
            "spiffe://cluster.local/w%65b",
            "spiffe://cluster.local/ns/shop/sa/we\u{e4}b",
            long.as_str(),
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
        assert!(SpiffeId::new("cluster.local", "shop/sa/root", "web").is_err());
        assert!(SpiffeId::new("cluster.local", "shop", "").is_err());
    }

    #[test]
    fn an_expected_identity_accepts_its_own_and_nobody_else() {
        let web = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let api = SpiffeId::new("cluster.local", "shop", "api").unwrap();
        let elsewhere = SpiffeId::new("cluster.local", "bank", "web").unwrap();
        let foreign = SpiffeId::new("example.org", "shop", "web").unwrap();
        let exact = ExpectedIdentity::Exact(web.clone());
        let namespace =
            ExpectedIdentity::Namespace { trust_domain: "cluster.local".into(), namespace: "shop".into() };
        let domain = ExpectedIdentity::TrustDomain("cluster.local".into());
        let table = [
            (&exact, [true, false, false, false]),
            (&namespace, [true, true, false, false]),
            (&domain, [true, true, true, false]),
        ];
        for (expected, verdicts) in table {
            for (id, verdict) in [&web, &api, &elsewhere, &foreign].into_iter().zip(verdicts) {
                assert_eq!(expected.accepts(id), verdict, "{expected} and {id}");
            }
        }
    }
}
