//! DNS over a stream, TCP or TLS: many questions one after the other on a connection, without waiting for answers, which
//! come as they are ready (RFC 7766 6.2.1.1, RFC 7858 3.3).

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, split};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Shared;
use crate::answer::{Asker, Carrier, HEADER, Reply, failure};

/// A question that has begun must be there within this time, and an answer must be taken within it: who is slower only
/// holds a connection.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers that wait for being asked elsewhere or for being taken; no further question is read until one is gone.
const MOST_UNANSWERED: usize = 64;
/// Answers that are ready are written together up to this size.
const WRITE_BUFFER: usize = 64 << 10;

/// How patient a server is.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// A connection without a question for this long is closed.
    pub(super) idle: Duration,
}

/// A message with its length before it (RFC 1035 4.2.2).
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(2 + message.len());
    append_framed(&mut framed, message);
    framed
}

fn append_framed(buffer: &mut Vec<u8>, message: &[u8]) {
    // Messages are made with at most this length.
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    buffer.extend_from_slice(&length.to_be_bytes());
    buffer.extend_from_slice(&message[..usize::from(length)]);
}

/// Answers a connection's questions until it ends, is idle for too long, or `end` is done.
pub(super) async fn serve<S: AsyncRead + AsyncWrite>(
    stream: S,
    peer: IpAddr,
    shared: &Arc<Shared>,
    pace: Pace,
    end: impl Future<Output = ()>,
) {
    let (reader, writer) = split(stream);
    let (answers, ready) = mpsc::channel(MOST_UNANSWERED);
    let reading = read_questions(BufReader::new(reader), peer, shared, pace, answers, end);
    let writing = write_answers(writer, ready);
    let mut writing = std::pin::pin!(writing);
    tokio::select! {
        // What was asked is answered before the connection ends.
        ended = reading => {
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "a connection ended badly");
            }
            let _ = writing.await;
        }
        result = &mut writing => {
            if let Err(error) = result {
                tracing::debug!(%peer, %error, "answers can't be sent");
            }
        }
    }
}

async fn read_questions<R: AsyncRead + Unpin>(
    mut reader: R,
    peer: IpAddr,
    shared: &Arc<Shared>,
    pace: Pace,
    answers: mpsc::Sender<Vec<u8>>,
    end: impl Future<Output = ()>,
) -> io::Result<()> {
    let asker = Asker { address: peer, carrier: Carrier::Stream, forwards: shared.forwarder.has_servers() };
    let mut forwarded = JoinSet::new();
    let mut end = std::pin::pin!(end);
    loop {
        while forwarded.try_join_next().is_some() {}
        let Ok(slot) = answers.clone().reserve_owned().await else {
            break;
        };
        let question = tokio::select! {
            question = read_question(&mut reader, pace) => question?,
            () = &mut end => break,
        };
        let Some(question) = question else {
            break;
        };
        match shared.directory.answer(&question, asker) {
            Reply::Answer(answer) => drop(slot.send(answer)),
            Reply::Silence => break,
            Reply::Forward => {
                let Some(permit) = shared.forwarder.permit() else {
                    if let Some(answer) = failure(&question) {
                        slot.send(answer);
                    }
                    continue;
                };
                let shared = shared.clone();
                forwarded.spawn(async move {
                    if let Some(answer) = shared.forwarder.ask(&question, Carrier::Stream).await {
                        slot.send(answer);
                    }
                    drop(permit);
                });
            }
        }
    }
    while forwarded.join_next().await.is_some() {}
    Ok(())
}

/// The next question; none when the client is done, or has been for too long without one.
async fn read_question<R: AsyncRead + Unpin>(reader: &mut R, pace: Pace) -> io::Result<Option<Vec<u8>>> {
    let mut first = [0];
    match timeout(pace.idle, reader.read(&mut first)).await {
        Ok(Ok(0)) | Err(_) => return Ok(None),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(error),
    }
    let rest = async {
        let length = u16::from_be_bytes([first[0], reader.read_u8().await?]);
        if usize::from(length) < HEADER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not DNS"));
        }
        let mut question = vec![0; usize::from(length)];
        reader.read_exact(&mut question).await?;
        Ok(Some(question))
    };
    timeout(MESSAGE_TIMEOUT, rest).await?
}

async fn write_answers<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut ready: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(answer) = ready.recv().await {
        append_framed(&mut buffer, &answer);
        while buffer.len() < WRITE_BUFFER
            && let Ok(answer) = ready.try_recv()
        {
            append_framed(&mut buffer, &answer);
        }
        let writing = async {
            writer.write_all(&buffer).await?;
            writer.flush().await
        };
        timeout(MESSAGE_TIMEOUT, writing).await??;
        buffer.clear();
    }
    timeout(MESSAGE_TIMEOUT, writer.shutdown()).await?
}
