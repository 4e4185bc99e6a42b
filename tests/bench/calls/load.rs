//! The callers: many sockets, written to in real time by one thread. A child process, so that its CPU is its own.
//!
//! Every frame has an absolute deadline; the calls' phases are spread over the 20 ms of a frame. Obeys lines on standard
//! input: `stream MS`, which ends with a line of figures. Answers pings at any time.
use std::{
    io::BufRead as _,
    net::SocketAddr,
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{self, Instant},
};

use super::frames::{self, BINARY, CLOSE, FRAME_BYTES, FRAME_US, PING, PONG, Parser, Stamp, TEXT};

/// Moments per frame at which calls are served.
const SLOTS: u32 = 20;
const FRAME: Duration = Duration::from_micros(FRAME_US);
/// How often sockets are looked at while nothing is said.
const QUIET_PACE: Duration = Duration::from_millis(20);
/// Bytes read at one go; all calls read into one buffer.
const BUFFER: usize = 64 << 10;
/// Handshakes at once.
const DIALLING: usize = 64;
/// How long what is blocked at the end may take.
const TAIL: Duration = Duration::from_secs(5);

/// How audio is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// As binary messages, to voxrelay's own door.
    Raw,
    /// As append events, to a Realtime service or a proxy in front of one.
    Json,
}

/// Opens `calls` calls, says `up`, and obeys until standard input ends.
pub(crate) async fn run(addr: SocketAddr, path: String, form: Form, calls: usize) {
    let mut calls = dial(addr, &path, form, calls).await;
    println!("up {}", calls.len());
    let (orders, mut buffer) = (orders(), vec![0; BUFFER]);
    loop {
        match orders.try_recv() {
            Ok(order) => {
                let ms = order.strip_prefix("stream ").expect("the only order").parse().unwrap();
                println!("{}", stream(&mut calls, form, Duration::from_millis(ms)).await);
            }
            Err(mpsc::TryRecvError::Empty) => {
                calls.iter_mut().for_each(|c| c.read(&mut buffer));
                time::sleep(QUIET_PACE).await;
            }
            Err(mpsc::TryRecvError::Disconnected) => return,
        }
    }
}

fn orders() -> Receiver<String> {
    let (send, orders) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if send.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    orders
}

async fn dial(addr: SocketAddr, path: &str, form: Form, many: usize) -> Vec<Call> {
    let (mut calls, mut dialling) = (Vec::new(), JoinSet::new());
    for number in 0..many {
        if dialling.len() == DIALLING {
            calls.push(dialling.join_next().await.unwrap().unwrap());
        }
        dialling.spawn(Call::open(addr, path.to_owned(), form, number));
    }
    while let Some(call) = dialling.join_next().await {
        calls.push(call.unwrap());
    }
    calls
}

/// One caller.
struct Call {
    tcp: TcpStream,
    parser: Parser,
    /// What the socket did not take.
    pending: Vec<u8>,
    frame: Template,
    number: u16,
    heard: Heard,
    closed: bool,
}

/// What came back.
#[derive(Default)]
struct Heard {
    texts: u64,
    bytes: u64,
    first: Option<Instant>,
    /// The worst delay behind a loudspeaker that began with the first audio.
    late: Duration,
}

