use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Wake;

use http::HeaderValue;

use super::*;
use crate::net::{BodyEnd, BodyWatch};

/// A client's body that the test sends frame by frame.
#[derive(Clone, Default)]
struct Client(Rc<RefCell<ClientState>>);

#[derive(Default)]
struct ClientState {
    frames: VecDeque<Result<Frame<Bytes>, BodyError>>,
    ended: bool,
    /// The number of bytes that `Content-Length` announced.
    announced: Option<u64>,
    reader: Option<Waker>,
    passed: usize,
    end: Option<BodyEnd>,
}

impl Client {
    /// The replay of what it will send.
    fn replay(&self) -> Replay {
        Replay::new(Body::from_source(self.clone()).watched(Box::new(self.clone())))
    }

    fn send(&self, text: &str) {
        self.push(Ok(Frame::data(Bytes::copy_from_slice(text.as_bytes()))));
    }

    fn push(&self, frame: Result<Frame<Bytes>, BodyError>) {
        self.0.borrow_mut().frames.push_back(frame);
        self.wake();
    }

    fn end(&self) {
        self.0.borrow_mut().ended = true;
        self.wake();
    }

    fn wake(&self) {
        let waker = self.0.borrow_mut().reader.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn passed(&self) -> usize {
        self.0.borrow().passed
    }

    fn how_it_ended(&self) -> Option<BodyEnd> {
        self.0.borrow().end
    }
}

impl BodySource for Client {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.0.borrow_mut();
        match state.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if state.ended => Poll::Ready(None),
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end(&self) -> bool {
        let state = self.0.borrow();
        state.ended && state.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.0.borrow();
        match state.announced {
            Some(announced) => SizeHint::with_exact(announced - state.passed as u64),
            None => SizeHint::default(),
        }
    }
}

impl BodyWatch for Client {
    fn data(&mut self, bytes: usize) {
        self.0.borrow_mut().passed += bytes;
    }

    fn waiting(&mut self) {}

    fn trailers(&mut self, _: &HeaderMap) {}

    fn end(&mut self, how: BodyEnd) {
        assert_eq!(self.0.borrow_mut().end.replace(how), None, "a body ends once");
    }
}

/// A task that counts how often it is woken.
#[derive(Default)]
struct Task(AtomicUsize);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Task {
    fn woken(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// What one poll of a body gave, as a word.
fn poll_by(body: &mut Body, task: &Arc<Task>) -> String {
    let waker = Waker::from(task.clone());
    match Pin::new(body).poll_frame(&mut Context::from_waker(&waker)) {
        Poll::Pending => "pending".into(),
        Poll::Ready(None) => "end".into(),
        Poll::Ready(Some(Err(error))) => format!("error: {error}"),
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) => String::from_utf8_lossy(&data).into_owned(),
            Err(frame) => format!("trailers: {:?}", frame.into_trailers().unwrap()),
        },
    }
}

fn poll(body: &mut Body) -> String {
    poll_by(body, &Arc::default())
}

/// Polls until there is nothing more.
fn drain(body: &mut Body) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        if body.is_end() {
            all.push("end".into());
            return all;
        }
        let next = poll(body);
        let over = next == "pending" || next == "end" || next.starts_with("error");
        all.push(next);
        if over {
            return all;
        }
    }
}

fn trailers() -> HeaderMap {
    [(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))].into_iter().collect()
}

const GIVEN_UP: &str = "error: this try of the request was given up";

#[test]
fn a_request_without_a_body_can_be_sent_any_number_of_times() {
    let replay = Replay::new(Body::empty());
    assert!(replay.0.is_none(), "nothing is allocated for it");
    for _ in 0..4 {
        assert!(replay.can_be_sent());
        assert!(replay.next_try().unwrap().is_end());
    }
}

#[test]
fn a_body_streams_before_it_is_whole() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    assert_eq!(poll(&mut first), "pending");
    client.send("one");
    assert_eq!(poll(&mut first), "one");
    assert_eq!(poll(&mut first), "pending");
    client.send("two");
    client.end();
    assert_eq!(poll(&mut first), "two");
    assert!(first.is_end());
    assert_eq!(client.how_it_ended(), Some(BodyEnd::Complete), "who waits for the end need not wait for us");
}

#[test]
fn the_next_try_begins_anew_and_goes_on_with_what_the_client_still_sends() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    client.send("one");
    client.send("two");
    assert_eq!(drain(&mut first), ["one", "two", "pending"]);
    drop(first);
    let mut second = replay.next_try().unwrap();
    client.send("three");
    client.end();
    assert_eq!(drain(&mut second), ["one", "two", "three", "end"]);
    assert_eq!(client.passed(), 11, "the client's bytes are counted once");
}

