//! Stands in for Redis where it is not installed: the few commands that the demo needs, by Redis' own protocol.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{ServiceError, accept, listen};

/// Bounds what a client makes the server keep: arguments a command, and bytes an argument.
const MOST_ARGUMENTS: usize = 8;
const LONGEST_ARGUMENT: usize = 1024;
/// And keys.
const MOST_KEYS: usize = 10_000;

type Counters = Arc<Mutex<HashMap<Vec<u8>, i64>>>;

/// Serves until the process ends.
///
/// # Errors
/// The address can't be listened on.
pub async fn run(address: SocketAddr) -> Result<(), ServiceError> {
    let listener = listen(address).await?;
    let counters = Counters::default();
    loop {
        let stream = accept(&listener).await;
        let counters = Arc::clone(&counters);
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &counters).await {
                eprintln!("connection ended: {error}");
            }
        });
    }
}

async fn converse(stream: TcpStream, counters: &Counters) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(command) = read_command(&mut stream).await? {
        let reply = execute(&command, counters);
        stream.get_mut().write_all(reply.as_bytes()).await?;
    }
    Ok(())
}

/// Reads an array of bulk strings, as all Redis clients send; None at the end of the connection.
async fn read_command(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<Vec<u8>>>> {
    let Some(count) = read_length(stream, '*', MOST_ARGUMENTS).await? else {
        return Ok(None);
    };
    let mut command = Vec::with_capacity(count);
    for _ in 0..count {
        let length = read_length(stream, '$', LONGEST_ARGUMENT).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut argument = vec![0; length + 2];
        stream.read_exact(&mut argument).await?;
        argument.truncate(length);
        command.push(argument);
    }
    Ok(Some(command))
}

async fn read_length(
    stream: &mut (impl AsyncBufRead + Unpin),
    kind: char,
    most: usize,
) -> io::Result<Option<usize>> {
    let mut line = String::new();
    // A length has few digits; more is no Redis client.
    if (&mut *stream).take(16).read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let length = line.strip_prefix(kind).and_then(|digits| digits.trim_end().parse().ok());
    match length.filter(|length| *length <= most) {
        Some(length) => Ok(Some(length)),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("expected {kind} and a length up to {most}"),
        )),
    }
}

fn execute(command: &[Vec<u8>], counters: &Counters) -> String {
    let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
    let name = command.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
    match (name.as_slice(), &command[command.len().min(1)..]) {
        (b"PING", []) => "+PONG\r\n".into(),
        (b"INCR", [key]) => {
            if counters.len() >= MOST_KEYS && !counters.contains_key(key) {
                return "-ERR too many keys for the demo's store\r\n".into();
            }
            let value = counters.entry(key.clone()).or_default();
            *value = value.saturating_add(1);
            format!(":{value}\r\n")
        }
        (b"GET", [key]) => counters.get(key).map_or_else(
            || "$-1\r\n".into(),
            |value| {
                let text = value.to_string();
                format!("${}\r\n{text}\r\n", text.len())
            },
        ),
        _ => "-ERR the demo's store knows PING, GET key and INCR key\r\n".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answers(input: &[u8]) -> Result<Vec<String>, io::ErrorKind> {
        let counters = Counters::default();
        let mut stream = input;
        let mut answers = Vec::new();
        while let Some(command) = read_command(&mut stream).await.map_err(|error| error.kind())? {
            answers.push(execute(&command, &counters));
        }
        Ok(answers)
    }

    #[tokio::test]
    async fn it_counts_as_redis_does() {
        let answers = answers(
            b"*1\r\n$4\r\nping\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\n\
              *2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$8\r\nFLUSHALL\r\n",
        )
        .await;
        assert_eq!(
            answers.expect("all are commands"),
            [
                "+PONG\r\n",
                "$-1\r\n",
                ":1\r\n",
                ":2\r\n",
                "$1\r\n2\r\n",
                "-ERR the demo's store knows PING, GET key and INCR key\r\n"
            ]
        );
    }

    #[tokio::test]
    async fn what_is_no_command_ends_the_connection() {
        for (input, kind) in [
            (&b"GET / HTTP/1.1\r\n"[..], io::ErrorKind::InvalidData),
            (b"*9999999999\r\n", io::ErrorKind::InvalidData),
            (b"*1\r\n$99999\r\n", io::ErrorKind::InvalidData),
            (b"*2\r\n$4\r\nINCR\r\n", io::ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(answers(input).await, Err(kind));
        }
    }
}
