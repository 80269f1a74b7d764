//! The entry's relay: takes connections of the host over and carries their bytes to a service, which it dials by
//! name like any workload.

use std::io;
use std::os::fd::AsFd;

use tokio::net::{TcpListener, TcpStream};

use super::{ServiceError, accept};

/// Relays connections from the listening socket on standard input to `target`, a host and port, until the process
/// ends.
///
/// # Errors
/// Standard input is not a listening socket.
pub async fn run(target: String) -> Result<(), ServiceError> {
    let listener = inherited().map_err(ServiceError::NoSocket)?;
    loop {
        let mut client = accept(&listener).await;
        let target = target.clone();
        tokio::spawn(async move {
            match TcpStream::connect(&target).await {
                // Small responses must not wait for the acknowledgement of the ones before.
                Ok(mut server) => {
                    let carried = client.set_nodelay(true).and(server.set_nodelay(true));
                    if carried.is_ok() {
                        // Either end may break off at any time.
                        tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
                    }
                }
                Err(error) => eprintln!("can't connect to {target}: {error}"),
            }
        });
    }
}

fn inherited() -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}
