//! What went wrong with TLS, in words that an operator understands: rustls' own texts are names of its types.
//!
//! Two ways lead here: [`handshake`] says why a handshake failed and whose certificate was refused, and [`Worded`] is a
//! TLS stream whose later errors are worded.

use std::cell::RefCell;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::{AlertDescription, CertificateError, Error, ExtendedKeyPurpose};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::SpiffeId;
use crate::unix_time::rfc3339;
use crate::verify::{VerifyError, peer_identity};

tokio::task_local! {
    /// Whom a certificate names that the handshake under way refused. rustls' errors don't say whose it was, and one of
    /// our own in their place would change the alert that the peer gets.
    static REFUSED: RefCell<Option<SpiffeId>>;
}

/// Why TLS did not come about, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    #[error("the peer's certificate{} is refused: {reason}", named(id.as_ref()))]
    Certificate {
        /// Whom it names. Nobody has proven that.
        id: Option<SpiffeId>,
        reason: String,
    },
    #[error("{}: {}", Self::ALERT, .0)]
    Alert(&'static str),
    #[error("the peer speaks none of the protocols that it may")]
    NoProtocol,
    #[error("TLS failed: {0}")]
    Protocol(String),
    #[error("the connection ended during the handshake: {0}")]
    Lost(io::ErrorKind),
}

impl TlsFault {
    /// How the text of each alert begins, for those who are left with the text.
    pub const ALERT: &str = "the peer refused us";

    /// Reads the reason out of an error of a TLS stream.
    pub fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error @ (Error::InvalidCertificate(_) | Error::NoCertificatesPresented)) => {
                Self::Certificate { id: None, reason: words(error) }
            }
            Some(Error::AlertReceived(alert)) => Self::Alert(of_alert(*alert)),
            Some(Error::NoApplicationProtocol) => Self::NoProtocol,
            Some(error) => Self::Protocol(words(error)),
            None => Self::Lost(error.kind()),
        }
    }
}

fn named(id: Option<&SpiffeId>) -> String {
    id.map(|id| format!(", for {id},")).unwrap_or_default()
}

/// Waits for a handshake, and says what kept it from ending well.
///
/// # Errors
/// The handshake's.
pub async fn handshake<T>(shaking: impl Future<Output = io::Result<T>>) -> Result<T, TlsFault> {
    let noting = async {
        shaking.await.map_err(|error| match TlsFault::of(&error) {
            TlsFault::Certificate { reason, .. } => {
                TlsFault::Certificate { id: REFUSED.with(RefCell::take), reason }
            }
            fault => fault,
        })
    };
    REFUSED.scope(RefCell::default(), noting).await
}

/// Notes whose certificate is refused, for the handshake that this is called in.
pub(crate) fn note_refused(leaf: &CertificateDer<'_>) {
    if let Ok(peer) = peer_identity(Some(std::slice::from_ref(leaf))) {
        // Outside of a handshake nobody asks.
        let _ = REFUSED.try_with(|refused| refused.replace(Some(peer.id)));
    }
}

/// An error of rustls in words. One about a certificate speaks of it as "it".
pub fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => of_certificate(reason),
        Error::NoCertificatesPresented => VerifyError::NoCertificate.to_string(),
        Error::AlertReceived(alert) => format!("{}: {}", TlsFault::ALERT, of_alert(*alert)),
        Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => "what the peer sends is not TLS".into(),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "the peer sends messages out of order".into()
        }
        Error::PeerIncompatible(why) => format!("the peer's TLS and ours don't fit: {}", name_in_words(why)),
        Error::PeerMisbehaved(why) => format!("the peer breaks the rules of TLS: {}", name_in_words(why)),
        Error::DecryptError => "what the peer sends can't be decrypted".into(),
        Error::NoApplicationProtocol => TlsFault::NoProtocol.to_string(),
        Error::InconsistentKeys(_) => "the key does not belong to the certificate".into(),
        Error::General(text) => text.clone(),
        Error::Other(other) => other.0.to_string(),
        other => name_in_words(other),
    }
}

