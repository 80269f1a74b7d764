//! Regular expressions of a config: how they are read, and what they may cost.

use regex::bytes::{Regex, RegexBuilder};
use thiserror::Error;

/// What one regular expression may take compiled. That is hundreds of times what matching a path needs, and ten
/// thousand routes that use it up still fit a machine.
pub const MAX_COMPILED_BYTES: usize = 64 * 1024;

/// What the states that come up while matching may take, a thread: beyond it they are made anew.
const MAX_CACHE_BYTES: usize = 256 * 1024;

/// A text that is no regular expression of a config; the message says why.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// It does not compile.
    #[error("`{0}` is not a regular expression: {1}")]
    Syntax(String, String),
    /// It would take too much memory.
    #[error("`{0}` takes more than {limit} KiB compiled", limit = MAX_COMPILED_BYTES / 1024)]
    TooLarge(String),
}

/// Compiles a pattern that must match the whole of a text.
///
/// It works on bytes, and its classes are those of ASCII: a path is ASCII, a header value any bytes, and Unicode's
/// `\w` alone would take 49 KiB.
///
/// # Errors
/// It does not compile, or is too large.
pub fn whole_match(pattern: &str) -> Result<Regex, PatternError> {
    // By itself first: `a)|(b` would only be one within the parentheses.
    compile(pattern).and_then(|_| compile(&format!("^(?:{pattern})$"))).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => PatternError::TooLarge(pattern.into()),
        error => PatternError::Syntax(pattern.into(), reason(&error)),
    })
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_CACHE_BYTES)
        .build()
}

/// The crate draws the pattern over several lines and says why in the last.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_text_only() {
        for (pattern, text, want) in [
            ("/users/[0-9]+", "/users/17", true),
            ("/users/[0-9]+", "/users/17/orders", false),
            ("/users/[0-9]+", "/v1/users/17", false),
            ("/a|/b", "/b", true),
            ("/a|/b", "/bc", false),
            (".*", "/anything/at%20all", true),
            ("(?i)/Shop", "/SHOP", true),
            ("/a$", "/a", true),
            ("/a", "/a\n", false),
            (r"\w+", "Zürich", false),
            ("Zürich", "Zürich", true),
            ("", "", true),
        ] {
            assert_eq!(whole_match(pattern).unwrap().is_match(text.as_bytes()), want, "{pattern} {text}");
        }
    }

    #[test]
    fn what_does_not_compile_or_is_too_large_is_refused_with_the_reason() {
        for (pattern, want) in [
            ("/a(b", "`/a(b` is not a regular expression: unclosed group"),
            ("a)|(b", "`a)|(b` is not a regular expression: unopened group"),
            ("*", "`*` is not a regular expression: repetition operator missing expression"),
            (r"\p{L}", r"`\p{L}` is not a regular expression: Unicode not allowed here"),
            (
                "(?=a)",
                "`(?=a)` is not a regular expression: look-around, including look-ahead and look-behind, is not supported",
            ),
            (r"\w{1000000}", r"`\w{1000000}` takes more than 64 KiB compiled"),
            ("(a{100}){100}", "`(a{100}){100}` takes more than 64 KiB compiled"),
        ] {
            assert_eq!(whole_match(pattern).unwrap_err().to_string(), want, "{pattern}");
        }
    }
}
