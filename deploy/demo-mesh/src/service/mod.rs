//! The small programs that play the workloads. They know nothing of the mesh: they dial names, and answer.

pub mod api;
pub mod load;
pub mod plain_http;
pub mod relay;
pub mod store;
pub mod web;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// Accepting fails while descriptors are exhausted; trying at once again would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a demo service could not start.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The address is taken or not this machine's.
    #[error("can't listen on {address}: {source}; choose another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The relay was run by hand.
    #[error("standard input is not a listening socket: {0}; `outrigger demo` hands one in")]
    NoSocket(io::Error),
    /// The runtime could not be made.
    #[error("can't start the runtime: {0}")]
    Runtime(#[source] io::Error),
}

/// Runs a service until it is killed: a demo service has nothing to lose.
///
/// # Errors
/// What the service says.
pub fn run(service: impl Future<Output = Result<(), ServiceError>>) -> Result<(), ServiceError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServiceError::Runtime)?
        .block_on(service)
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServiceError> {
    TcpListener::bind(address).await.map_err(|source| ServiceError::Listen { address, source })
}

/// The next connection; what prevents one is logged, and waited out.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                eprintln!("can't accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
