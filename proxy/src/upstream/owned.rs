//! Who is called by addresses that others than the mesh's discovery gave: whoever discovery says they belong to. Else the
//! name of a stranger's zone, or a list that knows of no mesh, would turn a peer of the mesh into one outside of it.

use std::net::{IpAddr, SocketAddr};

use super::SecurityRules;
use crate::resolve::{Answer, Owner, Owners, ResolvedEndpoint, ServiceInfo};

/// An endpoint, and what is known of the service that is called by it.
#[derive(Debug)]
pub(super) struct Callee<'a> {
    pub(super) endpoint: ResolvedEndpoint,
    /// The name that the addresses were given for, or the service's own where that leads to its VIP.
    pub(super) name: Option<&'a str>,
    /// The service's namespace, as authenticated discovery says.
    pub(super) namespace: Option<&'a str>,
}

/// What an answer is worth with the owners of its addresses.
#[derive(Debug, Default)]
pub(super) struct Owned<'a> {
    /// Without the addresses whose owner nobody could say: dialled by those, a request goes as dialled, which asks again.
    pub(super) callees: Vec<Callee<'a>>,
    pub(super) vips: Vec<IpAddr>,
    /// The one service to which all that has an owner belongs.
    pub(super) service: Option<&'a ServiceInfo>,
}

