//! DNS over UDP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{ACCEPT_PAUSE, Shared, stop};
use crate::answer::{Asker, Carrier, Reply, failure};

/// Questions are far smaller; what is cut off here makes no sense as a message and is answered so.
const LARGEST_QUESTION: usize = 4096;

/// Answers until stopped.
pub(super) async fn serve(socket: UdpSocket, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let socket = Arc::new(socket);
    let mut forwarded = JoinSet::new();
    let mut question = vec![0; LARGEST_QUESTION];
    loop {
        let (length, asker) = tokio::select! {
            received = socket.recv_from(&mut question) => match received {
                Ok(received) => received,
                Err(error) => {
                    tracing::warn!(%error, "a question could not be received");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = forwarded.join_next() => continue,
            () = stop(&mut stopped) => break,
        };
        // An answer to port 0 can't be sent.
        if asker.port() == 0 {
            continue;
        }
        if let Some(answer) = answer_now(&socket, &shared, &mut forwarded, &question[..length], asker) {
            send(&socket, &answer, asker);
        }
    }
    while forwarded.join_next().await.is_some() {}
}

/// The answer, unless others must be asked for it first, or there is none.
fn answer_now(
    socket: &Arc<UdpSocket>,
    shared: &Arc<Shared>,
    forwarded: &mut JoinSet<()>,
    question: &[u8],
    from: SocketAddr,
) -> Option<Vec<u8>> {
    let asker = Asker {
        address: from.ip().to_canonical(),
        carrier: Carrier::Udp,
        forwards: shared.forwarder.has_servers(),
    };
    match shared.directory.answer(question, asker) {
        Reply::Answer(answer) => Some(answer),
        Reply::Silence => None,
        Reply::Forward => {
            let Some(permit) = shared.forwarder.permit() else {
                return failure(question);
            };
            let (socket, shared, question) = (socket.clone(), shared.clone(), question.to_vec());
            forwarded.spawn(async move {
                if let Some(answer) = shared.forwarder.ask(&question, Carrier::Udp).await {
                    send(&socket, &answer, from);
                }
                drop(permit);
            });
            None
        }
    }
}

/// A datagram that finds no room is lost, as any may be: waiting would hold up everybody's answers.
fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    match socket.try_send_to(answer, to) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            tracing::debug!(%to, "an answer was dropped, since the socket's buffer is full");
        }
        Err(error) => tracing::debug!(%to, %error, "an answer could not be sent"),
    }
}
