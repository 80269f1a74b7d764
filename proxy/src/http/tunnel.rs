//! Requests that need a connection of their own: upgrades, `CONNECT`, and `Expect: 100-continue`.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use h2::RecvStream;
use h2::client::ResponseFuture;
use http::header::{CONNECTION, EXPECT, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::http1_io::Control;
use super::record::Recording;
use super::serve::at;
use crate::net::{Body, Copied, copy_both_ways, strip_hop_by_hop};

/// Passes an interim 100 back to the client of an HTTP/1.1 connection.
#[derive(Clone, Debug)]
pub struct Interim(pub(super) Arc<Control>);

impl Interim {
    /// Waits for a response on an HTTP/2 stream; an interim 100 before it goes back to the client.
    pub(super) async fn pass_back(
        self,
        mut response: ResponseFuture,
    ) -> Result<Response<RecvStream>, h2::Error> {
        poll_fn(|cx| {
            while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                if interim.status() == StatusCode::CONTINUE {
                    self.0.send_continue();
                }
            }
            Pin::new(&mut response).poll(cx)
        })
        .await
    }
}

/// Whether a request can't share a connection with others. h2c is no upgrade for a proxy that speaks
/// HTTP/2 by prior knowledge: its fields are dropped and the request stays HTTP/1.1.
pub fn wants_own_connection<B>(request: &Request<B>) -> bool {
    request.version() < Version::HTTP_2
        && (request.method() == Method::CONNECT
            || expects_continue(request.headers())
            || upgrade_of(request.headers()).is_some())
}

/// Whether the client waits for an interim 100 before it sends the body.
pub(super) fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let nominated = headers.get_all(CONNECTION).iter().any(|value| {
        value.as_bytes().split(|b| *b == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let value = headers.get(UPGRADE).filter(|_| nominated)?;
    (!value.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| value.clone())
}

/// Whether a response with this status, to a `CONNECT` or not, makes the connection a tunnel.
pub(super) fn is_tunnel(connect: bool, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (connect && status.is_success())
}

/// Strips hop-by-hop fields, but those that ask for or grant an upgrade.
pub(super) fn strip_but_upgrade(headers: &mut HeaderMap) {
    let upgrade = upgrade_of(headers);
    strip_hop_by_hop(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
}

/// The client's side of a request that may become a tunnel.
pub(super) struct ClientSide {
    upgrade: OnUpgrade,
    connect: bool,
}

impl ClientSide {
    /// Prepares a request to be sent on a connection of its own. What it came with stays in it: another upstream may have
    /// to be asked in the end.
    pub(super) fn prepare(request: &mut Request<Body>) -> Self {
        let upgrade = hyper::upgrade::on(&mut *request);
        request.extensions_mut().insert(upgrade.clone());
        if let Some(Interim(control)) = request.extensions().get::<Interim>().cloned() {
            hyper::ext::on_informational(request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    control.send_continue();
                }
            });
        }
        Self { upgrade, connect: request.method() == Method::CONNECT }
    }

    /// Whether the response makes the exchange a tunnel.
    pub(super) fn is_granted<B>(&self, response: &Response<B>) -> bool {
        is_tunnel(self.connect, response.status())
    }

    /// Joins both sides of a granted tunnel; the exchange is recorded when it has ended.
    pub(super) fn join(self, response: &mut Response<Body>, recording: Box<Recording>) {
        let server = hyper::upgrade::on(&mut *response);
        let client = self.upgrade;
        strip_but_upgrade(response.headers_mut());
        *response.body_mut() = Body::empty();
        tokio::task::spawn_local(async move {
            let (client, server) = match (client.await, server.await) {
                (Ok(client), Ok(server)) => (client, server),
                (Err(error), _) | (_, Err(error)) => {
                    tracing::debug!("upgrade failed: {error}");
                    return;
                }
            };
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            // Either end may end a tunnel in any way: the bytes that passed are what counts.
            let mut copied = Copied::default();
            tokio::select! {
                biased;
                _ = copy_both_ways(&mut client, &mut server, &mut copied, recording.idle_timeout()) => {}
                () = at(recording.tunnel_ends()) => {}
            }
            recording.tunnel_ended(copied);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_connect_and_expect_have_a_connection_of_their_own() {
        type Case = (&'static str, &'static [(&'static str, &'static str)], bool);
        let cases: &[Case] = &[
            ("GET", &[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], true),
            ("GET", &[("upgrade", "websocket")], false),
            ("GET", &[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")], false),
            ("CONNECT", &[], true),
            ("POST", &[("expect", "100-Continue")], true),
            ("POST", &[], false),
        ];
        for (method, fields, want) in cases {
            let mut request = Request::builder().method(*method);
            for (name, value) in *fields {
                request = request.header(*name, *value);
            }
            assert_eq!(wants_own_connection(&request.body(()).unwrap()), *want, "{method} {fields:?}");
        }
    }
}
