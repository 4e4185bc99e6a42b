//! Frames, sockets, and what is said on them.
use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::protocol::Role;
use voxrelay::net::{
    io::Io,
    outbox::{Kind, Outbox},
    track::FrameTracker,
    ws::{Frame, Socket, SocketError, SocketLimits},
};

use super::Script;

/// Frame boundaries: cut anywhere, the tracker knows what a reader of the whole knows. The first byte says how to cut.
pub(super) fn track(bytes: &[u8]) {
    let mut script = Script(bytes);
    let cut = usize::from(script.byte()).max(1);
    let (mut whole, mut pieces) = (FrameTracker::default(), FrameTracker::default());
    whole.feed(script.0);
    script.0.chunks(cut).for_each(|piece| pieces.feed(piece));
    let (unfinished, pending) = end_of(script.0);
    for tracker in [whole, pieces] {
        assert_eq!((tracker.unfinished(), tracker.pending()), (unfinished, pending), "{tracker:?}");
    }
}

/// Whether bytes end within a message, and how much of its payload has come: RFC 6455 section 5.2, read at one go.
fn end_of(mut bytes: &[u8]) -> (bool, u64) {
    let (mut fragmented, mut pending) = (false, 0_u64);
    while let Some((&[first, second], rest)) = bytes.split_first_chunk::<2>() {
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (length, rest) = match second & 0x7F {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return (true, pending),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return (true, pending),
            },
            short => (u64::from(short), rest),
        };
        let Some(payload) = rest.get(mask..) else { return (true, pending) };
        if first & 0x08 == 0 {
            fragmented = first & 0x80 == 0;
        }
        match usize::try_from(length).ok().and_then(|length| payload.get(length..)) {
            Some(rest) => (bytes, pending) = (rest, pending + length),
            None => return (true, pending + payload.len() as u64),
        }
        if !fragmented {
            pending = 0;
        }
    }
    (fragmented || !bytes.is_empty(), pending)
}

/// Largest message of the socket under test, bytes.
const LARGEST: usize = 4_096;

/// Raw bytes on a real socket: the same frames wherever the handshake ended, none too large, and a goodbye in time. The first
/// two bytes say how much came right behind the handshake.
pub(super) fn socket(bytes: &[u8]) {
    let (apart, at_once) = both_ways(bytes, |io, limits, early| Socket::new(io, Role::Server, limits, early.to_vec()));
    if !apart.1 && !at_once.1 {
        assert_eq!(apart.0, at_once.0);
    }
}

/// The same for an AudioSocket: its frames are those that a reader of the whole finds, up to one that is too large.
pub(super) fn audiosocket(bytes: &[u8]) {
    let (apart, at_once) = both_ways(bytes, Socket::audiosocket);
    let (mut rest, mut want) = (bytes.get(2..).unwrap_or_default(), Vec::new());
    while let Some((&[kind, high, low], body)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some((body, after)) = body.split_at_checked(length).filter(|_| length < LARGEST) else { break };
        want.push(Frame::Binary([&[kind], body].concat().into()));
        rest = after;
    }
    if rest.is_empty() {
        want.push(Frame::Closed { code: None, reason: String::new() });
    }
    assert_eq!((&apart.0, &at_once.0), (&want, &want));
}

type Open = fn(Io, SocketLimits, &[u8]) -> Socket;

/// What two sockets give for the same bytes: the first two say how many of them the one had read before it was one.
fn both_ways(bytes: &[u8], open: Open) -> ((Vec<Frame>, bool), (Vec<Frame>, bool)) {
    thread_local!(static LOOP: (Runtime, TcpListener) = {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).unwrap();
        (runtime, listener)
    });
    let mut script = Script(bytes);
    let early = script.number() % (script.0.len() + 1);
    LOOP.with(|(runtime, listener)| {
        let read = |early| runtime.block_on(frames(listener, script.0, early, open));
        (read(early), read(0))
    })
}

/// What a socket gives, and whether it was flooded: that alone depends on the clock.
async fn frames(listener: &TcpListener, bytes: &[u8], early: usize, open: Open) -> (Vec<Frame>, bool) {
    let address = listener.local_addr().unwrap();
    let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut peer, (accepted, _)) = (peer.unwrap(), accepted.unwrap());
    // Thousands of connections a second: none may linger.
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    peer.write_all(&bytes[early..]).await.unwrap(); // fits into the system's buffers
    peer.shutdown().await.unwrap();
    let limits = SocketLimits { max_message: LARGEST, read_buffer: LARGEST };
    let mut socket = open(Io::plain(accepted), limits, &bytes[..early]);
    let (mut frames, mut flooded, mut size) = (Vec::new(), false, 0);
    loop {
        match timeout(Duration::from_secs(5), socket.next()).await.expect("the end of the stream is an end") {
            Ok(frame) => {
                match &frame {
                    Frame::Text(text) => {
                        assert!(std::str::from_utf8(text).is_ok() && text.len() <= LARGEST);
                        size += text.len();
                    }
                    Frame::Binary(audio) => {
                        assert!(audio.len() <= LARGEST);
                        size += audio.len();
                    }
                    Frame::Pong | Frame::Closed { .. } => {}
                }
                assert!(size <= bytes.len(), "nothing comes out that did not go in");
                let over = matches!(frame, Frame::Closed { .. });
                frames.push(frame);
                if over {
                    break;
                }
            }
            Err(error) => {
                flooded = matches!(error, SocketError::ControlFlood);
                break;
            }
        }
    }
    let goodbye = socket.close(1002, "framing violation", Duration::from_millis(500));
    timeout(Duration::from_secs(3), goodbye).await.expect("a goodbye has an end");
    (frames, flooded)
}