/// Puts the owners' endpoints in place of an answer's. `name` is the one that its addresses were given for, if any;
/// `pinned`: the config says who the peers are, whoever owns the addresses.
pub(super) fn by_owners<'a>(
    answer: &'a Answer,
    owners: &'a Owners,
    name: Option<&'a str>,
    pinned: bool,
    rules: &SecurityRules,
) -> Owned<'a> {
    // A name that says the namespace itself: who controls its addresses must not put another one behind it.
    let says_namespace = name.is_some_and(|name| rules.is_discoverys(name));
    let mut owned = Owned::default();
    let mut services = Vec::new();
    for endpoint in &answer.endpoints {
        let address = endpoint.address;
        let as_it_is = Callee { endpoint: endpoint.clone(), name, namespace: None };
        if rules.outbound.is_unmeshed(name, address.port(), address.ip()) {
            owned.callees.push(as_it_is);
            continue;
        }
        match owners.get(&address) {
            // Mesh TLS with the pinned identity is all that it could come to.
            None | Some(Owner::Unknown(_)) if pinned && rules.outbound.is_mesh_address(address.ip()) => {
                owned.callees.push(as_it_is);
            }
            None | Some(Owner::Unknown(_)) => {}
            Some(Owner::Nobody) => owned.callees.push(as_it_is),
            Some(Owner::Known(owner)) => {
                let is_vip = owner.vips.contains(&address.ip());
                owned.vips.extend(is_vip.then(|| address.ip()));
                services.push(owner.service.as_ref());
                owned.callees.extend(owner.endpoints.iter().map(|of_owner| {
                    let mut endpoint = ResolvedEndpoint {
                        weight: if is_vip { of_owner.weight } else { endpoint.weight },
                        priority: endpoint.priority,
                        zone: of_owner.zone.clone().or_else(|| endpoint.zone.clone()),
                        tags: endpoint.tags.clone(),
                        ..of_owner.clone()
                    };
                    if says_namespace {
                        endpoint.identity = None;
                        endpoint.mesh = endpoint.mesh.filter(|mesh| *mesh);
                        return Callee { endpoint, name, namespace: None };
                    }
                    let namespace = owner.service.as_ref().map(|service| &*service.namespace);
                    Callee { endpoint, name: if is_vip { Some(&*owner.name) } else { name }, namespace }
                }));
            }
        }
    }
    owned.callees.sort_by_key(|callee| (callee.endpoint.address, callee.endpoint.priority));
    owned.callees.dedup_by_key(|callee| callee.endpoint.address);
    // An address of the mesh stands for what discovery says, not for what the name's owner would like it to.
    let is_nobodys = |vip: &&IpAddr| matches!(owners.get(&SocketAddr::new(**vip, 0)), Some(Owner::Nobody));
    owned.vips.extend(answer.vips.iter().filter(is_nobodys));
    if let Some(first) = services.first().copied().flatten()
        && services.iter().all(|service| *service == Some(first))
    {
        owned.service = Some(first);
    }
    owned
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use outrigger_ca::SpiffeId;

    use super::*;
    use crate::config::Outbound;
    use crate::resolve::{LookupError, Source};

    const POD: &str = "10.77.0.3:80";
    const OTHER: &str = "10.77.0.4:80";
    const VIP: &str = "10.96.0.7:80";
    const OUTSIDE: &str = "203.0.113.1:80";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn endpoint(address: &str, account: Option<&str>) -> ResolvedEndpoint {
        ResolvedEndpoint {
            mesh: account.map(|account| account != "bare"),
            beside_sidecar: false,
            identity: account.map(|account| SpiffeId::new("cluster.local", "shop", account).unwrap()),
            ..ResolvedEndpoint::at(at(address))
        }
    }

    fn answer(name: &str, endpoints: Vec<ResolvedEndpoint>, vips: &[&str]) -> Answer {
        Answer {
            name: name.into(),
            endpoints,
            vips: vips.iter().map(|vip| at(vip).ip()).collect(),
            dropped: Vec::new(),
            source: Source::Dns,
            service: None,
            valid_for: Duration::from_secs(5),
        }
    }

    fn known(name: &str, address: &str, account: &str, vips: &[&str]) -> Owner {
        let service = ServiceInfo {
            name: "api".into(),
            namespace: "shop".into(),
            timeout: Some(Duration::from_secs(3)),
            retries: None,
        };
        let endpoints = vec![endpoint(address, Some(account))];
        Owner::Known(Arc::new(Answer { service: Some(service), ..answer(name, endpoints, vips) }))
    }

    fn owners() -> Owners {
        let unknown = Owner::Unknown(Arc::new(LookupError::NotFound("".into())));
        [
            (at(POD), known(POD, POD, "api", &[])),
            (at(OTHER), known(OTHER, OTHER, "bare", &[])),
            (at(VIP), known("api.shop.svc.cluster.local", "10.77.0.3:8080", "api", &[VIP])),
            (at(OUTSIDE), Owner::Nobody),
            (at("203.0.113.9:80"), unknown),
            (at("10.96.0.7:0"), known("api.shop.svc.cluster.local", "10.77.0.3:8080", "api", &[VIP])),
            (at("203.0.113.1:0"), Owner::Nobody),
        ]
        .into()
    }

    fn rules() -> SecurityRules {
        SecurityRules {
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            outbound: Arc::new(Outbound { unmeshed: vec!["listed.example".into()], ..Outbound::default() }),
            tries_tls: false,
            discovery: true,
        }
    }

    #[test]
    fn each_address_is_called_as_its_owner_is() {
        const ALIAS: &str = "alias.example";
        const API: &str = "api.shop.svc.cluster.local";
        let (owners, rules) = (owners(), rules());
        // Name, its addresses; then who is called by which name: address, meshed, account.
        type Called = (&'static str, &'static str, Option<bool>, Option<&'static str>);
        let cases: [(&str, &[&str], &[Called]); 9] = [
            (ALIAS, &[POD], &[(ALIAS, POD, Some(true), Some("api"))]),
            (ALIAS, &[OTHER], &[(ALIAS, OTHER, Some(false), Some("bare"))]),
            (ALIAS, &[OUTSIDE, POD], &[(ALIAS, POD, Some(true), Some("api")), (ALIAS, OUTSIDE, None, None)]),
            (ALIAS, &[VIP], &[(API, "10.77.0.3:8080", Some(true), Some("api"))]),
            // Nobody could say whose it is, or it was not asked for.
            (ALIAS, &["203.0.113.9:80", OUTSIDE], &[(ALIAS, OUTSIDE, None, None)]),
            (ALIAS, &["203.0.113.10:80"], &[]),
            // The config says that it is not meshed.
            ("listed.example", &[POD], &[("listed.example", POD, None, None)]),
            // The name says whom to expect; who controls its addresses says neither that nor that plaintext will do.
            (API, &[POD], &[(API, POD, Some(true), None)]),
            (API, &[OTHER], &[(API, OTHER, None, None)]),
        ];
        for (name, addresses, called) in cases {
            let answer = answer(name, addresses.iter().map(|address| endpoint(address, None)).collect(), &[]);
            let owned = by_owners(&answer, &owners, Some(name), false, &rules);
            let found: Vec<Called> = owned
                .callees
                .iter()
                .zip(called)
                .map(|(callee, (name, address, ..))| {
                    assert_eq!(callee.name, Some(*name));
                    assert_eq!(callee.endpoint.address, at(address));
                    let account = callee.endpoint.identity.as_ref().map(|id| id.service_account().unwrap());
                    let account = account.map(|account| if account == "api" { "api" } else { "bare" });
                    (*name, *address, callee.endpoint.mesh, account)
                })
                .collect();
            assert_eq!(found, called, "{name} {addresses:?}");
            assert_eq!(owned.callees.len(), called.len(), "{name} {addresses:?}");
        }
    }

    #[test]
    fn addresses_without_a_name_are_called_as_their_owners_are() {
        let (owners, rules) = (owners(), rules());
        let list = answer("", [POD, OTHER, OUTSIDE, VIP].map(|at| endpoint(at, None)).to_vec(), &[]);
        let owned = by_owners(&list, &owners, None, false, &rules);
        let called = owned.callees.iter().map(|callee| {
            (callee.endpoint.address.to_string(), callee.endpoint.mesh, callee.name, callee.namespace)
        });
        let vips_name = Some("api.shop.svc.cluster.local");
        let expected = [
            (POD, Some(true), None, Some("shop")),
            ("10.77.0.3:8080", Some(true), vips_name, Some("shop")),
            (OTHER, Some(false), None, Some("shop")),
            (OUTSIDE, None, None, None),
        ];
        let expected = expected.map(|(address, mesh, name, ns)| (address.to_owned(), mesh, name, ns));
        assert_eq!(called.collect::<Vec<_>>(), expected);
        assert_eq!(owned.vips, [at(VIP).ip()]);
    }

    #[test]
    fn what_nobody_can_say_is_called_where_the_config_alone_leads_to_mesh_tls() {
        const UNKNOWN: &str = "203.0.113.9:80";
        let owners = owners();
        let list = answer("", vec![endpoint(UNKNOWN, None)], &[]);
        for (network, pinned, called) in
            [("203.0.113.0/24", true, true), ("203.0.113.0/24", false, false), ("10.0.0.0/8", true, false)]
        {
            let mesh_networks = vec![network.parse().unwrap()];
            let outbound = Arc::new(Outbound { mesh_networks, ..Outbound::default() });
            let rules = SecurityRules { outbound, ..rules() };
            let owned = by_owners(&list, &owners, None, pinned, &rules);
            assert_eq!(!owned.callees.is_empty(), called, "{network} {pinned}");
        }
    }

    #[test]
    fn a_vip_stands_for_its_service_and_only_nobodys_for_what_the_names_owner_says() {
        let (owners, rules) = (owners(), rules());
        let alias = answer("alias.example", vec![endpoint(VIP, None)], &[]);
        let owned = by_owners(&alias, &owners, Some("alias.example"), false, &rules);
        assert_eq!(owned.vips, [at(VIP).ip()]);
        assert_eq!(owned.service.unwrap().timeout, Some(Duration::from_secs(3)));

        let stranger = answer("evil.example", vec![endpoint(OUTSIDE, None)], &[VIP, OUTSIDE]);
        let owned = by_owners(&stranger, &owners, Some("evil.example"), false, &rules);
        assert_eq!(owned.vips, [at(OUTSIDE).ip()]);
    }
}
