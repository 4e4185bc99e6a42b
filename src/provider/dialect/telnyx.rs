//! Telnyx media streaming with `stream_bidirectional_mode` rtp.
use std::time::Duration;

use serde_json::{Value, json};

use super::{Command, Dialect, OnClear, Pieces, Rules, Said, json, media_stream, object, text};
use crate::provider::{
    setup::Setup,
    wire::{Coding, FRAME, Message},
};

/// Pieces of 20 ms to 30 s; marks come back on clear.
pub(in crate::provider) const RULES: Rules = Rules {
    pieces: Pieces::Between(FRAME, Duration::from_secs(30)),
    on_clear: OnClear::Returned,
    whole_frames: false,
    marks_wait: false,
    capacity: None,
    overflow: "",
    flow: None,
};

const VERBS: json::Verbs = json::Verbs {
    media: "media",
    mark: ("mark", &["mark", "name"]),
    clear: "clear",
    digits: None,
    stream: None,
    unknown: "a message that is neither `media` nor `mark` nor `clear`",
    binary: "a binary message on a stream of text",
};

/// One stream.
#[derive(Debug)]
pub(in crate::provider) struct Telnyx {
    setup: Setup,
    stream_of_media: String,
    sequence: u64,
    chunk: u64,
}

impl Telnyx {
    pub(in crate::provider) fn new(setup: &Setup) -> Self {
        Self { stream_of_media: media_stream(setup), setup: setup.clone(), sequence: 0, chunk: 0 }
    }

    fn next(&mut self) -> String {
        self.sequence += 1;
        self.sequence.to_string()
    }

    fn event(&mut self, event: &str, body: Value) -> Message {
        let stream = if event == "media" { self.stream_of_media.clone() } else { self.setup.ids.stream.clone() };
        text(&json!({ "event": event, "sequence_number": self.next(), "stream_id": stream, event: body }))
    }
}

impl Dialect for Telnyx {
    fn start(&mut self) -> Vec<Message> {
        let encoding = match self.setup.media.coding {
            Coding::Mulaw => "PCMU",
            Coding::Alaw => "PCMA",
            Coding::L16 | Coding::L16Be => "L16",
        };
        let ids = &self.setup.ids;
        let start = json!({
            "user_id": ids.account,
            "call_control_id": ids.call,
            "call_session_id": ids.stream.to_lowercase(),
            "from": self.setup.from,
            "to": self.setup.to,
            "tags": [],
            "client_state": "",
            "custom_parameters": object(&self.setup.parameters),
            "media_format": { "encoding": encoding, "sample_rate": self.setup.media.rate, "channels": 1 },
        });
        vec![text(&json!({ "event": "connected", "version": "1.0.0" })), self.event("start", start)]
    }

    fn media(&mut self, frame: &[u8], at_ms: u64) -> Message {
        self.chunk += 1;
        let media = json!({
            "track": "inbound",
            "chunk": self.chunk.to_string(),
            "timestamp": at_ms.to_string(),
            "payload": json::payload(frame),
        });
        self.event("media", media)
    }

    fn digit(&mut self, digit: char, at_ms: u64) -> Message {
        text(&json!({
            "event": "dtmf",
            "stream_id": self.setup.ids.stream,
            "occurred_at": stamp(self.setup.epoch_ms + at_ms),
            "sequence_number": self.next(),
            "dtmf": { "digit": digit.to_string() },
        }))
    }

    fn stop(&mut self) -> Option<Message> {
        let stop = json!({ "user_id": self.setup.ids.account, "call_control_id": self.setup.ids.call });
        Some(self.event("stop", stop))
    }

    fn take(&mut self, message: &Message) -> Vec<Command> {
        json::take(&VERBS, &self.setup.ids.stream, message, |_| None)
    }

    fn say(&mut self, said: &Said<'_>) -> Option<Message> {
        match said {
            Said::Mark { name, .. } => Some(self.event("mark", json!({ "name": name }))),
            _ => None,
        }
    }
}

fn stamp(unix_ms: u64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