#[test]
fn a_try_that_was_dropped_in_the_middle_of_what_was_kept_loses_nothing() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    for text in ["one", "two", "three"] {
        client.send(text);
    }
    assert_eq!(drain(&mut first), ["one", "two", "three", "pending"]);
    let mut second = replay.next_try().unwrap();
    assert_eq!(poll(&mut second), "one");
    drop(second);
    client.send("four");
    let mut third = replay.next_try().unwrap();
    assert_eq!(drain(&mut third), ["one", "two", "three", "four", "pending"]);
    client.end();
    assert_eq!(drain(&mut third), ["end"]);
    let mut fourth = replay.next_try().unwrap();
    assert_eq!(drain(&mut fourth), ["one", "two", "three", "four", "end"]);
    assert_eq!(client.passed(), 15);
}

#[test]
fn an_earlier_try_that_is_still_polled_takes_nothing_and_never_looks_whole() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    client.send("one");
    assert_eq!(poll(&mut first), "one");
    let mut second = replay.next_try().unwrap();
    client.send("two");
    client.end();
    assert_eq!(poll(&mut first), GIVEN_UP);
    assert_eq!(drain(&mut second), ["one", "two", "end"]);
    assert!(!first.is_end());
    assert_eq!(poll(&mut first), GIVEN_UP);
}

#[test]
fn a_whole_body_that_was_given_up_does_not_end_well_either() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    client.send("one");
    client.end();
    assert_eq!(poll(&mut first), "one");
    let mut second = replay.next_try().unwrap();
    assert!(!first.is_end());
    assert_eq!(poll(&mut first), GIVEN_UP);
    assert_eq!(drain(&mut second), ["one", "end"]);
}

#[test]
fn what_comes_wakes_the_try_that_reads() {
    let client = Client::default();
    let replay = client.replay();
    let (early, late) = (Arc::new(Task::default()), Arc::new(Task::default()));
    let mut first = replay.next_try().unwrap();
    assert_eq!(poll_by(&mut first, &early), "pending");
    let mut second = replay.next_try().unwrap();
    assert_eq!(early.woken(), 1, "it must learn that it was given up");
    assert_eq!(poll_by(&mut second, &late), "pending");
    assert_eq!(poll_by(&mut first, &early), GIVEN_UP);
    client.send("one");
    assert_eq!((early.woken(), late.woken()), (1, 1));
    assert_eq!(poll_by(&mut second, &late), "one");
    assert_eq!(poll_by(&mut second, &late), "pending");
    client.send("two");
    assert_eq!((early.woken(), late.woken()), (1, 2));
}

#[test]
fn trailers_are_sent_again() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    client.send("one");
    client.push(Ok(Frame::trailers(trailers())));
    let want = ["one".to_owned(), format!("trailers: {:?}", trailers()), "end".to_owned()];
    assert_eq!(drain(&mut first), want);
    assert_eq!(drain(&mut replay.next_try().unwrap()), want);
    // In the middle: after the content, before the trailers.
    let mut third = replay.next_try().unwrap();
    assert_eq!(poll(&mut third), "one");
    assert!(!third.is_end());
    assert_eq!(drain(&mut replay.next_try().unwrap()), want);
    assert_eq!(client.how_it_ended(), Some(BodyEnd::Complete));
}

#[test]
fn exactly_64_kib_can_be_sent_again_and_one_byte_more_can_not() {
    for (last, can) in [(32 << 10, true), ((32 << 10) + 1, false)] {
        let client = Client::default();
        let replay = client.replay();
        let mut first = replay.next_try().unwrap();
        client.send(&"a".repeat(32 << 10));
        client.send(&"b".repeat(last));
        poll(&mut first);
        assert!(replay.can_be_sent());
        assert_eq!(poll(&mut first).len(), last);
        assert_eq!(replay.can_be_sent(), can);
        client.end();
        assert_eq!(poll(&mut first), "end", "the try under way is not disturbed");
        assert_eq!(
            replay.next_try().map(|mut body| drain(&mut body).concat().len()),
            can.then_some((64 << 10) + 3)
        );
    }
}

#[test]
fn what_is_too_much_is_not_kept() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    let (piece, counter) = counted("x".repeat(40 << 10));
    client.push(Ok(Frame::data(piece)));
    drop(Pin::new(&mut first).poll_frame(&mut Context::from_waker(Waker::noop())));
    assert_eq!(Arc::strong_count(&counter), 2, "kept");
    client.send(&"y".repeat(40 << 10));
    poll(&mut first);
    assert_eq!(Arc::strong_count(&counter), 1, "dropped");
    client.send("tail");
    client.push(Ok(Frame::trailers(trailers())));
    assert_eq!(
        drain(&mut first),
        ["tail".to_owned(), format!("trailers: {:?}", trailers()), "end".to_owned()]
    );
}

