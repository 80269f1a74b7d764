use std::cell::RefCell;
use std::collections::VecDeque;

use http::header::{CONNECTION, EXPECT, HOST, UPGRADE};
use http::{HeaderMap, Version};
use http_body_util::BodyExt;

use super::*;

type Outcomes = Rc<RefCell<Vec<Result<Mirrored, NotMirrored>>>>;

/// A body that comes in these pieces, each after a wait.
struct Pieces {
    frames: VecDeque<Frame<Bytes>>,
    waited: bool,
    breaks: bool,
}

impl BodySource for Pieces {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.waited = !self.waited;
        if self.waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(match self.frames.pop_front() {
            Some(frame) => Some(Ok(frame)),
            None => self.breaks.then(|| Err(h2::Error::from(h2::Reason::CANCEL).into())),
        })
    }

    fn is_end(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

fn pieces(pieces: &[&'static [u8]], breaks: bool) -> Body {
    let frames = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece))).collect();
    Body::from_source(Pieces { frames, waited: false, breaks })
}

fn post(body: Body) -> Request<Body> {
    Request::post("/orders?q=1").header(HOST, "api.shop").header("x-a", "1").body(body).unwrap()
}

fn mirror(percent: Option<f64>) -> Mirror {
    Mirror::new(&config::Mirror { upstream: "shadow".into(), percent })
}

fn copied(request: &mut Request<Body>, mirrors: &Mirrors) -> Outcomes {
    let outcomes = Outcomes::default();
    let told = outcomes.clone();
    mirror(None).copy(request, mirrors, || 0.0, move |outcome| told.borrow_mut().push(outcome));
    outcomes
}

async fn read(request: Request<Body>) -> Result<Bytes, BodyError> {
    Ok(request.into_body().collect().await?.to_bytes())
}

fn only(outcomes: &Outcomes) -> Result<Mirrored, NotMirrored> {
    let mut all = outcomes.take();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[tokio::test]
async fn a_request_without_a_body_is_copied_at_once() {
    let mut request = Request::get("/orders").header(HOST, "api.shop").body(Body::empty()).unwrap();
    let copy = only(&copied(&mut request, &Mirrors::default())).unwrap();
    assert_eq!(copy.request.uri(), "/orders");
    assert_eq!(copy.request.headers(), request.headers());
    assert!(copy.request.body().is_end());
}

#[tokio::test]
async fn a_body_is_copied_as_it_passes_and_the_copy_is_there_when_it_ended() {
    let mut request = post(pieces(&[b"one ", b"", b"two"], false));
    request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    let outcomes = copied(&mut request, &Mirrors::default());
    assert!(outcomes.borrow().is_empty(), "there is nothing to send yet");
    assert_eq!(read(request).await.unwrap(), "one two");
    let copy = only(&outcomes).unwrap();
    let mut want = HeaderMap::new();
    want.insert(HOST, HeaderValue::from_static("api.shop"));
    want.insert("x-a", HeaderValue::from_static("1"));
    want.insert(CONTENT_LENGTH, HeaderValue::from_static("7"));
    assert_eq!(*copy.request.headers(), want);
    assert_eq!(*copy.request.method(), Method::POST);
    assert_eq!(copy.request.uri(), "/orders?q=1");
    assert_eq!(read(copy.request).await.unwrap(), "one two");
}

#[tokio::test]
async fn a_reader_that_stops_at_the_known_end_gets_its_copy_too() {
    let mut request = post(Body::full("whole"));
    let outcomes = copied(&mut request, &Mirrors::default());
    let frame = request.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "whole");
    assert_eq!(read(only(&outcomes).unwrap().request).await.unwrap(), "whole");
}

#[tokio::test]
async fn trailers_pass_and_are_not_copied() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("1"));
    let frames = [Frame::data(Bytes::from_static(b"data")), Frame::trailers(trailers.clone())].into();
    let mut request = post(Body::from_source(Pieces { frames, waited: false, breaks: false }));
    let outcomes = copied(&mut request, &Mirrors::default());
    assert_eq!(request.into_body().collect().await.unwrap().trailers(), Some(&trailers));
    let copy = only(&outcomes).unwrap().request.into_body().collect().await.unwrap();
    assert_eq!(copy.trailers(), None);
    assert_eq!(copy.to_bytes(), "data");
}