fn of_certificate(reason: &CertificateError) -> String {
    use CertificateError as Reason;
    match reason {
        Reason::ExpiredContext { not_after, .. } => {
            format!("it expired at {}: renew it", rfc3339(not_after.as_secs()))
        }
        Reason::NotValidYetContext { not_before, .. } => {
            format!("it is not valid before {}: are the clocks right?", rfc3339(not_before.as_secs()))
        }
        Reason::Expired => "it has expired: renew it".into(),
        Reason::NotValidYet => "it is not valid yet: are the clocks right?".into(),
        Reason::UnknownIssuer => {
            "it does not chain to the trust bundle: both sides need the same roots".into()
        }
        // Of two roots of one name, too, the wrong one makes a wrong signature.
        Reason::BadSignature => {
            "its signature is wrong, or by another root of the same name: both sides need the same roots".into()
        }
        Reason::InvalidPurposeContext { required, .. } => {
            let purpose = match required {
                ExtendedKeyPurpose::ClientAuth => "clients (extended key usage clientAuth)",
                ExtendedKeyPurpose::ServerAuth => "servers (extended key usage serverAuth)",
                _ => "this purpose",
            };
            format!("it is not for {purpose}; one of the mesh is for clients and servers")
        }
        Reason::InvalidPurpose => "it is for another purpose (extended key usage)".into(),
        Reason::BadEncoding => "it is no X.509 certificate that can be read".into(),
        Reason::UnhandledCriticalExtension => "it has a critical extension that is unknown here".into(),
        Reason::NotValidForNameContext { expected, presented } if presented.is_empty() => {
            format!("it names no host, and should name {}", expected.to_str())
        }
        Reason::NotValidForNameContext { expected, presented } => {
            format!("it is for {}, not for {}", presented.join(", "), expected.to_str())
        }
        Reason::UnsupportedSignatureAlgorithmContext { .. }
        | Reason::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it is signed by an algorithm that is not taken: use ECDSA, Ed25519, or RSA with SHA-256 or better".into()
        }
        Reason::Other(other) => match other.0.downcast_ref::<VerifyError>() {
            Some(error) => error.to_string(),
            None => name_in_words(&other.0),
        },
        other => name_in_words(other),
    }
}

fn of_alert(alert: AlertDescription) -> &'static str {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateExpired => "our certificate has expired or is not valid yet, it says",
        Alert::UnknownCA => "our certificate does not chain to its trust bundle, it says",
        Alert::BadCertificate | Alert::CertificateUnknown => {
            "our certificate is not one of its mesh, it says"
        }
        Alert::UnsupportedCertificate => "our certificate is for another purpose, it says",
        Alert::CertificateRevoked => "our certificate is revoked, it says",
        Alert::CertificateRequired | Alert::NoCertificate => "it wants a certificate",
        Alert::DecryptError => {
            "a signature is wrong, it says, such as that of our certificate by a root that it does not have"
        }
        Alert::AccessDenied => "it denies access",
        Alert::NoApplicationProtocol => "it speaks none of our protocols",
        Alert::ProtocolVersion => "it does not speak our version of TLS",
        Alert::HandshakeFailure | Alert::InsufficientSecurity => "it finds nothing in common with our TLS",
        Alert::UnrecognisedName => "it does not know the server name that was asked for",
        Alert::InternalError => "an internal error of its own",
        Alert::UserCanceled => "it gave up",
        _ => "by an alert of TLS that says no more",
    }
}