impl Call {
    async fn open(addr: SocketAddr, path: String, form: Form, number: usize) -> Self {
        let mut tcp = TcpStream::connect(addr).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        tcp.write_all(request.as_bytes()).await.unwrap();
        let (mut got, end) = (Vec::new(), b"\r\n\r\n");
        let at = loop {
            assert_ne!(tcp.read_buf(&mut got).await.unwrap(), 0, "refused: {}", String::from_utf8_lossy(&got));
            if let Some(at) = memchr::memmem::find(&got, end) {
                break at + end.len();
            }
        };
        assert!(got.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&got));
        let number = u16::try_from(number * 7_919 % 65_536).unwrap();
        let mut call = Self {
            tcp,
            parser: Parser::default(),
            pending: Vec::new(),
            frame: Template::new(form),
            number,
            heard: Heard::default(),
            closed: false,
        };
        call.take(&got[at..]);
        // `ready`, or `session.created`.
        while call.heard.texts == 0 {
            call.tcp.readable().await.unwrap();
            call.read(&mut [0; 1_024]);
            assert!(!call.closed, "the call was closed before it began");
        }
        call
    }

    /// Takes what has come, without a system call when nothing has.
    fn read(&mut self, buffer: &mut [u8]) {
        while !self.closed {
            match self.tcp.try_read(buffer) {
                Ok(0) => self.closed = true,
                Ok(n) => self.take(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.closed = true,
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Self { parser, pending, heard, closed, .. } = self;
        parser.feed(bytes, |message| match message.opcode {
            TEXT => heard.texts += 1,
            BINARY => heard.audio(message.len),
            PING => pending.extend(frames::frame(PONG, message.head, true)),
            CLOSE => *closed = true,
            _ => {}
        });
        if !self.pending.is_empty() {
            self.write(&[]);
        }
    }

    fn write(&mut self, frame: &[u8]) {
        if !self.pending.is_empty() {
            self.pending.extend_from_slice(frame);
            let pending = std::mem::take(&mut self.pending);
            let put = self.put(&pending);
            self.pending.extend_from_slice(&pending[put..]);
        } else {
            let put = self.put(frame);
            self.pending.extend_from_slice(&frame[put..]);
        }
    }

    fn put(&mut self, bytes: &[u8]) -> usize {
        match self.tcp.try_write(bytes) {
            Ok(put) => put,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.closed = true;
                0
            }
        }
    }

    fn speak(&mut self, due: u64) {
        #[expect(clippy::cast_possible_truncation, reason = "stamps wrap")]
        self.frame.stamp(Stamp { number: self.number, due: due as u32 });
        self.number = self.number.wrapping_add(1);
        let mut frame = std::mem::take(&mut self.frame);
        self.write(&frame.bytes);
        std::mem::swap(&mut self.frame, &mut frame);
    }
}

impl Heard {
    fn audio(&mut self, bytes: u64) {
        let now = Instant::now();
        let first = *self.first.get_or_insert(now);
        let due = first + Duration::from_micros(self.bytes / 48 * 1_000);
        self.late = self.late.max(now.saturating_duration_since(due));
        self.bytes += bytes;
    }
}

/// A frame that is sent again and again, but for its stamp.
#[derive(Default)]
struct Template {
    bytes: Vec<u8>,
    /// Where its audio begins.
    at: usize,
    json: bool,
}

impl Template {
    fn new(form: Form) -> Self {
        let audio: Vec<u8> = (0..FRAME_BYTES).map(|n| u8::try_from(n * 37 % 251).unwrap()).collect();
        let head = br#"{"type":"input_audio_buffer.append","audio":""#;
        let (opcode, payload, before) = match form {
            Form::Raw => (BINARY, audio, 0),
            Form::Json => (TEXT, [head, STANDARD.encode(audio).as_bytes(), br#""}"#.as_slice()].concat(), head.len()),
        };
        let at = frames::header(opcode, payload.len(), true).len() + before;
        Self { bytes: frames::frame(opcode, &payload, true), at, json: form == Form::Json }
    }

    fn stamp(&mut self, stamp: Stamp) {
        if self.json {
            STANDARD.encode_slice(stamp.bytes(), &mut self.bytes[self.at..self.at + 8]).unwrap();
        } else {
            self.bytes[self.at..self.at + 6].copy_from_slice(&stamp.bytes());
        }
    }
}

/// All calls speak for `length`. Figures: bytes of audio sent, the worst delay behind a deadline, calls that were closed,
/// and what came back since the calls began.
async fn stream(calls: &mut [Call], form: Form, length: Duration) -> String {
    debug_assert!(calls.iter().all(|c| c.frame.json == (form == Form::Json)));
    let frames = u32::try_from(length.as_micros() / u128::from(FRAME_US)).unwrap();
    let (began, wall) = (Instant::now() + FRAME, frames::wall() + FRAME_US);
    let (mut worst, mut late, mut buffer) = (Duration::ZERO, 0_u64, vec![0; BUFFER]);
    for moment in 0..frames * SLOTS {
        let after = FRAME / SLOTS * moment;
        let due = began + after;
        time::sleep_until(due).await;
        for call in calls.iter_mut().skip((moment % SLOTS) as usize).step_by(SLOTS as usize) {
            call.speak(wall + u64::try_from(after.as_micros()).unwrap());
        }
        let behind = Instant::now().saturating_duration_since(due);
        worst = worst.max(behind);
        late += u64::from(behind > FRAME);
        calls.iter_mut().for_each(|c| c.read(&mut buffer));
        if moment % SLOTS == 0 {
            tokio::task::yield_now().await; // a late generator must still hear what its sockets say
        }
    }
    let end = Instant::now() + TAIL;
    while calls.iter().any(|c| !c.pending.is_empty()) && Instant::now() < end {
        time::sleep(Duration::from_millis(1)).await;
        calls.iter_mut().for_each(|c| c.write(&[]));
    }
    let sent = u64::from(frames) * (FRAME_BYTES * calls.len()) as u64;
    let closed = calls.iter().filter(|c| c.closed).count();
    let heard: u64 = calls.iter().map(|c| c.heard.bytes).sum();
    let gap = calls.iter().map(|c| c.heard.late).max().unwrap_or_default();
    format!(
        "sent={sent} worst_us={} late={late} closed={closed} heard={heard} gap_us={}",
        worst.as_micros(),
        gap.as_micros()
    )
}
