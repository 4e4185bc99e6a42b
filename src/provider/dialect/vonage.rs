//! Vonage Voice over a WebSocket: every binary message is one frame of 20 ms.
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Command, Dialect, OnClear, Pieces, Rules, Said, binary, excerpt, object, string, text};
use crate::provider::{setup::Setup, wire::Message};

/// Exactly 20 ms a message; 3,072 of them are buffered, more are lost. That a notify is lost with what was before it is an
/// inference: the reference tells only of `websocket:cleared`.
pub(in crate::provider) const RULES: Rules = Rules {
    pieces: Pieces::Exact,
    on_clear: OnClear::Lost,
    whole_frames: true,
    marks_wait: false,
    capacity: Some(3_072),
    overflow: "more than 3072 messages are queued; what came was lost",
    flow: None,
};

/// One leg.
#[derive(Debug)]
pub(in crate::provider) struct Vonage {
    setup: Setup,
}

impl Vonage {
    pub(in crate::provider) fn new(setup: &Setup) -> Self {
        Self { setup: setup.clone() }
    }
}

impl Dialect for Vonage {
    fn start(&mut self) -> Vec<Message> {
        let kind = format!("audio/l16;rate={}", self.setup.media.rate);
        let mut message = json!({ "event": "websocket:connected", "content-type": kind });
        if let (Value::Object(message), Value::Object(headers)) = (&mut message, object(&self.setup.parameters)) {
            message.extend(headers);
        }
        vec![text(&message)]
    }

    fn media(&mut self, frame: &[u8], _: u64) -> Message {
        Message::Binary(Bytes::copy_from_slice(frame))
    }

    fn digit(&mut self, digit: char, _: u64) -> Message {
        text(&json!({ "event": "websocket:dtmf", "digit": digit.to_string(), "duration": 260 }))
    }

    fn take(&mut self, message: &Message) -> Vec<Command> {
        binary::take(message, |message| match string(message, &["action"]) {
            Some("clear") => Command::Clear,
            Some("notify") => match message.get("payload") {
                Some(payload @ Value::Object(_)) => Command::Mark(payload.to_string()),
                _ => Command::Fault("`notify` has no object `payload`".to_owned()),
            },
            other => Command::Fault(format!("an unknown action `{}`", excerpt(other.unwrap_or_default()))),
        })
    }

    fn say(&mut self, said: &Said<'_>) -> Option<Message> {
        match said {
            Said::Mark { name, .. } => {
                let payload: Value = serde_json::from_str(name).unwrap_or_default();
                Some(text(&json!({ "event": "websocket:notify", "payload": payload })))
            }
            Said::Cleared => Some(text(&json!({ "event": "websocket:cleared" }))),
            _ => None,
        }
    }
}
