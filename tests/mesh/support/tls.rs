//! TLS peers that believe everything, so that only the proxy's own checks can end a connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    ServerConnection, SignatureScheme, StreamOwned,
};

use super::pki::Identity;
use super::wait::PATIENCE;
use super::wire::Connection;

#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Credulous {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A TLS client's settings: any server is believed; `identity` and `alpn` are what it shows.
pub fn client_config(identity: Option<&Identity>, alpn: &[&str]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("TLS versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider())));
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain(), identity.private_key()).expect("a certificate")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// TLS over `socket` with the handshake done; the protocol that was agreed on goes with it.
pub fn client(
    config: &Arc<ClientConfig>,
    socket: TcpStream,
) -> std::io::Result<(Connection, Option<String>)> {
    let name = ServerName::try_from("api.shop.svc.cluster.local").expect("a name");
    let mut session = ClientConnection::new(Arc::clone(config), name).expect("a client");
    let mut stream = socket.try_clone()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    let alpn = session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
    Ok((Connection::over(Box::new(StreamOwned::new(session, stream)), socket), alpn))
}

/// As [`client`], with everything that is sent cut into segments of `size` bytes.
pub fn client_in_segments(
    config: &Arc<ClientConfig>,
    socket: TcpStream,
    size: usize,
) -> std::io::Result<Connection> {
    let name = ServerName::try_from("api.shop.svc.cluster.local").expect("a name");
    let mut session = ClientConnection::new(Arc::clone(config), name).expect("a client");
    socket.set_nodelay(true)?;
    let mut stream = Segments { socket: socket.try_clone()?, size };
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok(Connection::over(Box::new(StreamOwned::new(session, stream)), socket))
}

/// Sends no more than `size` bytes at a time, each in a segment of its own.
struct Segments {
    socket: TcpStream,
    size: usize,
}

impl Read for Segments {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for Segments {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.socket.write(&bytes[..bytes.len().min(self.size)])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.flush()
    }
}

/// A TLS server's settings: any client is believed, and asked for a certificate when `mutual`.
pub fn server_config(identity: &Identity, alpn: &[&str], mutual: bool) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("TLS versions");
    let builder = if mutual {
        builder.with_client_cert_verifier(Arc::new(Credulous(provider())))
    } else {
        builder.with_no_client_auth()
    };
    let mut config =
        builder.with_single_cert(identity.chain(), identity.private_key()).expect("a certificate");
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// TLS over an accepted connection with the handshake done.
pub fn server(
    config: &Arc<ServerConfig>,
    connection: Connection,
) -> std::io::Result<(Connection, Option<String>)> {
    let socket = connection.socket;
    let mut session = ServerConnection::new(Arc::clone(config)).expect("a server");
    let mut stream = socket.try_clone()?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    let alpn = session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
    Ok((Connection::over(Box::new(StreamOwned::new(session, stream)), socket), alpn))
}
