use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x30\x39\x1f\x90";

fn all_at_once(bytes: &[u8]) -> Found {
    FirstLineWatch::new().feed(bytes)
}

fn byte_by_byte(bytes: &[u8]) -> Found {
    let mut watch = FirstLineWatch::new();
    bytes.iter().fold(Found::Nothing, |_, byte| watch.feed(&[*byte]))
}

#[track_caller]
fn assert_found(bytes: &[u8], want: Found) {
    let said = bytes.escape_ascii().to_string();
    assert_eq!((all_at_once(bytes), byte_by_byte(bytes)), (want, want), "{said}");
}

#[test]
fn what_some_server_takes_for_a_request_is_found() {
    let lines: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"GET\t/ HTTP/1.1\r\n",
        b"GET /\tHTTP/1.1\r\n",
        b"GET /\x0bHTTP/1.1\r\n",
        b"GET / http/1.1\r\n",
        b"BREW\x1f/ HTTP/1.1\r\n",
        b"<134>GET / HTTP/1.1\r\n",
        b"\xc2\xa0GET / HTTP/1.1\r\n",
        b"\0\0BREW / HTTP/1.1\r\n",
        b"GET\t/\r\n",
        b"GET\r/\r\n",
        b"GET  /\r\n",
        b"GET /\r\n",
        b"GET /key\r\n",
        b"GET:key\r\n",
        b"GET\tkey\r\n",
        b"\x1c\x85 \r\n\x16\x0cGET\xa0/\r\n",
        b"OPTIONS * RTSP/1.0\r\n",
        b"SETUP / RTSP/1.0\r\n",
        b"SETUP rtsp://a/ RTSP/1.0\r\n",
        b"GET http://a/ HTTP/1.1 \t\r\n",
        b"SETUP /\r\n",
        b"SOURCE / ICE/1.0\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\n",
        b"PROXY UNKNOWN\r\n\r\n\x1cBREW / HTTP/1.1\r\n",
        b"PROXY UNKNOWN\r\nPROXY UNKNOWN\r\nGET /\r\n",
    ];
    for line in lines {
        assert_found(line, Found::Request);
        assert_found(&[V2, line].concat(), Found::Request);
    }
}

#[test]
fn every_separator_and_lead_in_of_a_lenient_server_is_seen_through() {
    for blank in [b'\t', 0x0b, 0x0c, b'\r', b' ', 0x1c, 0x1d, 0x1e, 0x1f, 0x85, 0xa0] {
        for version in ["", " HTTP/1.1"] {
            let line = |parts: [&[u8]; 3]| [&parts.concat(), version.as_bytes(), b"\r\n"].concat();
            assert_found(&line([b"GET", &[blank], b"/"]), Found::Request);
            assert_found(&line([&[blank], b"GET ", b"/"]), Found::Request);
            assert_found(&line([b"\r\n", &[blank, b'\n', blank], b"POST /"]), Found::Request);
        }
    }
}

#[test]
fn other_protocols_pass() {
    let lines: &[&[u8]] = &[
        b"get key\r\n",
        b"set GET 0 0 3\r\n",
        b"EHLO mail.example\r\n",
        b"PING\r\n",
        b"GET\r\n",
        b"CONNECT\naccept-version:1.2\n",
        b"GETSET key value\r\n",
        b"*2\r\n$3\r\nGET\r\n$8\r\nHTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"QUIT\r\n",
        b"PROXIES\r\n",
        b"\0\0\0\x50\0\x03\0\0user\0web\0database\0shop\0\0\n",
        b"\0\0\0\x24\0\x12\0\x03\0\0\0\x01\0\x05kafka\n",
        b"{\"method\":\"GET\"}\n",
        b"{\"said\":\"GET / HTTP/1.1\"}\n",
        b"<134>1 - web - \"GET / HTTP/1.1\" 200\n",
        b"COPY a b\r\n",
        b"OPTIONS sip:a@b.example SIP/2.0\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n*1\r\n",
    ];
    for line in lines {
        assert_found(line, Found::Opaque);
        assert_found(&[V2, line].concat(), Found::Opaque);
    }
}

#[test]
fn a_client_hello_may_name_http_and_bytes_that_only_begin_like_one_may_not() {
    let hello = |first: &[u8]| [first, b"\x01\xfc\x03\x03random\x02h2\x08http/1.1\x05\n"].concat();
    assert_found(&hello(b"\x16\x03\x01\x02\x00\x01\x00"), Found::Opaque);
    assert_found(&[V2, &hello(b"\x16\x03\x01\x02\x00\x01\x00")].concat(), Found::Opaque);
    assert_found(&hello(b"\x16\x03\x01\x02\x00\x02\x00"), Found::Request);
    assert_found(b"\x16\x03\x01BREW / HTTP/1.1\r\n", Found::Request);
    assert_found(b"\x16\x03\x01\x02\x00\x01\x00\x01\x1f\x03\x03GET /\r\n", Found::Request);
}

#[test]
fn inline_commands_pass_until_a_field_follows() {
    for first in ["GET key", "GET user:1", "GET http://a/", "POST http://a/", "ACL WHOAMI", "SUBSCRIBE a:b"] {
        for (rest, want) in [
            ("", Found::Nothing),
            ("PING\r\nSET user:1 a:b\r\n GET b\r\n", Found::Nothing),
            ("outrigger-client-id: x", Found::Request),
            ("From x\r\nx\r\n Outrigger-Client-Id\t: x", Found::Request),
            ("PING x\rOutrigger-Client-Id:", Found::Request),
            ("\r\nGET / HTTP/1.1\r\nHost:", Found::Request),
        ] {
            assert_found(format!("{first}\r\n{rest}").as_bytes(), want);
        }
    }
}

#[test]
fn a_line_without_an_end_is_watched_in_little_memory() {
    let mut watch = FirstLineWatch::new();
    for _ in 0..1000 {
        assert_eq!(watch.feed(&[b'a'; 1000]), Found::Nothing);
    }
    assert_eq!(watch.feed(b" HTTP/1.1"), Found::Nothing);
    assert_eq!(watch.feed(b"\r"), Found::Request);
    assert!(size_of::<FirstLineWatch>() <= 80, "{} bytes", size_of::<FirstLineWatch>());
}

#[tokio::test]
async fn a_request_in_pieces_is_stopped_and_other_bytes_pass() {
    for (rest, passes) in
        [("T /a HTTP/1.2\r\nx: y\r\n", false), ("T\t/a\r\nx: y\r\n", false), ("T key\r\nPING\r\n", true)]
    {
        let (mut client, stream) = duplex(64);
        let mut watch = FirstLineWatch::new();
        assert_eq!(watch.feed(b"GE"), Found::Nothing);
        let mut guarded = FirstLine::after(Some(watch), stream);
        client.write_all(rest.as_bytes()).await.unwrap();
        drop(client);
        let mut read = Vec::new();
        let result = guarded.read_to_end(&mut read).await;
        assert_eq!((result.is_ok(), read.is_empty()), (passes, !passes), "{rest}");
        assert_eq!(result.is_err_and(|error| LateRequest::is(&error)), !passes, "{rest}");
    }
}
