//! Virtual time: `now` is the start plus what a test says, and chance is a number in it.
use std::io;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{caller::Refusal, client::wire::ErrorBody};

const WINDOW: Duration = Duration::from_secs(30);
const LIMIT: usize = 256 * 1024;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn call(began: Instant) -> Resume {
    Resume::new(began, Some("t1".into()), WINDOW, LIMIT)
}

fn error(retryable: bool, retry_after_ms: Option<u64>) -> ErrorBody {
    let (code, message) = ("why".to_owned(), "so".to_owned());
    ErrorBody { code, message, retryable, retry_after_ms, field: None, request_id: "q".into() }
}

fn end(code: u16) -> CallEnd {
    CallEnd::new(code, String::new(), None)
}

fn unreachable() -> ConnectError {
    ConnectError::Tcp { to: "h:1".into(), source: io::Error::other("no route") }
}

fn refused(status: u16, retry_after_s: Option<u64>) -> ConnectError {
    ConnectError::Refused(Box::new(Refusal { status, error: None, body: String::new(), retry_after_s }))
}

/// Goes on to the next try, which must be the next thing to happen; since when `began` that is.
fn dial(resume: &mut Resume, began: Instant) -> Duration {
    let at = resume.deadline();
    match resume.due(at) {
        Some(Due::Dial { .. }) => at - began,
        other => panic!("{other:?}"),
    }
}

fn push(resume: &mut Resume, message: &'static str) {
    resume.push(Message::text(message)).unwrap();
}

fn write_all(resume: &mut Resume) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(message) = resume.unwritten() {
        out.push(message.to_text().unwrap().to_owned());
        resume.wrote();
    }
    out
}

/// A drop with `code` a minute after the call's begin: when the next try is, ms, or that there is none.
fn after(code: u16, error: Option<ErrorBody>, renewed: bool, chance: f64) -> Option<Duration> {
    let began = Instant::now();
    let now = began + ms(60_000);
    let mut resume = call(began);
    if renewed {
        resume.renew();
    }
    let end = CallEnd { error, ..end(code) };
    match resume.dropped(now, end.clone(), chance) {
        Ok(()) => Some(dial(&mut resume, now)),
        Err(over) => {
            assert_eq!(*over, end);
            None
        }
    }
}

#[test]
fn each_close_code_leads_where_the_protocol_page_says() {
    for code in (1000..1016).chain(3000..3003).chain(4400..4510) {
        let want = match code {
            1006 | 1009 | 4408 | 4508 => Some((0, 0)),
            1001 => Some((0, 500)),
            1011 | 1013 | 4429 | 4502 | 4503 | 4504 => Some((250, 500)),
            _ => None,
        };
        let got = after(code, None, false, 0.0).zip(after(code, None, false, 1.0));
        assert_eq!(got, want.map(|(least, most)| (ms(least), ms(most))), "{code}");
    }
    assert_eq!(after(4401, None, true, 1.0), Some(ms(0)), "with a new token");
    assert_eq!(after(4502, Some(error(false, None)), false, 1.0), None, "it will be there again");
    assert_eq!(after(4503, Some(error(true, Some(7_000))), false, 1.0), Some(ms(7_000)), "never earlier than told");
    assert_eq!(after(4508, Some(error(true, Some(50))), false, 1.0), Some(ms(50)));
}

#[test]
fn without_a_token_or_a_window_or_after_a_goodbye_a_drop_is_the_end() {
    let now = Instant::now();
    for (token, window, hung_up) in
        [(None, WINDOW, false), (Some("t"), Duration::ZERO, false), (Some("t"), WINDOW, true)]
    {
        let mut resume = Resume::new(now, token.map(str::to_owned), window, LIMIT);
        if hung_up {
            resume.hang_up();
        }
        assert_eq!(resume.dropped(now, end(1006), 0.0), Err(Box::new(end(1006))), "{token:?} {window:?} {hung_up}");
    }
}

