//! jambonz `listen` with `bidirectionalAudio.streaming`, on one's own server or theirs.
//!
//! Source: @jambonz/sdk 0.10.1 and jambonz's reference, read 2026-08; tests/golden/phone/jambonz_listen.jsonl. The first message describes
//! the call, with the verb's `metadata` beside; then binary L16, little-endian. Without `streaming` it plays nothing that is
//! binary, and with another rate than it was told, at the wrong speed: [`crate::phone`] asks for both.
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Bad, Dialect, Habits, Media, Packet, Said, Start, format, key, number, object, strings, text};

/// How jambonz behaves.
pub static HABITS: Habits = Habits {
    name: "jambonz",
    protocol: "audio.jambonz.org",
    lead: Duration::from_millis(400),
    mark_every: Some(Duration::from_millis(200)),
    reorders: false,
    odd_bytes: false,
    max_message: 64 << 10,
};

/// One stream, of jambonz or of FreeSWITCH's modules, which it comes from.
#[derive(Debug)]
pub struct Listen {
    habits: &'static Habits,
    started: bool,
}

impl Listen {
    /// A stream of whoever behaves so.
    pub fn new(habits: &'static Habits) -> Self {
        Self { habits, started: false }
    }
}

/// The first message: whatever the one who began the stream wrote.
fn metadata(message: &Value) -> Result<Said, Bad> {
    let media = format("sampleRate", "L16", number(message.get("sampleRate")).or(Some(8_000)))?;
    let mut params = strings(Some(message));
    params.append(&mut strings(message.get("metadata")));
    params.append(&mut strings(message.get("customerData")));
    let call = text(message.get("callSid")).or(text(message.get("uuid")));
    let (from, to) = (text(message.get("from")), text(message.get("to")));
    let stream = call.clone().unwrap_or_default();
    Ok(Said::Start(Box::new(Start { stream, call, from, to, params, input: media, output: media, first: None })))
}

impl Dialect for Listen {
    fn habits(&self) -> &'static Habits {
        self.habits
    }

    fn read(&mut self, packet: &Packet) -> Result<Said, Bad> {
        let message = match packet {
            Packet::Binary(bytes) => return Ok(Said::Audio(Media::next(bytes.clone()))),
            Packet::Text(bytes) => object(bytes)?,
        };
        if !std::mem::replace(&mut self.started, true) {
            return metadata(&message);
        }
        let kind = message.get("event").or(message.get("type")).and_then(Value::as_str);
        Ok(match kind {
            Some("dtmf") => Said::Digit(key("dtmf", &text(message.get("dtmf")).unwrap_or_default())?),
            Some("mark") if message.pointer("/data/event").is_some_and(|event| event == "playout") => {
                text(message.pointer("/data/name")).map_or(Said::Nothing, Said::Played)
            }
            _ => Said::Nothing,
        })
    }

    fn audio(&mut self, frame: Bytes) -> Option<Packet> {
        Some(Packet::Binary(frame))
    }

    fn mark(&self, name: &str) -> Option<Packet> {
        Some(json!({"type": "mark", "data": {"name": name}}).into())
    }

    fn clear(&mut self) -> Option<Packet> {
        // Marks that are dropped come back as `cleared`, which says nothing to us.
        Some(json!({"type": "killAudio"}).into())
    }

    fn hang_up(&self) -> Option<Packet> {
        Some(json!({"type": "disconnect"}).into())
    }
}
