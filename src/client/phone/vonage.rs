//! Vonage Voice WebSockets (NCCO `connect` to a `websocket` endpoint).
//!
//! Source: Vonage's Voice WebSocket reference and pipecat 1.14, read 2026-08; tests/golden/phone/vonage_16k.jsonl. Audio is binary,
//! little-endian, and each message must be exactly 20 ms. It holds 3,072 of them, but 1,024 in older pages, so the lead stays below. The
//! NCCO's `headers` stand in the first message beside its own fields.
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Bad, Dialect, Habits, Media, Packet, Said, Start, format, key, object, shorten, strings, text};

static HABITS: Habits = Habits {
    name: "vonage",
    protocol: "",
    lead: Duration::from_secs(10),
    mark_every: Some(Duration::from_millis(200)),
    reorders: false,
    odd_bytes: false,
    max_message: 64 << 10,
};

/// One stream.
#[derive(Debug, Default)]
pub struct Vonage;

impl Vonage {
    fn connected(message: &Value) -> Result<Said, Bad> {
        let described = text(message.get("content-type")).unwrap_or_default();
        let (encoding, rate) = described.split_once(";rate=").unwrap_or((&described, "16000"));
        let rate = rate.trim().parse().map_err(|_| {
            let found = shorten(&described);
            Bad::new("content-type", format!("content-type `{found}`; allowed: audio/l16;rate=16000 and such"))
        });
        let media = format("content-type", encoding, Some(rate?))?;
        let params = strings(Some(message));
        let call = params.get("uuid").or(params.get("call_uuid")).cloned();
        let (from, to) = (params.get("from").cloned(), params.get("to").cloned());
        let stream = call.clone().unwrap_or_default();
        Ok(Said::Start(Box::new(Start { stream, call, from, to, params, input: media, output: media, first: None })))
    }
}

impl Dialect for Vonage {
    fn habits(&self) -> &'static Habits {
        &HABITS
    }

    fn read(&mut self, packet: &Packet) -> Result<Said, Bad> {
        let message = match packet {
            Packet::Binary(bytes) => return Ok(Said::Audio(Media::next(bytes.clone()))),
            Packet::Text(bytes) => object(bytes)?,
        };
        Ok(match message.get("event").and_then(Value::as_str) {
            Some("websocket:connected") => return Self::connected(&message),
            Some("websocket:dtmf") => {
                let digit = text(message.get("digit")).or(text(message.pointer("/dtmf/digit")));
                Said::Digit(key("digit", &digit.unwrap_or_default())?)
            }
            Some("websocket:notify") => match text(message.pointer("/payload/mark")) {
                Some(name) => Said::Played(name),
                None => Said::Nothing,
            },
            Some("websocket:disconnected") => Said::Stop(None),
            Some(_) => Said::Nothing,
            None => return Err(Bad::new("event", "a message without `event`".to_owned())),
        })
    }

    fn audio(&mut self, frame: Bytes) -> Option<Packet> {
        Some(Packet::Binary(frame))
    }

    fn mark(&self, name: &str) -> Option<Packet> {
        Some(json!({"action": "notify", "payload": {"mark": name}}).into())
    }

    fn clear(&mut self) -> Option<Packet> {
        Some(json!({"action": "clear"}).into())
    }
}
