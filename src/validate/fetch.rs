//! The metrics that a config is compared with: asked of a proxy, or out of a file.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use outrigger_proxy::config::Measured;

use crate::Failure;

/// How long a proxy may take to answer; it is near.
const PATIENCE: Duration = Duration::from_secs(5);
/// Twice what all series that a proxy keeps can take.
const MAX_BYTES: u64 = 32 * 1024 * 1024;

/// Reads the metrics at a URL, in a file, or on standard input (`-`).
///
/// # Errors
/// They can't be had, or are something else.
pub(super) fn measured(source: &str) -> Result<Measured, Failure> {
    let read = || -> Result<Measured, Failure> {
        let text = if source.starts_with("https://") {
            return Err("only http is spoken here: fetch it with curl, and give the file".into());
        } else if let Some(place) = source.strip_prefix("http://") {
            get(place)?
        } else if source == "-" {
            limited(std::io::stdin())?
        } else {
            limited(std::fs::File::open(Path::new(source))?)?
        };
        Ok(Measured::read(&text)?)
    };
    read().map_err(|error| format!("metrics {source}: {error}").into())
}

/// Asks `host:port/path` by HTTP/1.0, whose answers end with the connection and are never chunked.
fn get(place: &str) -> Result<String, Failure> {
    let (authority, path) = match place.split_once('/') {
        Some((authority, path)) if !path.is_empty() => (authority, format!("/{path}")),
        _ => (place.trim_end_matches('/'), "/metrics".to_owned()),
    };
    if path.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
        return Err("the URL holds blanks".into());
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let target = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    let mut stream = connect(&target)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: text/plain\r\n\r\n")?;
    let answer = limited(stream)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if !head.starts_with("HTTP/1.") || status != "200" {
        return Err(format!("the answer is {:?}", head.lines().next().unwrap_or_default()).into());
    }
    Ok(body.to_owned())
}

fn connect(target: &str) -> Result<TcpStream, Failure> {
    let mut last = None;
    for address in target.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| "the name has no address".into(), Into::into))
}

fn limited(source: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    source.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("larger than {MAX_BYTES} bytes: is it the right source?").into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const METRICS: &str = "outrigger_build_info 1\n";

    /// Answers one connection, and says what was asked.
    fn answering(answer: String) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // All of it: what is left unread at the end would reset the connection.
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(head).unwrap()
        });
        (address, asked)
    }

    #[test]
    fn metrics_come_from_a_url_with_its_path_or_without() {
        for (path, want) in [("", "/metrics"), ("/", "/metrics"), ("/stats/prometheus", "/stats/prometheus")]
        {
            let (address, asked) = answering(format!("HTTP/1.1 200 OK\r\nserver: x\r\n\r\n{METRICS}"));
            measured(&format!("http://{address}{path}")).unwrap();
            assert!(
                asked.join().unwrap().starts_with(&format!("GET {want} HTTP/1.0\r\nHost: {address}\r\n"))
            );
        }
    }

    #[test]
    fn what_can_not_be_had_is_named_with_its_source() {
        let (address, _asked) = answering("HTTP/1.1 404 Not Found\r\n\r\n".into());
        let error = measured(&format!("http://{address}/x")).unwrap_err().to_string();
        assert!(error.contains(&address) && error.contains("404"), "{error}");
        let (address, _asked) = answering("hello\n".into());
        let error = measured(&format!("http://{address}/x")).unwrap_err().to_string();
        assert!(error.contains("not HTTP"), "{error}");
        for (source, why) in [("https://127.0.0.1/metrics", "curl"), ("/nowhere/metrics", "No such file")] {
            let error = measured(source).unwrap_err().to_string();
            assert!(error.contains(source) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn metrics_come_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("metrics");
        std::fs::write(&file, METRICS).unwrap();
        measured(&file.display().to_string()).unwrap();
        std::fs::write(&file, "something else\n").unwrap();
        let error = measured(&file.display().to_string()).unwrap_err().to_string();
        assert!(error.contains("no metric of Outrigger"), "{error}");
    }
}
