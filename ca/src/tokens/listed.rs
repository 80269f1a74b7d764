//! Tokens listed by their hash.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::check_identity;
use crate::SpiffeId;
use crate::certificate::hexadecimal;

/// Why a list can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("the list of tokens `{path}` can't be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "the list of tokens `{path}` can't be used: {reason}; each entry is `- {{sha256: <hash by outrigger ca hash-token>, identity: spiffe://...}}`"
    )]
    Syntax { path: PathBuf, reason: String },
    #[error("entry {number} of the list of tokens `{path}` can't be used: {reason}")]
    Entry { path: PathBuf, number: usize, reason: String },
}

/// The hash under which a token is listed: SHA-256 in lower-case hexadecimal, white space around the token
/// left out.
pub fn hash(token: &str) -> String {
    hexadecimal(&Sha256::digest(token.trim()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    sha256: String,
    identity: String,
}

pub(super) struct TokenList(Vec<([u8; 32], SpiffeId)>);

impl TokenList {
    pub fn load(path: &Path, trust_domain: &str) -> Result<Self, ListError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ListError::Read { path: path.into(), source })?;
        let entries = entries(&text).map_err(|reason| ListError::Syntax { path: path.into(), reason })?;
        let parsed = entries.iter().enumerate().map(|(index, entry)| {
            entry.parse(trust_domain).map_err(|reason| ListError::Entry {
                path: path.into(),
                number: index + 1,
                reason,
            })
        });
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    /// Looks at every entry whatever matches, so that the time taken tells nothing.
    pub fn find(&self, token: &str) -> Option<SpiffeId> {
        let wanted: [u8; 32] = Sha256::digest(token.trim()).into();
        let mut found = None;
        for (hash, id) in &self.0 {
            if bool::from(hash.ct_eq(&wanted)) {
                found = Some(id);
            }
        }
        found.cloned()
    }
}

/// A YAML list, or JSON with one entry a line.
fn entries(text: &str) -> Result<Vec<Entry>, String> {
    if text.trim_start().starts_with('{') {
        return text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| serde_json::from_str(line).map_err(|error| error.to_string()))
            .collect();
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

impl Entry {
    fn parse(&self, trust_domain: &str) -> Result<([u8; 32], SpiffeId), String> {
        let hash = parse_hash(&self.sha256)
            .ok_or("`sha256` must be 64 hexadecimal digits, as `outrigger ca hash-token` prints")?;
        let id: SpiffeId = self.identity.parse().map_err(|error: crate::SpiffeError| error.to_string())?;
        check_identity(&id, trust_domain)?;
        Ok((hash, id))
    }
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<TokenList, ListError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        TokenList::load(file.path(), "cluster.local")
    }

    #[test]
    fn yaml_and_json_lines_name_the_same_people() {
        let hash = hash("secret\n");
        let id = "spiffe://cluster.local/ns/shop/sa/web";
        for text in [
            format!("- sha256: {hash}\n  identity: {id}\n"),
            format!("# comment\n- {{sha256: {hash}, identity: \"{id}\"}}\n"),
            format!("{{\"sha256\": \"{hash}\", \"identity\": \"{id}\"}}\n\n"),
        ] {
            let list = load(&text).unwrap();
            assert_eq!(list.find("secret").unwrap().as_str(), id, "{text}");
            assert_eq!(list.find("Secret"), None, "{text}");
            assert_eq!(list.find(""), None, "{text}");
        }
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        let hash = hash("secret");
        for (text, reason) in [
            (format!("- sha256: {hash}"), "identity"),
            (format!("- {{sha256: {hash}, identity: \"spiffe://cluster.local/ns/a/sa/b\", x: 1}}"), "x"),
            ("- {sha256: abc, identity: \"spiffe://cluster.local/ns/a/sa/b\"}".into(), "64 hexadecimal"),
            (format!("- {{sha256: {hash}, identity: web}}"), "no SPIFFE ID"),
            (
                format!("- {{sha256: {hash}, identity: \"spiffe://example.org/ns/a/sa/b\"}}"),
                "not of this CA's trust domain",
            ),
            (
                format!(
                    "- {{sha256: {hash}, identity: \"spiffe://cluster.local/ns/outrigger/sa/outrigger-ca\"}}"
                ),
                "own identity",
            ),
        ] {
            let error = load(&text).err().expect(&text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_operator_may_name_the_discovery_server() {
        let hash = hash("secret");
        let id = "spiffe://cluster.local/ns/outrigger/sa/outrigger-discovery";
        let list = load(&format!("- {{sha256: {hash}, identity: \"{id}\"}}")).unwrap();
        assert_eq!(list.find("secret").unwrap().as_str(), id);
    }

    #[test]
    fn the_hash_is_what_sha256sum_prints() {
        assert_eq!(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
