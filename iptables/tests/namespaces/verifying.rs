//! What `verify` finds in pods that are right and in pods that are not.

use std::net::TcpListener;

use outrigger_iptables::verify::{Outcome, Report, verify};
use outrigger_iptables::{Ipv6, Settings, Tools, apply};

use crate::pod::owners;
use crate::support::{Namespace, namespace_tests};

/// A pod whose ports nobody listens on yet, with a neighbour that knows the way to nowhere.
struct Pod {
    inside: Namespace,
    _outside: Namespace,
    settings: Settings,
}

impl Pod {
    fn new(settings: Settings) -> Self {
        let (inside, outside) = (Namespace::new(), Namespace::new());
        inside.connect("eth0", &outside, "eth0");
        for namespace in [&inside, &outside] {
            namespace.command("ip link set lo up");
            namespace.command("ip link set eth0 up");
        }
        for line in [
            "ip addr add 10.77.0.2/24 dev eth0",
            "ip route add default via 10.77.0.1",
            "ip addr add fd77::2/64 dev eth0 nodad",
            "ip route add default via fd77::1",
        ] {
            inside.command(line);
        }
        outside.command("ip addr add 10.77.0.1/24 dev eth0");
        outside.command("ip addr add fd77::1/64 dev eth0 nodad");
        Self { inside, _outside: outside, settings }
    }

    fn apply(self) -> Self {
        self.inside.run(|| apply(&self.settings, Ipv6::Auto, &Tools::find()).expect("applying"));
        self
    }

    fn verify(&self) -> Report {
        self.inside.run(|| verify(&self.settings, Ipv6::Auto, &Tools::find()).expect("verifying"))
    }
}

fn pods() -> impl Iterator<Item = Pod> {
    owners().into_iter().map(|owner| Pod::new(Settings { owner, ..Settings::default() }))
}

fn failures(report: &Report) -> Vec<&str> {
    let failed = report.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed(_)));
    failed.map(|check| check.name.as_str()).collect()
}

namespace_tests! {
    fn a_pod_with_the_rules_passes_every_check() {
        for pod in pods() {
            let report = pod.apply().verify();
            assert_eq!(report.checks.len(), 8, "{report}");
            assert!(report.checks.iter().all(|check| matches!(check.outcome, Outcome::Passed(_))), "{report}");
        }
    }

    fn a_pod_without_a_default_route_is_tried_with_its_neighbours() {
        for pod in pods() {
            let pod = pod.apply();
            pod.inside.command("ip route del default");
            pod.inside.command("ip -6 route del default");
            let report = pod.verify();
            assert!(report.checks.iter().all(|check| matches!(check.outcome, Outcome::Passed(_))), "{report}");
        }
    }

    fn a_pod_without_rules_fails_with_the_remedy() {
        for pod in pods() {
            let report = pod.verify();
            assert!(!report.passed());
            assert!(report.to_string().contains("run `outrigger iptables apply`"), "{report}");
            assert!(failures(&report).contains(&"IPv4 traffic of the workload goes to the outbound side"), "{report}");
        }
    }

    fn a_changed_rule_is_named() {
        for pod in pods() {
            let pod = pod.apply();
            pod.inside.command("iptables-nft -t nat -D OUTRIGGER_INBOUND -p tcp -m tcp --dport 15021 -j RETURN");
            pod.inside.command("ip6tables-nft -t nat -A OUTRIGGER_INBOUND -p tcp -m tcp --dport 22 -j RETURN");
            let report = pod.verify();
            assert_eq!(failures(&report), ["IPv4 rules are the settings' rules", "IPv6 rules are the settings' rules"]);
            let text = report.to_string();
            assert!(text.contains("missing: -A OUTRIGGER_INBOUND -p tcp -m tcp --dport 15021 -j RETURN"), "{text}");
            assert!(text.contains("should not be there: -A OUTRIGGER_INBOUND -p tcp -m tcp --dport 22"), "{text}");
        }
    }

    fn a_rule_of_others_that_comes_first_is_found_by_the_connection() {
        for pod in pods() {
            let pod = pod.apply();
            pod.inside.command("iptables-nft -t nat -I OUTPUT -d 192.0.2.0/24 -j ACCEPT");
            let report = pod.verify();
            assert_eq!(failures(&report), ["IPv4 traffic of the workload goes to the outbound side"], "{report}");
        }
    }

    fn ports_that_a_sidecar_has_taken_are_left_alone() {
        for pod in pods() {
            let pod = pod.apply();
            let sidecar = pod.inside.run(|| [TcpListener::bind("127.0.0.1:15001"), TcpListener::bind("0.0.0.0:15006")]);
            assert!(sidecar.iter().all(Result::is_ok));
            let report = pod.verify();
            assert!(report.passed(), "{report}");
            let skipped = report.checks.iter().filter(|check| matches!(check.outcome, Outcome::Skipped(_)));
            assert_eq!(skipped.count(), 2, "{report}");
        }
    }

    fn a_pod_with_loopback_only_says_what_could_not_be_tried() {
        let pod = Pod {
            inside: Namespace::new(),
            _outside: Namespace::new(),
            settings: Settings { owner: owners()[0], ..Settings::default() },
        };
        pod.inside.command("ip link set lo up");
        let report = pod.apply().verify();
        assert!(report.passed(), "{report}");
        let skipped = report.checks.iter().filter(|check| matches!(check.outcome, Outcome::Skipped(_)));
        assert_eq!(skipped.count(), 6, "{report}");
    }
}
