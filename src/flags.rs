//! Flags that several subcommands have, and how values of flags are read.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, Command};
use outrigger_ca::{HostPort, host};
use outrigger_proxy::config::{Duration, Mtls, TRUST_DOMAIN};

/// Where a process's certificate and the roots come from: from a CA, or from files.
#[derive(Debug, clap::Args)]
pub struct IdentityArgs {
    /// The CA that issues this process's certificate.
    #[arg(
        long,
        env = "OUTRIGGER_CA",
        value_name = "HOST:PORT",
        requires = "token_file",
        conflicts_with = "certificate"
    )]
    pub ca: Option<HostPort>,
    /// File with the bearer token for the CA; read again each time.
    #[arg(long, env = "OUTRIGGER_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificate of this process (PEM), instead of a CA; watched.
    #[arg(long, env = "OUTRIGGER_CERTIFICATE", value_name = "FILE", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, env = "OUTRIGGER_KEY", value_name = "FILE", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// Roots that peers are verified by (PEM); watched. Needed with --certificate; without it, the CA's bundle is believed
    /// on first use.
    #[arg(long, env = "OUTRIGGER_TRUST_BUNDLE", value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,
    /// Time between looks at the CA's bundle; where that is a file, at whether the CA is there.
    #[arg(long, env = "OUTRIGGER_BUNDLE_POLL", value_name = "DURATION", default_value = "5m", value_parser = above_zero)]
    pub bundle_poll: Duration,
    /// Trust domain of the mesh's identities [default: cluster.local]
    #[arg(long, env = "OUTRIGGER_TRUST_DOMAIN", value_name = "NAME")]
    pub trust_domain: Option<String>,
}

impl IdentityArgs {
    /// The trust domain, or the default one.
    pub fn trust_domain(&self) -> &str {
        self.trust_domain.as_deref().unwrap_or(TRUST_DOMAIN)
    }
}

