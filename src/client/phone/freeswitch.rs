//! FreeSWITCH with `mod_audio_fork` or `mod_audio_stream`, as far as their builds play binary audio back.
//!
//! Source: drachtio-freeswitch-modules (2024-03) and amigniter/mod_audio_stream, read 2026-08. The stock `mod_audio_fork` and the open
//! edition of `mod_audio_stream` play nothing that comes back; forks of the first, and `mod_audio_stream` from 1.0.3 on, play binary L16.
//! docs/phone/freeswitch.md says which. There are no marks in all of them, so the clock says what was heard, and the lead is short.
use std::time::Duration;

use serde_json::{Value, json};

use super::{Bad, Dialect, Habits, Media, Packet, Said, jambonz, key, object, text};

static HABITS: Habits = Habits {
    name: "freeswitch",
    protocol: "audio.drachtio.org",
    lead: Duration::from_millis(120),
    mark_every: None,
    reorders: false,
    odd_bytes: false,
    max_message: 64 << 10,
};

/// One stream.
#[derive(Debug, Default)]
pub struct FreeSwitch {
    started: bool,
}

impl Dialect for FreeSwitch {
    fn habits(&self) -> &'static Habits {
        &HABITS
    }

    fn read(&mut self, packet: &Packet) -> Result<Said, Bad> {
        let message = match packet {
            Packet::Binary(bytes) => return Ok(Said::Audio(Media::next(bytes.clone()))),
            Packet::Text(bytes) => object(bytes)?,
        };
        if !std::mem::replace(&mut self.started, true) {
            return jambonz::metadata(&message);
        }
        Ok(match message.get("event").or(message.get("type")).and_then(Value::as_str) {
            Some("dtmf") => Said::Digit(key("dtmf", &text(message.get("dtmf")).unwrap_or_default())?),
            _ => Said::Nothing,
        })
    }

    fn audio(&mut self, frame: &[u8]) -> Option<Packet> {
        Some(Packet::Binary(frame.to_vec().into()))
    }

    fn clear(&mut self) -> Option<Packet> {
        Some(json!({"type": "killAudio"}).into())
    }

    fn hang_up(&self) -> Option<Packet> {
        Some(json!({"type": "disconnect"}).into())
    }
}
