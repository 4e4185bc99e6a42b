//! Plivo's audio streams: numbers that are numbers, checkpoints, and a socket that just closes.
use serde_json::{Value, json};

use super::{Command, Dialect, OnClear, Pieces, Rules, Said, json, media_stream, string, text};
use crate::provider::{
    setup::Setup,
    wire::{Coding, Media, Message},
};

/// Any length; a checkpoint that was cleared never comes.
pub(in crate::provider) const RULES: Rules = Rules {
    pieces: Pieces::Any,
    on_clear: OnClear::Lost,
    whole_frames: false,
    marks_wait: false,
    capacity: None,
    overflow: "",
    flow: None,
};

const VERBS: json::Verbs = json::Verbs {
    media: "playAudio",
    mark: ("checkpoint", &["name"]),
    clear: "clearAudio",
    digits: Some(("sendDTMF", &["dtmf"])),
    stream: None,
    unknown: "a message that is neither `playAudio` nor `checkpoint` nor `clearAudio` nor `sendDTMF`",
    binary: "a binary message on a stream of text",
};

/// The same for those verbs that must name the stream.
const NAMED: json::Verbs = json::Verbs { stream: Some("streamId"), ..VERBS };

/// One stream.
#[derive(Debug)]
pub(in crate::provider) struct Plivo {
    setup: Setup,
    stream_of_media: String,
    sequence: u64,
    chunk: u64,
}

impl Plivo {
    pub(in crate::provider) fn new(setup: &Setup) -> Self {
        Self { stream_of_media: media_stream(setup), setup: setup.clone(), sequence: 0, chunk: 0 }
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn headers(&self) -> String {
        let pairs = self.setup.parameters.iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(";")
    }
}

impl Dialect for Plivo {
    fn start(&mut self) -> Vec<Message> {
        let ids = self.setup.ids.clone();
        vec![text(&json!({
            "event": "start",
            "sequenceNumber": self.next(),
            "start": {
                "callId": ids.call,
                "streamId": ids.stream,
                "accountId": ids.account,
                "tracks": ["inbound"],
                "mediaFormat": { "encoding": encoding(self.setup.media), "sampleRate": self.setup.media.rate },
            },
            "extra_headers": self.headers(),
        }))]
    }

    fn media(&mut self, frame: &[u8], at_ms: u64) -> Message {
        self.chunk += 1;
        text(&json!({
            "event": "media",
            "sequenceNumber": self.next(),
            "streamId": self.stream_of_media,
            "media": {
                "track": "inbound",
                "timestamp": (self.setup.epoch_ms + at_ms).to_string(),
                "chunk": self.chunk,
                "payload": json::payload(frame),
            },
            "extra_headers": self.headers(),
        }))
    }

    fn digit(&mut self, digit: char, at_ms: u64) -> Message {
        text(&json!({
            "event": "dtmf",
            "sequenceNumber": self.next(),
            "streamId": self.setup.ids.stream,
            "dtmf": {
                "track": "inbound",
                "digit": digit.to_string(),
                "timestamp": (self.setup.epoch_ms + at_ms).to_string(),
            },
            "extra_headers": self.headers(),
        }))
    }

    fn take(&mut self, message: &Message) -> Vec<Command> {
        let media = self.setup.reply;
        // `sendDTMF` names no stream.
        let is_digits = matches!(message, Message::Text(text) if text.contains("\"sendDTMF\""));
        let verbs = if is_digits { &VERBS } else { &NAMED };
        json::take(verbs, &self.setup.ids.stream, message, |message| check(message, media))
    }

    fn say(&mut self, said: &Said<'_>) -> Option<Message> {
        let (event, name) = match said {
            Said::Mark { name, .. } => ("playedStream", Some(*name)),
            Said::Cleared => ("clearedAudio", None),
            _ => return None,
        };
        let (number, stream) = (self.next(), &self.setup.ids.stream);
        Some(text(&match name {
            Some(name) => json!({ "event": event, "sequenceNumber": number, "streamId": stream, "name": name }),
            None => json!({ "event": event, "sequenceNumber": number, "streamId": stream }),
        }))
    }
}

fn encoding(media: Media) -> &'static str {
    if media.coding == Coding::Mulaw { "audio/x-mulaw" } else { "audio/x-l16" }
}

/// The stream's own type and rate must stand beside the audio.
fn check(message: &Value, media: Media) -> Option<String> {
    let rate = message.pointer("/media/sampleRate").and_then(Value::as_u64);
    let found = (string(message, &["media", "contentType"]), rate);
    let wanted = (Some(encoding(media)), Some(u64::from(media.rate)));
    (found != wanted).then(|| format!("`playAudio` says contentType and sampleRate {found:?}; allowed: {wanted:?}"))
}