#[test]
fn a_body_in_many_small_pieces_can_be_sent_again_whole() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    let mut whole = String::new();
    let mut send = |body: &mut Body, number: u32| {
        let piece = (number % 10).to_string();
        client.send(&piece);
        assert_eq!(poll(body), piece, "the try under way gets each piece as it comes");
        whole.push_str(&piece);
    };
    (0..3000).for_each(|number| send(&mut first, number));
    let mut second = replay.next_try().unwrap();
    let got = drain(&mut second);
    assert!(got.len() <= MAX_PIECES && got[0].len() > MAX_PIECES, "what was many is one: {}", got.len());
    assert_eq!(got[..got.len() - 1].concat().len(), 3000);
    (3000..6000).for_each(|number| send(&mut second, number));
    client.end();
    let mut third = replay.next_try().unwrap();
    let got = drain(&mut third);
    assert_eq!(got[..got.len() - 1].concat(), whole);
    assert_eq!(got.last().unwrap(), "end");
}

#[test]
fn a_client_that_sends_byte_by_byte_does_not_make_us_keep_a_multiple() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    let mut counters = Vec::new();
    for _ in 0..MAX_KEPT {
        let (piece, counter) = counted("a".into());
        counters.push(counter);
        client.push(Ok(Frame::data(piece)));
        poll(&mut first);
        assert!(replay.0.as_ref().unwrap().borrow().kept.len() <= MAX_PIECES);
    }
    let held = counters.iter().filter(|counter| Arc::strong_count(counter) == 2).count();
    assert!(held <= MAX_PIECES, "{held} buffers of the client's are kept");
    assert!(replay.can_be_sent());
    client.send("a");
    poll(&mut first);
    assert!(!replay.can_be_sent(), "only their bytes are too many");
}

#[test]
fn too_much_on_a_later_try_ends_the_tries_and_not_the_body() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    client.send("one");
    assert_eq!(poll(&mut first), "one");
    let mut second = replay.next_try().unwrap();
    client.send(&"b".repeat(64 << 10));
    client.send("three");
    client.end();
    assert_eq!(poll(&mut second), "one");
    assert_eq!(poll(&mut second).len(), 64 << 10);
    assert!(replay.next_try().is_none());
    assert_eq!(drain(&mut second), ["three", "end"]);
}

#[test]
fn a_body_that_the_client_breaks_off_ends_all_tries() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    client.send("one");
    client.push(Err(h2::Error::from(h2::Reason::CANCEL).into()));
    assert_eq!(poll(&mut first), "one");
    assert!(poll(&mut first).starts_with("error"));
    assert_eq!(client.how_it_ended(), Some(BodyEnd::Broken));
    assert!(!first.is_end());
    assert!(poll(&mut first).starts_with("error"), "never an end");
    assert!(!replay.can_be_sent());
    assert!(replay.next_try().is_none());
}

#[test]
fn without_more_tries_the_last_one_goes_on_and_frees_what_was_kept() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    let (piece, counter) = counted("one".into());
    client.push(Ok(Frame::data(piece)));
    client.send("two");
    assert_eq!(drain(&mut first), ["one", "two", "pending"]);
    let mut second = replay.next_try().unwrap();
    drop(replay);
    assert_eq!(Arc::strong_count(&counter), 2);
    assert_eq!(poll(&mut second), "one");
    assert_eq!(Arc::strong_count(&counter), 1);
    client.send("three");
    client.end();
    assert_eq!(drain(&mut second), ["two", "three", "end"]);
    assert_eq!(poll(&mut first), GIVEN_UP);
}

#[test]
fn a_body_that_nobody_reads_any_more_is_abandoned() {
    let client = Client::default();
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    client.send("one");
    assert_eq!(poll(&mut first), "one");
    drop(first);
    assert_eq!(client.how_it_ended(), None, "another try may come");
    drop(replay);
    assert_eq!(client.how_it_ended(), Some(BodyEnd::Abandoned));
}

#[test]
fn every_try_announces_the_same_length() {
    let client = Client::default();
    client.0.borrow_mut().announced = Some(11);
    let replay = client.replay();
    let mut first = replay.next_try().unwrap();
    assert_eq!(first.size_hint().exact(), Some(11));
    client.send("one");
    client.send("two");
    assert_eq!(poll(&mut first), "one");
    assert_eq!(first.size_hint().exact(), Some(8));
    let mut second = replay.next_try().unwrap();
    assert_eq!(second.size_hint().exact(), Some(11));
    assert_eq!(poll(&mut second), "one");
    assert_eq!(second.size_hint().exact(), Some(8));
    client.send("three");
    client.end();
    assert_eq!(drain(&mut second), ["two", "three", "end"]);
    assert_eq!(replay.next_try().unwrap().size_hint().exact(), Some(11));
}

/// Bytes, and what counts their holders besides itself.
fn counted(text: String) -> (Bytes, Arc<()>) {
    struct Owner(String, #[expect(dead_code, reason = "held")] Arc<()>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    let counter = Arc::new(());
    (Bytes::from_owner(Owner(text, counter.clone())), counter)
}
