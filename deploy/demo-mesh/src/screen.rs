//! What the demo writes to the terminal.

use std::io::{self, IsTerminal, Write};

use crate::error::DemoError;

/// Writes one paragraph or line.
///
/// # Errors
/// The terminal is gone: nobody is there to stop the demo, so it stops itself.
pub fn say(text: &str) -> Result<(), DemoError> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}").and_then(|()| output.flush()).map_err(DemoError::Terminal)
}

/// Emphasizes `text` where a person reads it.
pub fn bold(text: &str) -> String {
    if io::stdout().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.into() }
}
