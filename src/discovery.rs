//! Being built.
#[derive(Debug, clap::Args)]
pub struct Args {}
impl Args {
    pub fn run(self) -> Result<std::process::ExitCode, crate::Failure> {
        Err("being built".into())
    }
}
