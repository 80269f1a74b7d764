//! From an address to an HTTP/2 connection whose other end showed its certificate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use super::error::{ClientError, http_error};
use super::first_contact;
use crate::tls_fault::{Worded, handshake};
use crate::workload::CaOptions;
use crate::{HostPort, TrustBundle, provider, server_verifier};

/// One address of several must not use up the whole attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct Connection {
    pub address: String,
    pub origin: Uri,
    pub presented: Vec<CertificateDer<'static>>,
    pub sender: SendRequest<Body>,
}

/// Connects. Without a bundle the other end is not verified: see `first_contact`.
pub(super) async fn connect(
    options: &CaOptions,
    trusted: Option<&TrustBundle>,
) -> Result<Connection, ClientError> {
    let address = &options.address;
    let unusable = |reason: String| ClientError::Unusable { address: address.clone(), reason };
    let host_port: HostPort = address.parse().map_err(ClientError::Address)?;
    let server_name =
        ServerName::try_from(host_port.host().to_owned()).map_err(|error| unusable(error.to_string()))?;
    let origin: Uri = format!("https://{address}")
        .parse()
        .map_err(|error: http::uri::InvalidUri| unusable(error.to_string()))?;
    let verifier = match trusted {
        Some(bundle) => server_verifier(bundle),
        None => Arc::new(first_contact::Unverified::new()),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();

    let tcp = dial(options).await?;
    let tls = handshake(TlsConnector::from(Arc::new(config)).connect(server_name, tcp))
        .await
        .map_err(|source| ClientError::Tls { address: address.clone(), source })?;
    let presented = tls.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(Worded(tls)))
            .await
            .map_err(|error| http_error(address, &error))?;
    tokio::spawn(async move {
        // The request on this connection reports the failure.
        let _ = connection.await;
    });
    Ok(Connection { address: address.clone(), origin, presented, sender })
}

async fn dial(options: &CaOptions) -> Result<TcpStream, ClientError> {
    let failed = |source| ClientError::Connect { address: options.address.clone(), source };
    let addresses = lookup_host(&options.address).await.map_err(failed)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, dial_one(address, options.mark)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed(last))
}

async fn dial_one(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        socket2::SockRef::from(&socket).set_mark(mark).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("the packet mark {mark} can't be set ({error}); it needs CAP_NET_ADMIN"),
            )
        })?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_is_set_or_its_lack_of_privilege_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        match dial_one(address, Some(1337)).await {
            Ok(stream) => assert_eq!(socket2::SockRef::from(&stream).mark().unwrap(), 1337),
            Err(error) => assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}"),
        }
    }

    #[tokio::test]
    async fn what_is_no_address_or_not_there_says_so() {
        for (address, text) in [
            ("ca.example", "host:port"),
            ("ca example:1", "host:port"),
            ("127.0.0.1:1", "no connection to the CA at 127.0.0.1:1"),
            ("[::1", "host:port"),
        ] {
            let options = CaOptions::new(address, "token");
            let error = connect(&options, None).await.err().expect(address);
            assert!(error.to_string().contains(text), "{address}: {error}");
            assert!(!error.reached());
        }
    }
}
