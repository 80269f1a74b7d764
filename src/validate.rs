//! `outrigger validate`: checks a config file, and prints its schema and reference.

mod fetch;

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::BoolishValueParser;
use outrigger_proxy::config::{self, ConfigError, Measured, Problem};
use serde_json::{Value, json};

use crate::Failure;

/// With `--strict`: valid, and something is unwise.
const ONLY_WARNINGS: u8 = 2;

const EXAMPLE: &str = "\
Exit codes: 0 the file is valid, 1 it is not or can't be read, 2 it is valid and has warnings (with --strict only).
Wrong usage is 2 as well.

Examples:
  outrigger validate sidecar.yaml
  outrigger validate --strict --output json sidecar.yaml    # in CI
  outrigger validate --metrics http://127.0.0.1:15020/metrics sidecar.yaml    # timeouts beside what was measured
  kubectl get configmap sidecar -o jsonpath='{.data.sidecar\\.yaml}' | outrigger validate -
  outrigger validate --schema > outrigger.schema.json    # for editors";

/// Check a config file: every mistake in it, with its line and the remedy, and what is unwise.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// The config file; `-` reads standard input.
    #[arg(value_name = "FILE", env = "OUTRIGGER_CONFIG", required_unless_present_any = ["schema", "reference"])]
    file: Option<PathBuf>,
    /// Print the JSON schema of config files instead.
    #[arg(long, env = "OUTRIGGER_SCHEMA", conflicts_with = "reference", value_parser = BoolishValueParser::new())]
    schema: bool,
    /// Print the table of all fields instead, in Markdown, as the README holds it.
    #[arg(long, env = "OUTRIGGER_REFERENCE", value_parser = BoolishValueParser::new())]
    reference: bool,
    /// How the findings are written.
    #[arg(long, env = "OUTRIGGER_OUTPUT", value_enum, default_value_t)]
    output: Output,
    /// Fail on warnings too, with exit code 2.
    #[arg(long, env = "OUTRIGGER_STRICT", value_parser = BoolishValueParser::new())]
    strict: bool,
    /// Compare timeouts with what a running proxy has measured: a warning where one is below the 99th percentile of
    /// its requests, or over 20 times as long. The URL (http) of its /metrics, or a file with the answer; `-` reads
    /// standard input.
    #[arg(long, env = "OUTRIGGER_METRICS", value_name = "URL|FILE")]
    metrics: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Output {
    /// For people: each finding with its line of the file.
    #[default]
    Text,
    /// For programs: one JSON object with `valid`, `errors` and `warnings`.
    Json,
}

/// What was found in a file.
struct Findings {
    origin: String,
    text: String,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Args {
    /// Checks the file, and prints what was found to standard output.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn run(self) -> Result<ExitCode, Failure> {
        if self.schema {
            print(&format!("{:#}\n", config::schema()))?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.reference {
            print(&config::reference())?;
            return Ok(ExitCode::SUCCESS);
        }
        let file = self.file.ok_or("no file to check: name one, or `-` for standard input")?;
        if file == Path::new("-") && self.metrics.as_deref() == Some("-") {
            return Err("standard input can be the file or the metrics, not both".into());
        }
        let measured = self.metrics.as_deref().map(fetch::measured).transpose()?;
        let findings = Findings::of(&file, measured.as_ref())?;
        print(&match self.output {
            Output::Text => findings.to_text(&Colors::of_terminal()),
            Output::Json => format!("{:#}\n", findings.to_json()),
        })?;
        Ok(match (findings.errors.is_empty(), findings.warnings.is_empty()) {
            (false, _) => ExitCode::FAILURE,
            (true, false) if self.strict => ONLY_WARNINGS.into(),
            _ => ExitCode::SUCCESS,
        })
    }
}

fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // `outrigger validate … | head` is no failure of ours.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

impl Findings {
    fn of(file: &Path, measured: Option<&Measured>) -> Result<Self, Failure> {
        let (origin, text) = if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            ("standard input".to_owned(), text)
        } else {
            (file.display().to_string(), config::read_text(file)?)
        };
        let (errors, warnings) = match config::parse_beside(&text, &origin, measured) {
            Ok(loaded) => (Vec::new(), loaded.warnings),
            Err(ConfigError::Invalid { problems, .. }) => (problems, Vec::new()),
            Err(other) => return Err(other.into()),
        };
        Ok(Self { origin, text, errors, warnings })
    }

    fn to_json(&self) -> Value {
        json!({
            "file": self.origin,
            "valid": self.errors.is_empty(),
            "errors": self.errors,
            "warnings": self.warnings,
        })
    }

