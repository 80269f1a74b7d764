//! What goes wrong between us and the CA.

use std::io;
use std::path::PathBuf;

use http::StatusCode;

use super::ATTEMPT_TIMEOUT;
use crate::protocol::BUNDLE;
use crate::tls_fault::{TlsFault, words};
use crate::{BundleError, HostPortError, SpiffeId, VerifyError};

/// Why the CA gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("the CA's address can't be used: {0}")]
    Address(#[from] HostPortError),
    #[error("the CA's address `{address}` can't be used: {reason}")]
    Unusable { address: String, reason: String },
    #[error("no connection to the CA at {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("the CA at {address} did not answer within {ATTEMPT_TIMEOUT:?}")]
    Timeout { address: String },
    #[error(
        "whoever answers at {address} can't be verified as the CA: {source}; check the trust bundle and the address"
    )]
    Tls { address: String, source: TlsFault },
    #[error("{address} presents {found}, but the CA must be {expected}; check the address")]
    WrongIdentity { address: String, found: SpiffeId, expected: SpiffeId },
    #[error("the certificate of the CA at {address} can't be used: {source}")]
    NoIdentity { address: String, source: VerifyError },
    #[error(
        "the bundle that the CA at {address} serves does not verify its own certificate: {}",
        words(source)
    )]
    Inconsistent { address: String, source: rustls::Error },
    #[error("the token file `{path}` can't be used: {reason}")]
    Token { path: PathBuf, reason: String },
    #[error("the connection to the CA at {address} failed: {reason}")]
    Http { address: String, reason: String },
    #[error("the CA at {address} answered {status} to {BUNDLE}; mount a trust bundle instead")]
    BundleStatus { address: String, status: StatusCode },
    #[error("the trust bundle of the CA at {address} can't be used: {source}")]
    Bundle { address: String, source: BundleError },
    #[error("the CA at {address} refused the request: {code:?}: {message}")]
    Refused { address: String, code: tonic::Code, message: String },
    #[error("the CA at {address} sent a certificate that can't be read: {reason}")]
    Answer { address: String, reason: String },
    #[error("no key or signing request could be made: {0}")]
    Request(#[from] rcgen::Error),
}

impl ClientError {
    /// Whether the CA was there to answer, so that waiting alone won't help.
    pub(crate) fn reached(&self) -> bool {
        match self {
            Self::Address(_)
            | Self::Unusable { .. }
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Tls { .. }
            | Self::WrongIdentity { .. }
            | Self::NoIdentity { .. }
            | Self::Inconsistent { .. }
            | Self::Token { .. }
            | Self::Http { .. }
            | Self::Request(_) => false,
            Self::Refused { code, .. } => *code != tonic::Code::Unavailable,
            Self::BundleStatus { .. } | Self::Bundle { .. } | Self::Answer { .. } => true,
        }
    }
}

pub(super) fn http_error(address: &str, error: &dyn std::error::Error) -> ClientError {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    ClientError::Http { address: address.into(), reason }
}