#[tokio::test]
async fn a_body_that_grows_too_large_passes_without_a_copy() {
    static HALF: [u8; MAX_MIRRORED_BYTES / 2] = [7; MAX_MIRRORED_BYTES / 2];
    for (parts, want) in [
        (&[&HALF[..], &HALF][..], None),
        (&[&HALF, &HALF, b"x"], Some(NotMirrored::TooLarge)),
        (&[&HALF, b"x", &HALF, &HALF], Some(NotMirrored::TooLarge)),
    ] {
        let mirrors = Mirrors::default();
        let mut request = post(pieces(parts, false));
        let outcomes = copied(&mut request, &mirrors);
        let length: usize = parts.iter().map(|part| part.len()).sum();
        assert_eq!(read(request).await.unwrap().len(), length);
        assert_eq!(only(&outcomes).err(), want);
        assert_eq!(mirrors.0.get(), 0);
    }
}

#[tokio::test]
async fn a_body_known_to_be_too_large_is_not_copied_at_all() {
    let mirrors = Mirrors::default();
    let mut request = post(Body::full(vec![0; MAX_MIRRORED_BYTES + 1]));
    assert_eq!(only(&copied(&mut request, &mirrors)).err(), Some(NotMirrored::TooLarge));
    assert_eq!(read(request).await.unwrap().len(), MAX_MIRRORED_BYTES + 1);
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_left_has_no_copy() {
    let mirrors = Mirrors::default();
    let mut broken = post(pieces(&[b"one"], true));
    let outcomes = copied(&mut broken, &mirrors);
    assert!(read(broken).await.is_err());
    assert_eq!(only(&outcomes).err(), Some(NotMirrored::Incomplete));

    let mut left = post(pieces(&[b"one", b"two"], false));
    let outcomes = copied(&mut left, &mirrors);
    left.body_mut().frame().await.unwrap().unwrap();
    drop(left);
    assert_eq!(only(&outcomes).err(), Some(NotMirrored::Incomplete));
    assert_eq!(mirrors.0.get(), 0);
}

#[tokio::test]
async fn no_more_than_a_hundred_copies_are_under_way() {
    let mirrors = Mirrors::default();
    let request = || Request::get("/").body(Body::empty()).unwrap();
    let mut copies: Vec<_> =
        (0..MAX_UNDER_WAY).map(|_| only(&copied(&mut request(), &mirrors)).unwrap()).collect();
    assert_eq!(only(&copied(&mut request(), &mirrors)).err(), Some(NotMirrored::Full));
    copies.pop();
    assert!(only(&copied(&mut request(), &mirrors)).is_ok());
}

#[tokio::test]
async fn what_needs_a_connection_of_its_own_is_not_copied() {
    let connect = Request::connect("api:443").body(Body::empty()).unwrap();
    let upgrade = Request::get("/").header(CONNECTION, "upgrade").header(UPGRADE, "websocket");
    let expect = Request::put("/").header(EXPECT, "100-continue");
    let mut http2 = Request::connect("api:443").body(Body::empty()).unwrap();
    *http2.version_mut() = Version::HTTP_2;
    for mut request in
        [connect, upgrade.body(Body::empty()).unwrap(), expect.body(Body::full("x")).unwrap(), http2]
    {
        let outcome = only(&copied(&mut request, &Mirrors::default()));
        assert_eq!(outcome.err(), Some(NotMirrored::OwnConnection), "{:?}", request.uri());
    }
}

#[test]
fn only_the_share_is_copied() {
    for (percent, drawn, want) in
        [(Some(20.0), 0.1, 1), (Some(20.0), 0.3, 0), (None, 0.99, 1), (Some(0.0), 0.0, 0)]
    {
        let told = Rc::new(Cell::new(0));
        let count = told.clone();
        let mut request = Request::get("/").body(Body::empty()).unwrap();
        let done = move |_| count.set(count.get() + 1);
        mirror(percent).copy(&mut request, &Mirrors::default(), || drawn, done);
        assert_eq!(told.get(), want, "{percent:?} {drawn}");
    }
}
