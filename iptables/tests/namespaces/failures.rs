//! What a machine that can't have the rules is told.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use outrigger_iptables::{Cause, Error, Family, Ipv6, Settings, Tools, apply, clean};

use crate::pod::owners;
use crate::support::{Namespace, in_user_namespace, is_in_user_namespace, namespace_tests};

fn settings() -> Settings {
    Settings { owner: owners()[0], ..Settings::default() }
}

/// A machine whose iptables programs are these shell scripts.
struct Machine {
    pod: Namespace,
    tools: Tools,
    _directory: tempfile::TempDir,
}

impl Machine {
    fn new(scripts: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, script) in scripts {
            let path = directory.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
            fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("making it executable");
        }
        Self {
            pod: Namespace::new(),
            tools: Tools::in_directories([directory.path().to_owned()]),
            _directory: directory,
        }
    }

    fn apply(&self) -> Error {
        self.pod.run(|| apply(&settings(), Ipv6::Off, &self.tools).unwrap_err())
    }

    fn cause(&self) -> (Cause, String) {
        let error = self.apply();
        let text = error.to_string();
        match error {
            Error::Refused { family: Family::Ipv4, mut attempts, .. } => (attempts.remove(0).cause, text),
            other => panic!("not refused: {other}"),
        }
    }
}

namespace_tests! {
    fn missing_iptables_is_named_with_the_command_that_installs_it() {
        let machine = Machine::new(&[]);
        let cleaning = machine.pod.run(|| clean(&machine.tools).unwrap_err());
        for error in [machine.apply(), cleaning] {
            let text = error.to_string();
            assert!(text.contains("iptables is not installed"), "{text}");
            assert!(text.contains("apt-get install iptables"), "{text}");
        }
    }

    fn a_missing_privilege_is_named_with_the_capability() {
        // The real programs, without any capability.
        let powerless = "exec setpriv --bounding-set=-all --inh-caps=-all";
        for backend in ["nft", "legacy"] {
            let [save, restore] = ["save", "restore"].map(|action| format!("iptables-{backend}-{action}"));
            let [run_save, run_restore] = [&save, &restore].map(|name| format!("{powerless} /usr/sbin/{name} \"$@\""));
            let machine = Machine::new(&[(&save, &run_save), (&restore, &run_restore)]);
            let (cause, text) = machine.cause();
            assert_eq!(cause, Cause::NotPermitted, "{text}");
            assert!(text.contains("NET_ADMIN"), "{text}");
        }
    }

    fn a_missing_match_is_named_with_its_module() {
        // What the nft backend prints on a kernel that lacks what it is asked for here.
        let refuse = r#"for extension in owner mark; do
    line=$(grep -n -e "-m $extension" "$1" | head -1 | cut -d: -f1)
    [ -n "$line" ] && break
done
echo "Warning: Extension $extension revision 0 not supported, missing kernel module?" >&2
echo "iptables-restore v1.8.9 (nf_tables):" >&2
echo "line $line: RULE_APPEND failed (No such file or directory): rule in chain OUTRIGGER_OUTBOUND" >&2
exit 4"#;
        let refuse = format!("input=$(mktemp); trap 'rm $input' EXIT; cat > $input; set -- $input\n{refuse}");
        let machine = Machine::new(&[("iptables-save", "exit 0"), ("iptables-restore", &refuse)]);
        let (cause, text) = machine.cause();
        let module = match settings().owner {
            outrigger_iptables::Owner::User { .. } => "xt_owner",
            outrigger_iptables::Owner::Mark { .. } => "xt_mark",
        };
        assert_eq!(cause, Cause::NoModule(vec![module.to_owned()]), "{text}");
        assert!(text.contains(&format!("modprobe {module}")), "{text}");
    }

    fn a_missing_nat_table_is_named_for_each_backend_that_was_tried() {
        let nft = "echo 'iptables-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument' >&2; exit 4";
        let legacy = "echo 'iptables-save v1.8.9 (legacy): Cannot initialize: Table does not exist (do you need to insmod?)' >&2; exit 1";
        let machine = Machine::new(&[
            ("iptables-nft-save", nft),
            ("iptables-nft-restore", nft),
            ("iptables-legacy-save", legacy),
            ("iptables-legacy-restore", legacy),
        ]);
        let (cause, text) = machine.cause();
        assert!(matches!(cause, Cause::NoTable { .. }), "{text}");
        for part in ["iptables-nft-save", "iptables-legacy-save", "insmod", "iptable_nat", "modprobe"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    fn a_backend_that_the_kernel_lacks_is_passed_over_for_one_that_works() {
        if is_in_user_namespace() {
            eprintln!("SKIPPED: the legacy backend locks a file that only root may write");
            return;
        }
        let machine = Machine::new(&[
            ("iptables-nft-save", "echo 'Failed to initialize nft: Protocol not supported' >&2; exit 1"),
            ("iptables-nft-restore", "echo 'Failed to initialize nft: Protocol not supported' >&2; exit 1"),
            ("iptables-legacy-save", "exec /usr/sbin/iptables-legacy-save \"$@\""),
            ("iptables-legacy-restore", "exec /usr/sbin/iptables-legacy-restore \"$@\""),
        ]);
        machine.pod.run(|| apply(&settings(), Ipv6::Off, &machine.tools).expect("applying"));
        assert!(machine.pod.command("iptables-legacy-save -t nat").contains("-A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND"));
    }
}

#[test]
fn a_uid_that_the_user_namespace_does_not_map_is_refused_with_the_way_out() {
    if !is_in_user_namespace() {
        in_user_namespace(concat!(
            module_path!(),
            "::a_uid_that_the_user_namespace_does_not_map_is_refused_with_the_way_out"
        ));
        return;
    }
    let pod = Namespace::new();
    let error = pod.run(|| apply(&Settings::default(), Ipv6::Off, &Tools::find()).unwrap_err());
    assert!(error.to_string().contains("uid 1337 is not mapped"), "{error}");
    assert!(error.to_string().contains("--exempt mark"), "{error}");
}
