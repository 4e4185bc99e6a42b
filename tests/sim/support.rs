//! A client of a session that owns the clock.
use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use voxrelay::{
    audio::{Codec, Format, g711::Law},
    sim::{
        Faults, Knock, SimConfig,
        session::{Incoming, Output, Session, World},
    },
};

/// Time of day at which every session begins.
pub(crate) const UNIX_NOW: u64 = 1_795_000_000;

/// One session, and what it has said and nobody has read yet.
pub(crate) struct Client {
    pub(crate) world: Arc<World>,
    pub(crate) session: Session,
    pub(crate) now: Duration,
    pub(crate) heard: std::collections::VecDeque<(Duration, Output)>,
}

pub(crate) fn good_knock() -> Knock {
    Knock { key: Some("sk-good".into()), model: Some("gpt-realtime".into()), ..Knock::default() }
}

impl Client {
    pub(crate) fn new(config: SimConfig) -> Self {
        Self::with(config, Faults::default(), &good_knock())
    }

    pub(crate) fn with_faults(config: SimConfig, faults: &str) -> Self {
        Self::with(config, Faults::from_toml(faults).unwrap(), &good_knock())
    }

    pub(crate) fn with(config: SimConfig, faults: Faults, knock: &Knock) -> Self {
        Self::in_world(World::new(config, faults), 1, knock)
    }

    pub(crate) fn in_world(world: Arc<World>, number: u64, knock: &Knock) -> Self {
        let session = Session::new(world.clone(), number, knock, UNIX_NOW);
        let mut client = Self { world, session, now: Duration::ZERO, heard: Default::default() };
        client.drain();
        client
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll() {
            if let Output::Send(text) = &output {
                assert!(text.starts_with(r#"{"type":""#), "events begin with their type: {text}");
            }
            self.heard.push_back((self.now, output));
        }
    }

    /// Lets `ms` pass, to the millisecond of every deadline in between.
    pub(crate) fn wait(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        while let Some(at) = self.session.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.session.tick(self.now);
            self.drain();
        }
        self.now = until;
        self.session.tick(until);
        self.drain();
    }

    pub(crate) fn send(&mut self, event: Value) {
        self.send_text(&event.to_string());
    }

    pub(crate) fn send_text(&mut self, text: &str) {
        self.session.handle(self.now, Incoming::Text(text));
        self.drain();
    }

    pub(crate) fn send_binary(&mut self, bytes: &[u8]) {
        self.session.handle(self.now, Incoming::Binary(bytes));
        self.drain();
    }

    /// Appends audio at once.
    pub(crate) fn append(&mut self, audio: &[u8]) {
        self.send(json!({ "type": "input_audio_buffer.append", "audio": STANDARD.encode(audio) }));
    }

    /// Speaks in real time, in pieces of `piece_ms`.
    pub(crate) fn speak(&mut self, audio: &[u8], format: Format, piece_ms: u64) {
        for piece in audio.chunks(format.bytes(Duration::from_millis(piece_ms))) {
            self.append(piece);
            self.wait(piece_ms);
        }
    }

    /// The next event, whatever it is.
    pub(crate) fn next(&mut self) -> Option<Value> {
        match self.heard.pop_front()?.1 {
            Output::Send(text) => Some(serde_json::from_str(&text).unwrap()),
            other => panic!("expected an event, got {other:?}"),
        }
    }

    /// All events since the last call.
    pub(crate) fn events(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// The types of all events since the last call, deltas in a row as one.
    pub(crate) fn types(&mut self) -> Vec<String> {
        let mut types: Vec<String> =
            self.events().iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect();
        types.dedup();
        types
    }

    /// Changes the session and forgets the answer.
    pub(crate) fn update(&mut self, session: Value) {
        let mut session = session;
        session["type"] = json!("realtime");
        self.send(json!({ "type": "session.update", "session": session }));
        let answered = |client: &Self| {
            client.heard.iter().any(|(_, out)| matches!(out, Output::Send(text) if text.contains("session.updated")))
        };
        self.wait(0);
        while !answered(self) && self.session.deadline().is_some_and(|at| at < self.now + Duration::from_secs(1)) {
            self.wait(1);
        }
        let events = self.events();
        assert_eq!(events.last().map(|e| &e["type"]), Some(&json!("session.updated")), "{events:?}");
    }
}

/// Audio of the deltas among `events`, of one item or of all.
pub(crate) fn audio_of(events: &[Value], item: Option<&Value>) -> Vec<u8> {
    let deltas = events.iter().filter(|e| e["type"] == "response.output_audio.delta");
    let deltas = deltas.filter(|e| item.is_none_or(|item| e["item_id"] == *item));
    deltas.flat_map(|e| STANDARD.decode(e["delta"].as_str().unwrap()).unwrap()).collect()
}

pub(crate) fn of_type<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events.iter().filter(|e| e["type"] == kind).collect()
}

/// PCM16 of a WAV file.
pub(crate) fn wav(name: &str) -> Vec<u8> {
    let mut reader = hound::WavReader::open(name).unwrap();
    reader.samples::<i16>().flat_map(|s| s.unwrap().to_le_bytes()).collect()
}

pub(crate) fn hello() -> Vec<u8> {
    wav("assets/hello.wav")
}

/// Bytes of a WAV file's data chunk, whatever they are.
pub(crate) fn raw_wav(name: &str) -> Vec<u8> {
    let file = std::fs::read(name).unwrap();
    let at = file.windows(4).position(|w| w == b"data").unwrap();
    file[at + 8..].to_vec()
}

pub(crate) fn format_named(name: &str) -> Format {
    match name {
        "pcmu" => Format::MULAW,
        "pcma" => Format::ALAW,
        _ => Format::PCM_24K,
    }
}

/// PCM16 samples in another codec of the same rate.
pub(crate) fn as_codec(pcm: &[u8], codec: Codec) -> Vec<u8> {
    let samples: Vec<i16> = pcm.as_chunks().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
    let mut out = Vec::new();
    Law::of(codec).unwrap().encode_into(&samples, &mut out);
    out
}