    fn to_text(&self, colors: &Colors) -> String {
        let mut out = String::new();
        let errors = self.errors.iter().map(|problem| ("error", colors.red, problem));
        let warnings = self.warnings.iter().map(|problem| ("warning", colors.yellow, problem));
        for (kind, color, problem) in errors.chain(warnings) {
            self.describe(&mut out, (kind, color), problem, colors);
        }
        let Colors { red, green, off, .. } = colors;
        let verdict = match (self.errors.len(), self.warnings.len()) {
            (0, 0) => format!("{green}valid{off}"),
            (0, warnings) => format!("{green}valid{off}, with {}", count(warnings, "warning")),
            (errors, _) => format!("{red}not valid{off}: {}", count(errors, "error")),
        };
        let _ = writeln!(out, "{}: {verdict}", self.origin);
        out
    }

    fn describe(&self, out: &mut String, (kind, color): (&str, &str), problem: &Problem, colors: &Colors) {
        let Colors { bold, blue, off, .. } = colors;
        let (line, column) = (problem.position.line, problem.position.column);
        let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
        let _ = writeln!(out, "{color}{kind}{off}: {bold}{field}{}{off}", problem.message);
        let _ = writeln!(out, "  {blue}-->{off} {}:{line}:{column}", self.origin);
        let index = usize::try_from(line).unwrap_or(usize::MAX).saturating_sub(1);
        if let Some(source) = self.text.lines().nth(index) {
            let margin = " ".repeat(line.to_string().len());
            let start = usize::try_from(column).unwrap_or(usize::MAX).saturating_sub(1);
            // Tabs keep their width below the line.
            let pad: String =
                source.chars().take(start).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let _ = writeln!(out, "{margin} {blue}|{off}");
            let _ = writeln!(out, "{blue}{line} |{off} {source}");
            let _ =
                writeln!(out, "{margin} {blue}|{off} {pad}{color}{}{off}", "^".repeat(width(source, start)));
        }
        if !problem.remedy.is_empty() {
            let _ = writeln!(out, "  {blue}={off} {}", problem.remedy);
        }
        out.push('\n');
    }
}

/// Characters of the word that starts at `start`: a key or a value.
fn width(source: &str, start: usize) -> usize {
    let ends = |c: &char| c.is_whitespace() || matches!(c, ',' | ']' | '}');
    let rest = source.chars().skip(start);
    let word = rest.take_while(|c| !ends(c)).collect::<String>();
    word.trim_end_matches(':').chars().count().max(1)
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Escape sequences, or nothing where nobody would see them as colors.
struct Colors {
    red: &'static str,
    yellow: &'static str,
    green: &'static str,
    blue: &'static str,
    bold: &'static str,
    off: &'static str,
}

impl Colors {
    const NONE: Self = Self { red: "", yellow: "", green: "", blue: "", bold: "", off: "" };

    fn of_terminal() -> Self {
        if !std::io::stdout().is_terminal()
            || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        {
            return Self::NONE;
        }
        Self {
            red: "\x1b[1;31m",
            yellow: "\x1b[1;33m",
            green: "\x1b[1;32m",
            blue: "\x1b[1;34m",
            bold: "\x1b[1m",
            off: "\x1b[0m",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Findings {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sidecar.yaml");
        std::fs::write(&file, text).unwrap();
        Findings { origin: "sidecar.yaml".into(), ..Findings::of(&file, None).unwrap() }
    }

    #[test]
    fn each_finding_shows_its_line_and_the_remedy() {
        let text =
            findings("mtls: strict\nworkers: 1\nupstreams:\n  api: {host: [a]}\n").to_text(&Colors::NONE);
        let expected = "\
error: upstreams.api.host: there is no field `host` here
  --> sidecar.yaml:4:9
  |
4 |   api: {host: [a]}
  |         ^^^^
  = did you mean `hosts`? Allowed: `hosts`,";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with("sidecar.yaml: not valid: 1 error\n"), "{text}");
    }

    #[test]
    fn a_valid_file_says_so_with_its_warnings() {
        assert_eq!(findings("mtls: audit\n").to_text(&Colors::NONE), "sidecar.yaml: valid\n");
        let unwise = "upstreams:\n  api: {hosts: [a], discovery: {static: [\"10.0.0.1:80\"]}}\n";
        let text = findings(unwise).to_text(&Colors::NONE);
        assert!(text.ends_with("sidecar.yaml: valid, with 1 warning\n"), "{text}");
    }

    #[test]
    fn programs_get_positions_fields_and_texts() {
        assert_eq!(
            findings("workers: 0\n").to_json(),
            json!({
                "file": "sidecar.yaml",
                "valid": false,
                "errors": [{
                    "line": 1,
                    "column": 10,
                    "field": "workers",
                    "message": "0 workers are not possible",
                    "remedy": "write 1 to 256",
                }],
                "warnings": [],
            })
        );
    }
}
