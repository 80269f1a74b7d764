//! Applying, applying again, changing and cleaning.

use std::os::unix::fs::symlink;
use std::path::Path;

use outrigger_iptables::{
    Applied, Change, Cleaned, Family, Ipv6, Owner, Settings, Tools, apply, clean, render,
};

use crate::pod::owners;
use crate::support::{Namespace, is_in_user_namespace, namespace_tests};

/// A pod with loopback addresses only: enough for looking at rules.
fn pod() -> Namespace {
    let pod = Namespace::new();
    pod.command("ip link set lo up");
    pod
}

fn settings() -> Settings {
    Settings { owner: owners()[0], ..Settings::default() }
}

fn apply_in(pod: &Namespace, settings: &Settings) -> Applied {
    pod.run(|| apply(settings, Ipv6::Auto, &Tools::find()).expect("applying"))
}

/// The rules of both families, without comments and counters.
fn rules(pod: &Namespace, backend: &str) -> Vec<String> {
    ["iptables", "ip6tables"]
        .iter()
        .flat_map(|program| {
            let saved = pod.command(&format!("{program}-{backend}-save -t nat"));
            let lines: Vec<String> =
                saved.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect();
            lines
        })
        .collect()
}

fn loopback_addresses(pod: &Namespace) -> String {
    pod.command("ip -6 -oneline addr show dev lo")
}

/// A directory with one backend's programs only.
fn only(backend: &str, directory: &Path) -> Tools {
    for program in ["iptables", "ip6tables"] {
        for action in ["save", "restore"] {
            let name = format!("{program}-{backend}-{action}");
            symlink(format!("/usr/sbin/{name}"), directory.join(&name)).expect("a link");
        }
    }
    Tools::in_directories([directory.to_owned()])
}

