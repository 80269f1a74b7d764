use std::collections::VecDeque;
use std::pin::Pin;
use std::task::Waker;

use http_body_util::BodyExt;

use super::*;

type Fields<'a> = &'a [(&'a str, &'a str)];
/// Fields of a request, status and fields of its response, and its freshness: lifetime in seconds, and beyond.
type Stores<'a> = (Fields<'a>, u16, Fields<'a>, Option<(u64, Duration)>);

const NO_FIELDS: Fields = &[];
/// 1994-11-06 08:49:37 GMT.
const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const MINUTE_AGO: &str = "Sun, 06 Nov 1994 08:48:37 GMT";
const IN_A_MINUTE: &str = "Sun, 06 Nov 1994 08:50:37 GMT";

fn clock() -> SystemTime {
    httpdate::parse_http_date(NOW).unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fields(list: &[(&str, &str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

fn cache_of(max_age: &str, max_bytes: &str) -> Arc<ResponseCache> {
    Arc::new(ResponseCache::new(&config::CacheFallback {
        max_age: Some(max_age.parse().unwrap()),
        max_bytes: Some(max_bytes.parse().unwrap()),
    }))
}

fn cache() -> Arc<ResponseCache> {
    cache_of("1h", "16MiB")
}

fn request(method: &str, uri: &str, list: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
    *request.headers_mut() = fields(list);
    request
}

fn answerer() -> Answerer {
    Answerer { route: "".into(), upstream: "api".into(), subset: None, dialled: None }
}

fn asked_at(method: &str, uri: &str, list: &[(&str, &str)], at: Instant) -> Asked {
    Asked::of(&request(method, uri, list), answerer(), at).unwrap()
}

fn response(status: u16, list: &[(&str, &str)], body: Body) -> Response<Body> {
    let mut response = Response::builder().status(status).body(body).unwrap();
    *response.headers_mut() = fields(list);
    response
}

/// A body that comes in pieces, without a length of its own.
struct Pieces(VecDeque<Result<Frame<Bytes>, BodyError>>);

impl BodySource for Pieces {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.0.pop_front())
    }

    fn is_end(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

fn pieces<const N: usize>(pieces: [&[u8]; N]) -> VecDeque<Result<Frame<Bytes>, BodyError>> {
    pieces.into_iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect()
}

/// Reads one frame; whether there was one.
fn read(response: &mut Response<Body>) -> bool {
    let body = Pin::new(response.body_mut());
    matches!(body.poll_frame(&mut Context::from_waker(Waker::noop())), Poll::Ready(Some(Ok(_))))
}

async fn content(response: Response<Body>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

/// A world whose time the test moves.
struct Shop {
    cache: Arc<ResponseCache>,
    begin: Instant,
}

impl Shop {
    fn new(cache: Arc<ResponseCache>) -> Self {
        Self { cache, begin: Instant::now() }
    }

    /// Passes a response on, with what it was asked for at the beginning, and reads it.
    async fn passes(
        &self,
        asked: (&str, &str, &[(&str, &str)]),
        status: u16,
        list: &[(&str, &str)],
        content_of_it: &str,
    ) {
        let (method, uri, asked) = asked;
        let asked = asked_at(method, uri, asked, self.begin);
        let response = response(status, list, Body::full(content_of_it.to_owned()));
        let passed = self.cache.pass(asked, response, self.begin, clock());
        assert_eq!(passed.status().as_u16(), status);
        assert_eq!(content(passed).await, content_of_it, "the caller gets all of it");
    }

    fn answers(
        &self,
        method: &str,
        uri: &str,
        list: &[(&str, &str)],
        after: Duration,
    ) -> Option<Response<Body>> {
        let now = self.begin + after;
        self.cache.answer(&asked_at(method, uri, list, now), "connection_refused", now)
    }

    /// The content that a GET is answered with at once.
    async fn content(&self, uri: &str, list: &[(&str, &str)]) -> Option<Bytes> {
        Some(content(self.answers("GET", uri, list, Duration::ZERO)?).await)
    }
}

const API: &str = "http://api/items?page=1";

#[test]
fn only_what_a_shared_cache_may_store_is_stored() {
    let long = Duration::MAX;
    let private: &[(&str, &str)] = &[("authorization", "Bearer x")];
    let cookie: &[(&str, &str)] = &[("cookie", "session=x")];
    #[rustfmt::skip]
    let cases: &[Stores] = &[
        (NO_FIELDS, 200, NO_FIELDS, Some((0, long))),
        (NO_FIELDS, 200, &[("cache-control", "max-age=60")], Some((60, long))),
        (NO_FIELDS, 200, &[("cache-control", "Max-Age=\"60\" , immutable")], Some((60, long))),
        (NO_FIELDS, 200, &[("cache-control", "max-age=60"), ("cache-control", "max-age=30")], Some((30, long))),
        (NO_FIELDS, 200, &[("cache-control", "max-age=soon")], Some((0, long))),
        (NO_FIELDS, 200, &[("cache-control", "max-age=99999999999")], Some((u32::MAX.into(), long))),
        (NO_FIELDS, 200, &[("cache-control", "max-age=60, s-maxage=10")], Some((10, Duration::ZERO))),
        (NO_FIELDS, 200, &[("cache-control", "s-maxage=0")], None),
        (NO_FIELDS, 200, &[("cache-control", "max-age=60, must-revalidate")], Some((60, Duration::ZERO))),
        (NO_FIELDS, 200, &[("cache-control", "max-age=60, proxy-revalidate")], Some((60, Duration::ZERO))),
        (NO_FIELDS, 200, &[("cache-control", "must-revalidate")], None),
        (NO_FIELDS, 200, &[("cache-control", "max-age=60, stale-if-error=30")], Some((60, seconds(30)))),
        (NO_FIELDS, 200, &[("cache-control", "stale-if-error=30, must-revalidate, max-age=1")], Some((1, Duration::ZERO))),
        (NO_FIELDS, 200, &[("cache-control", "stale-if-error=0")], None),
        (NO_FIELDS, 200, &[("cache-control", "no-store")], None),
        (NO_FIELDS, 200, &[("cache-control", "max-age=60"), ("cache-control", "NO-STORE")], None),
        (NO_FIELDS, 200, &[("cache-control", "private, max-age=60")], None),
        (NO_FIELDS, 200, &[("cache-control", "private=\"set-cookie, x\"")], None),
        (NO_FIELDS, 200, &[("cache-control", "no-cache")], None),
        (NO_FIELDS, 200, &[("cache-control", "no-cache=\"x\", max-age=60")], None),
        (NO_FIELDS, 200, &[("cache-control", "ext=\"a, max-age=60, private\"")], Some((0, long))),
        (NO_FIELDS, 200, &[("set-cookie", "a=b"), ("cache-control", "public, max-age=60")], None),
        (NO_FIELDS, 200, &[("date", NOW), ("expires", IN_A_MINUTE)], Some((60, long))),
        (NO_FIELDS, 200, &[("expires", IN_A_MINUTE)], Some((60, long))),
        (NO_FIELDS, 200, &[("date", NOW), ("expires", "0")], Some((0, long))),
        (NO_FIELDS, 200, &[("date", NOW), ("expires", MINUTE_AGO)], Some((0, long))),
        (NO_FIELDS, 200, &[("expires", IN_A_MINUTE), ("cache-control", "max-age=5")], Some((5, long))),
        // By status.
        (NO_FIELDS, 204, NO_FIELDS, Some((0, long))),
        (NO_FIELDS, 301, NO_FIELDS, Some((0, long))),
        (NO_FIELDS, 404, NO_FIELDS, Some((0, long))),
        (NO_FIELDS, 302, NO_FIELDS, None),
        (NO_FIELDS, 302, &[("cache-control", "max-age=60")], Some((60, long))),
        (NO_FIELDS, 302, &[("cache-control", "public")], Some((0, long))),
        (NO_FIELDS, 206, &[("cache-control", "max-age=60")], None),
        (NO_FIELDS, 304, &[("cache-control", "max-age=60")], None),
        (NO_FIELDS, 403, &[("cache-control", "max-age=60")], None),
        (NO_FIELDS, 429, &[("cache-control", "max-age=60")], None),
        (NO_FIELDS, 500, &[("cache-control", "max-age=60")], None),
        (NO_FIELDS, 501, NO_FIELDS, None),
        (NO_FIELDS, 503, &[("cache-control", "public, max-age=60")], None),
        // With credentials.
        (private, 200, &[("cache-control", "max-age=60")], None),
        (private, 200, &[("cache-control", "max-age=60, proxy-revalidate")], None),
        (private, 200, &[("cache-control", "public")], Some((0, long))),
        (private, 200, &[("cache-control", "s-maxage=60")], Some((60, Duration::ZERO))),
        (private, 200, &[("cache-control", "max-age=60, must-revalidate")], Some((60, Duration::ZERO))),
        (cookie, 200, NO_FIELDS, None),
        (cookie, 200, &[("cache-control", "public, max-age=60")], Some((60, long))),
    ];
    for (request, status, response, want) in cases {
        let status = StatusCode::from_u16(*status).unwrap();
        let got = rules::freshness(&fields(request), status, &fields(response), clock());
        let want = want.map(|(lifetime, stale_for)| Freshness { lifetime: seconds(lifetime), stale_for });
        assert_eq!(got, want, "{request:?} {status} {response:?}");
    }
    let mut unreadable = HeaderMap::new();
    unreadable.insert(CACHE_CONTROL, HeaderValue::from_bytes(b"max-age=60, \xff").unwrap());
    assert_eq!(rules::freshness(&HeaderMap::new(), StatusCode::OK, &unreadable, clock()), None);
}

#[test]
fn a_response_is_as_old_as_its_server_or_a_cache_before_us_says() {
    for (list, delay, want) in [
        (NO_FIELDS, 0, 0),
        (NO_FIELDS, 3, 3),
        (&[("date", NOW)], 0, 0),
        (&[("date", MINUTE_AGO)], 3, 60),
        (&[("date", IN_A_MINUTE)], 0, 0),
        (&[("age", "10"), ("date", NOW)], 3, 13),
        (&[("age", "10"), ("date", MINUTE_AGO)], 3, 60),
        (&[("age", "x")], 0, 0),
    ] {
        assert_eq!(rules::initial_age(&fields(list), clock(), seconds(delay)), seconds(want), "{list:?}");
    }
}

#[tokio::test]
async fn the_last_good_response_is_served_as_it_was_with_its_age() {
    let shop = Shop::new(cache());
    let get = ("GET", API, NO_FIELDS);
    shop.passes(get, 200, &[("etag", "\"1\"")], "old").await;
    let list = [
        ("content-type", "text/plain"),
        ("content-length", "3"),
        ("cache-control", "max-age=60"),
        ("age", "5"),
        ("x-many", "1"),
        ("x-many", "2"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("outrigger-retries", "exhausted"),
        ("proxy-authentication-info", "x"),
        ("cache-status", "cdn; hit"),
    ];
    shop.passes(get, 200, &list, "new").await;
    shop.passes(get, 503, &[("cache-control", "max-age=60")], "down").await;
    for (after, age, status) in [
        (0, "5", "outrigger; hit; ttl=55; detail=connection_refused"),
        (55, "60", "outrigger; hit; ttl=0; detail=connection_refused"),
        (100, "105", "outrigger; hit; ttl=-45; detail=connection_refused"),
    ] {
        let served = shop.answers("GET", API, NO_FIELDS, seconds(after)).unwrap();
        assert_eq!(served.status(), 200);
        let mut got: Vec<_> =
            served.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let mut want = vec![
            ("content-type", "text/plain"),
            ("content-length", "3"),
            ("cache-control", "max-age=60"),
            ("x-many", "1"),
            ("x-many", "2"),
            ("cache-status", "cdn; hit"),
            ("cache-status", status),
            ("date", NOW),
            ("age", age),
        ];
        got.sort_unstable();
        want.sort_unstable();
        assert_eq!(got, want, "after {after} s");
        assert_eq!(content(served).await, "new");
    }
}

#[tokio::test]
async fn nothing_is_served_that_is_too_old() {
    for (max_age, list, last) in [
        ("1h", [("cache-control", "max-age=60")], 3600),
        ("90s", [("cache-control", "max-age=60")], 90),
        ("90s", [("age", "80")], 10),
        ("1h", [("cache-control", "max-age=60, must-revalidate")], 59),
        ("1h", [("cache-control", "s-maxage=60")], 59),
        ("1h", [("cache-control", "max-age=60, stale-if-error=30")], 89),
        ("30s", [("cache-control", "max-age=60, must-revalidate")], 30),
    ] {
        let shop = Shop::new(cache_of(max_age, "1MiB"));
        shop.passes(("GET", API, NO_FIELDS), 200, &list, "x").await;
        assert!(shop.answers("GET", API, NO_FIELDS, seconds(last)).is_some(), "{max_age} {list:?}");
        assert!(shop.answers("GET", API, NO_FIELDS, seconds(last + 1)).is_none(), "{max_age} {list:?}");
    }
}

#[tokio::test]
async fn a_response_is_for_the_same_target_only() {
    let shop = Shop::new(cache());
    shop.passes(("GET", "http://api/items?page=1", NO_FIELDS), 200, NO_FIELDS, "x").await;
    for (uri, list, want) in [
        ("http://api/items?page=1", NO_FIELDS, true),
        ("http://API/items?page=1", NO_FIELDS, true),
        ("/items?page=1", &[("host", "Api")], true),
        ("http://api/items?page=1", &[("host", "other")], true),
        ("/items?page=1", &[("host", "other")], false),
        ("https://api/items?page=1", NO_FIELDS, false),
        ("http://api:81/items?page=1", NO_FIELDS, false),
        ("http://api/Items?page=1", NO_FIELDS, false),
        ("http://api/items?page=2", NO_FIELDS, false),
        ("http://api/items", NO_FIELDS, false),
    ] {
        assert_eq!(shop.content(uri, list).await.is_some(), want, "{uri} {list:?}");
    }
}

#[tokio::test]
async fn a_response_is_for_those_only_whom_the_same_would_answer() {
    let tagged = |value: &str| Subset::new(&[("tenant".to_owned(), value.to_owned())].into());
    let answerers = [
        answerer(),
        Answerer { subset: tagged("t1"), ..answerer() },
        Answerer { subset: tagged("t2"), ..answerer() },
        Answerer { upstream: "canary".into(), ..answerer() },
        Answerer { route: "t1".into(), ..answerer() },
        Answerer { dialled: Some(([10, 0, 0, 1], 80).into()), ..answerer() },
        Answerer { dialled: Some(([10, 0, 0, 2], 80).into()), ..answerer() },
    ];
    let (cache, now) = (cache(), Instant::now());
    let asked = |method, whose: &Answerer, number: &str| {
        let request = request(method, API, &[("x-number", number)]);
        Asked::of(&request, whose.clone(), now).unwrap()
    };
    let pass = async |method, whose: &Answerer, number: &str, said: String| {
        let response = response(200, &[("vary", "x-number")], Body::full(said));
        content(cache.pass(asked(method, whose, number), response, now, clock())).await;
    };
    let answer = async |whose: &Answerer| {
        Some(content(cache.answer(&asked("GET", whose, "0"), "connection_refused", now)?).await)
    };
    for (number, whose) in answerers.iter().enumerate() {
        assert_eq!(answer(whose).await, None, "{whose:?}");
        pass("GET", whose, "0", number.to_string()).await;
    }
    // Of those there are many, and they push nobody else's out.
    for number in 0..MAX_VARIANTS {
        pass("GET", &answerers[0], &number.to_string(), "0".into()).await;
    }
    for (number, whose) in answerers.iter().enumerate() {
        assert_eq!(answer(whose).await, Some(number.to_string().into()), "{whose:?}");
    }
    pass("POST", &answerers[1], "0", "done".into()).await;
    for whose in &answerers {
        assert_eq!(answer(whose).await, None, "{whose:?}: it may have been changed");
    }
}

#[test]
fn requests_that_no_cache_has_to_do_with_are_left_alone() {
    let now = Instant::now();
    for (method, uri, list, want) in [
        ("GET", API, NO_FIELDS, true),
        ("HEAD", API, NO_FIELDS, true),
        ("GET", "/x", &[("host", "api")], true),
        ("POST", API, NO_FIELDS, true),
        ("PAY", API, NO_FIELDS, true),
        ("OPTIONS", API, NO_FIELDS, false),
        ("TRACE", API, NO_FIELDS, false),
        ("CONNECT", "api:443", NO_FIELDS, false),
        ("GET", "/x", NO_FIELDS, false),
        ("GET", API, &[("cache-control", "no-store")], false),
        ("GET", API, &[("cache-control", "no-cache")], true),
    ] {
        assert_eq!(
            Asked::of(&request(method, uri, list), answerer(), now).is_some(),
            want,
            "{method} {uri} {list:?}"
        );
    }
    let mut with_content = request("GET", API, NO_FIELDS);
    *with_content.body_mut() = Body::full("{}");
    assert!(Asked::of(&with_content, answerer(), now).is_none());
}

#[tokio::test]
async fn who_asks_for_the_server_itself_gets_nothing_of_ours() {
    let shop = Shop::new(cache());
    shop.passes(("GET", API, NO_FIELDS), 200, &[("etag", "\"1\"")], "x").await;
    for (method, list, want) in [
        ("GET", &[("cache-control", "max-age=0")], true),
        ("GET", &[("cache-control", "max-age=0, no-cache")], false),
        ("GET", &[("if-match", "\"1\"")], false),
        ("GET", &[("if-unmodified-since", NOW)], false),
        ("POST", &[("x", "1")], false),
    ] {
        assert_eq!(shop.answers(method, API, list, Duration::ZERO).is_some(), want, "{method} {list:?}");
    }
}

#[tokio::test]
async fn fields_that_vary_names_choose_the_response() {
    let shop = Shop::new(cache());
    let gzip: Fields = &[("accept-encoding", "gzip"), ("accept-language", "de")];
    let german: Fields = &[("accept-language", "de")];
    let vary = [("vary", "Accept-Encoding"), ("vary", " accept-language,")];
    shop.passes(("GET", API, gzip), 200, &vary, "gzip").await;
    shop.passes(("GET", API, german), 200, &vary, "plain").await;
    shop.passes(("GET", API, german), 200, &vary, "plain again").await;
    for (list, want) in [
        (gzip, Some("gzip")),
        (german, Some("plain again")),
        (&[("accept-language", "de"), ("user-agent", "x")], Some("plain again")),
        (&[("accept-encoding", ""), ("accept-language", "de")], None),
        (NO_FIELDS, None),
    ] {
        assert_eq!(shop.content(API, list).await.as_deref(), want.map(str::as_bytes), "{list:?}");
    }
    let two = [("accept-language", "de"), ("accept-language", " en ")];
    shop.passes(("GET", "http://api/two", &two), 200, &[("vary", "accept-language")], "two").await;
    assert!(shop.content("http://api/two", &[("accept-language", "de, en")]).await.is_some());
    assert!(shop.content("http://api/two", &[("accept-language", "de")]).await.is_none());
}

#[tokio::test]
async fn a_response_that_varies_by_more_than_fields_is_not_kept() {
    let shop = Shop::new(cache());
    for vary in ["*", "accept, *", "a b"] {
        shop.passes(("GET", API, NO_FIELDS), 200, &[("vary", vary)], "x").await;
        assert_eq!(shop.content(API, NO_FIELDS).await, None, "{vary}");
    }
}

#[tokio::test]
async fn callers_can_not_make_us_keep_any_number_of_variants() {
    let shop = Shop::new(cache());
    for number in 0..20 {
        let number = number.to_string();
        let list = [("x-number", number.as_str())];
        shop.passes(("GET", API, &list), 200, &[("vary", "x-number")], &number).await;
    }
    for (number, want) in [("11", false), ("12", true), ("19", true)] {
        assert_eq!(shop.content(API, &[("x-number", number)]).await.is_some(), want, "{number}");
    }
}

#[tokio::test]
async fn who_has_the_response_already_is_told_so() {
    let shop = Shop::new(cache());
    let list = [
        ("etag", "W/\"1\""),
        ("last-modified", MINUTE_AGO),
        ("vary", "accept"),
        ("content-type", "text/plain"),
        ("cache-control", "max-age=60"),
    ];
    shop.passes(("GET", API, NO_FIELDS), 200, &list, "x").await;
    for (list, want) in [
        (&[("if-none-match", "\"1\"")][..], 304),
        (&[("if-none-match", "W/\"1\"")], 304),
        (&[("if-none-match", "\"0\", \"1\"")], 304),
        (&[("if-none-match", "\"0\""), ("if-none-match", "\"1\"")], 304),
        (&[("if-none-match", "*")], 304),
        (&[("if-none-match", "\"11\"")], 200),
        (&[("if-none-match", "1")], 200),
        (&[("if-modified-since", MINUTE_AGO)], 304),
        (&[("if-modified-since", NOW)], 304),
        (&[("if-modified-since", "Sun, 06 Nov 1994 08:48:36 GMT")], 200),
        (&[("if-modified-since", "yesterday")], 200),
        (&[("if-none-match", "\"0\""), ("if-modified-since", NOW)], 200),
        (&[("range", "bytes=0-0")], 200),
    ] {
        let served = shop.answers("GET", API, list, seconds(1)).unwrap();
        assert_eq!(served.status(), want, "{list:?}");
        assert_eq!(served.headers()["age"], "1", "{list:?}");
        let is_full = want == 200;
        assert_eq!(served.headers().contains_key("content-type"), is_full, "{list:?}");
        for name in ["etag", "vary", "cache-control", "date", "cache-status"] {
            assert!(served.headers().contains_key(name), "{list:?} {name}");
        }
        assert_eq!(content(served).await.is_empty(), !is_full, "{list:?}");
    }
    shop.passes(("GET", "http://api/gone", NO_FIELDS), 404, &[("etag", "\"1\"")], "x").await;
    let gone = shop.answers("GET", "http://api/gone", &[("if-none-match", "\"1\"")], seconds(0)).unwrap();
    assert_eq!(gone.status(), 404, "a condition is about what is there");
}

#[tokio::test]
async fn head_is_answered_from_get_and_never_the_other_way_round() {
    let shop = Shop::new(cache());
    let asked = asked_at("HEAD", API, NO_FIELDS, shop.begin);
    let list = [("content-length", "9"), ("x-by", "head")];
    let _ = shop.cache.pass(asked, response(200, &list, Body::empty()), shop.begin, clock());
    assert!(shop.content(API, NO_FIELDS).await.is_none());
    let head = shop.answers("HEAD", API, NO_FIELDS, Duration::ZERO).unwrap();
    assert_eq!(head.headers()["content-length"], "9");
    assert_eq!(head.headers()["x-by"], "head");
    shop.passes(("GET", API, NO_FIELDS), 200, &[("x-by", "get")], "x").await;
    let head = shop.answers("HEAD", API, NO_FIELDS, Duration::ZERO).unwrap();
    assert_eq!(head.headers()["x-by"], "get");
}

#[tokio::test]
async fn what_a_request_has_changed_is_forgotten() {
    for (method, status, kept) in [
        ("POST", 201, false),
        ("PUT", 204, false),
        ("DELETE", 303, false),
        ("PAY", 200, false),
        ("POST", 404, true),
        ("POST", 503, true),
    ] {
        let shop = Shop::new(cache());
        let list = [("cache-control", "max-age=60")];
        shop.passes(("GET", API, NO_FIELDS), 200, &list, "x").await;
        shop.passes(("GET", "http://api/other", NO_FIELDS), 200, &list, "x").await;
        shop.passes((method, API, NO_FIELDS), status, &list, "done").await;
        assert_eq!(shop.content(API, NO_FIELDS).await.is_some(), kept, "{method} {status}");
        assert!(shop.content("http://api/other", NO_FIELDS).await.is_some());
        assert!(shop.answers(method, API, NO_FIELDS, Duration::ZERO).is_none());
    }
}

/// What is kept of a response of these pieces, when this many frames of it are read.
async fn kept_of(
    list: &[(&str, &str)],
    frames: VecDeque<Result<Frame<Bytes>, BodyError>>,
    reads: usize,
) -> Option<Bytes> {
    let shop = Shop::new(cache());
    let asked = asked_at("GET", API, NO_FIELDS, shop.begin);
    let response = response(200, list, Body::from_source(Pieces(frames)));
    let mut passed = shop.cache.pass(asked, response, shop.begin, clock());
    for _ in 0..reads {
        assert!(shop.content(API, NO_FIELDS).await.is_none(), "not before it is whole");
        read(&mut passed);
    }
    let kept = shop.content(API, NO_FIELDS).await;
    drop(passed);
    assert_eq!(shop.cache.gathering.load(Relaxed), 0);
    assert_eq!(shop.content(API, NO_FIELDS).await, kept, "its end is not told by its reader's leaving");
    kept
}

#[tokio::test]
async fn only_whole_responses_are_kept() {
    let two = || pieces([b"one", b"two"]);
    let broken = |mut frames: VecDeque<_>| {
        frames.push_back(Err(BodyError::GivenUp));
        frames
    };
    let with_trailers = |mut frames: VecDeque<_>| {
        frames.push_back(Ok(Frame::trailers(fields(&[("x-sum", "7")]))));
        frames
    };
    let whole = Some(Bytes::from_static(b"onetwo"));
    let six = [("content-length", "6")];
    for (what, list, frames, reads, want) in [
        ("read to its end", NO_FIELDS, two(), 3, whole.clone()),
        ("left before its end", NO_FIELDS, two(), 2, None),
        ("broken off", NO_FIELDS, broken(two()), 3, None),
        ("with trailers", NO_FIELDS, with_trailers(two()), 3, whole.clone()),
        ("of the length stated", &six, two(), 2, whole),
        ("shorter than stated", &[("content-length", "7")], two(), 3, None),
        ("longer than stated", &[("content-length", "5")], two(), 3, None),
    ] {
        assert_eq!(kept_of(list, frames, reads).await, want, "{what}");
    }
}

#[tokio::test]
async fn a_response_of_more_than_a_mebibyte_passes_and_is_not_kept() {
    let half = vec![b'x'; MAX_CONTENT / 2];
    assert_eq!(kept_of(NO_FIELDS, pieces([&half, &half]), 3).await.map(|kept| kept.len()), Some(MAX_CONTENT));
    assert_eq!(kept_of(NO_FIELDS, pieces([&half, &half, b"x"]), 4).await, None);
    assert_eq!(kept_of(&[("content-length", "1048577")], pieces([&half, &half, b"x"]), 4).await, None);
}

#[tokio::test]
async fn a_reader_sees_how_much_is_to_come() {
    let shop = Shop::new(cache());
    let asked = asked_at("GET", API, NO_FIELDS, shop.begin);
    let passed = shop.cache.pass(asked, response(200, NO_FIELDS, Body::full("four")), shop.begin, clock());
    assert_eq!(passed.body().size_hint().exact(), Some(4));
}

#[tokio::test]
async fn responses_take_no_more_memory_than_the_config_allows() {
    for content_bytes in [100, 15 << 10, 200 << 10] {
        let shop = Shop::new(cache_of("1h", "1MiB"));
        let content = "x".repeat(content_bytes);
        for number in 0..500 {
            let uri = format!("http://api/{number}");
            shop.passes(("GET", &uri, NO_FIELDS), 200, NO_FIELDS, &content).await;
        }
        let held = (0..500).filter(|number| {
            shop.answers("GET", &format!("http://api/{number}"), NO_FIELDS, Duration::ZERO).is_some()
        });
        let held = held.count();
        // What moka has not looked at yet is small.
        let limit = (1 << 20) + 64 * EVICT_AT_ONCE as usize;
        assert!(held * content_bytes <= limit, "{held} of {content_bytes} bytes");
        shop.cache.entries.run_pending_tasks();
        assert!(shop.cache.entries.weighted_size() <= 1 << 20);
        assert!(shop.content("http://api/499", NO_FIELDS).await.is_some(), "the latest stays");
    }
}

#[tokio::test]
async fn responses_on_their_way_take_no_more_either() {
    let shop = Shop::new(cache_of("1h", "1MiB"));
    let piece = vec![b'x'; 400 << 10];
    let begin = |number: usize| {
        let asked = asked_at("GET", &format!("http://api/{number}"), NO_FIELDS, shop.begin);
        let body = Body::from_source(Pieces(pieces([&piece])));
        shop.cache.pass(asked, response(200, NO_FIELDS, body), shop.begin, clock())
    };
    let mut passed: Vec<_> = (0..4).map(begin).collect();
    assert!(passed.iter_mut().all(read), "all are passed on");
    assert!(shop.cache.gathering.load(Relaxed) <= 1 << 20);
    for passed in &mut passed {
        assert!(!read(passed));
    }
    for number in 0..4 {
        let is_kept = shop.content(&format!("http://api/{number}"), NO_FIELDS).await.is_some();
        assert_eq!(is_kept, number < 2, "{number}");
    }
    assert_eq!(shop.cache.gathering.load(Relaxed), 0);
}
