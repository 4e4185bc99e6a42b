//! The model service's place: takes sessions, swallows their audio and counts it. A child process, so that its CPU is its own.
//!
//! Obeys lines on standard input: `stats`, `reset`, and `reply MS`, upon which every session is given a reply of that
//! length at four times real time.
use std::{
    cell::RefCell,
    fmt::Write as _,
    future::poll_fn,
    io::BufRead as _,
    pin::Pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::frames::{self, CLOSE, FRAME_BYTES, FRAME_US, Message, PING, PONG, Parser, TEXT};

/// Ages are counted in steps of so many microseconds, up to five seconds.
const AGE_STEP: i64 = 50;
const MAX_AGE: usize = 100_000;
/// One delta of a reply.
const DELTA: Duration = Duration::from_millis(200);
/// A model speaks so much faster than it is heard.
const FASTER: u32 = 4;

const CREATED: &str = r#"{"type":"session.created","event_id":"event_1","session":{"type":"realtime","object":"realtime.session","id":"sess_bench","expires_at":4102444800}}"#;
const UPDATED: &str =
    r#"{"type":"session.updated","event_id":"event_2","session":{"type":"realtime","id":"sess_bench"}}"#;

/// How old audio is when it arrives.
struct Ages(Vec<u64>);

impl Default for Ages {
    fn default() -> Self {
        Self(vec![0; MAX_AGE])
    }
}

impl Ages {
    fn add(&mut self, micros: i64) {
        let step = usize::try_from(micros.max(0) / AGE_STEP).unwrap().min(MAX_AGE - 1);
        self.0[step] += 1;
    }

    /// Microseconds.
    fn quantile(&self, q: f64) -> i64 {
        let all: u64 = self.0.iter().sum();
        let mut left = all as f64 * q;
        let found = self.0.iter().position(|n| {
            left -= *n as f64;
            left <= 0.0 && all > 0
        });
        found.map_or(0, micros)
    }

    /// Microseconds.
    fn max(&self) -> i64 {
        self.0.iter().rposition(|n| *n > 0).map_or(0, micros)
    }
}

fn micros(step: usize) -> i64 {
    i64::try_from(step).unwrap() * AGE_STEP
}

#[derive(Default)]
struct Stats {
    open: u64,
    configured: u64,
    appends: u64,
    bytes: u64,
    /// Audio that was not the one expected at its place.
    wrong: u64,
    oldest: Ages,
    newest: Ages,
}

impl Stats {
    fn line(&self) -> String {
        let mut out = format!(
            "open={} configured={} appends={} bytes={} wrong={}",
            self.open, self.configured, self.appends, self.bytes, self.wrong
        );
        for (name, ages) in [("oldest", &self.oldest), ("newest", &self.newest)] {
            let _ = write!(
                out,
                " {name}_p50={} {name}_p99={} {name}_max={}",
                ages.quantile(0.5),
                ages.quantile(0.99),
                ages.max()
            );
        }
        out
    }

    fn reset(&mut self) {
        *self = Self { open: self.open, configured: self.configured, ..Self::default() };
    }
}

type Shared = Arc<Mutex<Stats>>;

/// Listens on a free port, says which, and serves until standard input ends.
pub(crate) async fn run() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening {}", listener.local_addr().unwrap());
    let stats = Shared::default();
    let (reply, replies) = watch::channel(Duration::ZERO);
    let (stop, mut stopped) = mpsc::channel::<()>(1);
    let obeying = stats.clone();
    std::thread::spawn(move || {
        obey(&obeying, &reply);
        drop(stop);
    });
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.recv() => return,
            accepted = listener.accept() => {
                let (tcp, _) = accepted.unwrap();
                sessions.spawn(session(tcp, stats.clone(), replies.clone()));
            }
            Some(_) = sessions.join_next() => {}
        }
    }
}

fn obey(stats: &Shared, reply: &watch::Sender<Duration>) {
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("stats", _) => println!("{}", stats.lock().unwrap().line()),
            ("reset", _) => stats.lock().unwrap().reset(),
            ("reply", ms) => {
                reply.send_replace(Duration::from_millis(ms.parse().unwrap()));
            }
            _ => eprintln!("unknown command {line}"),
        }
    }
}

