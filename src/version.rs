//! `outrigger version`.

use std::process::ExitCode;

use crate::Failure;

/// The package's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Print the version.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(self) -> Result<ExitCode, Failure> {
        println!("outrigger {VERSION}");
        Ok(ExitCode::SUCCESS)
    }
}