#[test]
fn tries_are_doubled_up_to_five_seconds_and_end_with_the_window() {
    for (chance, want) in [
        (0.0, vec![0, 250, 750, 1_750, 3_750, 6_250, 8_750]),
        (1.0, vec![0, 500, 1_500, 3_500, 7_500, 12_500, 17_500, 22_500, 27_500]),
    ] {
        let began = Instant::now();
        let mut resume = call(began);
        resume.dropped(began, end(1006), chance).unwrap();
        let mut tries = Vec::new();
        let over = loop {
            let at = dial(&mut resume, began);
            tries.push(at);
            if let Err(over) = resume.failed(began + at, &unreachable(), chance) {
                break over;
            }
        };
        let expected: Vec<Duration> = want.into_iter().map(ms).collect();
        assert_eq!(tries.get(..expected.len()), Some(expected.as_slice()), "{chance}");
        assert!(tries.last().is_some_and(|last| *last < WINDOW), "{tries:?}");
        let why = over.to_string();
        assert!(why.starts_with("close code 1006; the call did not come back: the next try would be in "), "{why}");
        assert!(why.ends_with("kept for 30 s in all: cannot connect to h:1: no route"), "{why}");
    }
}

#[test]
fn a_try_that_hangs_is_ended_by_the_window() {
    let began = Instant::now();
    let mut resume = call(began);
    resume.dropped(began, end(1006), 0.0).unwrap();
    assert_eq!(dial(&mut resume, began), ms(0));
    assert_eq!(resume.deadline(), began + WINDOW);
    assert_eq!(resume.due(began + ms(29_999)), None);
    let Some(Due::Over(over)) = resume.due(began + WINDOW) else { panic!("{resume:?}") };
    assert_eq!((over.code, over.not_resumed.as_deref()), (1006, Some("it was tried for 30 s, at last: no answer")));
}

