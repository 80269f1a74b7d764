//! Whether an endpoint is of the mesh, and who it must be (the design's "Identity").

use std::net::IpAddr;
use std::sync::Arc;

use outrigger_ca::{ExpectedIdentity, SpiffeId};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::config::{Outbound, is_not_redirected};
use crate::resolve::ResolvedEndpoint;

/// How connections to an endpoint are secured.
#[derive(Clone, Debug)]
pub enum Security {
    /// Plaintext: the endpoint is known not to be of the mesh.
    Plain,
    /// Mesh TLS only; the peer must be this.
    Mesh(ExpectedIdentity),
    /// Permissive mode and nothing known: mesh TLS is tried, plaintext follows if the peer has none.
    Try(ExpectedIdentity),
    /// TLS to a server outside the mesh.
    Server {
        /// Roots and versions.
        config: Arc<ClientConfig>,
        /// The name in its certificate.
        name: ServerName<'static>,
    },
    /// It may not be called, for this reason.
    Refused(&'static str),
}

impl PartialEq for Security {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) => true,
            (Self::Mesh(a), Self::Mesh(b)) | (Self::Try(a), Self::Try(b)) => a == b,
            (Self::Server { config: a, name: n }, Self::Server { config: b, name: m }) => {
                Arc::ptr_eq(a, b) && n == m
            }
            (Self::Refused(a), Self::Refused(b)) => a == b,
            _ => false,
        }
    }
}

/// Who an upstream's peers must be, as its owner wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pinned {
    /// Nothing stated.
    No,
    /// `identity: any`.
    Any,
    /// `identity: spiffe://…`.
    Exactly(SpiffeId),
}

/// What decides about one endpoint besides the config of the whole proxy.
#[derive(Clone, Debug)]
pub(super) struct Claims<'a> {
    /// The upstream's own `tls`.
    pub(super) tls: Option<&'a Security>,
    /// The upstream says `tls: mesh`.
    pub(super) mesh: bool,
    /// The upstream's `identity`.
    pub(super) pinned: &'a Pinned,
    /// The qualified name that was looked up, if it was a name.
    pub(super) name: Option<&'a str>,
    /// The service's namespace, as authenticated discovery says.
    pub(super) namespace: Option<&'a str>,
    /// The mesh's discovery, which would know, failed to answer.
    pub(super) undiscovered: bool,
}

/// The rules of the whole proxy.
#[derive(Clone, Debug)]
pub struct SecurityRules {
    /// Trust domain of the mesh.
    pub trust_domain: Arc<str>,
    /// Suffix of the names of services.
    pub cluster_domain: Arc<str>,
    /// What the config says of outbound traffic.
    pub outbound: Arc<Outbound>,
    /// Peers not known to be of the mesh are tried with mesh TLS first: permissive and audit mode.
    pub tries_tls: bool,
    /// There is a discovery that knows the services under the cluster domain.
    pub discovery: bool,
}

impl SecurityRules {
    /// Whether the mesh's discovery is who knows this name.
    pub(super) fn is_discoverys(&self, name: &str) -> bool {
        self.discovery && name.strip_suffix(&*self.cluster_domain).is_some_and(|rest| rest.ends_with(".svc."))
    }

    /// Whether a name's peers are of the mesh, as far as the name tells.
    pub(super) fn is_of_the_mesh_by_name(&self, name: &str) -> bool {
        self.outbound.is_mesh_name(name) || self.is_discoverys(name)
    }

    /// Decides about one endpoint. What is not known to be outside the mesh counts as inside. `dialled` is the
    /// port that the caller dialled, or that the config wants for a host name; none where an answer says it.
    pub(super) fn decide(
        &self,
        claims: &Claims<'_>,
        endpoint: &ResolvedEndpoint,
        dialled: Option<u16>,
    ) -> Security {
        if let Some(own) = claims.tls {
            return own.clone();
        }
        let address = endpoint.address;
        if self.outbound.is_unmeshed(claims.name, address.port(), address.ip()) {
            return Security::Plain;
        }
        if claims.undiscovered && endpoint.mesh.is_none() && *claims.pinned == Pinned::No {
            // Whoever keeps discovery from answering must not widen whom this peer may be.
            return Security::Refused(
                "the mesh's discovery does not answer, and it says who this peer must be",
            );
        }
        let nothing_said = endpoint.mesh.is_none() && !claims.mesh && *claims.pinned == Pinned::No;
        // The port of an answer or a list alone must not lead to plaintext: DNS can be forged, and whose an address is
        // changes.
        if nothing_said && is_not_redirected(address.port()) && dialled == Some(address.port()) {
            return Security::Plain;
        }
        let meshed = match endpoint.mesh {
            Some(authenticated) => authenticated,
            None => {
                claims.mesh
                    || claims.undiscovered
                    || endpoint.beside_sidecar
                    || self.is_of_the_mesh(claims.name, address.ip())
            }
        };
        let expected = self.expected(claims, endpoint);
        match (meshed, expected) {
            (true, Some(expected)) => Security::Mesh(expected),
            (true, None) => Security::Refused(
                "no identity is known for this peer of the mesh: pin one on the upstream or let discovery name it",
            ),
            (false, expected) if self.tries_tls && endpoint.mesh.is_none() => {
                let any = || ExpectedIdentity::TrustDomain(self.trust_domain.clone());
                Security::Try(expected.unwrap_or_else(any))
            }
            (false, _) => Security::Plain,
        }
    }

