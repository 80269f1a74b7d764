//! Whom a bearer token stands for.
//!
//! Two proofs: a file that lists hashes of tokens with their SPIFFE IDs, and signed tokens checked with a
//! key set. Both files are followed while running; a change that can't be used is logged and passed over.

mod key_set;
mod listed;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

pub use key_set::{KeySetError, KeySetOptions};
pub use listed::{ListError, hash};

use crate::{CA_ACCOUNT, SpiffeId, file_watch};
use key_set::KeySet;
use listed::TokenList;

#[cfg(test)]
pub(crate) use key_set::tests as signed;

/// Which proofs are accepted; at least one.
#[derive(Clone, Debug, Default)]
pub struct TokenOptions {
    /// A YAML or JSON file of hashed tokens.
    pub list: Option<PathBuf>,
    pub key_set: Option<KeySetOptions>,
}

/// Why tokens can't be checked at all.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error(
        "nobody could get a certificate: give a file of hashed tokens (--tokens), a key set (--jwks), or both"
    )]
    NoProof,
    #[error(transparent)]
    List(#[from] ListError),
    #[error(transparent)]
    KeySet(#[from] KeySetError),
    #[error(transparent)]
    Watch(#[from] file_watch::WatchError),
}

/// Why one token is refused. No text shows any of the token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    #[error("the token is not known to this CA")]
    Unknown,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is not meant for this CA: its audience must be `{0}`")]
    Audience(String),
    #[error("the token comes from another issuer than `{0}`")]
    Issuer(String),
    #[error("the token is signed with an algorithm that is not accepted (RS, PS, ES and EdDSA are)")]
    Algorithm,
    #[error("the token's signature does not verify with any key of the key set")]
    Signature,
    #[error("the token lacks the claim `{0}`, or it is malformed")]
    Claim(String),
    #[error("the token names no identity that this CA may vouch for: {0}")]
    Identity(String),
}

impl TokenError {
    /// A word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unknown => "token_unknown",
            Self::Expired => "token_expired",
            Self::NotYet => "token_not_yet_valid",
            Self::Audience(_) => "token_audience",
            Self::Issuer(_) => "token_issuer",
            Self::Algorithm => "token_algorithm",
            Self::Signature => "token_signature",
            Self::Claim(_) => "token_claim",
            Self::Identity(_) => "token_identity",
        }
    }
}

/// The proofs as they are now.
pub struct Tokens {
    list: Option<Arc<ArcSwap<TokenList>>>,
    key_set: Option<Arc<ArcSwap<KeySet>>>,
}

impl Tokens {
    /// Reads the files, which must be good to begin with, and follows them on the current runtime.
    pub fn open(options: &TokenOptions, trust_domain: &str) -> Result<Self, TokensError> {
        if options.list.is_none() && options.key_set.is_none() {
            return Err(TokensError::NoProof);
        }
        let domain: Arc<str> = trust_domain.into();
        let list = match &options.list {
            None => None,
            Some(path) => {
                let (path, domain) = (path.clone(), domain.clone());
                Some(follow(path.clone(), move || Ok(TokenList::load(&path, &domain)?))?)
            }
        };
        let key_set = match &options.key_set {
            None => None,
            Some(options) => {
                let options = options.clone();
                Some(follow(options.file.clone(), move || Ok(KeySet::load(&options, &domain)?))?)
            }
        };
        Ok(Self { list, key_set })
    }

    /// Whom the token stands for.
    pub fn identify(&self, token: &str) -> Result<SpiffeId, TokenError> {
        if let Some(list) = &self.list
            && let Some(id) = list.load().find(token)
        {
            return Ok(id);
        }
        match &self.key_set {
            // A listed token that is unknown should not be told about signatures.
            Some(keys) if token.split('.').count() == 3 => keys.load().verify(token),
            _ => Err(TokenError::Unknown),
        }
    }
}

/// Loads now, and again whenever the file changes.
fn follow<T: Send + Sync + 'static>(
    path: PathBuf,
    load: impl Fn() -> Result<T, TokensError> + Send + 'static,
) -> Result<Arc<ArcSwap<T>>, TokensError> {
    let mut changes = file_watch::watch([path.clone()])?;
    let current = Arc::new(ArcSwap::from_pointee(load()?));
    let weak = Arc::downgrade(&current);
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            let Some(current) = weak.upgrade() else {
                return;
            };
            match load() {
                Ok(fresh) => {
                    tracing::info!(file = %path.display(), "tokens loaded again");
                    current.store(Arc::new(fresh));
                }
                Err(error) => {
                    tracing::error!(%error, "changed tokens can't be used; going on with those from before");
                }
            }
        }
    });
    Ok(current)
}

/// What a token may stand for: anybody of the trust domain but the CA itself.
fn check_identity(id: &SpiffeId, trust_domain: &str) -> Result<(), String> {
    if id.trust_domain() != trust_domain {
        return Err(format!("{id} is not of this CA's trust domain, `{trust_domain}`"));
    }
    if (id.namespace(), id.service_account()) == (Some(CA_ACCOUNT.0), Some(CA_ACCOUNT.1)) {
        return Err(format!("{id} is the CA's own identity, which it gives to nobody"));
    }
    Ok(())
}
