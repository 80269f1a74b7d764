//! Reads the application protocols out of a TLS ClientHello that is not ours to consume yet.
//!
//! RFC 8446 4.1.2 and 5.1: a ClientHello may span several records, and with post-quantum key shares
//! it often spans several segments.

/// ALPN of a mesh connection that carries multiplexed requests.
pub const ALPN_H2: &[u8] = b"outrigger-h2";
/// ALPN of a mesh connection that carries one HTTP/1.1 connection.
pub const ALPN_H1: &[u8] = b"outrigger-h1";
/// ALPN of a mesh connection that carries opaque bytes.
pub const ALPN_TCP: &[u8] = b"outrigger-tcp";

/// What a mesh connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeshProtocol {
    /// Requests, multiplexed over HTTP/2.
    H2,
    /// One HTTP/1.1 connection, for what HTTP/2 can't carry: upgrades, `CONNECT`, interim responses.
    H1,
    /// Opaque bytes.
    Tcp,
}

impl MeshProtocol {
    /// The ALPN value that marks it.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::H2 => ALPN_H2,
            Self::H1 => ALPN_H1,
            Self::Tcp => ALPN_TCP,
        }
    }

    /// The protocol an ALPN value marks, if it is one of the mesh's.
    pub fn from_alpn(value: &[u8]) -> Option<Self> {
        [Self::H2, Self::H1, Self::Tcp].into_iter().find(|p| p.alpn() == value)
    }
}

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const ALPN_EXTENSION: u16 = 16;
/// A longer ClientHello is an attack on memory, and on the CPU: what came is read again with every segment.
/// The largest seen with post-quantum shares is 3 KiB.
const MAX_CLIENT_HELLO: usize = 16 << 10;

/// What the first bytes of a connection say about TLS.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// The bytes can't be a ClientHello.
    NotTls,
    /// They can, and more are needed.
    Partial,
    /// A whole ClientHello, with or without an application protocol of the mesh.
    Whole { mesh: bool },
}

/// Reads a ClientHello out of `bytes`, the first bytes of a connection.
pub(super) fn parse(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // The shortest prefix that rules TLS out decides, so that a text protocol never waits.
        if rest.first().is_some_and(|b| *b != HANDSHAKE_RECORD)
            || rest.get(1).is_some_and(|b| *b != 3)
            || rest.get(2).is_some_and(|b| *b > 4)
        {
            return Hello::NotTls;
        }
        if rest.len() < 5 {
            return Hello::Partial;
        }
        let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        if length == 0 || length > (1 << 14) {
            return Hello::NotTls;
        }
        let fragment = &rest[5..rest.len().min(5 + length)];
        message.extend_from_slice(fragment);
        if message.first().is_some_and(|b| *b != CLIENT_HELLO) {
            return Hello::NotTls;
        }
        if message.len() >= 4 {
            let body = u32::from_be_bytes([0, message[1], message[2], message[3]]) as usize;
            if body > MAX_CLIENT_HELLO {
                return Hello::NotTls;
            }
            if message.len() >= 4 + body {
                return match application_protocols(&message[4..4 + body]) {
                    Some(mesh) => Hello::Whole { mesh },
                    None => Hello::NotTls,
                };
            }
        }
        if fragment.len() < length {
            return Hello::Partial;
        }
        rest = &rest[5 + length..];
        if rest.is_empty() {
            return Hello::Partial;
        }
    }
}

/// Whether one of the offered protocols is the mesh's; `None` when the message is malformed.
fn application_protocols(body: &[u8]) -> Option<bool> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // legacy_version, random
    let session = reader.u8()?;
    reader.take(session.into())?;
    let suites = reader.u16()?;
    reader.take(suites.into())?;
    let compressions = reader.u8()?;
    reader.take(compressions.into())?;
    if reader.0.is_empty() {
        return Some(false);
    }
    let length = reader.u16()?;
    let mut extensions = Reader(reader.take(length.into())?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let mut data = Reader(extensions.take(length.into())?);
        if kind == ALPN_EXTENSION {
            let length = data.u16()?;
            let mut names = Reader(data.take(length.into())?);
            while !names.0.is_empty() {
                let length = names.u8()?;
                if MeshProtocol::from_alpn(names.take(length.into())?).is_some() {
                    return Some(true);
                }
            }
        }
    }
    Some(false)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(protocols: &[&[u8]], record_size: usize) -> Vec<u8> {
        let mut names = Vec::new();
        for p in protocols {
            names.push(p.len() as u8);
            names.extend_from_slice(p);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        let mut extension = vec![0, 16];
        extension.extend(((names.len() + 2) as u16).to_be_bytes());
        extension.extend((names.len() as u16).to_be_bytes());
        extension.extend(names);
        // A key share as large as X25519MLKEM768's makes the message span segments and records.
        extension.extend([0, 51, 0x04, 0xc0]);
        extension.extend([0; 0x4c0]);
        body.extend((extension.len() as u16).to_be_bytes());
        body.extend(extension);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        let mut records = Vec::new();
        for chunk in message.chunks(record_size) {
            records.extend([22, 3, 1]);
            records.extend((chunk.len() as u16).to_be_bytes());
            records.extend(chunk);
        }
        records
    }

    #[test]
    fn a_hello_is_found_whole_whatever_its_records() {
        for record_size in [16384, 700, 100, 1] {
            let bytes = hello(&[b"h2", ALPN_H2], record_size);
            assert_eq!(parse(&bytes), Hello::Whole { mesh: true }, "records of {record_size}");
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Hello::Partial, "first {end} bytes");
            }
        }
    }

    #[test]
    fn other_protocols_are_not_of_the_mesh() {
        assert_eq!(parse(&hello(&[b"h2", b"http/1.1"], 9000)), Hello::Whole { mesh: false });
        assert_eq!(parse(&hello(&[], 9000)), Hello::Whole { mesh: false });
        assert_eq!(parse(&hello(&[b"outrigger-h3"], 9000)), Hello::Whole { mesh: false });
    }

    #[test]
    fn what_is_not_tls_is_told_by_its_first_bytes() {
        for bytes in
            [&b"G"[..], b"\x16\x02", b"\x16\x03\x09", b"\x16\x03\x01\x00\x05\x02", b"\x16\x03\x01\xff\xff"]
        {
            assert_eq!(parse(bytes), Hello::NotTls, "{bytes:?}");
        }
    }

    #[test]
    fn a_malformed_hello_is_not_tls() {
        // Whole by its own lengths, and too short for a version and a random.
        let bytes = [22, 3, 1, 0, 6, 1, 0, 0, 2, 3, 3];
        assert_eq!(parse(&bytes), Hello::NotTls);
    }
}
