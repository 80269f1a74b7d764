//! From a file to a config that keeps every rule.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::measured::Measured;
use super::model::Config;
use super::problem::Problem;
use super::{read, rules, tree};

/// The largest file that is read: room for ten thousand routes, and no way to fill the memory.
const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024;

/// A config, and what is unwise about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// What is allowed and probably not meant, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// Why a file is no config.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("config {}: can't be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than any config.
    #[error("config {}: larger than {MAX_FILE_BYTES} bytes; is it the right file?", .0.display())]
    TooLarge(PathBuf),
    /// It breaks rules; all of them are named, in the order of the file.
    #[error("{}", lines(origin, problems))]
    Invalid {
        /// The file's name.
        origin: String,
        /// What is wrong.
        problems: Vec<Problem>,
    },
}

fn lines(origin: &str, problems: &[Problem]) -> String {
    let line = |problem: &Problem| {
        format!("{origin}:{}:{}: {problem}", problem.position.line, problem.position.column)
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Reads a config file.
///
/// # Errors
/// It can't be read, is too large, or breaks rules.
pub fn load(file: &Path) -> Result<Loaded, ConfigError> {
    parse(&read_text(file)?, &file.display().to_string())
}

/// The text of a config file.
///
/// # Errors
/// It can't be read, is too large, or is not UTF-8.
pub fn read_text(file: &Path) -> Result<String, ConfigError> {
    use std::io::Read as _;

    let failed = |source| ConfigError::Read { file: file.into(), source };
    let mut text = String::new();
    // One byte more than allowed tells a file that is too large; a device has no length to ask for.
    let opened = std::fs::File::open(file).map_err(failed)?;
    opened.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge(file.into()));
    }
    Ok(text)
}

/// Reads a config out of its text; `origin` names it in errors.
///
/// # Errors
/// It breaks rules.
pub fn parse(text: &str, origin: &str) -> Result<Loaded, ConfigError> {
    parse_beside(text, origin, None)
}

/// [`parse`], with warnings of timeouts that are far from what was `measured`.
///
/// # Errors
/// It breaks rules.
pub fn parse_beside(text: &str, origin: &str, measured: Option<&Measured>) -> Result<Loaded, ConfigError> {
    let invalid = |problems| ConfigError::Invalid { origin: origin.into(), problems };
    let root = tree::parse(text).map_err(|problem| invalid(vec![problem]))?;
    let (config, unread) = read::read(&root);
    let warnings = rules::check(&config, &root, unread, measured).map_err(invalid)?;
    Ok(Loaded { config, warnings })
}