/// A client behind a journal that loses its socket again and again: it gets every numbered message once and in order, and no
/// text is ever lost. A script of operations.
pub(super) fn outbox(bytes: &[u8]) {
    let mut script = Script(bytes);
    let mut model = Model::new();
    for _ in 0..400 {
        if script.is_over() {
            break;
        }
        model.step(&mut script);
    }
    model.come_back();
    model.take(usize::MAX);
    model.arrive(usize::MAX);
    assert!(model.outbox.is_empty() && model.outbox.bytes() == 0);
    for text in &model.texts {
        assert_eq!(
            model.numbered.iter().filter(|said| *said == text).count(),
            1,
            "no text is lost, none is said twice"
        );
    }
    assert_eq!(model.got, model.numbered.len());
}

struct Model {
    outbox: Outbox,
    now: Instant,
    /// All messages that have a number, in its order.
    numbered: Vec<Bytes>,
    /// Those that are on their way: taken by the socket, not there yet; what has no number is none.
    flying: VecDeque<Option<Bytes>>,
    /// How many the client has.
    got: usize,
    texts: Vec<Bytes>,
    made: u32,
    /// Since when nothing that was said is older than a journal keeps, for sure.
    aged: bool,
}

impl Model {
    fn new() -> Self {
        Self {
            outbox: Outbox::with_journal(),
            now: Instant::now(),
            numbered: Vec::new(),
            flying: VecDeque::new(),
            got: 0,
            texts: Vec::new(),
            made: 0,
            aged: false,
        }
    }

    /// A payload that there is once.
    fn payload(&mut self, kind: char) -> Bytes {
        self.made += 1;
        Bytes::from(format!("{kind}{}", self.made))
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0 | 1 => {
                let text = self.payload('t');
                self.texts.push(text.clone());
                self.outbox.text(text);
            }
            2 => {
                let text = self.payload('t');
                self.texts.push(text.clone());
                self.outbox.urgent(text);
            }
            3..=5 => {
                let audio = self.payload('a');
                self.outbox.binary(audio);
            }
            6 => self.outbox.ping(),
            7 => self.outbox.drop_binary(),
            8 | 9 => self.take(usize::from(script.byte() % 8)),
            10 => self.arrive(usize::from(script.byte() % 8)),
            11 => self.outbox.received(self.got as u64),
            12 => self.come_back(),
            13 => {
                // It says that it has what it cannot have, or what is forgotten.
                let got = u64::from(script.byte());
                let can = self.outbox.has_since(got);
                assert!(!can || got <= self.outbox.said());
                if !can {
                    assert_eq!(self.outbox.say_again(got), None);
                }
            }
            14 => {
                self.now += Duration::from_secs(u64::from(script.byte() % 90));
                self.aged = true;
                self.outbox.shrink(self.now);
            }
            _ => self.next_process(),
        }
        assert_eq!(self.outbox.said(), self.numbered.len() as u64);
        assert!(!self.outbox.is_empty() || self.outbox.bytes() == 0);
    }

    /// The socket takes so many messages.
    fn take(&mut self, most: usize) {
        for _ in 0..most {
            let Some(next) = self.outbox.pop() else { return };
            let counts = next.counts();
            let before = self.outbox.said();
            self.outbox.taken(self.now, next.kind, &next.payload, counts);
            if self.outbox.said() > before {
                self.numbered.push(next.payload.clone());
            }
            let counted = next.kind != Kind::Ping && !next.payload.starts_with(b"u");
            self.flying.push_back(counted.then_some(next.payload));
        }
    }

    /// So many of them reach the client, which counts.
    fn arrive(&mut self, most: usize) {
        for _ in 0..most {
            let Some(message) = self.flying.pop_front() else { return };
            if let Some(message) = message {
                assert_eq!(Some(&message), self.numbered.get(self.got), "each one once, and in order");
                self.got += 1;
            }
        }
    }

    /// The socket breaks with all that flies, and the client comes back.
    fn come_back(&mut self) {
        self.flying.clear();
        let Some(audio) = self.outbox.say_again(self.got as u64) else {
            assert!(self.aged, "only what is old, acknowledged or too much is forgotten");
            // A call that cannot be resumed is over: the next one.
            *self = Self::new();
            return;
        };
        let lacks = &self.numbered[self.got..];
        assert_eq!(audio, lacks.iter().filter(|said| said.starts_with(b"a")).count());
        let word = self.payload('u');
        self.outbox.uncounted(word);
    }

    /// Another process goes on with the call: it is told what was said and what waits.
    fn next_process(&mut self) {
        let kept: Vec<(bool, Bytes)> = self.outbox.kept().map(|said| (said.binary, said.payload.clone())).collect();
        let waiting: Vec<(Kind, Bytes)> =
            self.outbox.waiting().map(|queued| (queued.kind, queued.payload.clone())).collect();
        self.outbox = Outbox::restored(self.outbox.said(), kept, self.now);
        for (kind, payload) in waiting {
            match kind {
                Kind::Binary => self.outbox.binary(payload),
                Kind::Spoken => self.outbox.spoken(payload),
                Kind::Control => self.outbox.control(payload),
                Kind::Text | Kind::Ping => self.outbox.text(payload),
            }
        }
        self.come_back();
    }
}