    fn is_of_the_mesh(&self, name: Option<&str>, address: IpAddr) -> bool {
        name.is_some_and(|name| self.outbound.is_mesh_name(name)) || self.outbound.is_mesh_address(address)
    }

    /// The pinned identity; else the account that discovery names; else the namespace in the name.
    fn expected(&self, claims: &Claims<'_>, endpoint: &ResolvedEndpoint) -> Option<ExpectedIdentity> {
        match claims.pinned {
            Pinned::Exactly(id) => return Some(ExpectedIdentity::Exact(id.clone())),
            Pinned::Any => return Some(ExpectedIdentity::TrustDomain(self.trust_domain.clone())),
            Pinned::No => {}
        }
        if let Some(id) = &endpoint.identity {
            return Some(ExpectedIdentity::Exact(id.clone()));
        }
        let namespace = claims.namespace.or_else(|| claims.name.and_then(|name| self.namespace_in(name)))?;
        Some(ExpectedIdentity::Namespace {
            trust_domain: self.trust_domain.clone(),
            namespace: namespace.into(),
        })
    }

    /// The namespace in `<service>.<namespace>.svc.<cluster domain>`, also behind a pod's own label.
    fn namespace_in<'n>(&self, name: &'n str) -> Option<&'n str> {
        let labels = name.strip_suffix(&*self.cluster_domain)?.strip_suffix(".svc.")?;
        let namespace = labels.rsplit('.').next()?;
        (labels.len() > namespace.len() && !namespace.is_empty()).then_some(namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(tries_tls: bool) -> SecurityRules {
        SecurityRules {
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            outbound: Arc::new(Outbound {
                mesh_domains: vec!["svc.cluster.local".into()],
                mesh_networks: vec!["10.77.0.0/24".parse().unwrap()],
                unmeshed: vec!["legacy.shop.svc.cluster.local:80".into(), "10.77.0.9/32".into()],
                ..Default::default()
            }),
            tries_tls,
            discovery: true,
        }
    }

    fn endpoint(address: &str, mesh: Option<bool>, account: Option<&str>) -> ResolvedEndpoint {
        ResolvedEndpoint {
            mesh,
            beside_sidecar: false,
            identity: account.map(|a| SpiffeId::new("cluster.local", "shop", a).unwrap()),
            ..ResolvedEndpoint::at(address.parse().unwrap())
        }
    }

    fn decide(rules: &SecurityRules, name: Option<&str>, endpoint: &ResolvedEndpoint) -> String {
        decide_when(rules, name, endpoint, false)
    }

    fn decide_when(
        rules: &SecurityRules,
        name: Option<&str>,
        endpoint: &ResolvedEndpoint,
        undiscovered: bool,
    ) -> String {
        let claims =
            Claims { tls: None, mesh: false, pinned: &Pinned::No, name, namespace: None, undiscovered };
        shown(rules.decide(&claims, endpoint, Some(80)))
    }

    fn shown(security: Security) -> String {
        match security {
            Security::Plain => "plain".into(),
            Security::Mesh(expected) => format!("mesh {expected}"),
            Security::Try(_) => "try".into(),
            Security::Server { .. } => "server".into(),
            Security::Refused(_) => "refused".into(),
        }
    }

    #[test]
    fn strict_mode_decides_by_name_address_and_discovery() {
        let rules = rules(false);
        let api = Some("api.shop.svc.cluster.local");
        let cases = [
            // A name of the mesh: the namespace in the name is expected.
            (api, "10.1.0.1:80", None, None, "mesh spiffe://cluster.local/ns/shop/sa/*"),
            // Discovery names the account.
            (api, "10.1.0.1:80", Some(true), Some("api"), "mesh spiffe://cluster.local/ns/shop/sa/api"),
            // Discovery says: no sidecar.
            (api, "10.1.0.1:80", Some(false), None, "plain"),
            // Listed as unmeshed, on that port only.
            (Some("legacy.shop.svc.cluster.local"), "10.1.0.1:80", None, None, "plain"),
            (
                Some("legacy.shop.svc.cluster.local"),
                "10.1.0.1:81",
                None,
                None,
                "mesh spiffe://cluster.local/ns/shop/sa/*",
            ),
            // No name: the address decides, and without an identity nothing is sent.
            (None, "10.77.0.3:80", None, None, "refused"),
            (None, "10.77.0.3:80", Some(true), Some("api"), "mesh spiffe://cluster.local/ns/shop/sa/api"),
            (None, "10.77.0.9:80", None, None, "plain"),
            // Outside the mesh.
            (Some("example.com"), "203.0.113.1:443", None, None, "plain"),
            (None, "203.0.113.1:443", None, None, "plain"),
            // The API server is never of the mesh.
            (Some("kubernetes.default.svc.cluster.local"), "10.96.0.1:443", None, None, "plain"),
        ];
        for (name, address, mesh, account, want) in cases {
            assert_eq!(decide(&rules, name, &endpoint(address, mesh, account)), want, "{name:?} {address}");
        }
    }

    #[test]
    fn a_failed_lookup_is_no_downgrade() {
        let mut rules = rules(false);
        rules.outbound = Arc::default();
        let api = Some("api.shop.svc.cluster.local");
        let unknown = endpoint("10.1.0.1:80", None, None);
        assert_eq!(decide_when(&rules, api, &unknown, false), "plain");
        assert_eq!(decide_when(&rules, api, &unknown, true), "refused");
        assert!(rules.is_discoverys("api.shop.svc.cluster.local"));
        assert!(!rules.is_discoverys("example.com"));
    }

    #[test]
    fn permissive_mode_tries_what_is_unknown_and_never_falls_back_for_the_mesh() {
        let rules = rules(true);
        assert_eq!(decide(&rules, Some("example.com"), &endpoint("203.0.113.1:80", None, None)), "try");
        assert_eq!(decide(&rules, None, &endpoint("10.1.0.1:80", Some(false), None)), "plain");
        let api = Some("api.shop.svc.cluster.local");
        assert!(decide(&rules, api, &endpoint("10.1.0.1:80", None, None)).starts_with("mesh"));
    }

    #[test]
    fn a_sidecar_s_own_ports_are_plaintext_for_who_dials_them_and_nothing_else_is() {
        let api = Some("api.shop.svc.cluster.local");
        let (no, exactly) =
            (Pinned::No, Pinned::Exactly(SpiffeId::new("cluster.local", "shop", "a").unwrap()));
        let (known, unknown) = ("10.77.0.3:15020", None);
        let cases = [
            (api, known, unknown, Some(15020), false, &no, "plain"),
            (None, "10.77.0.3:15021", unknown, Some(15021), false, &no, "plain"),
            // SRV records of ordinary DNS name a port, and can be forged.
            (api, known, unknown, Some(8080), false, &no, "mesh"),
            (api, known, unknown, None, false, &no, "mesh"),
            (api, "10.77.0.3:8080", unknown, Some(15020), false, &no, "mesh"),
            // Discovery or the config say otherwise.
            (api, known, Some(true), Some(15020), false, &no, "mesh"),
            (api, known, unknown, Some(15020), true, &no, "mesh"),
            (api, known, unknown, Some(15020), false, &exactly, "mesh"),
            // The proxy's other ports are closed to the outside.
            (api, "10.77.0.3:15006", unknown, Some(15006), false, &no, "mesh"),
        ];
        for tries_tls in [false, true] {
            let rules = rules(tries_tls);
            for (name, address, mesh_by_discovery, dialled, mesh, pinned, want) in cases {
                let claims = Claims { tls: None, mesh, pinned, name, namespace: None, undiscovered: false };
                let decided = rules.decide(&claims, &endpoint(address, mesh_by_discovery, None), dialled);
                assert!(shown(decided).starts_with(want), "{name:?} {address} {dialled:?}");
            }
            // Nothing but the other ports of its pod tells that it is of the mesh.
            let beside = ResolvedEndpoint {
                beside_sidecar: true,
                ..endpoint("203.0.113.1:15021", unknown, Some("api"))
            };
            for (dialled, want) in [(Some(15021), "plain"), (Some(8080), "mesh"), (None, "mesh")] {
                let name = Some("alias.example");
                let claims = Claims {
                    tls: None,
                    mesh: false,
                    pinned: &no,
                    name,
                    namespace: None,
                    undiscovered: false,
                };
                let decided = rules.decide(&claims, &beside, dialled);
                assert!(shown(decided).starts_with(want), "beside a sidecar, {dialled:?}");
            }
            let claims = Claims {
                tls: None,
                mesh: false,
                pinned: &no,
                name: api,
                namespace: None,
                undiscovered: true,
            };
            let decided = rules.decide(&claims, &endpoint(known, unknown, None), Some(15020));
            assert_eq!(shown(decided), "refused", "discovery could say otherwise");
        }
    }

    #[test]
    fn the_namespace_is_read_from_services_and_pods_names() {
        let rules = rules(false);
        for (name, want) in [
            ("api.shop.svc.cluster.local", Some("shop")),
            ("pod-0.api.shop.svc.cluster.local", Some("shop")),
            ("shop.svc.cluster.local", None),
            ("api.shop.svc.evil.local", None),
            ("svc.cluster.local", None),
        ] {
            assert_eq!(rules.namespace_in(name), want, "{name}");
        }
    }
}