namespace_tests! {
    fn the_installed_rules_are_the_rendered_ones() {
        for owner in owners() {
            let pod = pod();
            let settings = Settings { owner, ..Settings::default() };
            apply_in(&pod, &settings);
            let mut installed = rules(&pod, "nft");
            let rendered = Family::ALL.map(|family| render(&settings, family)).concat();
            let mut rendered: Vec<&str> = rendered.lines().filter(|line| line.starts_with("-A")).collect();
            installed.sort();
            rendered.sort();
            assert_eq!(installed, rendered);
            assert!(loopback_addresses(&pod).contains("inet6 ::6/128"));
        }
    }

    fn applying_twice_changes_nothing() {
        let pod = pod();
        let first = apply_in(&pod, &settings());
        assert!(matches!(first, Applied { ipv4: Change::Written(_), ipv6: Some(Change::Written(_)) }));
        let (rules_before, addresses_before) = (rules(&pod, "nft"), loopback_addresses(&pod));
        let second = apply_in(&pod, &settings());
        assert_eq!(second, Applied { ipv4: Change::Unchanged, ipv6: Some(Change::Unchanged) });
        assert_eq!(rules(&pod, "nft"), rules_before);
        assert_eq!(loopback_addresses(&pod), addresses_before);
    }

    fn changed_settings_leave_no_stale_rule() {
        let changes: [fn(&mut Settings); 6] = [
            |settings| settings.skip_inbound_ports = [22, 9100].into(),
            |settings| settings.inbound_port = 25006,
            |settings| settings.owner = Owner::MARK,
            |settings| settings.capture_outbound = false,
            |settings| settings.capture_inbound = false,
            |settings| settings.skip_outbound_cidrs = ["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()].into(),
        ];
        let changed = pod();
        for change in changes {
            let mut settings = settings();
            change(&mut settings);
            apply_in(&changed, &settings);
            let fresh = pod();
            apply_in(&fresh, &settings);
            let (mut of_changed, mut of_fresh) = (rules(&changed, "nft"), rules(&fresh, "nft"));
            assert_eq!(apply_in(&changed, &settings).ipv4, Change::Unchanged);
            // Chains that came later are listed later.
            of_changed.sort();
            of_fresh.sort();
            assert_eq!(of_changed, of_fresh);
            assert_eq!(loopback_addresses(&changed), loopback_addresses(&fresh));
        }
    }

    fn a_jump_that_is_there_twice_is_left_once() {
        let pod = pod();
        apply_in(&pod, &settings());
        let before = rules(&pod, "nft");
        pod.command("iptables-nft -t nat -A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND");
        pod.command("iptables-nft -t nat -I PREROUTING -j OUTRIGGER_INBOUND");
        assert!(matches!(apply_in(&pod, &settings()).ipv4, Change::Written(_)));
        assert_eq!(rules(&pod, "nft"), before);
    }

    fn rules_of_others_stay() {
        let pod = pod();
        for line in ["-N OTHER", "-A OTHER -p tcp -m tcp --dport 53 -j RETURN", "-A OUTPUT -d 127.0.0.11/32 -j OTHER"] {
            pod.command(&format!("iptables-nft -t nat {line}"));
        }
        let before = rules(&pod, "nft");
        apply_in(&pod, &settings());
        for rule in &before {
            assert!(rules(&pod, "nft").contains(rule));
        }
        pod.run(|| clean(&Tools::find()).expect("cleaning"));
        assert_eq!(rules(&pod, "nft"), before);
    }

    fn cleaning_leaves_nothing_and_can_be_repeated() {
        let pod = pod();
        let addresses = loopback_addresses(&pod);
        apply_in(&pod, &settings());
        for removed in [true, false] {
            let cleaned = pod.run(|| clean(&Tools::find()).expect("cleaning"));
            assert_eq!(cleaned, Cleaned { ipv4: removed, ipv6: removed });
            let saved = pod.command("iptables-nft-save") + &pod.command("ip6tables-nft-save");
            assert!(!saved.contains("OUTRIGGER"), "{saved}");
            assert_eq!(loopback_addresses(&pod), addresses);
        }
    }

    fn a_pod_without_ipv6_gets_no_ipv6_rules() {
        let pod = pod();
        apply_in(&pod, &settings());
        // Switched off later on, it loses them as well.
        pod.set("ipv6/conf/all/disable_ipv6", "1");
        assert_eq!(apply_in(&pod, &settings()), Applied { ipv4: Change::Unchanged, ipv6: None });
        assert!(!pod.command("ip6tables-nft-save").contains("OUTRIGGER"));
    }

    fn ipv6_that_is_asked_for_but_switched_off_is_an_error_with_its_remedy() {
        let pod = pod();
        pod.set("ipv6/conf/all/disable_ipv6", "1");
        let error = pod.run(|| apply(&settings(), Ipv6::On, &Tools::find()).unwrap_err());
        assert!(error.to_string().contains("sysctl -w net.ipv6.conf.lo.disable_ipv6=0"), "{error}");
    }

    fn the_legacy_backend_works_as_well_and_a_change_of_backend_leaves_nothing_behind() {
        if is_in_user_namespace() {
            eprintln!("SKIPPED: the legacy backend locks a file that only root may write");
            return;
        }
        let (legacy_directory, pod) = (tempfile::tempdir().unwrap(), pod());
        let legacy = only("legacy", legacy_directory.path());
        let applied = pod.run(|| apply(&settings(), Ipv6::Auto, &legacy).expect("applying"));
        assert_eq!(applied.ipv4, Change::Written("iptables-legacy".to_owned()));
        let of_legacy = rules(&pod, "legacy");
        let again = pod.run(|| apply(&settings(), Ipv6::Auto, &legacy).expect("applying"));
        assert_eq!(again, Applied { ipv4: Change::Unchanged, ipv6: Some(Change::Unchanged) });

        apply_in(&pod, &settings());
        assert_eq!(rules(&pod, "nft"), of_legacy);
        assert_eq!(rules(&pod, "legacy"), Vec::<String>::new());

        pod.run(|| apply(&settings(), Ipv6::Auto, &legacy).expect("applying"));
        let cleaned = pod.run(|| clean(&Tools::find()).expect("cleaning"));
        assert_eq!(cleaned, Cleaned { ipv4: true, ipv6: true });
        assert_eq!((rules(&pod, "nft"), rules(&pod, "legacy")), (Vec::new(), Vec::new()));
    }
}