/// Takes variables that are empty away from their flags: manifests often leave them so where nothing is meant.
pub fn without_empty_variables(command: Command, is_empty: &dyn Fn(&OsStr) -> bool) -> Command {
    let command = command.mut_args(|flag| {
        let empty = flag.get_env().is_some_and(is_empty);
        if empty { flag.env(None::<&'static str>) } else { flag }
    });
    command.mut_subcommands(|subcommand| without_empty_variables(subcommand, is_empty))
}

/// Reads a port. What Kubernetes puts into the environment for a service that is called like the flag's variable
/// (`OUTRIGGER_METRICS_PORT=tcp://10.0.0.1:15020` for `outrigger-metrics`) is not meant for the flag, and leaves it at
/// its default.
#[derive(Clone, Copy, Debug)]
pub struct Port;

impl TypedValueParser for Port {
    type Value = u16;

    fn parse_ref(&self, command: &Command, flag: Option<&Arg>, value: &OsStr) -> Result<u16, clap::Error> {
        clap::value_parser!(u16).parse_ref(command, flag, value)
    }

    fn parse_ref_(
        &self,
        command: &Command,
        flag: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<u16, clap::Error> {
        let default = flag.and_then(|flag| flag.get_default_values().first());
        let Some(default) = default.filter(|_| source == ValueSource::EnvVariable && is_service_link(value))
        else {
            return self.parse_ref(command, flag, value);
        };
        let variable = flag.and_then(Arg::get_env).unwrap_or_default();
        eprintln!(
            "outrigger: {}={} comes from Kubernetes, for a service of that name, and is ignored",
            variable.display(),
            value.display()
        );
        self.parse_ref(command, flag, default)
    }
}

/// As Kubernetes writes the address of a service into the environment of pods.
fn is_service_link(value: &OsStr) -> bool {
    let scheme = value.to_str().and_then(|text| text.split_once("://")).map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| matches!(scheme, "tcp" | "udp" | "sctp"))
}

/// Reads how strictly mutual TLS is demanded.
pub fn mtls() -> impl TypedValueParser<Value = Mtls> {
    let modes = [
        PossibleValue::new("strict").help("Only mesh TLS is let in"),
        PossibleValue::new("permissive")
            .help("Plaintext is let in; unknown peers are tried with mesh TLS first"),
        PossibleValue::new("audit").help("Like permissive, and names whom strict would have refused"),
    ];
    PossibleValuesParser::new(modes).try_map(|mode| serde_json::from_value(mode.into()))
}

/// Reads the address of a DNS server; port 53 unless it says otherwise.
pub fn dns_server(text: &str) -> Result<SocketAddr, String> {
    host::parse_dns_server(text).ok_or_else(|| {
        format!("`{text}` is no address of a DNS server: give an IP address, or one with a port")
    })
}

/// Reads a host name.
pub fn host_name(text: &str) -> Result<String, String> {
    if !host::is_host_name(text) {
        return Err(format!("`{text}` is no host name"));
    }
    Ok(host::normal(text))
}

/// Reads a duration of more than nothing.
fn above_zero(text: &str) -> Result<Duration, String> {
    let duration: Duration =
        text.parse().map_err(|error: outrigger_proxy::config::UnitError| error.to_string())?;
    if duration.as_std().is_zero() { Err("it must be more than nothing".into()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn port(value: &str, source: ValueSource) -> Option<u16> {
        let flag = Arg::new("metrics-port").default_value("15020");
        Port.parse_ref_(&Command::new("outrigger"), Some(&flag), value.as_ref(), source).ok()
    }

    #[test]
    fn an_address_that_kubernetes_put_into_a_ports_variable_leaves_the_default() {
        for (value, of_environment, of_line) in [
            ("15099", Some(15099), Some(15099)),
            ("tcp://10.0.0.1:15020", Some(15020), None),
            ("udp://[fd00::1]:53", Some(15020), None),
            ("http://10.0.0.1", None, None),
            ("99999", None, None),
            ("", None, None),
        ] {
            assert_eq!(port(value, ValueSource::EnvVariable), of_environment, "{value}");
            assert_eq!(port(value, ValueSource::CommandLine), of_line, "{value}");
        }
    }

    #[test]
    fn the_modes_of_the_flag_are_those_of_the_config() {
        let command = Command::new("outrigger").arg(Arg::new("mtls").long("mtls").value_parser(mtls()));
        let parsed = |mode: &str| {
            let matches = command.clone().try_get_matches_from(["outrigger", "--mtls", mode]);
            matches.ok().and_then(|matches| matches.get_one::<Mtls>("mtls").copied())
        };
        assert_eq!(parsed("strict"), Some(Mtls::Strict));
        assert_eq!(parsed("permissive"), Some(Mtls::Permissive));
        assert_eq!(parsed("audit"), Some(Mtls::Audit));
        assert_eq!(parsed("sometimes"), None);
    }

    #[test]
    fn polling_without_a_pause_is_refused() {
        assert_eq!(above_zero("1s").map(Duration::as_std), Ok(std::time::Duration::from_secs(1)));
        for text in ["0s", "1", ""] {
            assert!(above_zero(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_variable_is_taken_away_from_each_flag_of_each_subcommand() {
        fn variables(command: &Command) -> usize {
            let own = command.get_arguments().filter(|flag| flag.get_env().is_some()).count();
            own + command.get_subcommands().map(variables).sum::<usize>()
        }
        let all = variables(&crate::Arguments::command());
        let with = |is_empty: &dyn Fn(&OsStr) -> bool| {
            variables(&without_empty_variables(crate::Arguments::command(), is_empty))
        };
        assert!(all > 50, "{all}");
        assert_eq!(with(&|_| false), all);
        assert_eq!(with(&|_| true), 0);
        // Those of apply, verify and render.
        assert_eq!(with(&|variable| variable == "OUTRIGGER_SKIP_INBOUND_PORTS"), all - 3);
    }

    #[test]
    fn every_switch_takes_the_usual_words_from_its_variable() {
        fn check(command: &Command) {
            for flag in command.get_arguments() {
                if !flag.get_action().takes_values() && flag.get_env().is_some() {
                    let words = flag.get_value_parser().possible_values();
                    let words: Vec<_> =
                        words.into_iter().flatten().map(|word| word.get_name().to_owned()).collect();
                    assert!(words.contains(&"1".to_owned()), "{} {flag}: {words:?}", command.get_name());
                }
            }
            command.get_subcommands().for_each(check);
        }
        check(&crate::Arguments::command());
    }
}