/// The name of a type's variant in words: `CaUsedAsEndEntity` is "ca used as end entity".
fn name_in_words(value: &impl Debug) -> String {
    let mut words = String::new();
    for c in format!("{value:?}").chars().take_while(char::is_ascii_alphanumeric) {
        if c.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

/// A TLS stream whose errors are in words.
#[derive(Debug)]
pub struct Worded<S>(pub S);

/// An error of a TLS stream, with the same kind and its text in words.
pub fn worded(error: io::Error) -> io::Error {
    match TlsFault::of(&error) {
        TlsFault::Lost(io::ErrorKind::UnexpectedEof) => {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection without notice")
        }
        TlsFault::Lost(_) => error,
        fault => io::Error::new(error.kind(), fault),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Worded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf).map_err(worded)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Worded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf).map_err(worded)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx).map_err(worded)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx).map_err(worded)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs).map_err(worded)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose as Usage, SanType};
    use rustls::{ClientConfig, InvalidMessage, PeerMisbehaved, ServerConfig};
    use rustls_pki_types::ServerName;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::authority::testing;
    use crate::{TrustBundle, client_verifier, provider, server_verifier};

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
    /// 2025-01-02T03:04:05Z.
    const THEN: Duration = Duration::from_secs(1_735_787_045);

    type Change = fn(&mut CertificateParams);

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    /// What a client says of a server that shows a certificate bent by `change`, and the server of the client.
    async fn said_by_both(change: Change) -> [String; 2] {
        let (root, root_key, root_pem) = testing::root_with_key("root");
        let bundle = TrustBundle::from_pem(root_pem.as_bytes()).unwrap();
        let good = testing::leaf(&root, &root_key, |_| {});
        let bent = testing::leaf(&root, &root_key, change);
        [said(&bundle, &bundle, &bent, &good).await.0, said(&bundle, &bundle, &good, &bent).await.1]
    }

    /// What client and server say; each has a bundle, and shows a certificate.
    async fn said(
        clients: &TrustBundle,
        servers: &TrustBundle,
        server: &(String, String),
        client: &(String, String),
    ) -> (String, String) {
        let key = |(leaf, key): &(String, String)| {
            use rustls_pki_types::pem::PemObject as _;
            let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
            let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            let key = provider().key_provider.load_private_key(key).unwrap();
            let key = rustls::sign::CertifiedKey::new(vec![leaf], key);
            Arc::new(rustls::sign::SingleCertAndKey::from(key))
        };
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(client_verifier(servers).unwrap())
            .with_cert_resolver(key(server));
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(server_verifier(clients))
            .with_client_cert_resolver(key(client));
        let (near, far) = tokio::io::duplex(64 << 10);
        let name = ServerName::try_from("web").unwrap();
        let connecting = handshake(TlsConnector::from(Arc::new(client)).connect(name, near));
        let accepting = handshake(TlsAcceptor::from(Arc::new(server)).accept(far));
        // In TLS 1.3 a client is done before its certificate is looked at, and learns of the alert when it reads.
        let connecting = async {
            use tokio::io::AsyncReadExt as _;
            let mut stream = connecting.await.map_err(|fault| fault.to_string())?;
            Worded(&mut stream).read_u8().await.map_err(|error| error.to_string())
        };
        let (client, server) = tokio::join!(connecting, async { accepting.await.map(drop) });
        let text = |fault: Option<String>| fault.unwrap_or_default();
        (text(client.err()), text(server.err().map(|fault| fault.to_string())))
    }

    #[tokio::test]
    async fn a_refused_certificate_is_told_by_whom_it_names_what_is_wrong_and_what_to_do() {
        let table: [(&str, Change, &str); 7] = [
            (
                "expired",
                |p| {
                    p.not_before = SystemTime::UNIX_EPOCH.into();
                    p.not_after = (SystemTime::UNIX_EPOCH + THEN).into();
                },
                ", for spiffe://cluster.local/ns/shop/sa/web, is refused: it expired at 2025-01-02T03:04:05Z: renew it",
            ),
            (
                "not yet valid",
                |p| {
                    p.not_before = (SystemTime::UNIX_EPOCH + 2 * THEN).into();
                    p.not_after = (SystemTime::UNIX_EPOCH + 3 * THEN).into();
                },
                ", for spiffe://cluster.local/ns/shop/sa/web, is refused: it is not valid before 2080-01-04T06:08:10Z: \
                 are the clocks right?",
            ),
            (
                "no SPIFFE ID",
                |p| p.subject_alt_names.clear(),
                " is refused: it names no SPIFFE ID; a mesh certificate names exactly one",
            ),
            (
                "two SPIFFE IDs",
                |p| p.subject_alt_names.push(uri("spiffe://cluster.local/ns/a/sa/b")),
                " is refused: it names 2 URIs; a mesh certificate names exactly one, its SPIFFE ID",
            ),
            (
                "another URI",
                |p| p.subject_alt_names = vec![uri("https://cluster.local/web")],
                " is refused: `https://cluster.local/web` is no SPIFFE ID: it must start with spiffe:// (example: \
                 spiffe://cluster.local/ns/shop/sa/web)",
            ),
            (
                "a purpose of neither",
                |p| p.extended_key_usages = vec![Usage::CodeSigning],
                ", for spiffe://cluster.local/ns/shop/sa/web, is refused: it is not for PURPOSE; one of the mesh is for \
                 clients and servers",
            ),
            (
                "a critical extension",
                |p| {
                    let mut unknown =
                        rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 1], vec![5, 0]);
                    unknown.set_criticality(true);
                    p.custom_extensions.push(unknown);
                },
                ", for spiffe://cluster.local/ns/shop/sa/web, is refused: unsupported critical extension",
            ),
        ];
        for (what, change, expected) in table {
            let purposes =
                ["servers (extended key usage serverAuth)", "clients (extended key usage clientAuth)"];
            for (said, purpose) in said_by_both(change).await.into_iter().zip(purposes) {
                let expected = format!("the peer's certificate{}", expected.replace("PURPOSE", purpose));
                assert_eq!(said, expected, "{what}");
            }
        }
    }

    #[tokio::test]
    async fn roots_that_differ_are_told_to_both_sides() {
        let roots = [testing::root_with_key("root"), testing::root_with_key("another")];
        let bundles = [0, 1].map(|i| TrustBundle::from_pem(roots[i].2.as_bytes()).unwrap());
        let leaves = [0, 1].map(|i| testing::leaf(&roots[i].0, &roots[i].1, |_| {}));
        let refused = format!(
            "the peer's certificate, for {WEB}, is refused: it does not chain to the trust bundle: both sides need the \
             same roots"
        );
        let told = "the peer refused us: our certificate does not chain to its trust bundle, it says";
        let (client, server) = said(&bundles[0], &bundles[1], &leaves[1], &leaves[1]).await;
        assert_eq!((client.as_str(), server.as_str()), (&*refused, told));
        let (client, server) = said(&bundles[0], &bundles[0], &leaves[0], &leaves[1]).await;
        assert_eq!((client.as_str(), server.as_str()), (told, &*refused));
    }

    #[test]
    fn no_text_is_a_name_of_the_librarys() {
        let other = rustls::OtherError(Arc::new(io::Error::other("a reason")));
        let table = [
            (Error::NoCertificatesPresented, "it sent none"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "what the peer sends is not TLS"),
            (Error::PeerSentOversizedRecord, "what the peer sends is not TLS"),
            (
                Error::PeerMisbehaved(PeerMisbehaved::UnsolicitedEncryptedExtension),
                "the peer breaks the rules of TLS: unsolicited encrypted extension",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateExpired),
                "the peer refused us: our certificate has expired or is not valid yet, it says",
            ),
            (
                Error::AlertReceived(AlertDescription::Unknown(200)),
                "the peer refused us: by an alert of TLS that says no more",
            ),
            (
                CertificateError::BadSignature.into(),
                "its signature is wrong, or by another root of the same name: both sides need the same roots",
            ),
            (CertificateError::Revoked.into(), "revoked"),
            (CertificateError::BadEncoding.into(), "it is no X.509 certificate that can be read"),
            (
                CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("db.example").unwrap(),
                    presented: vec!["www.example".into(), "*.example.org".into()],
                }
                .into(),
                "it is for www.example, *.example.org, not for db.example",
            ),
            (Error::Other(other), "a reason"),
            (Error::HandshakeNotComplete, "handshake not complete"),
        ];
        for (error, text) in table {
            assert_eq!(words(&error), text, "{error:?}");
        }
    }

    #[test]
    fn a_stream_that_ends_suddenly_sends_nobody_to_a_manual() {
        let eof = io::Error::new(io::ErrorKind::UnexpectedEof, "peer closed …: https://docs.rs/rustls");
        let said = worded(eof);
        assert_eq!(said.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(said.to_string(), "the peer closed the connection without notice");
        let reset = worded(io::ErrorKind::ConnectionReset.into());
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        let alert =
            io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(AlertDescription::UnknownCA));
        assert!(worded(alert).to_string().starts_with(TlsFault::ALERT));
    }
}
