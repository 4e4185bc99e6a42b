//! Asterisk's `chan_websocket`, with plain or JSON control messages.
//!
//! Source: Asterisk master of 2026-08-06, channels/chan_websocket.c; tests/golden/phone/asterisk_chan_websocket_*.jsonl. Asterisk plays by
//! its own clock from a queue of 1,000 frames: it says XOFF at 900 and XON below 800, and bytes beyond a multiple of its frame size are
//! dropped, so whole frames are sent. A mark is told when it reaches the head of the queue, about a frame before it is heard; a flush drops
//! marks without a word, and does not end a pause.
use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    Bad, Dialect, Habits, Media, Packet, Said, Start, audiosocket::RATES, format, key, number, object, shorten,
    strings, text,
};
use crate::audio::{Codec, Format};

/// The largest message that it takes, bytes.
const LARGEST: usize = 65_500;

static HABITS: Habits = Habits {
    name: "asterisk",
    protocol: "media",
    lead: Duration::from_secs(5),
    mark_every: Some(Duration::from_millis(200)),
    reorders: false,
    odd_bytes: false,
    max_message: 64 << 10,
};

/// One stream.
#[derive(Debug)]
pub struct Asterisk {
    /// Control messages are JSON: decided by the first that comes.
    json: bool,
    /// Bytes of its frames.
    frame: usize,
    silence: u8,
    /// The beginning of a frame.
    held: Vec<u8>,
}

impl Default for Asterisk {
    fn default() -> Self {
        Self { json: true, frame: 1, silence: 0, held: Vec::new() }
    }
}

/// `slin16` and such: linear, its rate in whole kHz (`slin44` is 44,100 Hz).
fn named(name: &str) -> Result<Format, Bad> {
    let rate = match name.strip_prefix("slin") {
        None => return format("format", name, None),
        Some("") => Some(8_000),
        Some(khz) => RATES.into_iter().skip(1).find(|rate| (rate / 1_000).to_string() == khz),
    };
    let format = rate.map(|rate| Format { codec: Codec::Pcm16, rate });
    format.ok_or_else(|| {
        let found = shorten(name);
        let kinds = "slin, slin12, slin16, slin24, slin32, slin44, slin48, slin96, slin192";
        Bad::new("format", format!("format `{found}` is not known; allowed: ulaw, alaw, {kinds}"))
    })
}

/// `NAME key:value key:value`, where the ids of two events follow bare.
fn plain(line: &str) -> Value {
    let mut words = line.split_whitespace();
    let mut fields = Map::new();
    fields.insert("event".to_owned(), words.next().unwrap_or_default().into());
    for word in words {
        match word.split_once(':') {
            Some((name, value)) if name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !name.is_empty() => {
                fields.insert(name.to_owned(), value.into());
            }
            _ => drop(fields.insert("correlation_id".to_owned(), word.into())),
        }
    }
    Value::Object(fields)
}

impl Asterisk {
    fn start(&mut self, message: &Value) -> Result<Said, Bad> {
        let media = named(&text(message.get("format")).unwrap_or_default())?;
        let frame = number(message.get("optimal_frame_size")).and_then(|size| usize::try_from(size).ok());
        let frame = frame.unwrap_or_else(|| media.bytes(Duration::from_millis(20)));
        if frame == 0 || frame > LARGEST {
            let found = format!("optimal_frame_size {frame}; allowed: 1 to {LARGEST} bytes");
            return Err(Bad::new("optimal_frame_size", found));
        }
        (self.frame, self.silence) = (frame, media.silence());
        let params: BTreeMap<String, String> = strings(message.get("channel_variables"));
        let call = text(message.get("channel_id"));
        let stream = text(message.get("connection_id")).unwrap_or_default();
        let (from, to) = (None, None);
        Ok(Said::Start(Box::new(Start { stream, call, from, to, params, input: media, output: media, first: None })))
    }

    fn command(&self, command: &'static str, id: Option<&str>) -> Packet {
        match (self.json, id) {
            (true, None) => json!({"command": command}).into(),
            (true, Some(id)) => json!({"command": command, "correlation_id": id}).into(),
            (false, None) => Packet::Text(Bytes::from_static(command.as_bytes())),
            (false, Some(id)) => Packet::Text(format!("{command} {id}").into()),
        }
    }
}

impl Dialect for Asterisk {
    fn habits(&self) -> &'static Habits {
        &HABITS
    }

    fn read(&mut self, packet: &Packet) -> Result<Said, Bad> {
        let bytes = match packet {
            Packet::Binary(bytes) => return Ok(Said::Audio(Media::next(bytes.clone()))),
            Packet::Text(bytes) => bytes,
        };
        let is_json = bytes.first() == Some(&b'{');
        let message = if is_json { object(bytes)? } else { plain(&String::from_utf8_lossy(bytes)) };
        Ok(match message.get("event").and_then(Value::as_str).unwrap_or_default() {
            "MEDIA_START" => {
                self.json = is_json;
                return self.start(&message);
            }
            "DTMF_END" => Said::Digit(key("digit", &text(message.get("digit")).unwrap_or_default())?),
            "MEDIA_MARK_PROCESSED" => text(message.get("correlation_id")).map_or(Said::Nothing, Said::Played),
            "MEDIA_XOFF" => Said::Full(true),
            "MEDIA_XON" | "QUEUE_DRAINED" => Said::Full(false),
            "ERROR" => {
                let what = shorten(&text(message.get("error_text")).unwrap_or_default());
                tracing::warn!(what, "Asterisk reports an error");
                Said::Nothing
            }
            "" => return Err(Bad::new("event", "a message without `event`".to_owned())),
            _ => Said::Nothing,
        })
    }

    fn audio(&mut self, frame: Bytes) -> Option<Packet> {
        if self.held.is_empty() && frame.len().is_multiple_of(self.frame) {
            return Some(Packet::Binary(frame));
        }
        self.held.extend_from_slice(&frame);
        let whole = self.held.len() / self.frame * self.frame;
        let rest = self.held.split_off(whole);
        let whole = std::mem::replace(&mut self.held, rest);
        (!whole.is_empty()).then(|| Packet::Binary(whole.into()))
    }

    fn tail(&mut self) -> Option<Packet> {
        let mut held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return None;
        }
        held.resize(held.len().next_multiple_of(self.frame), self.silence);
        Some(Packet::Binary(held.into()))
    }

    fn mark(&self, name: &str) -> Option<Packet> {
        Some(self.command("MARK_MEDIA", Some(name)))
    }

    fn clear(&mut self) -> Option<Packet> {
        self.held.clear();
        Some(self.command("FLUSH_MEDIA", None))
    }

    fn take(&self) -> Option<Packet> {
        Some(self.command("ANSWER", None))
    }

    fn hang_up(&self) -> Option<Packet> {
        Some(self.command("HANGUP", None))
    }
}
