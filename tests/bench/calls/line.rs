//! A caller that comes back: it counts, keeps and says again, as the protocol's "Resume" wants it, and knows every sample.
//!
//! What it says are triples of samples: who, in which turn, which one. The simulator says them back, so that what was lost
//! or said twice on either way shows at the caller; the simulator's own record is read by the same [`Reader`].
use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// Length of a frame, and its triples at 24 kHz.
pub(crate) const FRAME: Duration = Duration::from_millis(20);
pub(crate) const TRIPLES: usize = 160;
/// Samples from here on name a call; turns and numbers stay below.
const MARK: u16 = 60_000;
/// Calls that can be told apart.
pub(crate) const MOST_CALLS: usize = 5_500;
/// An answer may take so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Finds triples in a stream of samples: who, which turn, which one.
#[derive(Default)]
pub(crate) struct Reader {
    odd: Option<u8>,
    part: Vec<u16>,
}

impl Reader {
    pub(crate) fn read(&mut self, bytes: &[u8], mut found: impl FnMut(usize, usize, usize)) {
        for byte in bytes {
            let Some(low) = self.odd.take() else {
                self.odd = Some(*byte);
                continue;
            };
            let sample = u16::from_le_bytes([low, *byte]);
            if sample >= MARK {
                self.part.clear();
            } else if self.part.is_empty() {
                continue; // silence between turns
            }
            self.part.push(sample);
            if let [who, turn, number] = self.part[..] {
                found(usize::from(who - MARK), usize::from(turn), usize::from(number));
                self.part.clear();
            }
        }
    }
}

/// What one caller has found out.
#[derive(Default)]
pub(crate) struct Tally {
    /// Triples said, and how often each was heard back; by turn.
    pub(crate) turns: Vec<Vec<u8>>,
    /// Messages that came a second time: beginnings and ends of replies.
    pub(crate) messages_twice: u64,
    pub(crate) drops: u64,
    /// From the dial to `resumed`.
    pub(crate) back: Vec<Duration>,
    /// `audio_gap`, ms.
    pub(crate) gaps: Vec<(u64, u64)>,
    pub(crate) rotated: u64,
    /// From `upstream_reconnecting` to `upstream_resumed`, and to the first audio of the answer that was waited for.
    pub(crate) anew: Vec<Duration>,
    pub(crate) audible: Vec<Duration>,
    /// From `commit` to `reply_started`: in turns since whose first frame the session was changed, and in others.
    pub(crate) begun_rotating: Vec<Duration>,
    pub(crate) begun: Vec<Duration>,
}

/// One caller.
pub(crate) struct Caller {
    ws: Option<WebSocketStream<TcpStream>>,
    base: String,
    token: String,
    number: usize,
    got: u64,
    said: u64,
    /// What no `ack` covers.
    kept: VecDeque<Message>,
    reader: Reader,
    dice: StdRng,
    pub(crate) tally: Tally,
    replies: HashMap<String, HashSet<&'static str>>,
    lost_at: Option<Instant>,
    /// The turn that waits for its answer: when it was committed, and whether anything of it was heard.
    waits: Option<(Instant, bool)>,
    rotated_before: u64,
    ended: Option<bool>,
}

impl Caller {
    pub(crate) async fn begin(addr: SocketAddr, number: usize, seed: u64) -> Result<Self, String> {
        let base = format!("ws://{addr}/v1/voice");
        let mut ws = dial(addr, &format!("{base}?turns=manual")).await?;
        let ready = first(&mut ws, "ready").await?;
        Ok(Self {
            ws: Some(ws),
            base,
            token: ready["resume"].as_str().unwrap_or_default().to_owned(),
            number,
            got: 0,
            said: 0,
            kept: VecDeque::new(),
            reader: Reader::default(),
            dice: StdRng::seed_from_u64(seed ^ (number as u64) << 20),
            tally: Tally::default(),
            replies: HashMap::new(),
            lost_at: None,
            waits: None,
            rotated_before: 0,
            ended: None,
        })
    }

    pub(crate) fn throw(&mut self, from: u64, to: u64) -> u64 {
        self.dice.random_range(from..to)
    }

