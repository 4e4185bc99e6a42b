//! Twilio Media Streams, and SignalWire's, which are the same with a few fields fewer and wider audio.
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Command, Dialect, OnClear, Pieces, Rules, Said, json, media_stream, object, text};
use crate::provider::{
    setup::{Provider, Setup},
    wire::{Coding, FRAME, Message},
};

/// Any length, marks come back on clear; beyond ten minutes of queued audio more is discarded (31931).
pub(in crate::provider) const RULES: Rules = Rules {
    pieces: Pieces::Any,
    on_clear: OnClear::Returned,
    whole_frames: false,
    marks_wait: false,
    capacity: Some(Duration::from_secs(600).as_millis() as usize / FRAME.as_millis() as usize),
    overflow: "31931: more than ten minutes of audio are queued; what came was discarded",
    flow: None,
};

const VERBS: json::Verbs = json::Verbs {
    media: "media",
    mark: ("mark", &["mark", "name"]),
    clear: "clear",
    digits: None,
    stream: Some("streamSid"),
    unknown: "31924: a message that is neither `media` nor `mark` nor `clear`",
    binary: "31950: a binary message on a stream of text",
};

/// SignalWire also takes keys.
const WIDER: json::Verbs = json::Verbs { digits: Some(("dtmf", &["dtmf", "digit"])), ..VERBS };

/// One stream of either.
#[derive(Debug)]
pub(in crate::provider) struct Twilio {
    setup: Setup,
    stream_of_media: String,
    /// SignalWire's: no sequence numbers and no stream id on media and marks.
    sparse: bool,
    sequence: u64,
    chunk: u64,
}

impl Twilio {
    pub(in crate::provider) fn new(setup: &Setup) -> Self {
        Self {
            stream_of_media: media_stream(setup),
            sparse: setup.provider == Provider::SignalWire,
            setup: setup.clone(),
            sequence: 0,
            chunk: 0,
        }
    }

    fn next(&mut self) -> String {
        self.sequence += 1;
        self.sequence.to_string()
    }

    /// An event with its number and its stream, but for what SignalWire leaves out.
    fn event(&mut self, event: &str, body: Value, bare: bool) -> Message {
        let mut message = Map::from_iter([("event".to_owned(), Value::from(event))]);
        let number = self.next();
        if !bare {
            message.insert("sequenceNumber".to_owned(), number.into());
        }
        message.insert(event.to_owned(), body);
        if !bare {
            let stream = if event == "media" { &self.stream_of_media } else { &self.setup.ids.stream };
            message.insert("streamSid".to_owned(), stream.as_str().into());
        }
        text(&message.into())
    }
}

impl Dialect for Twilio {
    fn start(&mut self) -> Vec<Message> {
        let version = if self.sparse { "0.2.0" } else { "1.0.0" };
        let encoding = if self.setup.media.coding == Coding::Mulaw { "audio/x-mulaw" } else { "audio/x-L16" };
        let ids = &self.setup.ids;
        let start = json!({
            "accountSid": ids.account,
            "streamSid": ids.stream,
            "callSid": ids.call,
            "tracks": ["inbound"],
            "mediaFormat": { "encoding": encoding, "sampleRate": self.setup.media.rate, "channels": 1 },
            "customParameters": object(&self.setup.parameters),
        });
        vec![
            text(&json!({ "event": "connected", "protocol": "Call", "version": version })),
            self.event("start", start, false),
        ]
    }

    fn media(&mut self, frame: &[u8], at_ms: u64) -> Message {
        self.chunk += 1;
        let media = json!({
            "track": "inbound",
            "chunk": self.chunk.to_string(),
            "timestamp": at_ms.to_string(),
            "payload": json::payload(frame),
        });
        // A wrong stream id can only be seen where there is one.
        let bare = self.sparse && !self.setup.quirks.wrong_stream_ids;
        self.event("media", media, bare)
    }

    fn digit(&mut self, digit: char, _: u64) -> Message {
        self.event("dtmf", json!({ "track": "inbound_track", "digit": digit.to_string() }), false)
    }

    fn stop(&mut self) -> Option<Message> {
        let stop = json!({ "accountSid": self.setup.ids.account, "callSid": self.setup.ids.call });
        Some(self.event("stop", stop, false))
    }

    fn take(&mut self, message: &Message) -> Vec<Command> {
        let verbs = if self.sparse { &WIDER } else { &VERBS };
        json::take(verbs, &self.setup.ids.stream, message, |_| None)
    }

    fn say(&mut self, said: &Said<'_>) -> Option<Message> {
        match said {
            Said::Mark { name, .. } => Some(self.event("mark", json!({ "name": name }), self.sparse)),
            _ => None,
        }
    }
}