/// One session. Whatever goes wrong ends it; what is missing then shows in the count.
async fn session(mut tcp: TcpStream, stats: Shared, replies: watch::Receiver<Duration>) {
    tcp.set_nodelay(true).unwrap();
    if upgrade(&mut tcp).await.is_none() {
        return;
    }
    stats.lock().unwrap().open += 1;
    let mut replies = replies;
    replies.mark_unchanged();
    let (mut read, mut write) = tcp.split();
    let (answers, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
    let reading = async {
        let mut ear = Ear { parser: Parser::default(), at: 0, first: None };
        while let Some(()) = ear.hear(&mut read, &stats, &answers).await {}
    };
    let writing = async {
        loop {
            tokio::select! {
                Some(answer) = queue.recv() => if write.write_all(&answer).await.is_err() { return },
                Ok(()) = replies.changed() => {
                    let length = *replies.borrow_and_update();
                    for (pause, bytes) in reply(length) {
                        time::sleep(pause).await;
                        if write.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                }
                else => return,
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    stats.lock().unwrap().open -= 1;
}

/// Answers the handshake, and says that the session is there.
async fn upgrade(tcp: &mut TcpStream) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if tcp.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let head = String::from_utf8(head).ok()?;
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    })?;
    let mut answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    )
    .into_bytes();
    answer.extend(frames::frame(TEXT, CREATED.as_bytes(), false));
    tcp.write_all(&answer).await.ok()
}

/// Takes what a session says.
struct Ear {
    parser: Parser,
    /// Audio so far, bytes.
    at: u64,
    /// The call's first number.
    first: Option<u16>,
}

impl Ear {
    /// Reads once; `None` when the session is over. All sessions read into one buffer.
    async fn hear(
        &mut self,
        tcp: &mut (impl AsyncRead + Unpin),
        stats: &Shared,
        answers: &mpsc::UnboundedSender<Vec<u8>>,
    ) -> Option<()> {
        thread_local! { static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 << 10]); }
        poll_fn(|cx| {
            BUFFER.with(|buffer| {
                let mut buffer = buffer.borrow_mut();
                let mut into = ReadBuf::new(&mut buffer);
                let done = match Pin::new(&mut *tcp).poll_read(cx, &mut into) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(done) => done,
                };
                if done.is_err() || into.filled().is_empty() {
                    return Poll::Ready(None);
                }
                let mut parser = std::mem::take(&mut self.parser);
                let mut on = Some(());
                let now = frames::wall();
                parser.feed(into.filled(), |message| match message.opcode {
                    CLOSE => on = None,
                    PING => drop(answers.send(frames::frame(PONG, message.head, false))),
                    _ => self.message(&message, now, stats, answers),
                });
                self.parser = parser;
                Poll::Ready(on)
            })
        })
        .await
    }

    fn message(&mut self, message: &Message<'_>, now: u64, stats: &Shared, answers: &mpsc::UnboundedSender<Vec<u8>>) {
        let mut stats = stats.lock().unwrap();
        let Some((bytes, stamp)) = frames::append(message) else {
            if memchr::memmem::find(message.head, br#""session":{"#).is_some() {
                stats.configured += 1;
                drop(answers.send(frames::frame(TEXT, UPDATED.as_bytes(), false)));
            }
            return;
        };
        stats.appends += 1;
        stats.bytes += bytes;
        let (frame, within) = (self.at / FRAME_BYTES as u64, self.at % FRAME_BYTES as u64);
        self.at += bytes;
        let Some(stamp) = stamp.filter(|_| within == 0) else { return };
        let first = *self.first.get_or_insert(stamp.number);
        // Sixteen bits of the count; they wrap after 22 minutes of audio.
        let expected = u64::from(first) + frame;
        stats.wrong += u64::from(expected & 0xFFFF != u64::from(stamp.number));
        let age = i64::from(frames::since(stamp.due, now));
        let more = bytes.div_ceil(FRAME_BYTES as u64) - 1;
        stats.oldest.add(age);
        stats.newest.add(age - i64::try_from(more * FRAME_US).unwrap());
    }
}

/// A reply of `length`, in messages, each after a pause.
fn reply(length: Duration) -> Vec<(Duration, Vec<u8>)> {
    let text = |text: &str| frames::frame(TEXT, text.as_bytes(), false);
    let number = frames::wall();
    let created = format!(
        r#"{{"type":"response.created","event_id":"event_3","response":{{"id":"resp_{number}","status":"in_progress"}}}}"#
    );
    let delta = format!(
        r#"{{"type":"response.output_audio.delta","event_id":"event_4","response_id":"resp_{number}","item_id":"item_{number}","output_index":0,"content_index":0,"delta":"{}"}}"#,
        STANDARD.encode(vec![7; 9_600])
    );
    let done = format!(
        r#"{{"type":"response.done","event_id":"event_5","response":{{"id":"resp_{number}","status":"completed"}}}}"#
    );
    let deltas = length.as_millis().div_ceil(DELTA.as_millis());
    let mut out = vec![(Duration::ZERO, text(&created))];
    out.extend((0..deltas).map(|_| (DELTA / FASTER, text(&delta))));
    out.push((Duration::ZERO, text(&done)));
    out
}