#[test]
fn what_a_try_comes_to_is_told_apart() {
    let ended = |code, error| ConnectError::Ended(Box::new(CallEnd { error, ..end(code) }));
    // How it goes on: the wait where it does, ms; the end's code and words where it does not.
    for (name, failure, want) in [
        ("503", refused(503, None), Ok(500)),
        ("503 with a time", refused(503, Some(3)), Ok(3_000)),
        ("429", refused(429, Some(1)), Ok(1_000)),
        ("too long to wait", refused(429, Some(60)), Err((1011, "the next try would be in 60.0 s"))),
        ("401", refused(401, None), Err((1011, "HTTP 401"))),
        ("403", refused(403, None), Err((1011, "HTTP 403"))),
        ("404", refused(404, None), Err((1011, "HTTP 404"))),
        ("gone", ended(4410, None), Err((4410, "the server no longer has this call"))),
        ("gone, with a reason", ended(4410, Some(error(false, None))), Err((4410, "why: so"))),
        ("taken over", ended(4409, None), Err((4409, ""))),
        ("busy", ended(1013, Some(error(true, Some(2_000)))), Ok(2_000)),
        ("dropped again", ended(1006, None), Ok(500)),
        ("expired", ended(4401, None), Err((4401, ""))),
        ("no relay", ConnectError::NotWebSocket("it speaks SSH"), Err((1011, "it speaks SSH"))),
        ("too slow", ConnectError::Timeout { what: "connecting", limit: ms(10_000) }, Ok(500)),
    ] {
        let now = Instant::now();
        let mut resume = call(now);
        resume.dropped(now + ms(20_000), end(1011), 1.0).unwrap();
        resume.tries = 0; // the pause before the first try is another test's
        let now = now + ms(20_000) + dial(&mut resume, now + ms(20_000));
        match (resume.failed(now, &failure, 1.0), want) {
            (Ok(()), Ok(wait)) => assert_eq!(dial(&mut resume, now), ms(wait), "{name}"),
            (Err(over), Err((code, words))) => {
                assert_eq!(over.code, code, "{name}");
                assert!(over.to_string().contains(words), "{name}: {over}");
            }
            (got, want) => panic!("{name}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn a_renewed_credential_is_tried_once() {
    let now = Instant::now();
    let mut resume = call(now);
    resume.renew();
    resume.dropped(now, end(4401), 0.0).unwrap();
    dial(&mut resume, now);
    assert!(resume.failed(now, &refused(401, None), 0.0).is_err(), "this one was refused too");
}

#[test]
fn a_message_that_the_server_dies_of_is_not_sent_for_ever() {
    let mut now = Instant::now();
    let mut resume = call(now);
    push(&mut resume, "poison");
    let mut waits = Vec::new();
    let over = loop {
        write_all(&mut resume);
        now += ms(100);
        if let Err(over) = resume.dropped(now, end(1011), 1.0) {
            break over;
        }
        waits.push(dial(&mut resume, now).as_millis());
        now += ms(5_000);
        resume.resumed(now, 0, Some("t".into())).unwrap();
    };
    assert_eq!(waits, [500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000, 5_000]);
    assert!(over.to_string().contains("9 times in a row as soon as it was back"), "{over}");
}

#[test]
fn a_drop_after_a_steady_second_is_a_new_one_and_one_before_is_not() {
    let began = Instant::now();
    let mut resume = call(began);
    for (held, wait) in [(1_000, 0), (999, 500), (999, 1_000), (1_000, 0)] {
        let now = began + ms(held);
        let Link::Up { since, .. } = &mut resume.link else { panic!("{resume:?}") };
        *since = began;
        resume.dropped(now, end(1006), 1.0).unwrap();
        assert_eq!(dial(&mut resume, now), ms(wait), "after {held} ms");
        resume.resumed(now, 0, Some("t".into())).unwrap();
    }
}

#[test]
fn silence_is_a_drop_and_any_frame_is_life() {
    let began = Instant::now();
    let mut resume = call(began);
    assert_eq!(resume.due(began + ms(34_999)), None);
    resume.heard(began + ms(30_000));
    assert_eq!(resume.deadline(), began + ms(65_000));
    assert_eq!(resume.due(began + ms(64_999)), None);
    assert_eq!(resume.due(began + ms(65_000)), Some(Due::Silent));
}

#[test]
fn what_comes_is_acknowledged_within_a_second() {
    let began = Instant::now();
    let mut resume = call(began);
    let mut acks = Vec::new();
    for frame in 0..150 {
        let now = began + ms(frame * 20);
        resume.heard(now);
        resume.received(now);
        acks.extend(resume.ack(now));
    }
    assert_eq!(acks, [51, 102]);
    assert_eq!(resume.deadline(), began + ms(102 * 20 + 1_000));
    let mut once = Resume::new(began, None, WINDOW, LIMIT);
    once.received(began);
    assert_eq!(once.ack(began + ms(5_000)), None, "nobody keeps anything for us");
}

#[test]
fn what_no_ack_covers_is_sent_again_and_then_what_was_said_meanwhile() {
    let now = Instant::now();
    let mut resume = call(now);
    for message in ["1", "2", "3", "4"] {
        push(&mut resume, message);
    }
    assert_eq!(write_all(&mut resume), ["1", "2", "3", "4"]);
    resume.acked(1);
    resume.acked(9); // it cannot have what was not sent
    push(&mut resume, "5");
    assert_eq!(resume.first, 5, "{resume:?}");
    resume.dropped(now, end(1006), 0.0).unwrap();
    push(&mut resume, "6");
    dial(&mut resume, now);
    assert_eq!(resume.resumed(now + ms(300), 4, Some("t2".into())), Ok(ms(300)));
    assert_eq!(write_all(&mut resume), ["5", "6"]);
    resume.dropped(now + ms(2_000), end(1006), 0.0).unwrap();
    let due = resume.due(now + ms(2_000));
    assert_eq!(due, Some(Due::Dial { token: "t2".into(), got: 0 }), "each token once");
    resume.resumed(now, 4, None).unwrap();
    assert_eq!(write_all(&mut resume), ["5", "6"]);
    assert_eq!(
        (resume.kept.len(), resume.kept_bytes),
        (0, 0),
        "this server keeps the call no longer, so neither do we"
    );
    assert!(resume.dropped(now, end(1006), 0.0).is_err());
}

#[test]
fn accounts_that_do_not_fit_end_the_call() {
    let now = Instant::now();
    for (acked, got, words) in [
        (0, 4, "the server says that it has 4 messages, and 3 were sent"),
        (2, 0, "the server lacks the messages 1 to 2, which are no longer kept"),
    ] {
        let mut resume = call(now);
        for message in ["1", "2", "3"] {
            push(&mut resume, message);
        }
        write_all(&mut resume);
        resume.acked(acked);
        resume.dropped(now, end(1006), 0.0).unwrap();
        dial(&mut resume, now);
        let over = resume.resumed(now, got, Some("t".into())).unwrap_err();
        assert_eq!(over.not_resumed.as_deref(), Some(words));
    }
}

#[test]
fn what_is_kept_is_bounded_and_nothing_is_lost_in_silence() {
    let now = Instant::now();
    let chunk = || Message::Binary(Bytes::from_static(&[0; LIMIT]));
    let mut resume = call(now);
    let over = resume.push(Message::Binary(Bytes::from_static(&[0; LIMIT + 1])));
    assert_eq!(over, Err(SendError::TooLarge { bytes: LIMIT + 1, limit: LIMIT }));
    // Written, and never acknowledged: the oldest are forgotten.
    for _ in 0..40 {
        resume.push(chunk()).unwrap();
        resume.wrote();
    }
    assert!(resume.kept_bytes <= KEEP && resume.first == 10, "{resume:?}");
    // Not written: refused, once there is nothing else to forget.
    resume.dropped(now, end(1006), 0.0).unwrap();
    let taken = (0..).take_while(|_| resume.push(chunk()).is_ok()).count();
    assert_eq!((taken, resume.push(chunk())), (31, Err(SendError::Backlog)));
    assert_eq!(resume.sent(), 71);
    dial(&mut resume, now);
    // A server that has all that was written lacks nothing.
    resume.resumed(now, 40, Some("t".into())).unwrap();
    assert_eq!(resume.written, 40);
    // One that has less does.
    resume.dropped(now, end(1006), 0.0).unwrap();
    dial(&mut resume, now);
    let over = resume.resumed(now, 39, Some("t".into())).unwrap_err();
    assert!(over.to_string().ends_with("the server lacks the messages 40 to 40, which are no longer kept"), "{over}");
}

#[test]
fn a_goodbye_while_away_ends_at_once() {
    let now = Instant::now();
    let mut resume = call(now);
    resume.dropped(now, end(1006), 0.0).unwrap();
    dial(&mut resume, now);
    resume.hang_up();
    assert!(resume.deadline() <= now);
    let Some(Due::Over(over)) = resume.due(now) else { panic!("{resume:?}") };
    assert!(over.is_normal(), "{over}");
}

/// The server's half, as the contract has it.
#[derive(Default)]
struct Server {
    /// Each of the client's messages, as often as it came.
    got: Vec<String>,
    sent: Vec<String>,
    acked: usize,
    tokens: u32,
}

/// One connection: what is under way in both directions.
#[derive(Default)]
struct Pipe {
    up: VecDeque<String>,
    down: VecDeque<String>,
}

struct World {
    now: Instant,
    client: Resume,
    /// What the client was told to send, its acks among it.
    said: Vec<String>,
    heard: Vec<String>,
    server: Server,
    pipe: Option<Pipe>,
    drops: u32,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let (server, pipe) = (Server { tokens: 1, ..Server::default() }, Some(Pipe::default()));
        Self { now, client: call(now), said: Vec::new(), heard: Vec::new(), server, pipe, drops: 0 }
    }

    fn say(&mut self, text: String) {
        self.client.push(Message::text(text.clone())).unwrap();
        self.said.push(text);
    }

    fn step(&mut self, what: u8, n: usize) {
        if let Some(got) = self.client.ack(self.now) {
            self.say(format!("ack {got}"));
        }
        match what {
            0 => self.say(format!("c{}", self.said.len())),
            1 => self.write(n),
            2 => self.arrive_there(n),
            3 => {
                let text = if n.is_multiple_of(4) {
                    format!("ack {}", self.server.got.len())
                } else {
                    format!("s{}", self.server.sent.len())
                };
                self.server.sent.push(text.clone());
                if let Some(pipe) = &mut self.pipe {
                    pipe.down.push_back(text);
                }
            }
            4 => self.arrive_here(n),
            5 => self.now += ms(n as u64 * 50),
            _ if self.pipe.is_some() => self.cut(n),
            _ => self.come_back(n),
        }
    }

    fn write(&mut self, n: usize) {
        let Some(pipe) = &mut self.pipe else { return };
        for _ in 0..n {
            let Some(message) = self.client.unwritten() else { return };
            pipe.up.push_back(message.to_text().unwrap().to_owned());
            self.client.wrote();
        }
    }

    fn arrive_there(&mut self, n: usize) {
        let Some(pipe) = &mut self.pipe else { return };
        for message in pipe.up.drain(..n.min(pipe.up.len())) {
            if let Some(got) = message.strip_prefix("ack ") {
                self.server.acked = got.parse().unwrap();
            }
            self.server.got.push(message);
        }
    }

    fn arrive_here(&mut self, n: usize) {
        let Some(pipe) = &mut self.pipe else { return };
        for message in pipe.down.drain(..n.min(pipe.down.len())) {
            self.client.heard(self.now);
            self.client.received(self.now);
            if let Some(got) = message.strip_prefix("ack ") {
                self.client.acked(got.parse().unwrap());
            }
            self.heard.push(message);
        }
    }

    /// What is under way is lost, but for a beginning of it.
    fn cut(&mut self, n: usize) {
        self.arrive_there(n % 3);
        self.arrive_here(n / 3 % 3);
        self.pipe = None;
        self.drops += 1;
        self.client.dropped(self.now, end(1006), 0.5).unwrap();
    }

    /// The next try: it fails, or the connection is there again, or drops right behind `resumed`.
    fn come_back(&mut self, n: usize) {
        self.now = self.now.max(self.client.deadline());
        let Some(Due::Dial { token, got }) = self.client.due(self.now) else { panic!("{:?}", self.client) };
        if n.is_multiple_of(3) && self.client.tries < 3 {
            self.client.failed(self.now, &unreachable(), 0.5).unwrap();
            return;
        }
        let got = usize::try_from(got).unwrap();
        assert_eq!(token, format!("t{}", self.server.tokens), "each token once");
        assert!(got >= self.server.acked, "the server has forgotten what was acknowledged");
        self.server.tokens += 1;
        let has = self.server.got.len() as u64;
        self.client.resumed(self.now, has, Some(format!("t{}", self.server.tokens))).unwrap();
        let down = self.server.sent.iter().skip(got).cloned().collect();
        self.pipe = Some(Pipe { up: VecDeque::new(), down });
    }
}

proptest! {
    /// Whatever is said, lost, acknowledged and tried again: each side has each message of the other once and in order.
    #[test]
    fn exactly_once(steps in prop::collection::vec((0u8..7, 0usize..12), 1..400)) {
        let mut world = World::new();
        for (what, n) in steps {
            world.step(what, n);
            prop_assert!(world.said.starts_with(&world.server.got));
            prop_assert!(world.server.sent.starts_with(&world.heard));
        }
        while world.pipe.is_none() {
            world.come_back(1);
        }
        world.write(usize::MAX);
        world.arrive_there(usize::MAX);
        world.arrive_here(usize::MAX);
        prop_assert_eq!(&world.server.got, &world.said);
        prop_assert_eq!(&world.heard, &world.server.sent);
        prop_assert_eq!(world.server.tokens > 1, world.drops > 0);
    }
}