    /// Speaks for so many frames in real time; with `drop`, the socket is lost somewhere, and back a little later.
    pub(crate) async fn speak(&mut self, frames: usize, drop: bool) -> Result<(), String> {
        self.utter(frames, drop).await?;
        self.waits = Some((Instant::now(), false));
        self.ended = None;
        self.put(Message::text(r#"{"type":"commit"}"#)).await
    }

    /// Speaks likewise, and takes it back: nobody answers, and the next words may follow at once.
    pub(crate) async fn talk(&mut self, frames: usize) -> Result<(), String> {
        self.utter(frames, false).await?;
        self.put(Message::text(r#"{"type":"discard"}"#)).await
    }

    async fn utter(&mut self, frames: usize, drop: bool) -> Result<(), String> {
        let turn = self.tally.turns.len();
        self.tally.turns.push(vec![0; frames * TRIPLES]);
        self.rotated_before = self.tally.rotated;
        let lost = if drop { self.dice.random_range(0..frames) } else { usize::MAX };
        let back = lost.saturating_add(self.dice.random_range(1..15));
        let mut due = Instant::now();
        for frame in 0..frames {
            if frame == lost {
                self.lose();
            } else if frame == back {
                self.back().await?;
            }
            let triples =
                (frame * TRIPLES..(frame + 1) * TRIPLES).flat_map(|n| [self.number + usize::from(MARK), turn, n]);
            let audio: Vec<u8> = triples.flat_map(|n| u16::try_from(n).unwrap().to_le_bytes()).collect();
            self.put(Message::binary(audio)).await?;
            due += FRAME;
            self.listen(due).await?;
        }
        if self.ws.is_none() {
            self.back().await?;
        }
        Ok(())
    }

    /// Hears the answer to its end, a second one too where of the first nothing was heard; with `drop`, the socket is lost
    /// so long after the turn's end.
    pub(crate) async fn answer(&mut self, drop: Option<Duration>) -> Result<(), String> {
        let patience = Instant::now() + PATIENCE;
        if let Some(after) = drop {
            self.until_ended(Instant::now() + after).await?;
            self.lose();
            let away = self.dice.random_range(0..300);
            time::sleep(Duration::from_millis(away)).await;
            self.back().await?;
        }
        self.until_ended(patience).await?;
        if self.ended != Some(true) {
            return Err(format!("turn {} of call {} was never answered", self.tally.turns.len(), self.number));
        }
        self.waits = None;
        let ack = json!({"type": "ack", "got": self.got}).to_string();
        self.put(Message::text(ack)).await
    }

    async fn until_ended(&mut self, until: Instant) -> Result<(), String> {
        while self.ended != Some(true) {
            match time::timeout_at(until, self.hear()).await {
                Ok(heard) => heard?,
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Hears what comes until then; nothing, while the socket is lost.
    pub(crate) async fn listen(&mut self, until: Instant) -> Result<(), String> {
        if self.ws.is_none() {
            time::sleep_until(until).await;
        }
        while let Ok(heard) = time::timeout_at(until, self.hear()).await {
            heard?;
        }
        Ok(())
    }

    async fn hear(&mut self) -> Result<(), String> {
        let Some(ws) = &mut self.ws else { return std::future::pending().await };
        match ws.next().await {
            Some(Ok(Message::Text(text))) => {
                self.got += 1;
                self.message(&serde_json::from_str(&text).map_err(|e| e.to_string())?)
            }
            Some(Ok(Message::Binary(audio))) => {
                self.got += 1;
                let (turns, number) = (&mut self.tally.turns, self.number);
                let mut foreign = false;
                self.reader.read(&audio, |who, turn, n| match turns.get_mut(turn).and_then(|t| t.get_mut(n)) {
                    Some(heard) if who == number => *heard = heard.saturating_add(1),
                    _ => foreign = true,
                });
                if let (Some(at), Some((_, heard @ false))) = (self.lost_at, &mut self.waits) {
                    self.tally.audible.push(at.elapsed());
                    *heard = true;
                    self.lost_at = None;
                } else if let Some((_, heard)) = &mut self.waits {
                    *heard = true;
                }
                if foreign { Err(format!("call {number} heard what it has not said")) } else { Ok(()) }
            }
            Some(Ok(Message::Close(why))) => Err(format!("call {} was closed: {why:?}", self.number)),
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(format!("call {}: {error}", self.number)),
            None => Err(format!("call {} ended", self.number)),
        }
    }

    fn message(&mut self, message: &Value) -> Result<(), String> {
        let kind = message["type"].as_str().unwrap_or_default();
        match kind {
            "ack" => {
                let taken = message["got"].as_u64().unwrap_or(0);
                while !self.kept.is_empty() && self.said - (self.kept.len() as u64) < taken {
                    self.kept.pop_front();
                }
            }
            "reply_started" => {
                self.once(message, "started");
                if let Some((at, _)) = self.waits {
                    let rotating = self.tally.rotated > self.rotated_before;
                    let list = if rotating { &mut self.tally.begun_rotating } else { &mut self.tally.begun };
                    list.push(at.elapsed());
                }
            }
            "reply_ended" => {
                self.once(message, "ended");
                let asked_again = message["status"] == "interrupted" && message["heard_ms"] == 0;
                self.ended = Some(!asked_again);
            }
            "notice" => self.notice(message),
            "error" => return Err(format!("call {}: {message}", self.number)),
            _ => {}
        }
        Ok(())
    }

    fn once(&mut self, message: &Value, what: &'static str) {
        let reply = self.replies.entry(message["reply"].to_string()).or_default();
        self.tally.messages_twice += u64::from(!reply.insert(what));
    }

    fn notice(&mut self, message: &Value) {
        match message["code"].as_str().unwrap_or_default() {
            "rotated" => self.tally.rotated += 1,
            "audio_gap" => {
                let at = |name: &str| message[name].as_u64().unwrap_or_default();
                self.tally.gaps.push((at("from_ms"), at("to_ms")));
            }
            "upstream_reconnecting" => {
                self.tally.drops += 1;
                self.lost_at = Some(Instant::now());
            }
            "upstream_resumed" => {
                if let Some(at) = self.lost_at {
                    self.tally.anew.push(at.elapsed());
                }
                if self.waits.is_none_or(|(_, heard)| heard) {
                    self.lost_at = None; // no audio is waited for
                }
            }
            _ => {}
        }
    }

    async fn put(&mut self, message: Message) -> Result<(), String> {
        self.said += 1;
        self.kept.push_back(message.clone());
        match &mut self.ws {
            Some(ws) => ws.send(message).await.map_err(|e| format!("call {}: {e}", self.number)),
            None => Ok(()), // it is said when we are back
        }
    }

    /// The network takes the socket away, by a reset.
    pub(crate) fn lose(&mut self) {
        if let Some(ws) = self.ws.take() {
            self.tally.drops += 1;
            let _ = socket2::SockRef::from(ws.get_ref()).set_linger(Some(Duration::ZERO));
        }
    }

    /// Comes back, and says again what was not taken.
    pub(crate) async fn back(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let url = format!("{}?resume={}&got={}", self.base, self.token, self.got);
        let addr = self.base.trim_start_matches("ws://").trim_end_matches("/v1/voice").parse().unwrap();
        let mut ws = dial(addr, &url).await?;
        let resumed = first(&mut ws, "resumed").await?;
        self.tally.back.push(began.elapsed());
        self.token = resumed["resume"].as_str().unwrap_or_default().to_owned();
        let (got, first) = (resumed["got"].as_u64().unwrap_or(0), self.said - self.kept.len() as u64);
        let Some(known) = got.checked_sub(first) else {
            return Err(format!("call {}: {got} messages taken, and {first} were acknowledged", self.number));
        };
        for message in self.kept.iter().skip(usize::try_from(known).unwrap()) {
            ws.send(message.clone()).await.map_err(|e| e.to_string())?;
        }
        self.ws = Some(ws);
        Ok(())
    }
}

/// A WebSocket to there.
pub(crate) async fn dial(addr: SocketAddr, url: &str) -> Result<WebSocketStream<TcpStream>, String> {
    let tcp = TcpStream::connect(addr).await.map_err(|e| format!("connect: {e}"))?;
    let _ = tcp.set_nodelay(true);
    Ok(tokio_tungstenite::client_async(url, tcp).await.map_err(|e| format!("handshake: {e}"))?.0)
}

/// The first message, which must be of this type.
pub(crate) async fn first(ws: &mut WebSocketStream<TcpStream>, kind: &str) -> Result<Value, String> {
    let end = Instant::now() + PATIENCE;
    loop {
        match time::timeout_at(end, ws.next()).await {
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {} // no messages of the protocol
            Ok(Some(Ok(Message::Text(text)))) => {
                let message: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
                return if message["type"] == kind {
                    Ok(message)
                } else {
                    Err(format!("{message} instead of `{kind}`"))
                };
            }
            other => return Err(format!("{other:?} instead of `{kind}`")),
        }
    }
}
